"""Colours of splats and their gradients, a batch at a time: against autograd, and whatever the pieces of work."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from gsforge.core.sh import sh_to_rgb
from gsforge.render.cpu.accumulate import GROUP
from gsforge.render.cpu.colors import color_splats, differentiate_colors
from gsforge.render.cpu.geometry import CAMERA_COLUMNS, CENTER
from gsforge.render.cpu.tiles import GRAD_FEATURES, GRAD_RED

SCENES, VIEWS, COUNT = 2, 3, GROUP + 333
SPLATS = SCENES * VIEWS * COUNT


def inputs(degree: int, dtype: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Means, coefficients, cameras, which splats are visible, and sums over pixels."""
    rng = np.random.default_rng(degree)
    means = rng.normal(size=(SCENES, COUNT, 3)).astype(dtype)
    sh = rng.normal(size=(SCENES, COUNT, (degree + 1) ** 2, 3)).astype(dtype)
    cameras = np.zeros((SCENES * VIEWS, CAMERA_COLUMNS))
    cameras[:, CENTER:] = rng.normal(size=(SCENES * VIEWS, 3))
    visible = (rng.random(SPLATS) < 0.5).astype(np.int32)
    visible[200:500] = 0
    return means, sh, cameras, visible, rng.normal(size=(SPLATS, GRAD_FEATURES)).astype(dtype)


def color(bounds: list[int], means: Any, sh: Any, cameras: Any, visible: Any) -> np.ndarray:
    colors = np.full((SPLATS, 3), 7, sh.dtype)
    places = np.stack([np.zeros_like(visible), visible, *[np.zeros_like(visible)] * 2], axis=1)
    for first, end in pairwise(bounds):
        color_splats(first, end, means, sh, cameras, places, colors)
    return colors


def differentiate(bounds: list[int], means: Any, sh: Any, *rest: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gradients by coefficients, means and cameras by block; those by the means are added to ones."""
    v_sh, v_means = np.full_like(sh, np.nan), np.ones_like(means)
    v_cameras = np.zeros((bounds[-1], VIEWS, CAMERA_COLUMNS))
    for first, end in pairwise(bounds):
        differentiate_colors(first, end, means, sh, *rest, v_sh, v_means, v_cameras)
    return v_sh, v_means, v_cameras


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 3e-6), (np.float64, 1e-12)])
@pytest.mark.parametrize("degree", range(5))
def test_colors_and_gradients_are_those_of_autograd(degree: int, dtype: Any, tolerance: float) -> None:
    means, sh, cameras, visible, totals = inputs(degree, dtype)
    leaves = [torch.from_numpy(array.astype(np.float64)).requires_grad_() for array in (means, sh, cameras)]
    points, coefficients, centers = leaves[0], leaves[1], leaves[2][:, CENTER:].unflatten(0, (SCENES, VIEWS))
    expected = sh_to_rgb(coefficients[:, None], points[:, None] - centers[:, :, None])
    weights = torch.from_numpy((totals[:, GRAD_RED : GRAD_RED + 3] * visible[:, None]).astype(np.float64))
    # Zero times the points and centres: a constant colour would have no graph.
    loss = (expected.reshape(SPLATS, 3) * weights).sum() + 0 * (points.sum() + centers.sum())
    v_points, v_coefficients, v_cameras = torch.autograd.grad(loss, leaves)

    colors = color([0, SPLATS], means, sh, cameras, visible)
    assert (colors[visible == 0] == 7).all()
    seen = expected.detach().reshape(SPLATS, 3).numpy()[visible > 0]
    np.testing.assert_allclose(colors[visible > 0], seen, rtol=0, atol=tolerance)
    blocks = SCENES * -(-COUNT // GROUP)
    by_sh, by_means, by_cameras = differentiate([0, blocks], means, sh, cameras, colors, visible, totals)
    by_cameras = by_cameras.reshape(SCENES, -1, VIEWS, CAMERA_COLUMNS).sum(1).reshape(cameras.shape)
    for found, reference in ((by_sh, v_coefficients), (by_means - 1, v_points), (by_cameras, v_cameras)):
        size = max(reference.norm().item(), 1e-30)
        assert np.linalg.norm(found - reference.numpy()) <= tolerance * size
    assert (by_sh[(visible.reshape(SCENES, VIEWS, COUNT) == 0).all(1)] == 0).all()


@pytest.mark.parametrize("degree", [0, 3])
def test_the_pieces_of_work_do_not_matter(degree: int) -> None:
    means, sh, cameras, visible, totals = inputs(degree, np.float32)
    whole = color([0, SPLATS], means, sh, cameras, visible)
    pieces = color([0, 1, 77, 300, COUNT, COUNT + 129, 4 * COUNT - 1, SPLATS], means, sh, cameras, visible)
    np.testing.assert_array_equal(whole, pieces)
    blocks = SCENES * -(-COUNT // GROUP)
    rest = means, sh, cameras, whole, visible, totals
    one_by_one, together = (differentiate(bounds, *rest) for bounds in (list(range(blocks + 1)), [0, blocks]))
    for found, expected in zip(one_by_one, together, strict=True):
        np.testing.assert_array_equal(found, expected)
