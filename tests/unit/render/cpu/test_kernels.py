"""The innermost functions: what they compile to, their exponential, and their spherical harmonics."""

import inspect
import platform
import re
from collections.abc import Callable
from typing import Any

import llvmlite.binding
import numpy as np
import pytest
import torch
from numba import jit
from torch.nn.functional import normalize

from gsforge.core.sh import sh_basis
from gsforge.render.cpu import accumulate, differentiate, draw, geometry, harmonics, prepare, tiles
from gsforge.render.cpu.tiles import GRAD_FEATURES, GROUP, LANES, LOG_255, PLACED, TILE_HEIGHT, TILE_WIDTH, exp_minus

OPTIONS = draw.draw_splat.targetoptions  # those of `tiles.kernel`
STATE = np.ones(30 * LANES, np.float32)
ARGUMENTS = {
    "Z": STATE,
    "top": 0,
    "rows": TILE_HEIGHT,
    "box": (0, TILE_WIDTH - 1, 0, TILE_HEIGHT - 1),
    "placed": np.ones(PLACED, np.float32),
    "e": 0,
    "limits": np.ones(3, np.float32),
    "features": np.ones((1, 1, 4), np.float32),
    "of": 0,
    "n": 0,
    "extents": np.zeros(2 * GROUP, np.int32),
    "sums": np.zeros((1, GRAD_FEATURES + 4), np.float32),
    "slot": 0,
    "planes": np.zeros(harmonics.PLANES, np.float32),
    "terms": harmonics.MAX_TERMS,
    "G": np.ones(accumulate._END),
    "cameras": np.ones((1, geometry.CAMERA_COLUMNS)),
    "v_cameras": np.ones((1, 1, geometry.CAMERA_COLUMNS)),
    "image": 0,
    "group": 0,
    "view": 0,
    "antialiased": True,
}  # any other is a number
LOOPS = [
    tiles.find_rows,
    draw.draw_splat,
    draw.draw_features,
    differentiate.differentiate_splat,
    differentiate.sum_splat,
    differentiate.sum_l1_contribution,
    differentiate.sum_l2_contribution,
    differentiate.shift_behind,
    differentiate.sum_features,
    harmonics.evaluate_harmonics,
    harmonics.differentiate_harmonics,
    geometry.rotate_axes,
    geometry.to_camera,
    geometry.project_axes,
    prepare.fit_ellipses,
    accumulate.differentiate_projection,
    accumulate.to_world,
    accumulate.add_to_camera,
    accumulate.differentiate_axes,
]

needs_x86 = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64"), reason="reads x86 assembly; this machine has another processor"
)


def assembly(function: Callable[..., Any], *arguments: Any) -> str:
    """What a function compiles to for these arguments; compiled anew, as one from the cache has no assembly."""
    compiled = jit(**OPTIONS)(function)
    compiled(*arguments)
    (text,) = compiled.inspect_asm().values()
    return text


def is_packed(text: str) -> bool:
    return re.search(r"\bv?mulp[sd]\b|\bvfmadd\d+p[sd]\b", text) is not None


def has_masked_stores(text: str) -> bool:
    return re.search(r"\bvmaskmovps\b[^\n]*\)\s*$", text, re.MULTILINE) is not None


def square_the_positive(Z: Any, n: int) -> None:
    for i in range(n):
        if Z[i] > 0:
            Z[i + LANES] = Z[i] * Z[i]


def multiply_one_after_the_other(Z: Any, n: int) -> None:
    for i in range(n):
        Z[i + 1] = Z[i] * Z[i + 1] + Z[i]


@needs_x86
@pytest.mark.parametrize("kernel", LOOPS, ids=lambda kernel: kernel.__name__)
def test_loops_over_pixels_and_gaussians_compile_to_packed_instructions(kernel: Any) -> None:
    names = inspect.signature(kernel.py_func).parameters
    text = assembly(kernel.py_func, *(ARGUMENTS.get(name, np.float32(0.5)) for name in names))
    assert is_packed(text), "scalar code: ten times as slow"
    assert not has_masked_stores(text), "masked stores: very slow on some processors"


@needs_x86
@pytest.mark.parametrize("kernel", [harmonics.evaluate_harmonics, harmonics.differentiate_harmonics])
def test_harmonics_compile_to_nothing_but_packed_instructions(kernel: Any) -> None:
    text = assembly(kernel.py_func, ARGUMENTS["planes"], ARGUMENTS["terms"])
    assert not re.search(r"\bv?mulss\b|\bvfn?m(add|sub)\d+ss\b", text), "one of the loops is scalar"


@needs_x86
def test_scalar_code_is_noticed() -> None:
    assert not is_packed(assembly(multiply_one_after_the_other, STATE, LANES))


@needs_x86
def test_masked_stores_are_noticed() -> None:
    features = llvmlite.binding.get_host_cpu_features()
    if not features.get("avx2") or features.get("avx512vl"):
        pytest.skip("only AVX2 without AVX-512 has this instruction for choices")
    assert has_masked_stores(assembly(square_the_positive, STATE, LANES))


def test_exponential() -> None:
    @jit(**OPTIONS)
    def exponentials(s: Any, values: Any) -> None:
        for i in range(len(s)):
            values[i] = exp_minus(s[i])

    for dtype, tolerance in ((np.float32, 3e-6), (np.float64, 1e-15)):
        s = np.linspace(0, LOG_255, 1 << 20).astype(dtype)
        values = np.empty_like(s)
        exponentials(s, values)
        expected = np.exp(-s.astype(np.longdouble))
        assert np.abs(values / expected - 1).max() <= tolerance


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 3e-6), (np.float64, 1e-12)])
@pytest.mark.parametrize("degree", range(5))
def test_spherical_harmonics(degree: int, dtype: Any, tolerance: float) -> None:
    terms = (degree + 1) ** 2
    generator = torch.Generator().manual_seed(degree)
    vectors = torch.randn(50, 3, generator=generator, dtype=torch.float64)
    vectors = torch.cat([vectors, torch.eye(3, dtype=torch.float64), -torch.eye(3).double()])
    weights = torch.randn(len(vectors), terms, generator=generator, dtype=torch.float64)
    vectors.requires_grad_()
    basis = sh_basis(vectors, degree)
    # Zero times the vectors: the constant function alone would have no graph.
    (gradients,) = torch.autograd.grad((basis * weights).sum() + 0 * vectors.sum(), vectors)

    # Planes of harmonics that are not asked for must stay as they are.
    planes = np.full((harmonics.PLANES // harmonics.BATCH, harmonics.BATCH), 7, dtype)
    values = planes[harmonics.AT[0] // harmonics.BATCH :][: harmonics.MAX_TERMS, : len(vectors)]
    planes[:3, : len(vectors)] = normalize(vectors.detach(), dim=-1).T
    planes[harmonics.INVERSE // harmonics.BATCH, : len(vectors)] = 1 / vectors.detach().norm(dim=-1)
    harmonics.evaluate_harmonics(planes.reshape(-1), terms)
    np.testing.assert_allclose(values[:terms].T, basis.detach().numpy(), rtol=0, atol=tolerance)
    assert (values[terms:] == 7).all()
    if degree > 0:
        values[:terms] = weights.T
        harmonics.differentiate_harmonics(planes.reshape(-1), terms)
        found = planes[harmonics.BY_X // harmonics.BATCH :][:3, : len(vectors)]
        scale = gradients.abs().max().item()
        np.testing.assert_allclose(found.T, gradients.numpy(), rtol=0, atol=tolerance * scale)
