"""Cameras: projection and rays undo each other, and the layouts look where they should."""

import math

import pytest
import torch
from torch import Tensor

from gsforge.core.cameras import (
    Cameras,
    cameras_around,
    intrinsics_from_fov,
    look_at,
    sphere_hammersley,
    turntable,
)

FOV = math.radians(40)


def oblique_cameras(batch: tuple[int, ...] = ()) -> Cameras:
    generator = torch.Generator().manual_seed(0)
    eyes = torch.nn.functional.normalize(torch.randn(*batch, 3, 3, generator=generator), dim=-1).double() * 2
    intrinsics = torch.tensor([[30.0, 0.4, 6.2], [0.0, 25.0, 3.1], [0.0, 0.0, 1.0]], dtype=torch.float64)
    return Cameras(look_at(eyes), intrinsics.expand(*batch, 3, 3, 3), width=11, height=7)


@pytest.mark.parametrize("batch", [(), (2,)])
@pytest.mark.parametrize("supersampling", [1, 3])
def test_points_on_a_ray_project_to_its_pixel(batch: tuple[int, ...], supersampling: int) -> None:
    cameras = oblique_cameras(batch)
    origins, directions = cameras.rays(supersampling)
    assert origins.shape == directions.shape == (*batch, 3, 7 * supersampling, 11 * supersampling, 3)
    torch.testing.assert_close(directions.norm(dim=-1), torch.ones_like(directions[..., 0]))
    ys, xs = torch.meshgrid(*((torch.arange(n * supersampling) + 0.5) / supersampling for n in (7, 11)), indexing="ij")
    expected = torch.stack([xs, ys], dim=-1).double()
    for view in range(3):
        points = (origins + 1.7 * directions)[..., view, :, :, :].flatten(-3, -2)
        pixels, depth = cameras.project(points)
        torch.testing.assert_close(pixels[..., view, :, :], expected.flatten(0, 1).expand(*batch, -1, 2))
        assert (depth[..., view, :] > 0).all()


def test_projection_of_a_hand_made_camera() -> None:
    intrinsics = torch.tensor([[[100.0, 0.0, 32.0], [0.0, 50.0, 24.0], [0.0, 0.0, 1.0]]])
    matrix = torch.eye(4)
    matrix[2, 3] = 2.0  # the world's origin stands 2 in front of the camera
    cameras = Cameras(matrix[None], intrinsics, width=64, height=48)
    pixels, depth = cameras.project(torch.tensor([[0.0, 0.0, 0.0], [0.2, -0.4, 2.0]]))
    torch.testing.assert_close(pixels, torch.tensor([[[32.0, 24.0], [37.0, 19.0]]]))
    torch.testing.assert_close(depth, torch.tensor([[2.0, 4.0]]))
    torch.testing.assert_close(cameras.centers, torch.tensor([[0.0, 0.0, -2.0]]))


def test_look_at_centres_the_target_and_keeps_z_up() -> None:
    eyes = torch.tensor([[2.0, 0.0, 0.5], [-1.0, 1.0, -0.8]])
    target = torch.tensor([0.1, 0.2, 0.3])
    matrices = look_at(eyes, target)
    rotations = matrices[:, :3, :3]
    torch.testing.assert_close(rotations @ rotations.mT, torch.eye(3).expand(2, 3, 3))
    torch.testing.assert_close(torch.linalg.det(rotations), torch.ones(2))
    cameras = Cameras(matrices, intrinsics_from_fov(FOV, 64, 64).expand(2, 3, 3), 64, 64)
    torch.testing.assert_close(cameras.centers, eyes)
    above = target + torch.tensor([0.0, 0.0, 0.1])
    pixels, depth = cameras.project(torch.stack([target, above]))
    torch.testing.assert_close(pixels[:, 0], torch.full((2, 2), 32.0))
    torch.testing.assert_close(depth[:, 0], (eyes - target).norm(dim=-1))
    torch.testing.assert_close(pixels[:, 1, 0], torch.full((2,), 32.0))  # straight up in the image
    assert (pixels[:, 1, 1] < 32).all()


@pytest.mark.parametrize("height", [3.0, -3.0])
def test_look_at_along_the_vertical_is_a_rotation(height: float) -> None:
    rotation = look_at(torch.tensor([0.0, 0.0, height]))[:3, :3]
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(3))
    torch.testing.assert_close(torch.linalg.det(rotation), torch.tensor(1.0))
    torch.testing.assert_close(rotation[1], torch.tensor([0.0, -1.0, 0.0]))  # world y is up


def test_field_of_view_spans_the_longer_side() -> None:
    intrinsics = intrinsics_from_fov(FOV, 200, 100)
    edge = torch.tensor([math.tan(FOV / 2), 0.0, 1.0])
    torch.testing.assert_close(intrinsics @ edge, torch.tensor([200.0, 50.0, 1.0]))


def test_resizing_scales_pixels_and_keeps_depth() -> None:
    cameras = oblique_cameras()
    points = torch.rand(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) - 0.5
    pixels, depth = cameras.project(points)
    resized = cameras.resized(22, 21)
    new_pixels, new_depth = resized.project(points)
    assert (resized.width, resized.height) == (22, 21)
    torch.testing.assert_close(new_pixels, pixels * torch.tensor([2.0, 3.0], dtype=torch.float64))
    torch.testing.assert_close(new_depth, depth)


def test_cameras_around_stand_on_the_sphere_and_see_the_origin() -> None:
    directions = sphere_hammersley(6, (0.3, 0.7))
    cameras = cameras_around(directions, 2.0, FOV, 32)
    assert (cameras.count, cameras.batch_shape) == (6, torch.Size([]))
    torch.testing.assert_close(cameras.centers, 2 * directions)
    pixels, depth = cameras.project(torch.zeros(1, 3))
    torch.testing.assert_close(pixels, torch.full((6, 1, 2), 16.0))
    torch.testing.assert_close(depth, torch.full((6, 1), 2.0))


@pytest.mark.parametrize("offset", [(0.0, 0.0), (0.37, 0.91)])
def test_sphere_hammersley_is_spread_by_area(offset: tuple[float, float]) -> None:
    directions = sphere_hammersley(256, offset).double()
    torch.testing.assert_close(directions.norm(dim=-1), torch.ones(256, dtype=torch.float64), rtol=0, atol=1e-6)
    # Equal-area patches of the sphere: 16 bands of z times 16 sectors of azimuth hold about one direction each.
    band = ((directions[:, 2] + 1) * 8).long().clamp_max(15)
    assert (torch.bincount(band, minlength=16) - 16).abs().max() <= 1
    # Moments of the uniform distribution on the sphere.
    torch.testing.assert_close(directions.mean(0), torch.zeros(3, dtype=torch.float64), rtol=0, atol=0.01)
    second = directions.T @ directions / 256
    torch.testing.assert_close(second, torch.eye(3, dtype=torch.float64) / 3, rtol=0, atol=0.01)


def test_offsets_give_other_layouts() -> None:
    assert (sphere_hammersley(8) - sphere_hammersley(8, (0.1, 0.2))).norm(dim=-1).min() > 0.1


def test_turntable_keeps_its_elevation_and_equal_steps() -> None:
    directions = turntable(5, elevation=0.4)
    torch.testing.assert_close(directions[:, 2], torch.full((5,), math.sin(0.4)))
    torch.testing.assert_close(directions.norm(dim=-1), torch.ones(5))
    azimuth = torch.atan2(directions[:, 1], directions[:, 0])
    step: Tensor = (azimuth.roll(-1) - azimuth) % (2 * math.pi)
    torch.testing.assert_close(step, torch.full((5,), 2 * math.pi / 5))


def test_projection_is_exact_under_autocast() -> None:
    cameras = oblique_cameras().to(dtype=torch.float32)
    points = torch.rand(20, 3, generator=torch.Generator().manual_seed(0)) - 0.5
    exact = cameras.project(points)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = cameras.project(points)
    assert all(torch.equal(a, b) for a, b in zip(exact, rounded, strict=True))
