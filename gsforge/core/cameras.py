"""Pinhole cameras in the OpenCV convention, and the view layouts that the data preparation uses."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import normalize

from gsforge.core.sampling import hammersley


@dataclass(frozen=True)
class Cameras:
    """Pinhole cameras of one image size.

    Attributes:
        world_to_camera: [..., C, 4, 4] rigid transforms, OpenCV axes (x right, y down, z forward).
        intrinsics: [..., C, 3, 3] in pixels.
        width: image width in pixels.
        height: image height in pixels.
    """

    world_to_camera: Tensor
    intrinsics: Tensor
    width: int
    height: int

    @property
    def count(self) -> int:
        """Number C of cameras for each scene."""
        return self.world_to_camera.shape[-3]

    @property
    def batch_shape(self) -> torch.Size:
        """Leading dimensions, one entry for each scene."""
        return self.world_to_camera.shape[:-3]

    @property
    def centers(self) -> Tensor:
        """[..., C, 3] camera positions in the world."""
        rotation, translation = self.world_to_camera[..., :3, :3], self.world_to_camera[..., :3, 3]
        return -(rotation.mT @ translation[..., None]).squeeze(-1)

    def map(self, function: Callable[[Tensor], Tensor]) -> "Cameras":
        """Apply a function to both matrices.

        Args:
            function: maps [..., C, 4, 4] and [..., C, 3, 3]; what it does to their batch dimensions must be the same.

        Returns:
            The cameras with its results.
        """
        return replace(self, world_to_camera=function(self.world_to_camera), intrinsics=function(self.intrinsics))

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "Cameras":
        """Move or cast both matrices.

        Args:
            device: where the tensors go; None leaves them where they are.
            dtype: their new type; None keeps it.

        Returns:
            The cameras with the moved or cast matrices.
        """
        return self.map(lambda tensor: tensor.to(device=device, dtype=dtype))

    def resized(self, width: int, height: int) -> "Cameras":
        """The same views at another image size; intrinsics scale with it.

        Args:
            width: new image width in pixels.
            height: new image height in pixels.

        Returns:
            Cameras with the same extrinsics.
        """
        scale = torch.tensor([width / self.width, height / self.height, 1.0]).to(self.intrinsics)
        return Cameras(self.world_to_camera, self.intrinsics * scale[:, None], width, height)

    def project(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Project world points into every camera, in the precision of the points whatever that of autocast.

        Args:
            points: [..., N, 3] with the cameras' batch dimensions.

        Returns:
            pixels: [..., C, N, 2], (x, y), pixel centres at half-integers; only meaningful where depth > 0.
            depth: [..., C, N] z in camera coordinates.
        """
        rotation, translation = self.world_to_camera[..., :3, :3], self.world_to_camera[..., :3, 3]
        with torch.autocast(points.device.type, enabled=False):
            in_camera = points[..., None, :, :] @ rotation.mT + translation[..., None, :]
            homogeneous = in_camera @ self.intrinsics.mT
        depth = in_camera[..., 2]
        return homogeneous[..., :2] / homogeneous[..., 2:], depth

    def rays(self, supersampling: int = 1) -> tuple[Tensor, Tensor]:
        """Rays through a regular grid of supersampling x supersampling positions in every pixel.

        Args:
            supersampling: samples along each side of a pixel.

        Returns:
            origins, directions: [..., C, height * s, width * s, 3] in the world; directions have unit length.
        """
        step = 1 / supersampling
        ys = (torch.arange(self.height * supersampling).to(self.intrinsics) + 0.5) * step
        xs = (torch.arange(self.width * supersampling).to(self.intrinsics) + 0.5) * step
        grid_y, grid_x = torch.meshgrid(ys, xs, indexing="ij")
        pixels = torch.stack([grid_x, grid_y, torch.ones_like(grid_x)], dim=-1)
        camera_to_world = torch.linalg.inv(self.intrinsics @ self.world_to_camera[..., :3, :3])
        directions = normalize(torch.einsum("...ij,hwj->...hwi", camera_to_world, pixels), dim=-1)
        origins = self.centers[..., None, None, :].expand_as(directions)
        return origins, directions


def look_at(eyes: Tensor, target: Tensor | None = None) -> Tensor:
    """World-to-camera matrices of cameras that look at a point, with world z up in the image.

    Args:
        eyes: [..., 3] camera positions.
        target: [..., 3] point looked at; the origin by default.

    Returns:
        [..., 4, 4] world-to-camera matrices. A camera that looks along z takes world y as its up direction.
    """
    target = torch.zeros_like(eyes) if target is None else target.expand_as(eyes)
    forward = normalize(target - eyes, dim=-1)
    up = torch.tensor([0.0, 0.0, 1.0]).to(eyes).expand_as(eyes)
    vertical = forward[..., 2:].abs() > 1 - 1e-6
    up = torch.where(vertical, torch.tensor([0.0, 1.0, 0.0]).to(eyes), up)
    right = normalize(torch.linalg.cross(forward, up), dim=-1)
    down = torch.linalg.cross(forward, right)
    rotation = torch.stack([right, down, forward], dim=-2)
    matrices = torch.eye(4).to(eyes).repeat(*eyes.shape[:-1], 1, 1)
    matrices[..., :3, :3] = rotation
    matrices[..., :3, 3] = -(rotation @ eyes[..., None]).squeeze(-1)
    return matrices


def intrinsics_from_fov(fov: float, width: int, height: int) -> Tensor:
    """Intrinsics of a camera with square pixels and a centred principal point.

    Args:
        fov: field of view across the longer image side, radians.
        width: image width in pixels.
        height: image height in pixels.

    Returns:
        [3, 3] intrinsics in pixels.
    """
    focal = max(width, height) / (2 * math.tan(fov / 2))
    return torch.tensor([[focal, 0.0, width / 2], [0.0, focal, height / 2], [0.0, 0.0, 1.0]])


def cameras_around(directions: Tensor, radius: float, fov: float, size: int) -> Cameras:
    """Square cameras on a sphere about the origin, looking inwards.

    Args:
        directions: [C, 3] unit vectors from the origin to the cameras.
        radius: distance of the cameras from the origin.
        fov: field of view, radians.
        size: image side in pixels.

    Returns:
        C cameras without batch dimension, on the device of `directions`.
    """
    intrinsics = intrinsics_from_fov(fov, size, size).to(directions).expand(len(directions), 3, 3)
    return Cameras(look_at(directions * radius), intrinsics, size, size)


def sphere_hammersley(count: int, offset: tuple[float, float] = (0.0, 0.0)) -> Tensor:
    """Well-spread unit vectors: a shifted 2D Hammersley set mapped to the sphere with equal area.

    Args:
        count: number of vectors.
        offset: shift of the set in [0, 1)^2, modulo 1; random offsets give different layouts for each object.

    Returns:
        [count, 3] unit vectors.
    """
    uv = (hammersley(count, 2) + torch.tensor(offset, dtype=torch.float64)) % 1.0
    z = 1 - 2 * uv[:, 0]
    azimuth = 2 * math.pi * uv[:, 1]
    ring = (1 - z * z).clamp_min(0).sqrt()
    return torch.stack([ring * azimuth.cos(), ring * azimuth.sin(), z], dim=-1).float()


def turntable(count: int, elevation: float = math.radians(20)) -> Tensor:
    """Unit vectors on a circle of constant elevation, for turntable renders.

    Args:
        count: number of vectors.
        elevation: angle above the xy-plane, radians.

    Returns:
        [count, 3] unit vectors.
    """
    azimuth = torch.arange(count) * (2 * math.pi / count)
    ring = math.cos(elevation)
    return torch.stack([ring * azimuth.cos(), ring * azimuth.sin(), torch.full((count,), math.sin(elevation))], dim=-1)
