"""The compressed .spz files of Niantic, version 3: 20 bytes for each Gaussian and one for each SH value, then gzip.

All values of one attribute stand together: positions, opacities, colours, scales, rotations, spherical harmonics. The
frame of the format is x right, y up, z back, whatever the frame of the scene.

Version 4 needs zstd, and not all readers take it. Version 2 has 3 bytes for a rotation, with errors of several degrees.

Source: the format description of github.com/nianticlabs/spz.
"""

import gzip
import math
import os
import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gsforge.core.exchange import one_scene, to_bytes, y_up
from gsforge.core.files import atomic_file
from gsforge.core.gaussians import Gaussians

_HEADER = struct.Struct("<4sIIBBBB")  # magic, version, Gaussians, SH degree, fractional bits, flags, reserved
_VERSION, _MAX_DEGREE = 3, 3
_MAX_POSITION = 2**23 - 1  # signed, 24 bits
_FRACTIONAL_BITS = 14  # steps of 6e-5; the smallest scale, e^-10, is 5e-5
_COLOUR_SCALE = 0.15
_SH_STEPS = {1: 8.0, 2: 16.0, 3: 16.0}  # degree -> width of its 2^5 or 2^4 steps, in units of 1/128
_MAGNITUDE_BITS, _LARGEST_OF_THREE = 9, math.sqrt(0.5)


def save_spz(path: str | os.PathLike[str], gaussians: Gaussians) -> None:
    """Write one scene, atomically, in the frame of the format.

    Spherical harmonics of degree > 3 are left out; scales outside e^-10 to e^6, coefficients outside [-1, 1] and
    colours outside [-0.44, 1.44] are cut; each with a warning in the log.

    Args:
        path: file to write; its folder exists.
        gaussians: one scene, without batch dimension, z up; y up in the file.

    Raises:
        ValueError: for a batch, an empty scene, values that are not finite, or positions that do not fit into 24 bits.
    """
    path = Path(path)
    scene = y_up(one_scene(path, gaussians, _MAX_DEGREE))
    means, quats, scales, opacities, sh = (
        tensor.numpy() for tensor in (scene.means, scene.quats, scene.scales, scene.opacities, scene.sh)
    )
    bits = _fractional_bits(path, means)
    parts = (
        _HEADER.pack(b"NGSP", _VERSION, scene.count, scene.sh_degree, bits, 0, 0),
        _fixed_point(means, bits),
        to_bytes(path, "opacities", 255 * opacities),
        to_bytes(path, "colours", 255 * (0.5 + _COLOUR_SCALE * sh[:, 0])),
        to_bytes(path, "scales", 16 * (np.log(scales) + 10)),
        _smallest_three(quats),
        to_bytes(path, "spherical-harmonic coefficients", _sh_levels(sh)),
    )
    # Without name and time in its header, the same scene gives the same file.
    with atomic_file(path) as stream, gzip.GzipFile("", "wb", fileobj=stream, mtime=0) as packed:
        for part in parts:
            packed.write(part if isinstance(part, bytes) else part.tobytes())


def _fractional_bits(path: Path, means: NDArray[np.float64]) -> int:
    """Bits after the point: fewer where a large scene leaves no room for all."""
    furthest = float(np.abs(means).max())
    for bits in range(_FRACTIONAL_BITS, -1, -1):
        if furthest * 2**bits <= _MAX_POSITION:
            return bits
    raise ValueError(
        f"cannot write {path}: a .spz file holds coordinates up to {_MAX_POSITION}, got {furthest:g}: scale the scene"
    )


def _fixed_point(means: NDArray[np.float64], bits: int) -> NDArray[np.uint8]:
    """[N, 3, 3] bytes of signed integers, lowest first."""
    words = np.rint(means * 2**bits).astype("<i4")
    return words[..., None].view(np.uint8)[..., :3]


def _smallest_three(quats: NDArray[np.float64]) -> NDArray[np.uint32]:
    """[N] words: 2 bits say which of x, y, z, w is largest, then sign and magnitude of the others."""
    xyzw = np.roll(quats, -1, axis=1)
    largest = np.abs(xyzw).argmax(1)[:, None]
    xyzw = xyzw * np.where(np.take_along_axis(xyzw, largest, 1) < 0, -1, 1)
    others = xyzw[np.arange(4) != largest].reshape(-1, 3)
    top = 2**_MAGNITUDE_BITS - 1
    magnitudes = np.rint(np.abs(others) / _LARGEST_OF_THREE * top).clip(0, top).astype(np.uint32)
    fields = (others < 0).astype(np.uint32) << _MAGNITUDE_BITS | magnitudes
    words = largest[:, 0].astype("<u4")
    for column in fields.T:
        words = words << (_MAGNITUDE_BITS + 1) | column
    return words.astype("<u4")


def _sh_levels(sh: NDArray[np.float64]) -> NDArray[np.float64]:
    """[N, K - 1, 3] levels of the coefficients of degree >= 1: centres of the steps, of which one is zero."""
    degrees = np.sqrt(np.arange(1, sh.shape[1])).astype(int)
    steps = np.array([_SH_STEPS[degree] for degree in degrees])[:, None]
    return np.rint(128 * sh[:, 1:] / steps) * steps + 128
