"""What the compact files of 3D Gaussians share: the check of a scene, its turn to y up, numbers as bytes."""

import logging
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from gsforge.core.gaussians import Gaussians

_log = logging.getLogger(__name__)

_Y_UP = ((1.0, 0.0, 0.0), (0.0, 0.0, 1.0), (0.0, -1.0, 0.0))  # z up -> y up
_MIN_SCALE = 1e-30  # far below what any renderer can show, and has a logarithm


def one_scene(path: Path, gaussians: Gaussians, max_degree: int) -> Gaussians:
    """Check what is to be written and leave out the spherical harmonics that the format does not hold.

    Args:
        path: file to write, for the messages.
        gaussians: one scene, without batch dimension.
        max_degree: highest SH degree of the format; what lies above is left out, with a warning in the log.

    Returns:
        The scene, float64, on the CPU, with unit quaternions; scales of zero become the smallest with a logarithm.

    Raises:
        ValueError: for a batch, an empty scene, values that are not finite, or a quaternion of zero.
    """
    if gaussians.batch_shape:
        raise ValueError(
            f"{path}: the file holds one scene, got Gaussians of batch shape {list(gaussians.batch_shape)}: index them"
        )
    if gaussians.count == 0:
        raise ValueError(f"cannot write {path}: there are no Gaussians")
    scene = gaussians.detach().to("cpu", torch.float64)
    for name in ("means", "quats", "scales", "opacities", "sh"):
        values = getattr(scene, name).reshape(scene.count, -1)
        _refuse(path, name, "finite", ~values.isfinite().all(-1))
    _refuse(path, "quats", "other than zero", (scene.quats == 0).all(-1))
    if scene.sh_degree > max_degree:
        _log.warning(
            "%s: spherical harmonics of degree %d to %d are left out, the file holds degree %d: colours change less "
            "with the view",
            *(path, max_degree + 1, scene.sh_degree, max_degree),
        )
    return Gaussians(
        means=scene.means,
        quats=normalize(scene.quats, dim=-1),
        scales=scene.scales.clamp_min(_MIN_SCALE),
        opacities=scene.opacities,
        sh=scene.sh[:, : (max_degree + 1) ** 2],
    )


def y_up(scene: Gaussians) -> Gaussians:
    """Turn a scene from z up to y up, its spherical harmonics included.

    Args:
        scene: one scene, z up.

    Returns:
        The same scene, y up: x stays, z becomes y, y becomes -z.
    """
    return scene.rotated(torch.tensor(_Y_UP))


def to_bytes(path: Path, name: str, levels: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Round numbers to bytes. Numbers more than one step outside 0 to 255 are cut, with a warning in the log.

    Args:
        path: file to write, for the warning.
        name: what the numbers are, for the warning.
        levels: any shape; the numbers in steps of the format.

    Returns:
        Same shape; the nearest bytes.
    """
    beyond = int(((levels < -1) | (levels > 256)).sum())
    if beyond:
        _log.warning("%s: %d of %d %s lie beyond the range of the file and are cut", path, beyond, levels.size, name)
    return np.rint(levels).clip(0, 255).astype(np.uint8)


def _refuse(path: Path, name: str, expected: str, bad: Tensor) -> None:
    if bool(bad.any()):
        raise ValueError(
            f"cannot write {path}: {name} must be {expected} and are not for {int(bad.sum())} of {len(bad)} Gaussians, "
            f"first number {int(bad.nonzero()[0])}"
        )
