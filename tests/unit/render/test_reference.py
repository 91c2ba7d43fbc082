"""The reference renderer against a dense loop over all Gaussians and pixels, its edge cases and its gradients."""

import math
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from gsforge.core.cameras import Cameras, cameras_around, sphere_hammersley
from gsforge.core.gaussians import Gaussians
from gsforge.core.sh import sh_basis
from gsforge.render import RenderOutput, RenderSettings, rasterize


def random_scene(
    batch: tuple[int, ...] = (), count: int = 60, degree: int = 1, size: float = 0.15, seed: int = 0
) -> Gaussians:
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*batch, *shape, generator=generator, dtype=torch.float64)

    return Gaussians(
        means=uniform(count, 3) - 0.5,
        quats=normalize(uniform(count, 4) - 0.5, dim=-1),
        scales=size * (0.1 + uniform(count, 3)),
        opacities=uniform(count),
        sh=uniform(count, (degree + 1) ** 2, 3) - 0.5,
    )


def two_cameras(batch: tuple[int, ...] = (), width: int = 21, height: int = 14) -> Cameras:
    """Views of a scene at the origin with different focal lengths and an off-centre principal point."""
    extrinsics = cameras_around(sphere_hammersley(2, (0.3, 0.1)).double(), 1.3, 0.8, 16).world_to_camera
    intrinsics = torch.tensor([[24.0, 0, 8.3], [0, 19.0, 9.1], [0, 0, 1]], dtype=torch.float64).expand(2, 3, 3)
    return Cameras(extrinsics.expand(*batch, 2, 4, 4), intrinsics.expand(*batch, 2, 3, 3), width, height)


def draw_densely(
    scene: Gaussians, cameras: Cameras, view: int, background: Tensor, features: Tensor, settings: RenderSettings
) -> RenderOutput:
    """One view of one scene, from the formulas, one Gaussian after the other on all pixels."""
    matrix, (fx, _, cx), (_, fy, cy) = cameras.world_to_camera[view], *cameras.intrinsics[view][:2].tolist()
    rotation, translation = matrix[:3, :3], matrix[:3, 3]
    ys, xs = torch.meshgrid(
        torch.arange(cameras.height).double() + 0.5, torch.arange(cameras.width).double() + 0.5, indexing="ij"
    )
    transmittance, stopped = torch.ones_like(xs), torch.zeros_like(xs, dtype=torch.bool)
    image = torch.zeros(3 + 1 + features.shape[-1], *xs.shape, dtype=torch.float64)
    in_camera = scene.means @ rotation.T + translation
    for index in in_camera[:, 2].argsort(stable=True).tolist():
        x, y, z = in_camera[index].tolist()
        if not settings.near <= z <= settings.far:
            continue
        w, i, j, k = scene.quats[index].tolist()
        turn = torch.tensor(
            [
                [1 - 2 * (j * j + k * k), 2 * (i * j - w * k), 2 * (i * k + w * j)],
                [2 * (i * j + w * k), 1 - 2 * (i * i + k * k), 2 * (j * k - w * i)],
                [2 * (i * k - w * j), 2 * (j * k + w * i), 1 - 2 * (i * i + j * j)],
            ],
            dtype=torch.float64,
        )
        covariance = rotation @ turn @ scene.scales[index].square().diag() @ turn.T @ rotation.T
        margin_x, margin_y = 0.15 * cameras.width / fx, 0.15 * cameras.height / fy
        tx = z * min(max(x / z, -cx / fx - margin_x), (cameras.width - cx) / fx + margin_x)
        ty = z * min(max(y / z, -cy / fy - margin_y), (cameras.height - cy) / fy + margin_y)
        jacobian = torch.tensor([[fx / z, 0, -fx * tx / z**2], [0, fy / z, -fy * ty / z**2]], dtype=torch.float64)
        sharp = jacobian @ covariance @ jacobian.T
        blurred = sharp + settings.eps2d * torch.eye(2, dtype=torch.float64)
        opacity = scene.opacities[index]
        if settings.mode == "antialiased":
            opacity = opacity * (sharp.det() / blurred.det()).clamp_min(0).sqrt()
        if opacity < 1 / 255:
            continue
        extent = min(3.33, math.sqrt(2 * math.log(255 * opacity)))
        if math.ceil(extent * math.sqrt(blurred.diagonal().max())) <= settings.radius_clip:
            continue
        delta = torch.stack([xs - (fx * x / z + cx), ys - (fy * y / z + cy)], dim=-1)
        sigma = 0.5 * torch.einsum("hwi,ij,hwj->hw", delta, blurred.inverse(), delta)
        alpha = (opacity * torch.exp(-sigma)).clamp_max(0.999)
        alpha = torch.where(alpha < 1 / 255, 0.0, alpha)
        stopped |= (alpha > 0) & (transmittance * (1 - alpha) <= settings.transmittance_stop)
        alpha = torch.where(stopped, 0.0, alpha)
        direction = scene.means[index] - cameras.centers[view]
        colour = (0.5 + sh_basis(direction, scene.sh_degree) @ scene.sh[index]).clamp_min(0)
        values = torch.cat([colour, in_camera[index, 2:], features[index]])
        image += values[:, None, None] * alpha * transmittance
        transmittance = transmittance * (1 - alpha)
    return RenderOutput(
        rgb=image[:3] + transmittance * background[:, None, None],
        alpha=1 - transmittance[None],
        depth=image[3:4],
        features=image[4:],
    )


def assert_same(actual: RenderOutput, expected: RenderOutput, view: int | tuple[int, ...], tolerance: float) -> None:
    for name in ("rgb", "alpha", "depth", "features"):
        drawn, oracle = getattr(actual, name)[view], getattr(expected, name)
        label = partial("{}: {}".format, name)
        torch.testing.assert_close(drawn, oracle.to(drawn), atol=tolerance, rtol=0, msg=label)


@pytest.mark.parametrize("mode", ["classic", "antialiased"])
@pytest.mark.parametrize("size", [0.01, 0.15, 1.0], ids=["below a pixel", "medium", "beyond the image"])
def test_images_equal_the_dense_loop(mode: str, size: float) -> None:
    scene, cameras = random_scene(size=size, degree=3), two_cameras()
    features = torch.rand(scene.count, 5, dtype=torch.float64)
    backgrounds = torch.rand(2, 3, dtype=torch.float64)
    settings = RenderSettings(mode=mode, eps2d=0.1 if mode == "antialiased" else 0.3)
    drawn = rasterize(
        scene, cameras, backgrounds=backgrounds, features=features, settings=settings, backend="reference"
    )
    for view in range(2):
        oracle = draw_densely(scene, cameras, view, backgrounds[view], features, settings)
        assert oracle.alpha.max() > 0.05, "the comparison needs something to compare"
        assert_same(drawn, oracle, view, 1e-10)
