"""Kernels are compiled once for each machine: the second process loads what the first has compiled."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gsforge.render.cpu import draw, tiles

# Draws, and counts what all kernels have compiled and what they have loaded; those of the way back take a minute more.
PROGRAM = """
import json, logging, sys

import torch
from numba.core.registry import CPUDispatcher

from gsforge.core.cameras import cameras_around
from gsforge.core.gaussians import Gaussians
from gsforge.render import rasterize

logging.basicConfig(level=logging.WARNING)
gaussians = Gaussians(
    torch.zeros(1, 3), torch.eye(4)[:1], torch.ones(1, 3), torch.ones(1) / 2, torch.ones(1, 4, 3)
)
rasterize(gaussians, cameras_around(torch.eye(3)[:1], 3.0, 1.0, 8), backend="cpu")
modules = [module for name, module in sys.modules.items() if name.startswith("gsforge.render.cpu.")]
kernels = {value for module in modules for value in vars(module).values() if isinstance(value, CPUDispatcher)}
compiled = sorted(kernel.__name__ for kernel in kernels if kernel.stats.cache_misses)
loaded = sorted(kernel.__name__ for kernel in kernels if kernel.stats.cache_hits)
print(json.dumps({"compiled": compiled, "loaded": loaded}))
"""


def draw_in_a_process(cache: Path) -> tuple[dict[str, Any], str]:
    environment = os.environ | {"NUMBA_CACHE_DIR": str(cache)}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, timeout=550, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


@pytest.mark.slow
def test_the_second_process_compiles_nothing(tmp_path: Path) -> None:
    first, notes = draw_in_a_process(tmp_path)
    assert "draw_tiles" in first["compiled"]
    assert notes.count("compiling the renderer for this machine") == 1
    second, _ = draw_in_a_process(tmp_path)
    assert second["compiled"] == []
    assert "draw_tiles" in second["loaded"]


def test_a_change_of_any_file_compiles_all_kernels_again(tmp_path: Path) -> None:
    files = {name for name, _, _ in draw.draw_tiles._cache._cache_file._source_stamp}
    assert {"tiles.py", "draw.py", "harmonics.py"} <= files
    (tmp_path / "one.py").write_text("1")
    (tmp_path / "other.py").write_text("2")
    before = tiles.stamp_of(tmp_path)
    assert tiles.stamp_of(tmp_path) == before
    (tmp_path / "other.py").write_text("22")
    assert tiles.stamp_of(tmp_path) != before
