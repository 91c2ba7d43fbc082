"""Large renders are drawn in groups of views and chunks of rows: the same numbers in less memory."""

import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from gsforge.core.cameras import Cameras
from gsforge.core.gaussians import Gaussians
from gsforge.render import rasterize
from gsforge.render.cpu import api, buffers, passes

Differentiate = Callable[[Gaussians, Cameras], dict[str, Tensor]]


def counting(function: Callable[..., Any], calls: list[int]) -> Callable[..., Any]:
    def counted(*arguments: Any) -> Any:
        calls.append(1)
        return function(*arguments)

    return counted


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Images bit by bit; the gradients are sums in another order."""
    for name, values in expected.items():
        if name.startswith("gradient"):
            assert (found[name] - values).norm() <= 1e-6 * values.norm(), name
        else:
            assert torch.equal(found[name], values), name


@pytest.mark.parametrize("entries", [1, 700])
def test_chunks_of_rows(
    monkeypatch: pytest.MonkeyPatch, random_scene: Callable[..., Gaussians], orbit: Callable[..., Cameras],
    draw_and_differentiate: Differentiate, entries: int,
) -> None:  # fmt: skip
    gaussians, cameras = random_scene(200, batch=(2,)), orbit(2, 61, 70, (2,))
    expected = draw_and_differentiate(gaussians, cameras)
    chunks: list[int] = []
    monkeypatch.setattr(passes, "MAX_ENTRIES", entries)
    monkeypatch.setattr(passes, "_chunk", counting(passes._chunk, chunks))
    assert_same(draw_and_differentiate(gaussians, cameras), expected)
    there_and_back, rows = 2, 2 * 2 * 5
    in_each = len(chunks) // there_and_back
    assert in_each == rows if entries == 1 else 2 < in_each < rows


@pytest.mark.parametrize("splats", [1, 800])
def test_groups_of_views(
    monkeypatch: pytest.MonkeyPatch, random_scene: Callable[..., Gaussians], orbit: Callable[..., Cameras],
    draw_and_differentiate: Differentiate, splats: int,
) -> None:  # fmt: skip
    gaussians, cameras = random_scene(200, batch=(2,)), orbit(3, 61, 70, (2,))
    expected = draw_and_differentiate(gaussians, cameras)
    groups: list[int] = []
    monkeypatch.setattr(api, "_SPLATS_AT_ONCE", splats)
    monkeypatch.setattr(api, "_draw", counting(api._draw, groups))
    assert_same(draw_and_differentiate(gaussians, cameras), expected)
    assert len(groups) == {1: 3, 800: 2}[splats]


def test_chunks_bound_the_memory(
    monkeypatch: pytest.MonkeyPatch, random_scene: Callable[..., Gaussians], orbit: Callable[..., Cameras]
) -> None:
    gaussians, cameras = random_scene(1000, size=0.5), orbit(1, 256, 256)
    gaussians.means.requires_grad_()

    def peak() -> int:
        buffers._waiting.clear()  # else nothing is allocated
        tracemalloc.start()
        try:
            rasterize(gaussians, cameras, backend="cpu").rgb.sum().backward()
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak()  # what the first call keeps, the compiled kernels
    at_once = peak()
    monkeypatch.setattr(passes, "MAX_ENTRIES", 20_000)
    assert peak() < 0.5 * at_once
