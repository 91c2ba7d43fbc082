"""Random scenes and cameras for the tests of the kernels."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from gsforge.core.cameras import Cameras, cameras_around, sphere_hammersley
from gsforge.core.gaussians import Gaussians
from gsforge.render import Contribution, RenderSettings, rasterize
from gsforge.render.types import Mode


def random_scene(
    count: int, degree: int = 1, size: float = 0.1, batch: tuple[int, ...] = (), dtype: torch.dtype = torch.float32
) -> Gaussians:
    """Gaussians in the unit cube about the origin, the same at every call."""
    generator = torch.Generator().manual_seed(0)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*batch, *shape, generator=generator, dtype=torch.float64).to(dtype)

    return Gaussians(
        means=uniform(count, 3) - 0.5,
        quats=normalize(uniform(count, 4) - 0.5, dim=-1),
        scales=size * (0.1 + uniform(count, 3)),
        opacities=0.05 + 0.9 * uniform(count),
        sh=uniform(count, (degree + 1) ** 2, 3) - 0.3,
    )


def orbit(
    views: int, width: int, height: int, batch: tuple[int, ...] = (), dtype: torch.dtype = torch.float32
) -> Cameras:
    """Cameras that look at the unit cube from all sides, with an off-centre principal point."""
    poses = cameras_around(sphere_hammersley(views, (0.3, 0.1)).to(dtype), 1.6, 0.8, 16).world_to_camera
    lens = torch.tensor([[1.2 * width, 0, 0.45 * width], [0, 1.1 * width, 0.55 * height], [0, 0, 1]], dtype=dtype)
    return Cameras(poses.expand(*batch, views, 4, 4), lens.expand(*batch, views, 3, 3), width, height)


@pytest.fixture(name="random_scene")
def _random_scene() -> Callable[..., Gaussians]:
    return random_scene


@pytest.fixture(name="orbit")
def _orbit() -> Callable[..., Cameras]:
    return orbit


def smooth_inputs(views: int = 2, width: int = 5, height: int = 4) -> dict[str, Tensor]:
    """What `draw_tensors` takes: few wide Gaussians in float64, every one of which is far from the thresholds of alpha,
    transmittance and colour in every pixel."""
    cameras = orbit(views, width, height, dtype=torch.float64)
    gaussians = random_scene(5, dtype=torch.float64)
    generator = torch.Generator().manual_seed(1)
    return {
        "means": 0.3 * gaussians.means,
        "quats": gaussians.quats,
        "scales": 0.5 + gaussians.scales,
        "opacities": 0.2 + 0.4 * gaussians.opacities,
        "sh": 0.2 * gaussians.sh + 0.1,
        "world_to_camera": cameras.world_to_camera.clone(),
        "intrinsics": cameras.intrinsics.clone(),
        "backgrounds": torch.rand(views, 3, generator=generator, dtype=torch.float64),
        "features": torch.randn(5, 2, generator=generator, dtype=torch.float64),
    }


def draw_tensors(
    means: Tensor, quats: Tensor, scales: Tensor, opacities: Tensor, sh: Tensor, world_to_camera: Tensor,
    intrinsics: Tensor, backgrounds: Tensor, features: Tensor, *, width: int = 5, height: int = 4,
    mode: Mode = "classic",
) -> tuple[Tensor, ...]:  # fmt: skip
    """All images, as a function of tensors alone."""
    drawn = rasterize(
        Gaussians(means, quats, scales, opacities, sh), Cameras(world_to_camera, intrinsics, width, height),
        backgrounds=backgrounds, features=features, settings=RenderSettings(mode), backend="cpu",
    )  # fmt: skip
    assert drawn.features is not None
    return drawn.rgb, drawn.alpha, drawn.depth, drawn.features


@pytest.fixture(name="smooth_inputs")
def _smooth_inputs() -> dict[str, Tensor]:
    return smooth_inputs()


@pytest.fixture(name="draw_tensors")
def _draw_tensors() -> Callable[..., tuple[Tensor, ...]]:
    return draw_tensors


def draw_and_differentiate(gaussians: Gaussians, cameras: Cameras) -> dict[str, Tensor]:
    """Every image, and every gradient of a weighted sum of all of them; features differ from view to view."""
    batch, count, size = gaussians.batch_shape, gaussians.count, (cameras.height, cameras.width)
    generator = torch.Generator().manual_seed(3)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*batch, *shape, generator=generator)

    leaves = {name: getattr(gaussians, name) for name in ("means", "quats", "scales", "opacities", "sh")}
    leaves |= {name: getattr(cameras, name) for name in ("world_to_camera", "intrinsics")}
    leaves |= {"backgrounds": uniform(cameras.count, 3), "features": uniform(cameras.count, count, 2)}
    leaves["tokens"] = uniform(count)
    leaves = {name: tensor.detach().clone().requires_grad_() for name, tensor in leaves.items()}
    drawn = rasterize(
        Gaussians(*list(leaves.values())[:5]),
        Cameras(leaves["world_to_camera"], leaves["intrinsics"], cameras.width, cameras.height),
        backgrounds=leaves["backgrounds"],
        features=leaves["features"],
        contribution=Contribution(uniform(cameras.count, 3, *size), leaves["tokens"]),
        backend="cpu",
    )
    names = ("rgb", "alpha", "depth", "features", "loss")
    images = [getattr(drawn, name) for name in names]
    weights = [torch.randn(image.shape, generator=generator) for image in images]
    gradients = torch.autograd.grad(images, list(leaves.values()), weights)
    result = dict(zip(names, (image.detach() for image in images), strict=True))
    return result | {f"gradient by {name}": v for name, v in zip(leaves, gradients, strict=True)}


@pytest.fixture(name="draw_and_differentiate")
def _draw_and_differentiate() -> Callable[[Gaussians, Cameras], dict[str, Tensor]]:
    return draw_and_differentiate
