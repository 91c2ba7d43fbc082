"""The scenes that are drawn: Gaussians on a torus, of the same size in pixels at every image resolution."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from gsforge.core.cameras import Cameras, cameras_around
from gsforge.core.gaussians import Gaussians
from gsforge.core.rotations import matrix_to_quaternion
from gsforge.core.sh import rgb_to_sh_dc

MAJOR, MINOR = 1.0, 0.42  # radii of the torus, world units
FOV = math.radians(50)
DISTANCE, ELEVATION = 3.4, math.radians(35)
SIGMA = (0.3, 3.0)  # standard deviations on the image along the surface, pixels
FLATNESS = 0.3  # thickness over extent


@dataclass(frozen=True)
class Cell:
    """What is drawn.

    Attributes:
        count: number of Gaussians.
        size: image side in pixels.
        degree: of the spherical harmonics.
    """

    count: int
    size: int
    degree: int

    def __str__(self) -> str:
        count = f"{self.count // 1000}k" if self.count % 1000 == 0 else str(self.count)
        return f"{count} {self.size}² SH{self.degree}"


@dataclass(frozen=True)
class Scene:
    """Gaussians, one view of them, and the image that the loss compares with.

    Attributes:
        gaussians: one scene without batch dimension; its tensors are leaves that require gradients.
        cameras: one view.
        target: [3, H, W] smooth image.
    """

    gaussians: Gaussians
    cameras: Cameras
    target: Tensor


def make_scene(cell: Cell, seed: int = 0) -> Scene:
    """Scatter Gaussians over a torus that fills the image, seen obliquely.

    Args:
        cell: number of Gaussians, image size and degree.
        seed: of the random numbers.

    Returns:
        The scene, float32 on the CPU.
    """
    generator = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(cell.count, *shape, generator=generator)

    direction = torch.tensor([[math.cos(ELEVATION), 0.0, math.sin(ELEVATION)]])
    cameras = cameras_around(direction, DISTANCE, FOV, cell.size)
    means, frames = _torus(*(uniform(0, 2 * math.pi) for _ in range(3)))
    depth = cameras.project(means)[1][0]
    pixel = depth / cameras.intrinsics[0, 0, 0]  # size of a pixel at the Gaussian, world units
    sigma = uniform(math.log(SIGMA[0]), math.log(SIGMA[1]), 3).exp() * torch.tensor([1.0, 1.0, FLATNESS])
    sh = 0.05 * torch.randn(cell.count, (cell.degree + 1) ** 2, 3, generator=generator)
    sh[:, :1] = rgb_to_sh_dc(uniform(0.2, 0.8, 3))
    gaussians = Gaussians(
        means=means,
        quats=normalize(matrix_to_quaternion(frames), dim=-1),
        scales=sigma * pixel[:, None],
        opacities=uniform(0.1, 0.9),
        sh=sh,
    )
    return Scene(gaussians.map(lambda tensor: tensor.contiguous().requires_grad_()), cameras, _waves(cell.size))


def _torus(around: Tensor, across: Tensor, turn: Tensor) -> tuple[Tensor, Tensor]:
    """Points [N, 3] and frames [N, 3, 3] at two angles; the third turns the frame, whose last column is the normal."""
    zero = torch.zeros_like(around)
    outward = torch.stack([around.cos(), around.sin(), zero], dim=-1)
    along = torch.stack([-around.sin(), around.cos(), zero], dim=-1)
    up = torch.tensor([0.0, 0.0, 1.0]).expand_as(outward)
    normal = across.cos()[:, None] * outward + across.sin()[:, None] * up
    side = torch.linalg.cross(normal, along)
    cosine, sine = turn.cos()[:, None], turn.sin()[:, None]
    frames = torch.stack([cosine * along + sine * side, cosine * side - sine * along, normal], dim=-1)
    return MAJOR * outward + MINOR * normal, frames


def _waves(size: int) -> Tensor:
    """[3, size, size] colours in [0, 1] that vary slowly."""
    x = (torch.arange(size) + 0.5) / size
    waves = [
        torch.sin(2 * math.pi * (a * x[None, :] + b * x[:, None])) for a, b in ((1.0, 0.5), (0.5, -1.0), (1.5, 1.0))
    ]
    return 0.5 + 0.5 * torch.stack(waves)
