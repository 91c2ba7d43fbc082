"""A captured scene as each of our backends draws it, beside the reference in float64, and what differs."""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from gsforge.core.cameras import Cameras, cameras_around, turntable
from gsforge.core.gaussians import Gaussians
from gsforge.core.ply import load_ply
from gsforge.render import rasterize
from gsforge.render.api import Backend

SIZE = 512
AMPLIFIED = 1_000_000  # differences in the picture
_DISTANCE, _FOV = 3.0, math.radians(50)
_TITLE = 16  # px


@dataclass(frozen=True)
class Difference:
    """Of the colours of a backend from those of the reference in float64.

    Attributes:
        largest: over pixels and channels.
        mean: over pixels and channels.
        above: share of them that differs by more than 1e-4.
    """

    largest: float
    mean: float
    above: float


@dataclass(frozen=True)
class CapturedResult:
    """One scene.

    Attributes:
        name: of the file, without its ending.
        gaussians: how many.
        picture: file name of the images side by side.
        differences: by backend.
    """

    name: str
    gaussians: int
    picture: str
    differences: dict[str, Difference]


def load_captured(path: Path, views: int, size: int) -> tuple[Gaussians, Cameras]:
    """A scene of a file and cameras around it.

    Args:
        path: `.ply` file with its y axis down, as captured scenes have it.
        views: number of cameras.
        size: of the images, px.

    Returns:
        The scene with its median at the origin, and cameras turned over so that it stands upright.
    """
    scene, cameras = load_ply(path), cameras_around(turntable(views), _DISTANCE, _FOV, size)
    scene.means.sub_(scene.means.median(0).values)
    upright = torch.tensor([[1.0, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0], [0, 0, 0, 1]])
    return scene, Cameras(cameras.world_to_camera @ upright, cameras.intrinsics, size, size)


@torch.no_grad()
def compare_backends(path: Path, out: Path, size: int = SIZE) -> CapturedResult:
    """Draw a scene with every backend that runs here and write the picture `<name>.png`.

    Args:
        path: as for `load_captured`.
        out: an existing folder.
        size: of each image, px.

    Returns:
        What differs.
    """
    scene, cameras = load_captured(path, 1, size)

    def draw(backend: Backend, device: str, dtype: torch.dtype) -> Tensor:
        white = torch.ones(1, 3, device=device, dtype=dtype)
        placed = scene.to(device, dtype), cameras.to(device, dtype)
        return rasterize(*placed, backgrounds=white, backend=backend).rgb[0].double().cpu()

    expected = draw("reference", "cpu", torch.float64)
    images, differences = {"reference, float64": expected}, {}
    backends: dict[Backend, str] = {"cpu": "cpu"} | ({"cuda": "cuda"} if torch.cuda.is_available() else {})
    for backend, device in backends.items():
        image = draw(backend, device, torch.float32)
        error = (image - expected).abs()
        images |= {backend: image, f"{backend}: difference x {AMPLIFIED}": error * AMPLIFIED}
        above = (error > 1e-4).double().mean().item()
        differences[str(backend)] = Difference(error.max().item(), error.mean().item(), above)
    _side_by_side(images).save(out / f"{path.stem}.png")
    return CapturedResult(path.stem, scene.count, f"{path.stem}.png", differences)


def _side_by_side(images: dict[str, Tensor]) -> Image.Image:
    size = next(iter(images.values())).shape[-1]
    sheet = Image.new("RGB", (len(images) * size, size + _TITLE), "white")
    for column, (title, image) in enumerate(images.items()):
        pixels = (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
        sheet.paste(Image.fromarray(pixels), (column * size, _TITLE))
        ImageDraw.Draw(sheet).text((column * size + 4, 2), title, fill="black")
    return sheet
