"""The .ply files of 3D Gaussian Splatting, as written by its training code and read by the viewers.

One `vertex` element with x, y, z, nx, ny, nz, f_dc_0..2, f_rest_*, opacity, scale_0..2, rot_0..3. Opacities are logits
and scales logarithms; f_rest holds the SH coefficients of degree >= 1 with the colour channel outermost.

`load_ply` and `save_ply` exchange `Gaussians`. Activated values cannot hold every logit (from 17 on, a float32 opacity
is 1), so `read_ply` and `write_ply` keep the numbers of the file as they are: what is read and written again is the
same, bit for bit.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from plyfile import PlyData, PlyElement, PlyListProperty, PlyParseError
from torch import Tensor
from torch.nn.functional import normalize

from gsforge.core.exchange import y_up
from gsforge.core.files import atomic_file
from gsforge.core.gaussians import Gaussians

_MEANS, _NORMALS, _DC = ("x", "y", "z"), ("nx", "ny", "nz"), ("f_dc_0", "f_dc_1", "f_dc_2")
_SCALES, _QUATS = ("scale_0", "scale_1", "scale_2"), ("rot_0", "rot_1", "rot_2", "rot_3")
_REST_COUNTS = (0, 9, 24, 45, 72)  # 3 ((degree + 1)^2 - 1)
# Logits and logarithms of 0 and 1 are infinite. The nearest values written: far below what any renderer can show.
_OPACITY_MARGIN, _MIN_SCALE = 2.0**-25, 1e-30


@dataclass(frozen=True)
class PlyGaussians:
    """The numbers of a file: float32, before activation.

    Attributes:
        means: [N, 3] centres, world units.
        quats: [N, 4] (w, x, y, z), of any length > 0.
        log_scales: [N, 3] logarithms of standard deviations.
        opacity_logits: [N].
        sh: [N, K, 3] spherical-harmonic coefficients.
        normals: [N, 3], without meaning and mostly zero; kept so that a file can be written as it was.
    """

    means: Tensor
    quats: Tensor
    log_scales: Tensor
    opacity_logits: Tensor
    sh: Tensor
    normals: Tensor

    def activated(self) -> Gaussians:
        """The scene that the file describes.

        Returns:
            N Gaussians, float32, in the frame of the file: unit quaternions, scales in its units, opacities in [0, 1].
        """
        return Gaussians(
            means=self.means,
            quats=normalize(self.quats.double(), dim=-1).float(),
            scales=self.log_scales.double().exp().float(),
            opacities=self.opacity_logits.double().sigmoid().float(),
            sh=self.sh,
        )

    @staticmethod
    def from_gaussians(gaussians: Gaussians) -> "PlyGaussians":
        """Undo the activations. Opacities of 0 and 1 and scales of 0 move to the nearest value with a finite logarithm.

        Args:
            gaussians: one scene, without batch dimension.

        Returns:
            The numbers to write, on the CPU.

        Raises:
            ValueError: if there is a batch dimension.
        """
        if gaussians.batch_shape:
            raise ValueError(
                f"a .ply file holds one scene, got Gaussians of batch shape {list(gaussians.batch_shape)}: index them"
            )
        scene = gaussians.detach().to("cpu")
        opacities = scene.opacities.double().clamp(_OPACITY_MARGIN, 1 - _OPACITY_MARGIN)
        return PlyGaussians(
            means=scene.means.float(),
            quats=scene.quats.float(),
            log_scales=scene.scales.double().clamp_min(_MIN_SCALE).log().float(),
            opacity_logits=opacities.logit().float(),
            sh=scene.sh.float(),
            normals=torch.zeros_like(scene.means).float(),
        )


def save_ply(path: str | os.PathLike[str], gaussians: Gaussians, up: Literal["z", "y"] = "z") -> None:
    """Write one scene, atomically: the file is complete or not there.

    Args:
        path: file to write; its folder exists.
        gaussians: one scene, without batch dimension, z up.
        up: the axis that points up in the file; `y` turns the scene, for viewers that expect it so.

    Raises:
        ValueError: for a batch, an empty scene, values that are not finite, or another axis.
    """
    if up == "y":
        gaussians = y_up(gaussians)
    elif up != "z":
        raise ValueError(f"up: expected z or y, got {up!r}")
    write_ply(path, PlyGaussians.from_gaussians(gaussians))


def load_ply(path: str | os.PathLike[str]) -> Gaussians:
    """Read one scene.

    Args:
        path: a binary or text .ply file.

    Returns:
        Activated Gaussians on the CPU, without batch dimension, in the axes of the file.

    Raises:
        ValueError: if the file is not a complete .ply file of Gaussians, see `read_ply`.
    """
    return read_ply(path).activated()


def write_ply(path: str | os.PathLike[str], scene: PlyGaussians) -> None:
    """Write the numbers of a scene as they are, atomically.

    Args:
        path: file to write; its folder exists.
        scene: at least one Gaussian, all values finite.

    Raises:
        ValueError: for an empty scene or values that are not finite.
    """
    path = Path(path)
    _check_values(scene, f"cannot write {path}")
    # f_rest is [3, K - 1] in the file and [K - 1, 3] here.
    rest = scene.sh[:, 1:].mT.flatten(1)
    names = [*_MEANS, *_NORMALS, *_DC, *_rest_names(rest.shape[1]), "opacity", *_SCALES, *_QUATS]
    columns = torch.cat(
        [
            scene.means,
            scene.normals,
            scene.sh[:, 0],
            rest,
            scene.opacity_logits[:, None],
            scene.log_scales,
            scene.quats,
        ],
        dim=1,
    )
    rows = np.ascontiguousarray(columns.numpy(), dtype="<f4").view([(name, "<f4") for name in names]).squeeze(1)
    with atomic_file(path) as stream:
        PlyData([PlyElement.describe(rows, "vertex")], byte_order="<").write(stream)


def read_ply(path: str | os.PathLike[str]) -> PlyGaussians:
    """Read the numbers of a file as they are.

    Normals may be absent; properties of other names are left out.

    Args:
        path: a binary or text .ply file.

    Returns:
        All numbers, float32, before activation.

    Raises:
        ValueError: if the file is not a complete .ply file of Gaussians; says what is wrong with it.
    """
    try:
        with Path(path).open("rb") as stream:
            elements = {element.name: element for element in PlyData.read(stream)}
    except (PlyParseError, ValueError, OverflowError, MemoryError) as error:
        raise ValueError(f"{path} is not a complete .ply file: {error}") from error
    if "vertex" not in elements:
        raise ValueError(f"{path}: expected an element `vertex`, got {sorted(elements) or 'none'}")
    vertices = elements["vertex"]
    available = {item.name for item in vertices.properties if not isinstance(item, PlyListProperty)}
    rest = _rest_names(sum(name.startswith("f_rest_") for name in available))
    missing = [name for name in (*_MEANS, *_DC, *rest, "opacity", *_SCALES, *_QUATS) if name not in available]
    if missing:
        raise ValueError(f"{path}: the properties {missing} of a Gaussian are missing; is it a mesh or a point cloud?")
    if len(rest) not in _REST_COUNTS:
        raise ValueError(f"{path}: expected {_REST_COUNTS} properties f_rest_* (SH degree 0 to 4), got {len(rest)}")

    def columns(names: Sequence[str]) -> Tensor:
        return torch.from_numpy(np.stack([vertices[name].astype(np.float32) for name in names], axis=-1))

    means, colours = columns(_MEANS), columns(_DC)[:, None]
    if rest:
        colours = torch.cat([colours, columns(rest).unflatten(1, (3, -1)).mT], dim=1)
    scene = PlyGaussians(
        means=means,
        quats=columns(_QUATS),
        log_scales=columns(_SCALES),
        opacity_logits=columns(["opacity"])[:, 0],
        sh=colours,
        normals=columns(_NORMALS) if available.issuperset(_NORMALS) else torch.zeros_like(means),
    )
    _check_values(scene, str(path))
    return scene


def _rest_names(count: int) -> list[str]:
    return [f"f_rest_{index}" for index in range(count)]


def _check_values(scene: PlyGaussians, subject: str) -> None:
    if len(scene.means) == 0:
        raise ValueError(f"{subject}: there are no Gaussians")
    for name in ("means", "quats", "log_scales", "opacity_logits", "sh", "normals"):
        bad = ~getattr(scene, name).isfinite().reshape(len(scene.means), -1).all(-1)
        if bool(bad.any()):
            raise ValueError(
                f"{subject}: {name} must be finite and are not for {int(bad.sum())} of {len(bad)} Gaussians, "
                f"first number {int(bad.nonzero()[0])}"
            )
    zero = (scene.quats == 0).all(-1)
    if bool(zero.any()):
        raise ValueError(
            f"{subject}: quaternions must not be zero and are for {int(zero.sum())} of {len(zero)} Gaussians, "
            f"first number {int(zero.nonzero()[0])}"
        )
