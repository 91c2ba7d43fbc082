"""The .splat files that viewers in browsers read: 32 bytes for each Gaussian, one colour from all sides.

Position and scale are float32, colour with opacity and the quaternion (w, x, y, z) four bytes each, without a header.
Viewers draw while they load, so the Gaussians that cover most come first.

Source: the format of github.com/antimatter15/splat.
"""

import os
from pathlib import Path
from typing import Literal

import numpy as np

from gsforge.core.exchange import one_scene, to_bytes, y_up
from gsforge.core.files import atomic_file
from gsforge.core.gaussians import Gaussians
from gsforge.core.sh import SH_C0

_ROW = np.dtype([("mean", "<f4", 3), ("scale", "<f4", 3), ("rgba", "u1", 4), ("quat", "u1", 4)])


def save_splat(path: str | os.PathLike[str], gaussians: Gaussians, up: Literal["z", "y"] = "z") -> None:
    """Write one scene, atomically, the largest and least transparent Gaussians first.

    Spherical harmonics of degree > 0 are left out and colours outside [0, 1] cut, each with a warning in the log.

    Args:
        path: file to write; its folder exists.
        gaussians: one scene, without batch dimension, z up.
        up: the axis that points up in the file.

    Raises:
        ValueError: for a batch, an empty scene or values that are not finite.
    """
    path = Path(path)
    if up not in ("z", "y"):
        raise ValueError(f"up: expected z or y, got {up!r}")
    scene = one_scene(path, gaussians, max_degree=0)
    if up == "y":
        scene = y_up(scene)
    order = (scene.scales.prod(-1) * scene.opacities).argsort(descending=True, stable=True)
    means, quats, scales, opacities, sh = (
        tensor[order].numpy() for tensor in (scene.means, scene.quats, scene.scales, scene.opacities, scene.sh)
    )
    rows = np.empty(scene.count, _ROW)
    rows["mean"], rows["scale"] = means, scales
    rows["rgba"][:, :3] = to_bytes(path, "colours", 255 * (0.5 + SH_C0 * sh[:, 0]))
    rows["rgba"][:, 3] = to_bytes(path, "opacities", 255 * opacities)
    rows["quat"] = to_bytes(path, "quaternions", 128 * quats + 128)
    with atomic_file(path) as stream:
        stream.write(rows.tobytes())
