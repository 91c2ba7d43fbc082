"""The reference renderer against gsplat 1.5.3: its torch code on any machine, its CUDA kernels where there is a GPU."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from gsforge.core.cameras import Cameras, cameras_around, sphere_hammersley
from gsforge.core.gaussians import Gaussians
from gsforge.core.sh import sh_to_rgb
from gsforge.render import Contribution, RenderSettings, rasterize
from gsforge.render.projection import project

gsplat = pytest.importorskip("gsplat.cuda._torch_impl", reason="gsplat is not installed: pip install 'gsforge[cuda]'")


def random_scene(batch: tuple[int, ...] = (), count: int = 200, degree: int = 3, spread: float = 1.0) -> Gaussians:
    generator = torch.Generator().manual_seed(1)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*batch, *shape, generator=generator, dtype=torch.float64)

    return Gaussians(
        means=spread * (uniform(count, 3) - 0.5),
        quats=normalize(uniform(count, 4) - 0.5, dim=-1),
        scales=(uniform(count, 3) * 3 - 5).exp(),  # 0.007 to 0.14, anisotropic
        opacities=uniform(count),
        sh=0.5 * (uniform(count, (degree + 1) ** 2, 3) - 0.5),
    )


def three_cameras(batch: tuple[int, ...] = (), radius: float = 1.5) -> Cameras:
    extrinsics = cameras_around(sphere_hammersley(3, (0.3, 0.1)).double(), radius, 0.8, 32).world_to_camera
    intrinsics = torch.tensor([[55.0, 0, 18.5], [0, 47.0, 11.0], [0, 0, 1]], dtype=torch.float64).expand(3, 3, 3)
    return Cameras(extrinsics.expand(*batch, 3, 4, 4), intrinsics.expand(*batch, 3, 3, 3), 40, 26)


def gsplat_projection(scene: Gaussians, cameras: Cameras, eps2d: float) -> tuple[Tensor, ...]:
    covariances, _ = gsplat._quat_scale_to_covar_preci(scene.quats, scene.scales, compute_preci=False)
    _, *projected = gsplat._fully_fused_projection(
        scene.means, covariances, cameras.world_to_camera, cameras.intrinsics, cameras.width, cameras.height,
        eps2d=eps2d, calc_compensations=True,
    )  # fmt: skip
    return tuple(projected)


def own_projection(scene: Gaussians, cameras: Cameras, eps2d: float) -> tuple[Tensor, ...]:
    projection = project(scene, cameras, RenderSettings(eps2d=eps2d))
    return projection.means2d, projection.depths, projection.conics, projection.compensations


@pytest.mark.parametrize("eps2d", [0.1, 0.3])
@pytest.mark.parametrize("batch", [(), (2,)])
def test_projection(batch: tuple[int, ...], eps2d: float) -> None:
    scene, cameras = random_scene(batch, spread=4.0), three_cameras(batch)
    own, theirs = own_projection(scene, cameras, eps2d), gsplat_projection(scene, cameras, eps2d)
    in_front = theirs[1] > 0.01
    slopes = (theirs[0][..., 0] - 18.5).abs()[in_front] / 55
    assert 0 < in_front.double().mean() < 1
    assert (slopes > 1).any(), "no Gaussian is far enough off the axis to be pulled into the frustum"
    for name, drawn, oracle in zip(("means2d", "depths", "conics", "compensations"), own, theirs, strict=True):
        torch.testing.assert_close(drawn[in_front], oracle[in_front], rtol=1e-9, atol=1e-9, msg=f"{name} differ")


def test_gradients_of_the_projection() -> None:
    scene, cameras = random_scene(spread=2.0), three_cameras()
    in_front = gsplat_projection(scene, cameras, 0.3)[1] > 0.1
    generator = torch.Generator().manual_seed(0)
    weights = [
        torch.randn(values[in_front].shape, generator=generator, dtype=torch.float64)
        for values in own_projection(scene, cameras, 0.3)
    ]

    def gradients(projection: Callable[[Gaussians, Cameras, float], tuple[Tensor, ...]]) -> list[Tensor]:
        leaves = scene.map(lambda tensor: tensor.clone().requires_grad_())
        views = cameras.map(lambda tensor: tensor.clone().requires_grad_())
        values = projection(leaves, views, 0.3)
        loss = sum((value[in_front] * weight).sum() for value, weight in zip(values, weights, strict=True))
        wanted = [leaves.means, leaves.quats, leaves.scales, views.world_to_camera]
        return list(torch.autograd.grad(loss, wanted))

    names = ("means", "quats", "scales", "world_to_camera")
    for name, own, theirs in zip(names, gradients(own_projection), gradients(gsplat_projection), strict=True):
        assert (own - theirs).norm() < 1e-9 * theirs.norm(), name


@pytest.mark.parametrize("degree", [0, 1, 2, 3, 4])
def test_colours(degree: int) -> None:
    sh = random_scene(degree=degree).sh
    directions = torch.randn(len(sh), 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    theirs = (gsplat._spherical_harmonics(degree, directions, sh) + 0.5).clamp_min(0)
    torch.testing.assert_close(sh_to_rgb(sh, directions), theirs, rtol=1e-9, atol=1e-9)


def composite_densely(projected: tuple[Tensor, ...], opacities: Tensor, colours: Tensor, cameras: Cameras) -> Tensor:
    """[4, H, W] colour and alpha of one view, one projected Gaussian after the other over all pixels."""
    means2d, depths, conics = projected[:3]
    ys, xs = torch.meshgrid(
        torch.arange(cameras.height).double() + 0.5, torch.arange(cameras.width).double() + 0.5, indexing="ij"
    )
    transmittance, going = torch.ones_like(xs), torch.ones_like(xs, dtype=torch.bool)
    image = torch.zeros(4, *xs.shape, dtype=torch.float64)
    for index in depths.argsort(stable=True).tolist():
        if depths[index] <= 0.01:
            continue
        dx, dy = xs - means2d[index, 0], ys - means2d[index, 1]
        a, b, c = conics[index]
        alpha = (opacities[index] * torch.exp(-0.5 * (a * dx * dx + c * dy * dy) - b * dx * dy)).clamp_max(0.999)
        drawn = (alpha >= 1 / 255) & going
        going = going & ~(drawn & (transmittance * (1 - alpha) <= 1e-4))
        alpha = torch.where(drawn & going, alpha, 0.0)
        values = torch.cat([colours[index], torch.ones(1, dtype=torch.float64)])
        image += values[:, None, None] * alpha * transmittance
        transmittance = transmittance * (1 - alpha)
    return image


@pytest.mark.parametrize(
    ("backend", "dtype", "tolerance"), [("reference", torch.float64, 1e-9), ("cpu", torch.float32, 1e-5)]
)
@pytest.mark.parametrize("mode", ["classic", "antialiased"])
def test_images_composed_from_the_projection_of_gsplat(
    mode: str, backend: str, dtype: torch.dtype, tolerance: float
) -> None:
    scene, cameras = random_scene(), three_cameras()
    drawn = rasterize(
        scene.to(dtype=dtype), cameras.to(dtype=dtype), settings=RenderSettings(mode=mode), backend=backend
    )
    projected = gsplat_projection(scene, cameras, 0.3)
    centers = torch.inverse(cameras.world_to_camera)[:, :3, 3]
    for view in range(cameras.count):
        opacities = scene.opacities * projected[3][view] if mode == "antialiased" else scene.opacities
        colours = (gsplat._spherical_harmonics(3, scene.means - centers[view], scene.sh) + 0.5).clamp_min(0)
        image = composite_densely(tuple(part[view] for part in projected[:3]), opacities, colours, cameras)
        assert image[3].mean() > 0.3
        own = torch.cat([drawn.rgb[view], drawn.alpha[view]]).double()
        torch.testing.assert_close(own, image, rtol=0, atol=tolerance)


IMAGES = ("rgb", "alpha", "depth", "features", "normals", "loss")
LEAVES = (
    "means", "quats", "scales", "opacities", "sh", "world_to_camera", "backgrounds", "features", "colors", "tokens",
)  # fmt: skip


def draw_all(
    backend: str, device: str, dtype: torch.dtype, mode: str, inputs: dict[str, Tensor], loss: str, colored: bool
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Every image, and the gradient of one weighted sum of them all to every input; on the CPU, in float64."""
    leaves = {name: tensor.to(device, dtype).clone().requires_grad_() for name, tensor in inputs.items()}
    still = three_cameras()
    intrinsics = still.intrinsics.expand(*inputs["world_to_camera"].shape[:-2], 3, 3)
    drawn = rasterize(
        Gaussians(*(leaves[name] for name in LEAVES[:5])),
        Cameras(leaves["world_to_camera"], intrinsics.to(device, dtype), still.width, still.height),
        backgrounds=leaves["backgrounds"],
        colors=leaves["colors"] if colored else None,
        features=leaves["features"],
        normals=True,
        contribution=Contribution(leaves["target"].detach(), leaves["tokens"], loss=loss),
        settings=RenderSettings(mode=mode),
        backend=backend,
    )
    generator = torch.Generator().manual_seed(0)
    images = {name: getattr(drawn, name) for name in IMAGES}
    total = torch.zeros((), device=device, dtype=dtype)
    for image in images.values():
        total = total + (image * torch.randn(image.shape, generator=generator, dtype=torch.float64).to(image)).sum()
    wanted = [name for name in LEAVES if name != ("sh" if colored else "colors")]
    gradients = torch.autograd.grad(total, [leaves[name] for name in wanted])
    return (
        {name: image.detach().cpu().double() for name, image in images.items()},
        {name: gradient.cpu().double() for name, gradient in zip(wanted, gradients, strict=True)},
    )


@pytest.mark.parametrize("backend", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize(("mode", "loss", "colored"), [("classic", "l1", False), ("antialiased", "l2", True)])
@pytest.mark.parametrize("batch", [(), (2,)])
def test_backends_against_the_reference(
    batch: tuple[int, ...], mode: str, loss: str, colored: bool, backend: str
) -> None:
    scene, generator = random_scene(batch, count=2000), torch.Generator().manual_seed(3)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*batch, *shape, generator=generator, dtype=torch.float64)

    inputs = {name: getattr(scene, name) for name in LEAVES[:5]} | {
        "world_to_camera": three_cameras(batch).world_to_camera,
        "backgrounds": uniform(3, 3),
        "features": uniform(3, 2000, 4) if colored else uniform(2000, 4),  # with and without the dimension of the views
        "colors": uniform(3, 2000, 3),
        "tokens": uniform(2000),
        "target": uniform(3, 3, 26, 40),
    }
    oracle, oracle_gradients = draw_all("reference", "cpu", torch.float64, mode, inputs, loss, colored)
    drawn, gradients = draw_all(backend, backend, torch.float32, mode, inputs, loss, colored)
    for name, expected in oracle.items():
        error = (drawn[name] - expected).abs()
        assert error.mean() < 1e-5, name
        assert error.max() < 2 / 255 * math.ceil(expected.abs().max()), name
    for name, expected in oracle_gradients.items():
        # Pairs at the alpha threshold may fall on either side, so single entries are not compared.
        assert (gradients[name] - expected).norm() < 5e-3 * expected.norm(), name


@pytest.mark.gpu
def test_what_the_kernels_cannot_do_is_refused() -> None:
    scene, cameras = random_scene().to("cuda"), three_cameras().to("cuda")
    with pytest.raises(RuntimeError, match=r"computes in float32, got torch\.float64"):
        rasterize(scene, cameras)
    with pytest.raises(RuntimeError, match=r"transmittance_stop=0\.01"):
        rasterize(
            scene.to(dtype=torch.float32),
            cameras.to(dtype=torch.float32),
            settings=RenderSettings(transmittance_stop=0.01),
        )


@pytest.mark.gpu
def test_cuda_draws_an_empty_scene() -> None:
    scene, cameras = random_scene().map(lambda tensor: tensor[:0]).to("cuda", torch.float32), three_cameras()
    drawn = rasterize(scene, cameras.to("cuda", torch.float32))
    assert not drawn.alpha.any()
