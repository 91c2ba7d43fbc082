"""Draw the cameras of condition views, and render them."""

import math

import numpy as np
import torch
from torch import Tensor

from datamodules.prepare.mesh_types import TexturedMesh
from datamodules.prepare.raycast import Views, render_views
from gsforge.core.cameras import sphere_hammersley
from gsforge.core.object_camera import pinholes

_FIELDS_OF_VIEW = (10.0, 70.0)  # degrees
_ORTHOGRAPHIC_SHARE = 0.1
_BALL = math.sqrt(3) / 2  # radius of the ball about the unit cube


def draw_cameras(count: int, random: np.random.RandomState) -> Tensor:
    """Cameras all around, near and far, that see the unit cube as large as their image allows.

    The frustum touches the ball about the unit cube, of radius R = sqrt(3) / 2. So a field of view f needs the distance
    R / sin(f / 2), and shows the width 2 R / cos(f / 2) at the centre; f = 0 is the orthographic camera. Fields of view
    are uniform from 10 to 70 degrees, except that each camera is orthographic with probability 0.1. Directions are a
    spherical Hammersley set, shifted at random.

    Args:
        count: number of cameras N.
        random: generator of all draws.

    Returns:
        [N, 5] float64 camera numbers, see `datamodules.conditions`.

    Source:
        TRELLIS (arXiv 2412.01506): the distance by the ball. DeG (arXiv 2605.16355): 10 to 70 degrees, 10 %.
    """
    first, second = random.random_sample(2).tolist()
    directions = torch.nn.functional.normalize(sphere_hammersley(count, (first, second)).double(), dim=-1)
    half_angles = torch.from_numpy(np.radians(random.uniform(*_FIELDS_OF_VIEW, count)) / 2)
    orthographic = torch.from_numpy(random.random_sample(count) < _ORTHOGRAPHIC_SHARE)
    half_angles = torch.where(orthographic, 0.0, half_angles)
    return torch.cat([directions, half_angles.sin()[:, None] / _BALL, _BALL / half_angles.cos()[:, None]], dim=-1)


def render_conditions(mesh: TexturedMesh, cameras: Tensor, size: int, supersampling: int) -> Views:
    """Render condition views.

    Args:
        mesh: the object in the unit cube.
        cameras: [N, 5] float64 camera numbers.
        size: side of the images in pixels.
        supersampling: rays along each side of a pixel.

    Returns:
        N views; their depth is of no use where a camera is orthographic.
    """
    return render_views(mesh, pinholes(cameras, size), supersampling)
