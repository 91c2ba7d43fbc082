"""The set of Gaussians: padding and rotation do not change what is seen."""

import math

import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from gsforge.core.cameras import Cameras, cameras_around, turntable
from gsforge.core.gaussians import Gaussians
from gsforge.render import rasterize


def scene(count: int, seed: int, degree: int = 0) -> Gaussians:
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    return Gaussians(
        means=uniform(count, 3) - 0.5,
        quats=torch.nn.functional.normalize(uniform(count, 4) - 0.5, dim=-1),
        scales=0.02 + 0.1 * uniform(count, 3),
        opacities=uniform(count),
        sh=uniform(count, (degree + 1) ** 2, 3) - 0.5,
    )


def views() -> Cameras:
    return cameras_around(turntable(2), 2.0, math.radians(40), 16).to(dtype=torch.float64)


def draw(gaussians: Gaussians, cameras: Cameras) -> Tensor:
    return rasterize(gaussians, cameras, backend="reference").rgb


def test_stack_pads_with_what_is_not_seen() -> None:
    scenes = [scene(7, seed=0), scene(3, seed=1)]
    stacked = Gaussians.stack(scenes)
    assert (stacked.batch_shape, stacked.count, stacked.sh_degree) == (torch.Size([2]), 7, 0)
    cameras = views()
    together = draw(stacked, cameras.map(lambda matrix: matrix.expand(2, *matrix.shape)))
    for single, image in zip(scenes, together, strict=True):
        assert image.max() > 0.1
        torch.testing.assert_close(image, draw(single, cameras), rtol=0, atol=1e-12)
    torch.testing.assert_close(stacked.quats.norm(dim=-1), torch.ones(2, 7, dtype=torch.float64))
    for name in ("means", "scales", "opacities", "sh"):
        assert not getattr(stacked[1], name)[3:].any()


@pytest.mark.parametrize("degree", [0, 3])
def test_turning_the_scene_with_the_camera_gives_the_same_image(degree: int) -> None:
    gaussians, cameras = scene(12, seed=2, degree=degree), views()
    rotation = torch.from_numpy(Rotation.from_rotvec([0.4, -1.1, 0.7]).as_matrix())
    turn = torch.eye(4, dtype=torch.float64)
    turn[:3, :3] = rotation.T
    turned = Cameras(cameras.world_to_camera @ turn, cameras.intrinsics, cameras.width, cameras.height)
    image = draw(gaussians, cameras)
    torch.testing.assert_close(draw(gaussians.rotated(rotation), turned), image, rtol=0, atol=1e-10)
    assert (draw(gaussians.rotated(rotation), cameras) - image).abs().max() > 0.05


def test_indexing_selects_scenes_and_refuses_a_single_one() -> None:
    stacked = Gaussians.stack([scene(2, seed=0), scene(2, seed=1), scene(2, seed=2)])
    assert torch.equal(stacked[1].means, scene(2, seed=1).means)
    assert stacked[1:].batch_shape == (2,)
    with pytest.raises(IndexError, match="single scene"):
        stacked[0][0]


def test_casts_and_detaches_every_attribute() -> None:
    gaussians = scene(2, seed=0).map(lambda tensor: tensor.clone().requires_grad_())
    changed = gaussians.detach().to(dtype=torch.float32)
    for name in ("means", "quats", "scales", "opacities", "sh"):
        assert getattr(gaussians, name).requires_grad
        assert not getattr(changed, name).requires_grad
        assert getattr(changed, name).dtype == torch.float32
