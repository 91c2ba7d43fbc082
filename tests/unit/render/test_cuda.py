"""The adapter to gsplat where there is no GPU: what it refuses, what it hands over, and its contributions.

gsplat's kernels are replaced by torch code that keeps to their interface; what the kernels themselves draw is tested in
tests/parity on a GPU.
"""

import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from gsforge.core.cameras import Cameras, cameras_around, sphere_hammersley
from gsforge.core.gaussians import Gaussians
from gsforge.render import Contribution, RenderOutput, RenderSettings, cuda, rasterize
from gsforge.render.pairs import drawn_pairs, find_spans, splat_table
from gsforge.render.projection import project

TILE = 4


def scene(batch: tuple[int, ...] = (), count: int = 40) -> Gaussians:
    generator = torch.Generator().manual_seed(0)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*batch, *shape, generator=generator, dtype=torch.float64)

    return Gaussians(
        means=uniform(count, 3) - 0.5,
        quats=normalize(uniform(count, 4) - 0.5, dim=-1),
        scales=0.02 + 0.15 * uniform(count, 3),
        opacities=uniform(count),
        sh=uniform(count, 4, 3) - 0.3,
    )


def cameras(batch: tuple[int, ...] = ()) -> Cameras:
    views = cameras_around(sphere_hammersley(2, (0.3, 0.1)).double(), 1.5, 0.8, 14)
    return Cameras(
        views.world_to_camera.expand(*batch, 2, 4, 4), views.intrinsics.expand(*batch, 2, 3, 3), width=14, height=11
    )


class FakeGsplat(ModuleType):
    """`rasterization` and `rasterize_to_indices_in_range` of gsplat 1.5.3 on any device, for float64 as well."""

    def __init__(self) -> None:
        super().__init__("gsplat")
        self.packed: list[bool] = []

    def rasterization(self, *, means: Tensor, colors: Tensor, packed: bool, **options: Any) -> tuple[Any, ...]:
        assert {"backgrounds", "sh_degree"}.isdisjoint(options)
        assert options.pop("render_mode") == "RGB+D"
        self.packed.append(packed)
        views = Cameras(options["viewmats"], options["Ks"], options["width"], options["height"])
        assert colors.shape[:-1] == (*means.shape[:-2], views.count, means.shape[-2])
        settings = RenderSettings(
            options["rasterize_mode"], options["eps2d"], options["near_plane"], options["far_plane"],
            options["radius_clip"],
        )  # fmt: skip
        gaussians = Gaussians(means, options["quats"], options["scales"], options["opacities"], means[..., None, :])
        drawn = rasterize(
            gaussians, views, colors=colors[..., :3], features=colors[..., 3:], settings=settings, backend="reference"
        )
        assert drawn.features is not None
        images = torch.cat([drawn.rgb, drawn.features, drawn.depth], dim=-3).movedim(-3, -1)
        return images, drawn.alpha.movedim(-3, -1), self._meta(gaussians, views, settings)

    @staticmethod
    def _meta(gaussians: Gaussians, views: Cameras, settings: RenderSettings) -> dict[str, Any]:
        """Every tile lists all Gaussians that its image sees; gsplat lists those that touch it."""
        projection = project(gaussians, views, settings)
        rows, columns = -(-views.height // TILE), -(-views.width // TILE)
        lists = []
        for image, (depths, visible) in enumerate(
            zip(projection.depths.flatten(0, -2), projection.visible.flatten(0, -2), strict=True)
        ):
            order = depths.argsort(stable=True)
            lists += [order[visible[order]] + image * gaussians.count] * (rows * columns)
        lengths = torch.tensor([len(splats) for splats in lists])
        offsets = (lengths.cumsum(0) - lengths).int()
        return {
            "means2d": projection.means2d,
            "conics": projection.conics,
            "opacities": projection.opacities,
            "isect_offsets": offsets.view(*views.world_to_camera.shape[:-2], rows, columns),
            "flatten_ids": torch.cat(lists).int(),
            "tile_size": TILE,
        }

    @staticmethod
    def rasterize_to_indices_in_range(
        first: int, end: int, transmittances: Tensor, means2d: Tensor, conics: Tensor, opacities: Tensor, width: int,
        height: int, tile_size: int, offsets: Tensor, splats: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        images, count = opacities.shape
        assert transmittances.shape == (images, height, width)
        assert means2d.shape == (images, count, 2)
        assert conics.shape == (images, count, 3)
        assert offsets.shape[0] == images
        assert offsets.dtype == splats.dtype == torch.int32
        assert first == 0
        assert end * tile_size**2 >= len(splats)
        ends = [*offsets.flatten().tolist()[1:], len(splats)]
        found = []
        for tile, (start, stop) in enumerate(zip(offsets.flatten().tolist(), ends, strict=True)):
            image, row, column = torch.unravel_index(torch.tensor(tile), offsets.shape)
            chosen = splats[start:stop].long()
            x, y = means2d.flatten(0, 1)[chosen].unbind(-1)
            a, b, c = conics.flatten(0, 1)[chosen].unbind(-1)
            for i in range(int(row) * tile_size, min((int(row) + 1) * tile_size, height)):
                for j in range(int(column) * tile_size, min((int(column) + 1) * tile_size, width)):
                    dx, dy = x - (j + 0.5), y - (i + 0.5)
                    sigma = 0.5 * (a * dx * dx + c * dy * dy) + b * dx * dy
                    alpha = (opacities.flatten()[chosen] * torch.exp(-sigma)).clamp_max(0.999)
                    alpha = torch.where(alpha >= 1 / 255, alpha, 0.0)
                    drawn = (alpha > 0) & ((1 - alpha).cumprod(0) > 1e-4)
                    found += [(int(image), i * width + j, int(splat) % count) for splat in chosen[drawn]]
        image, pixel, gaussian = torch.tensor(sorted(found, key=lambda pair: pair[:2])).reshape(-1, 3).unbind(-1)
        return gaussian, pixel, image


@pytest.fixture
def gsplat(monkeypatch: pytest.MonkeyPatch) -> FakeGsplat:
    fake = FakeGsplat()
    monkeypatch.setattr(cuda, "_load_gsplat", lambda: fake)
    monkeypatch.setattr(cuda, "_check_supported", lambda gaussians, settings: None)
    return fake


def assert_same(actual: RenderOutput, expected: RenderOutput) -> None:
    for name in ("rgb", "alpha", "depth", "features", "normals", "loss"):
        drawn, oracle = getattr(actual, name), getattr(expected, name)
        assert (drawn is None) == (oracle is None), name
        if oracle is not None:
            torch.testing.assert_close(drawn, oracle, rtol=0, atol=1e-10, msg=f"{name} differ")


@pytest.mark.parametrize("batch", [(), (2,)])
@pytest.mark.parametrize("channels", ["features", "no features", "features of each view", "colours and normals"])
def test_what_is_handed_to_gsplat(gsplat: FakeGsplat, channels: str, batch: tuple[int, ...]) -> None:
    gaussians, views = scene(batch), cameras(batch)
    options: dict[str, Any] = {
        "features": {"features": torch.rand(*batch, 40, 5, dtype=torch.float64)},
        "no features": {},
        "features of each view": {"features": torch.rand(*batch, 2, 40, 5, dtype=torch.float64)},
        "colours and normals": {"colors": torch.rand(*batch, 40, 3, dtype=torch.float64), "normals": True},
    }[channels]
    options["backgrounds"] = torch.rand(*batch, 2, 3, dtype=torch.float64)
    options["settings"] = RenderSettings("antialiased", eps2d=0.1, near=1.2, far=1.9, radius_clip=1.0)
    drawn = rasterize(gaussians, views, backend="cuda", **options)
    assert gsplat.packed == [False]
    assert_same(drawn, rasterize(gaussians, views, backend="reference", **options))


@pytest.mark.parametrize("at_once", [1, 2000, 1 << 24])
@pytest.mark.parametrize("batch", [(), (2,)])
def test_contributions(
    gsplat: FakeGsplat, monkeypatch: pytest.MonkeyPatch, batch: tuple[int, ...], at_once: int
) -> None:
    monkeypatch.setattr(cuda, "_PAIRS_AT_ONCE", at_once)
    torch.manual_seed(0)
    gaussians, views = scene(batch), cameras(batch)
    target = torch.rand(*batch, 2, 3, 11, 14, dtype=torch.float64)
    backgrounds, weights = torch.rand(*batch, 2, 3, dtype=torch.float64), torch.rand(*batch, 2, 1, 11, 14)

    def contributions(backend: Any) -> Tensor:
        tokens = torch.zeros(*batch, 40, dtype=torch.float64, requires_grad=True)
        drawn = rasterize(
            gaussians, views, backgrounds=backgrounds, contribution=Contribution(target, tokens), backend=backend
        )
        assert drawn.loss is not None
        (drawn.loss * weights).sum().backward()
        assert tokens.grad is not None
        return tokens.grad

    expected = contributions("reference")
    assert expected.abs().mean() > 0.1
    torch.testing.assert_close(contributions("cuda"), expected, rtol=0, atol=1e-9)


def test_packed_where_there_is_much_and_no_contribution(gsplat: FakeGsplat, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "_PACKED_FROM", 80)
    rasterize(scene(), cameras(), backend="cuda")
    contribution = Contribution(torch.zeros(2, 3, 11, 14, dtype=torch.float64), torch.zeros(40, dtype=torch.float64))
    rasterize(scene(), cameras(), contribution=contribution, backend="cuda")
    monkeypatch.setattr(cuda, "_PACKED_FROM", 81)
    rasterize(scene(), cameras(), backend="cuda")
    assert gsplat.packed == [True, False, False]


@pytest.mark.parametrize("at_once", [1, 500, 1500, 1 << 24])
def test_pairs_are_listed_in_groups_of_whole_tiles(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    monkeypatch.setattr(cuda, "_PAIRS_AT_ONCE", at_once)
    gaussians, views, settings = scene(), cameras(), RenderSettings()
    projection = project(gaussians, views, settings)
    table, meta = splat_table(projection), FakeGsplat._meta(gaussians, views, settings)
    groups = list(
        cuda.list_pairs(
            FakeGsplat.rasterize_to_indices_in_range, views, TILE, table, meta["isect_offsets"], meta["flatten_ids"]
        )
    )
    assert len(groups) == {1: 24, 1 << 24: 1}.get(at_once, len(groups))
    whole_tile = 40 * TILE**2
    assert all(len(group.pixel) <= max(at_once + whole_tile, whole_tile) for group in groups)
    # The reference lists whole image rows, so pixels are brought into one order.
    (expected,) = drawn_pairs(find_spans(projection, views), table, views, settings.transmittance_stop)
    pixel, order = torch.cat([group.pixel for group in groups]).sort(stable=True)
    assert torch.equal(pixel, expected.pixel)
    assert torch.equal(torch.cat([group.splat for group in groups])[order], expected.splat)


def test_a_scene_that_no_camera_sees(gsplat: FakeGsplat) -> None:
    gaussians = scene()
    gaussians.opacities[:] = 0
    tokens = torch.zeros(40, dtype=torch.float64, requires_grad=True)
    contribution = Contribution(torch.zeros(2, 3, 11, 14, dtype=torch.float64), tokens)
    drawn = rasterize(gaussians, cameras(), contribution=contribution, backend="cuda")
    assert drawn.loss is not None
    drawn.loss.sum().backward()
    assert tokens.grad is not None
    assert not tokens.grad.any()


def test_tensors_on_the_cpu_are_refused() -> None:
    with pytest.raises(RuntimeError, match=r"got cpu: move .* or use backend='reference'"):
        rasterize(scene(), cameras(), backend="cuda")


def test_missing_gsplat_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gsplat", None)  # the import system raises ImportError on None
    with pytest.raises(RuntimeError, match=r"needs gsplat .*pip install 'gsforge\[cuda\]'"):
        cuda._load_gsplat()


def test_missing_kernels_are_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    # What gsplat's own import leaves behind on a machine without kernels and without a compiler for them.
    backend = ModuleType("gsplat.cuda._backend")
    backend._C = None  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "gsplat.cuda._backend", backend)
    with pytest.raises(RuntimeError, match=r"without its CUDA kernels .*nvcc"):
        cuda._load_gsplat()
