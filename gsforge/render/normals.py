"""Normals of Gaussians: flat ones are small pieces of a surface."""

import torch
from torch import Tensor

from gsforge.core.cameras import Cameras
from gsforge.core.gaussians import Gaussians
from gsforge.core.rotations import quaternion_to_matrix


def gaussian_normals(gaussians: Gaussians, cameras: Cameras) -> Tensor:
    """The axis of the smallest scale of each Gaussian, turned to each camera.

    Args:
        gaussians: batch shape [...]; of equal smallest scales the first counts.
        cameras: batch shape [...].

    Returns:
        [..., C, N, 3] unit vectors in the world frame, differentiable to the quaternions. Which axis, and which of its
        two directions, are choices without gradient.
    """
    axes = quaternion_to_matrix(gaussians.quats)  # [..., N, 3, 3], one axis in each column
    shortest = gaussians.scales.argmin(-1)[..., None, None].expand(*axes.shape[:-1], 1)
    normals = axes.gather(-1, shortest).squeeze(-1)[..., None, :, :]
    to_camera = (cameras.centers[..., None, :] - gaussians.means[..., None, :, :]).detach()
    return torch.where((normals.detach() * to_camera).sum(-1, keepdim=True) >= 0, normals, -normals)
