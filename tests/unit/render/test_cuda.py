"""What the CUDA backend says where it cannot run; what it draws is tested in tests/parity."""

import sys
from types import ModuleType

import pytest
import torch

from gsforge.core.cameras import cameras_around, sphere_hammersley
from gsforge.core.gaussians import Gaussians
from gsforge.render import cuda, rasterize


def test_tensors_on_the_cpu_are_refused() -> None:
    scene = Gaussians(torch.zeros(1, 3), torch.eye(4)[:1], torch.ones(1, 3), torch.ones(1), torch.zeros(1, 1, 3))
    with pytest.raises(RuntimeError, match=r"got cpu: move .* or use backend='reference'"):
        rasterize(scene, cameras_around(sphere_hammersley(1), 2.0, 0.7, 8), backend="cuda")


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
