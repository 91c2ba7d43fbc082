"""Normals of Gaussians and their images."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from gsforge.core.cameras import Cameras, cameras_around, sphere_hammersley
from gsforge.core.gaussians import Gaussians
from gsforge.core.rotations import quaternion_to_matrix
from gsforge.render import rasterize
from gsforge.render.normals import gaussian_normals


def camera_at(*eyes: tuple[float, float, float]) -> Cameras:
    """Cameras that look at the origin from the given places, one pixel each."""
    directions = torch.tensor(eyes, dtype=torch.float64)
    return cameras_around(normalize(directions, dim=-1), float(directions[0].norm()), 0.2, 1)


def discs(quats: Tensor, flat_axis: int = 2, opacities: Tensor | None = None) -> Gaussians:
    """Wide flat Gaussians around the origin, of a colour that depends on nothing."""
    count = len(quats)
    scales = torch.full((count, 3), 0.5, dtype=torch.float64)
    scales[:, flat_axis] = 0.01
    return Gaussians(
        means=torch.zeros(count, 3, dtype=torch.float64),
        quats=quats,
        scales=scales,
        opacities=torch.full((count,), 0.8, dtype=torch.float64) if opacities is None else opacities,
        sh=torch.zeros(count, 1, 3, dtype=torch.float64),
    )


IDENTITY = torch.tensor([[1.0, 0, 0, 0]], dtype=torch.float64)


@pytest.mark.parametrize("flat_axis", [0, 1, 2])
def test_the_normal_is_the_axis_of_the_smallest_scale(flat_axis: int) -> None:
    quats = normalize(torch.randn(50, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64), dim=-1)
    cameras = cameras_around(sphere_hammersley(4).double(), 2.0, 0.5, 8)
    normals = gaussian_normals(discs(quats, flat_axis), cameras)
    axis = quaternion_to_matrix(quats)[:, :, flat_axis]
    assert normals.shape == (4, 50, 3)
    torch.testing.assert_close((normals * axis).sum(-1).abs(), torch.ones(4, 50, dtype=torch.float64))


def test_the_normal_faces_each_camera() -> None:
    normals = gaussian_normals(discs(IDENTITY), camera_at((0.1, 0, 2), (0.1, 0, -2)))
    assert normals[:, 0].tolist() == [[0, 0, 1], [0, 0, -1]]


def test_what_counts_is_the_side_of_the_gaussian_not_of_the_image() -> None:
    # A disc in the plane z = 0 beside the axis of a camera that looks along z, and one above the camera.
    scene = discs(IDENTITY.expand(2, 4))
    scene.means[0] = torch.tensor([5.0, 0, 1.9])
    scene.means[1] = torch.tensor([5.0, 0, 2.1])
    normals = gaussian_normals(scene, camera_at((0, 0, 2)))
    assert normals[0].tolist() == [[0, 0, 1], [0, 0, -1]]


def test_normals_are_composited_like_colours() -> None:
    # Two discs behind one another, seen face on by a camera above: 0.8 of the first and 0.8 * 0.2 of the second, which
    # is turned by 60 degrees about x.
    quats = torch.tensor([[1.0, 0, 0, 0], [0.75**0.5, 0.5, 0, 0]], dtype=torch.float64)
    scene, cameras = discs(quats), camera_at((0, 0, 2))
    scene.means[1, 2] = -0.5
    features = torch.tensor([[1.0, 2.0], [3.0, 5.0]], dtype=torch.float64)
    drawn = rasterize(scene, cameras, features=features, normals=True, backend="reference")
    first, second = torch.tensor([0, 0, 1.0]), torch.tensor([0, -(0.75**0.5), 0.5])
    assert drawn.normals is not None
    assert drawn.features is not None
    torch.testing.assert_close(drawn.normals[0, :, 0, 0], (0.8 * first + 0.16 * second).double(), rtol=0, atol=1e-4)
    torch.testing.assert_close(drawn.features[0, :, 0, 0].tolist(), [0.8 + 0.48, 1.6 + 0.8], rtol=0, atol=1e-4)
    only = rasterize(scene, cameras, normals=True, backend="reference")
    assert only.features is None
    assert torch.equal(only.normals, drawn.normals)
    assert rasterize(scene, cameras, backend="reference").normals is None


def test_gradients_turn_the_gaussians() -> None:
    scene = discs(normalize(torch.tensor([[1.0, 0.2, -0.1, 0.3]], dtype=torch.float64), dim=-1))
    cameras = camera_at((0, 0, 2), (1.5, 1, -0.5))

    def normals(quats: Tensor) -> Tensor:
        return gaussian_normals(Gaussians(scene.means, quats, scene.scales, scene.opacities, scene.sh), cameras)

    assert torch.autograd.gradcheck(normals, scene.quats.clone().requires_grad_())


def test_gradients_reach_the_quaternions_through_the_image() -> None:
    scene, cameras = discs(IDENTITY), camera_at((0, 0, 2))
    leaves = scene.map(lambda tensor: tensor.clone().requires_grad_())
    drawn = rasterize(leaves, cameras, normals=True, backend="reference")
    assert drawn.normals is not None
    drawn.normals[0, 1].sum().backward()  # towards y: a turn about -x
    assert leaves.quats.grad is not None
    assert leaves.quats.grad[0, 1] == pytest.approx(-2 * 0.8, abs=1e-3)
    assert leaves.quats.grad[0, 2:].abs().max() < 1e-6
