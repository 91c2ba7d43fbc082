"""Random scenes with all the degenerate Gaussians there are, and what one backend makes of them."""

import random
from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import normalize

from gsforge.core.cameras import Cameras, look_at
from gsforge.core.gaussians import Gaussians
from gsforge.render import Contribution, RenderSettings, rasterize
from gsforge.render.projection import project

# Kinds of degenerate Gaussians: an attribute with a value; or else how they are moved.
VALUES: dict[str, tuple[str, float | list[float]]] = {
    "needles": ("scales", [1e-4, 2.0, 1e-3]),
    "huge": ("scales", 10.0),
    "points": ("scales", 0.0),
    "transparent": ("opacities", 0.0),
    "opaque": ("opacities", 1.0),
    "edges": ("opacities", 0.004),  # just above the threshold of 1 / 255
}
MOVED = ("behind", "close", "beside", "planes", "identical")
KINDS = (*VALUES, *MOVED)
ATTRIBUTES = ("means", "quats", "scales", "opacities", "sh")
LEAVES = (*ATTRIBUTES, "world_to_camera", "backgrounds", "features", "colors", "tokens")
IMAGES = ("rgb", "alpha", "depth", "features", "normals", "loss")


@dataclass(frozen=True)
class Case:
    """A scene, its cameras and how it is drawn; everything else follows from `seed`."""

    seed: int
    count: int
    size: tuple[int, int]
    degree: int
    views: int
    batch: tuple[int, ...]
    channels: int
    kinds: tuple[str, ...]
    settings: RenderSettings
    loss: str
    estimate: str
    given: bool  # whether colours are given, and differ between the views as features do


_sizes = st.one_of(
    st.tuples(st.integers(20, 70), st.integers(10, 50)),
    st.tuples(st.integers(20, 70), st.integers(10, 50)),
    st.tuples(st.integers(1, 12), st.integers(1, 20)),
)


def cases(sizes: st.SearchStrategy[tuple[int, int]] = _sizes, most: int = 120) -> st.SearchStrategy[Case]:
    """Every combination, with `most` Gaussians at most."""
    rendering = st.builds(
        RenderSettings,
        mode=st.sampled_from(["classic", "antialiased"]),
        near=st.sampled_from([0.01, 1.0]),
        far=st.sampled_from([1e10, 2.0]),
        radius_clip=st.sampled_from([0.0, 2.0]),
    )
    return st.builds(
        Case,
        seed=st.integers(0, 2**32 - 1),
        # Hypothesis likes small numbers; scenes with few Gaussians are a part of the test and not most of it.
        count=st.one_of(st.integers(most // 3, most), st.integers(0, most)),
        size=sizes,
        degree=st.integers(0, 4),
        views=st.integers(1, 3),
        batch=st.sampled_from([(), (2,)]),
        channels=st.integers(0, 4),
        kinds=st.one_of(st.just(()), st.lists(st.sampled_from(KINDS), min_size=1, max_size=4, unique=True).map(tuple)),
        settings=rendering,
        loss=st.sampled_from(["l1", "l2"]),
        estimate=st.sampled_from(["exact", "first_order"]),
        given=st.booleans(),
    )


def inputs_of(case: Case) -> dict[str, Tensor]:
    """All tensors of a case, rounded to float32, as float64."""
    generator = torch.Generator().manual_seed(case.seed)
    count, (width, height) = case.count, case.size

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*case.batch, *shape, generator=generator)

    per_view = (case.views,) if case.given else ()
    inputs = {
        "means": 1.2 * (uniform(count, 3) - 0.5),
        "quats": normalize(uniform(count, 4) - 0.5, dim=-1),
        "scales": (uniform(count, 3) * 3.5 - 5).exp(),
        "opacities": uniform(count),
        "sh": 0.6 * (uniform(count, (case.degree + 1) ** 2, 3) - 0.5),
        "colors": uniform(*per_view, count, 3),
        "features": 2 * uniform(*per_view, count, case.channels) - 1,
        "backgrounds": uniform(case.views, 3),
        "tokens": uniform(count),
        "target": uniform(case.views, 3, height, width),
        "world_to_camera": look_at(1.5 * normalize(uniform(case.views, 3) - 0.5, dim=-1)),
    }
    for kind in case.kinds:
        _make_degenerate(kind, inputs, uniform(count) < 0.3)
    return {name: tensor.double() for name, tensor in inputs.items()}


def _make_degenerate(kind: str, inputs: dict[str, Tensor], chosen: Tensor) -> None:
    """Change the chosen Gaussians [..., N], in place."""
    if kind in VALUES:
        name, value = VALUES[kind]
        inputs[name][chosen] = torch.tensor(value)
        return
    means, world_to_camera = inputs["means"], inputs["world_to_camera"]
    # Towards the first camera: its axis in the world, from the origin.
    backward = -world_to_camera[..., :1, 2, :3]
    if kind == "behind":
        means += chosen[..., None] * 3 * backward
    elif kind == "close":
        means += chosen[..., None] * 1.3 * backward
    elif kind == "beside":
        means *= torch.where(chosen, 20.0, 1.0)[..., None]
    elif kind == "planes":  # cameras along an axis, so that depths are exactly equal
        world_to_camera[..., :3, :3] = torch.eye(3)
        world_to_camera[..., :3, 3] = torch.tensor([0.0, 0.125, 1.5])
        means[..., 2] = (means[..., 2] * 8).round() / 8
    elif chosen.any():  # identical
        for name in ("means", "quats", "scales"):
            inputs[name][chosen] = inputs[name][chosen][0].clone()


def cameras_of(case: Case, world_to_camera: Tensor) -> Cameras:
    """Focal lengths and principal point differ between x and y, and the image is not centred."""
    width, height = case.size
    focal = random.Random(case.seed).uniform(0.4, 1.3) * max(min(width, 4 * height), height)
    intrinsics = torch.tensor([[focal, 0.0, 0.45 * width], [0.0, 0.875 * focal, 0.5625 * height], [0.0, 0.0, 1.0]])
    intrinsics = intrinsics.to(world_to_camera).expand(*world_to_camera.shape[:-2], 3, 3)
    return Cameras(world_to_camera, intrinsics, width, height)


def draw(case: Case, inputs: dict[str, Tensor], backend: str, dtype: torch.dtype) -> tuple[dict[str, Tensor], ...]:
    """The images, and the leaves that they were drawn from."""
    leaves = {name: tensor.to(dtype).clone().requires_grad_(name != "target") for name, tensor in inputs.items()}
    drawn = rasterize(
        Gaussians(*(leaves[name] for name in ATTRIBUTES)),
        cameras_of(case, leaves["world_to_camera"]),
        backgrounds=leaves["backgrounds"],
        colors=leaves["colors"] if case.given else None,
        features=leaves["features"],
        normals=True,
        contribution=Contribution(leaves["target"], leaves["tokens"], case.loss, case.estimate),
        settings=case.settings,
        backend=backend,
    )
    return {name: getattr(drawn, name) for name in IMAGES}, leaves


def gradients(images: dict[str, Tensor], leaves: dict[str, Tensor], certain: Tensor, seed: int) -> dict[str, Tensor]:
    """Gradients of one weighted sum of all images over the certain pixels [..., C, 1, H, W]; in float64."""
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros((), dtype=images["rgb"].dtype)
    for image in images.values():
        weights = torch.randn(image.shape, generator=generator) * certain
        total = total + (image * weights.to(image)).sum()
    found = torch.autograd.grad(total, [leaves[name] for name in LEAVES], allow_unused=True, materialize_grads=True)
    return {name: gradient.double() for name, gradient in zip(LEAVES, found, strict=True)}


@torch.no_grad()
def certain_pixels(case: Case, inputs: dict[str, Tensor]) -> Tensor:
    """[..., C, 1, H, W] where rounding to float32 cannot decide whether a Gaussian is drawn.

    Elsewhere some alpha is within 2e-5 of the threshold or of its largest value, or some transmittance within 1e-3 of
    the stop, relative. Every Gaussian over every pixel, one after the other.
    """
    gaussians, cameras = Gaussians(*(inputs[name] for name in ATTRIBUTES)), cameras_of(case, inputs["world_to_camera"])
    projection = project(gaussians, cameras, case.settings)
    ys = torch.arange(cameras.height, dtype=torch.float64)[:, None] + 0.5
    xs = torch.arange(cameras.width, dtype=torch.float64) + 0.5
    certain = []
    for means2d, conics, depths, opacities, visible in zip(
        projection.means2d.flatten(0, -3), projection.conics.flatten(0, -3), projection.depths.flatten(0, -2),
        projection.opacities.flatten(0, -2), projection.visible.flatten(0, -2), strict=True,
    ):  # fmt: skip
        transmittance = torch.ones(cameras.height, cameras.width, dtype=torch.float64)
        doubtful = torch.zeros_like(transmittance, dtype=torch.bool)
        order = depths.argsort(stable=True)
        for n in order[visible[order]].tolist():
            dx, dy = xs - means2d[n, 0], ys - means2d[n, 1]
            a, b, c = conics[n].tolist()
            alpha = opacities[n] * torch.exp(-0.5 * (a * dx * dx + c * dy * dy) - b * dx * dy)
            doubtful |= ((alpha * 255 - 1).abs() < 2e-5) | ((alpha / 0.999 - 1).abs() < 2e-5)
            transmittance = transmittance * (1 - torch.where(alpha >= 1 / 255, alpha.clamp_max(0.999), 0.0))
            doubtful |= (transmittance / case.settings.transmittance_stop - 1).abs() < 1e-3
        certain.append(~doubtful)
    return torch.stack(certain).unflatten(0, (*case.batch, case.views)).unsqueeze(-3)
