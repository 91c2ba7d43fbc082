"""A reader of compact files that shares nothing with their writers."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from plyfile import PlyData
from torch import Tensor

from gsforge.core.gaussians import Gaussians


@pytest.fixture
def reread() -> Callable[[Path], Gaussians]:
    """Reads .splat and .spz files with GaussForge, which contains the reference reader of .spz files."""
    gaussforge = pytest.importorskip("gaussforge", reason="needs the readers of the package gaussforge")

    def read(path: Path) -> Gaussians:
        converted = gaussforge.GaussForge().convert(path.read_bytes(), path.suffix[1:], "ply")
        assert "error" not in converted, converted
        # Its logits of opacities 0 and 1 are infinite, so gsforge's own reader refuses its .ply files.
        rows = PlyData.read(io.BytesIO(converted["data"]))["vertex"].data
        rest = [name for name in rows.dtype.names if name.startswith("f_rest_")]

        def columns(*names: str) -> Tensor:
            return torch.from_numpy(np.stack([rows[name] for name in names], axis=-1))

        sh = columns("f_dc_0", "f_dc_1", "f_dc_2")[:, None]
        return Gaussians(
            means=columns("x", "y", "z"),
            quats=columns("rot_0", "rot_1", "rot_2", "rot_3"),
            scales=columns("scale_0", "scale_1", "scale_2").exp(),
            opacities=columns("opacity")[:, 0].sigmoid(),
            sh=torch.cat([sh, columns(*rest).unflatten(1, (3, -1)).mT], dim=1) if rest else sh,
        )

    return read
