"""Pictures as data URIs, and turntables of Gaussians as one sheet of frames."""

import base64
import io
import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError
from torchvision.transforms.functional import to_pil_image

from gsforge.core.gaussians import Gaussians
from gsforge.core.ply import load_ply
from gsforge.render import RenderSettings
from gsforge.render.turntable import draw_turntable

_SHEET_COLUMNS = 6


@dataclass(frozen=True)
class Turntable:
    """Frames of an object that turns once, in rows of one picture.

    Attributes:
        key: name of the object.
        uri: the sheet, WebP as data URI.
        columns: frames in a row.
        rows: number of rows.
        frames: number of frames; the last row may be shorter.
        gaussians: number of Gaussians drawn.
    """

    key: str
    uri: str
    columns: int
    rows: int
    frames: int
    gaussians: int


def webp_uri(image: Image.Image, quality: int = 86) -> str:
    """Encode a picture for an HTML page.

    Args:
        image: any mode that converts to RGB.
        quality: of the WebP file, 1 to 100.

    Returns:
        A data URI.
    """
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "WEBP", quality=quality, method=4)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def open_strip(path: Path, max_height: int) -> Image.Image:
    """Read a picture file, made smaller where it is higher than asked.

    Args:
        path: a .png file.
        max_height: in pixels.

    Returns:
        The picture as RGB.

    Raises:
        ValueError: if the file is not a picture.
    """
    try:
        with Image.open(path) as opened:
            image = opened.convert("RGB")
    except UnidentifiedImageError as error:
        raise ValueError(f"{path} is not a picture: {error}") from error
    if image.height > max_height:
        size = (max(1, round(image.width * max_height / image.height)), max_height)
        image = image.resize(size, Image.Resampling.LANCZOS)
    return image


def first_view(strip: Image.Image) -> Image.Image:
    """Cut the leftmost view out of a strip.

    Args:
        strip: square views side by side.

    Returns:
        The first square.
    """
    side = min(strip.size)
    return strip.crop((0, 0, side, side))


def render_settings(configured: Any) -> RenderSettings:
    """Settings of the image formation that a run was trained with.

    Args:
        configured: value of the method's `render` in the configuration; other things than a mapping are ignored.

    Returns:
        The settings, defaults where the run does not say.
    """
    known = {field.name for field in fields(RenderSettings)}
    given = configured if isinstance(configured, dict) else {}
    return RenderSettings(**{name: value for name, value in given.items() if name in known})


def render_turntable(path: Path, frames: int, size: int, settings: RenderSettings) -> Turntable:
    """Draw the Gaussians of a file from all around.

    Args:
        path: .ply file, z up.
        frames: number of directions on the circle.
        size: side of a frame in pixels.
        settings: of the image formation.

    Returns:
        The frames as one sheet.

    Raises:
        ValueError: if the file is not a .ply file of Gaussians.
    """
    scene = load_ply(path)
    return turntable_sheet(path.stem, turntable_frames(scene, frames, size, settings), scene.count)


def turntable_frames(scene: Gaussians, count: int, size: int, settings: RenderSettings) -> list[Image.Image]:
    """Draw Gaussians from all around.

    Args:
        scene: one scene, z up.
        count: number of directions on the circle.
        size: side of a frame in pixels.
        settings: of the image formation.

    Returns:
        The frames.
    """
    return [to_pil_image(frame) for frame in draw_turntable(scene, count, size, settings).cpu()]


def turntable_sheet(key: str, frames: list[Image.Image], gaussians: int) -> Turntable:
    """Put frames on one sheet.

    Args:
        key: name of the object.
        frames: at least one, all of the same size.
        gaussians: number of Gaussians drawn.

    Returns:
        The sheet.
    """
    width, height = frames[0].size
    columns = min(_SHEET_COLUMNS, len(frames))
    rows = math.ceil(len(frames) / columns)
    sheet = Image.new("RGB", (columns * width, rows * height))
    for index, frame in enumerate(frames):
        sheet.paste(frame, (index % columns * width, index // columns * height))
    return Turntable(key, webp_uri(sheet, quality=82), columns, rows, len(frames), gaussians)
