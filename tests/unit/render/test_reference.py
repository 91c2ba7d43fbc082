"""The reference renderer against a dense loop over all Gaussians and pixels, its edge cases and its gradients."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from gsforge.core.cameras import Cameras, cameras_around, sphere_hammersley
from gsforge.core.gaussians import Gaussians
from gsforge.core.sh import rgb_to_sh_dc, sh_basis
from gsforge.render import RenderOutput, RenderSettings, pairs, rasterize, reference

draw = partial(rasterize, backend="reference")


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
    drawn = draw(scene, cameras, backgrounds=backgrounds, features=features, settings=settings)
    for view in range(2):
        oracle = draw_densely(scene, cameras, view, backgrounds[view], features, settings)
        assert oracle.alpha.max() > 0.05, "the comparison needs something to compare"
        assert_same(drawn, oracle, view, 1e-10)


def test_float32_draws_the_same_images() -> None:
    scene, cameras = random_scene(count=300), two_cameras()
    exact = draw(scene, cameras)
    drawn = draw(scene.to(dtype=torch.float32), cameras.to(dtype=torch.float32))
    assert drawn.rgb.dtype == torch.float32
    error = (drawn.rgb - exact.rgb).abs()
    assert error.mean() < 1e-6
    assert error.max() < 1 / 255, "more than one Gaussian at the threshold"


@pytest.mark.parametrize("batch", [(3,), (2, 2)])
def test_batches_equal_scenes_drawn_one_by_one(batch: tuple[int, ...]) -> None:
    scenes, cameras = random_scene(batch), two_cameras(batch)
    backgrounds = torch.rand(*batch, 2, 3, dtype=torch.float64)
    features = torch.rand(*batch, scenes.count, 2, dtype=torch.float64)
    together = draw(scenes, cameras, backgrounds=backgrounds, features=features)
    assert together.rgb.shape == (*batch, 2, 3, 14, 21)
    assert together.features is not None
    assert together.features.shape == (*batch, 2, 2, 14, 21)
    for index in torch.cartesian_prod(*(torch.arange(size) for size in batch)).reshape(-1, len(batch)).tolist():
        at = tuple(index)
        alone = draw(
            scenes.map(lambda tensor, at=at: tensor[at]),
            two_cameras(),
            backgrounds=backgrounds[at],
            features=features[at],
        )
        assert_same(together, alone, at, 1e-10)


def test_bounds_of_memory_do_not_change_the_images(monkeypatch: pytest.MonkeyPatch) -> None:
    scene, cameras = random_scene((2,)), two_cameras((2,))
    features = torch.rand(2, scene.count, 2, dtype=torch.float64)
    whole = draw(scene, cameras, features=features)
    monkeypatch.setattr(pairs, "_PAIRS_AT_ONCE", 50)
    monkeypatch.setattr(reference, "_SPLATS_AT_ONCE", 10)
    composited, composite = [], reference._composite

    def counted(images: Tensor, drawn: pairs.Pairs, *rest: Tensor) -> None:
        composited.append(len(drawn.splat))
        composite(images, drawn, *rest)

    monkeypatch.setattr(reference, "_composite", counted)
    with torch.no_grad():
        parts = draw(scene, cameras, features=features)
    assert len(composited) > 20
    assert max(composited) <= 50 + scene.count * cameras.width
    for name in ("rgb", "alpha", "depth", "features"):
        torch.testing.assert_close(getattr(parts, name), getattr(whole, name), rtol=0, atol=1e-10)


def on_the_axis(depths: list[float], opacities: list[float], scale: float = 0.5) -> tuple[Gaussians, Cameras]:
    """Gaussians behind one another in the middle of a 1 x 1 image; number i has the colour i + 1 on all channels."""
    count = len(depths)
    scene = Gaussians(
        means=torch.tensor([[0.0, 0.0, depth] for depth in depths], dtype=torch.float64).reshape(count, 3),
        quats=torch.tensor([1.0, 0, 0, 0], dtype=torch.float64).repeat(count, 1),
        scales=torch.full((count, 3), scale, dtype=torch.float64),
        opacities=torch.tensor(opacities, dtype=torch.float64),
        sh=rgb_to_sh_dc(torch.arange(1.0, count + 1, dtype=torch.float64)[:, None].expand(count, 3)),
    )
    intrinsics = torch.tensor([[[4.0, 0, 0.5], [0, 4.0, 0.5], [0, 0, 1]]], dtype=torch.float64)
    return scene, Cameras(torch.eye(4, dtype=torch.float64)[None], intrinsics, 1, 1)


def middle(scene: Gaussians, cameras: Cameras, **settings: float) -> tuple[float, float, float]:
    drawn = draw(scene, cameras, settings=RenderSettings(**settings))  # type: ignore[arg-type]
    return drawn.rgb[0, 0].item(), drawn.alpha.item(), drawn.depth.item()


def test_the_nearer_gaussian_is_in_front() -> None:
    for depths in ([2.0, 1.0], [1.0, 2.0]):
        colour, alpha, depth = middle(*on_the_axis(depths, [0.5, 0.5]))
        near, far = depths.index(1.0) + 1, depths.index(2.0) + 1
        assert colour == pytest.approx(0.5 * near + 0.25 * far)
        assert alpha == pytest.approx(0.75)
        assert depth == pytest.approx(0.5 * 1 + 0.25 * 2)


def test_gaussians_of_one_depth_keep_their_order() -> None:
    colour, _, _ = middle(*on_the_axis([1.0] * 4, [0.5] * 4))
    assert colour == pytest.approx(1 / 2 + 2 / 4 + 3 / 8 + 4 / 16)


def test_transmittance_stop_ends_the_pixel() -> None:
    # The second Gaussian would bring the transmittance to 2.5e-5; the third alone would not, but lies behind.
    scene, cameras = on_the_axis([1.0, 2.0, 3.0], [0.995, 0.995, 0.1])
    assert middle(scene, cameras)[1] == pytest.approx(0.995, abs=1e-12)
    assert middle(scene, cameras, transmittance_stop=0.0)[1] == pytest.approx(1 - 0.005**2 * 0.9, abs=1e-12)


def test_alpha_has_a_ceiling_and_a_threshold() -> None:
    assert middle(*on_the_axis([1.0], [1.0]))[1] == pytest.approx(0.999)
    assert middle(*on_the_axis([1.0], [0.9 / 255]))[1] == 0
    assert middle(*on_the_axis([1.0], [1.1 / 255]))[1] == pytest.approx(1.1 / 255)


@pytest.mark.parametrize(
    ("settings", "seen"),
    [
        ({}, True),
        ({"near": 1.5}, False),
        ({"far": 0.5}, False),
        ({"radius_clip": 7.0}, False),  # sigma 2.07 px, opacity 0.9: radius 6.86 px, rounded up
        ({"radius_clip": 6.0}, True),
    ],
)
def test_what_is_culled(settings: dict[str, float], seen: bool) -> None:
    alpha = middle(*on_the_axis([1.0], [0.9]), **settings)[1]
    assert alpha == pytest.approx(0.9 if seen else 0)


def test_nothing_to_draw_gives_the_background() -> None:
    scene, cameras = on_the_axis([1.0, -1.0], [0.0, 0.9])
    backgrounds = torch.tensor([[0.2, 0.4, 0.6]], dtype=torch.float64, requires_grad=True)
    for nothing in (scene, on_the_axis([], [])[0]):
        leaves = nothing.map(lambda tensor: tensor.clone().requires_grad_())
        drawn = draw(leaves, cameras, backgrounds=backgrounds)
        torch.testing.assert_close(drawn.rgb[0, :, 0, 0], backgrounds[0])
        assert drawn.alpha.item() == drawn.depth.item() == drawn.expected_depth.item() == 0
        (drawn.rgb.sum() + drawn.alpha.sum()).backward()
        assert leaves.means.grad is not None
        assert not leaves.means.grad.any()


@pytest.mark.parametrize("mode", ["classic", "antialiased"])
def test_gradients_are_finite_for_degenerate_gaussians(mode: str) -> None:
    scene, cameras = random_scene(count=8, size=0.3), two_cameras()
    scene.quats[0] = torch.tensor([0.0, 0.0, 0.0, 1.0])
    scene.opacities[1] = 0
    scene.opacities[2] = 1
    scene.scales[3] = 0
    scene.scales[4] = 1e6
    scene.scales[5, 1:] = 0
    scene.means[6] = cameras.centers[0]
    scene.means[7] = 2 * cameras.centers[0]  # behind the first camera
    for dtype in (torch.float64, torch.float32):
        leaves = scene.to(dtype=dtype).map(lambda tensor: tensor.detach().clone().requires_grad_())
        views = cameras.to(dtype=dtype).map(lambda tensor: tensor.detach().clone().requires_grad_())
        drawn = draw(leaves, views, settings=RenderSettings(mode=mode))
        assert drawn.alpha.max() > 0.5
        (drawn.rgb.square().sum() + drawn.alpha.sum() + drawn.expected_depth.sum()).backward()
        for name in ("means", "quats", "scales", "opacities", "sh"):
            assert bool(getattr(leaves, name).grad.isfinite().all()), name
        for matrices in (views.world_to_camera, views.intrinsics):
            assert matrices.grad is not None
            assert bool(matrices.grad.isfinite().all())


@pytest.mark.parametrize("mode", ["classic", "antialiased"])
def test_gradients_equal_finite_differences(mode: str) -> None:
    scene, cameras = random_scene(count=5, degree=1, size=0.3, seed=3), two_cameras(width=5, height=4)
    cameras = replace(cameras, intrinsics=cameras.intrinsics * torch.tensor([0.25, 0.3, 1.0])[:, None].double())
    inputs = [
        scene.means, scene.quats, scene.scales, scene.opacities, scene.sh, cameras.world_to_camera, cameras.intrinsics,
        torch.rand(2, 3, dtype=torch.float64), torch.rand(scene.count, 2, dtype=torch.float64),
    ]  # fmt: skip

    def images(*tensors: Tensor) -> tuple[Tensor, ...]:
        views = Cameras(tensors[5], tensors[6], cameras.width, cameras.height)
        drawn = draw(
            Gaussians(*tensors[:5]), views, backgrounds=tensors[7], features=tensors[8],
            settings=RenderSettings(mode=mode),
        )  # fmt: skip
        assert drawn.features is not None
        return drawn.rgb, drawn.alpha, drawn.depth, drawn.features

    assert images(*inputs)[1].mean() > 0.1
    assert torch.autograd.gradcheck(images, [tensor.clone().requires_grad_() for tensor in inputs], atol=1e-6)


def test_autocast_changes_nothing() -> None:
    scene, cameras = random_scene().to(dtype=torch.float32), two_cameras().to(dtype=torch.float32)
    exact = draw(scene, cameras)
    with torch.autocast("cpu", torch.bfloat16):
        drawn = draw(scene, cameras)
    assert torch.equal(drawn.rgb, exact.rgb)
    assert torch.equal(drawn.depth, exact.depth)
