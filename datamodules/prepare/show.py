"""`gsforge data show`: a contact sheet of some samples of a set."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from datamodules.conditions import Conditions, read_condition, spread
from datamodules.errors import DataError
from datamodules.index import read_index
from datamodules.latent_format import KIND as LATENTS
from datamodules.latent_format import LatentRecord
from datamodules.object_format import KIND as OBJECTS
from datamodules.object_format import ObjectRecord, read_view
from datamodules.samples import Members, SampleStore
from gsforge.core.sampling import farthest_point_sampling

Picture = NDArray[np.uint8]  # [S, S, 3]

_TEXT_HEIGHT = 14
_GAP = 6
_PAPER = (255, 255, 255)
_INK = (20, 20, 20)


def contact_sheet(folder: str, objects: int, views: int, size: int, columns: int) -> Image.Image:
    """Draw evenly chosen samples of a set: for each its name and rows of pictures.

    An object has rows of colour, depth and normals, and one of its condition views if it has any; latents have the
    latter alone.

    Args:
        folder: folder or address of the set.
        objects: most samples to show.
        views: most views of each sample.
        size: side of each picture in pixels.
        columns: objects side by side.

    Returns:
        The sheet, an RGB image.

    Raises:
        DataError: if the set or one of the chosen samples cannot be read, or its kind is unknown.
    """
    index = read_index(folder)
    if index.kind not in _ROWS:
        raise DataError(f"{folder} is a set of {index.kind}; this gsforge shows sets of {', '.join(_ROWS)}")
    store = SampleStore({folder: index})
    chosen = np.unique(np.linspace(0, len(store) - 1, min(objects, len(store))).round().astype(int)).tolist()
    tiles = [_tile(*_ROWS[index.kind](store.read(number), views), size) for number in chosen]
    width, height = max(tile.width for tile in tiles), max(tile.height for tile in tiles)
    columns = min(columns, len(tiles))
    rows = -(-len(tiles) // columns)
    sheet = Image.new("RGB", (columns * (width + _GAP) + _GAP, rows * (height + _GAP) + _GAP), _PAPER)
    for place, tile in enumerate(tiles):
        row, column = divmod(place, columns)
        sheet.paste(tile, (_GAP + column * (width + _GAP), _GAP + row * (height + _GAP)))
    return sheet


def save_sheet(sheet: Image.Image, path: Path) -> None:
    """Write a sheet as PNG; missing folders are made.

    Args:
        sheet: the picture.
        path: the file to write.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, "png")


def _tile(title: str, rows: list[list[Picture]], size: int) -> Image.Image:
    """Rows of pictures [S, S, 3] below a title."""
    columns = max((len(row) for row in rows), default=1)
    tile = Image.new("RGB", (columns * size, _TEXT_HEIGHT + len(rows) * size), _PAPER)
    ImageDraw.Draw(tile).text((0, 0), title, fill=_INK)
    for line, row in enumerate(rows):
        for column, picture in enumerate(row):
            scaled = Image.fromarray(picture).resize((size, size), Image.Resampling.BICUBIC)
            tile.paste(scaled, (column * size, _TEXT_HEIGHT + line * size))
    return tile


def _object_rows(members: Members, views: int) -> tuple[str, list[list[Picture]]]:
    record = ObjectRecord.read(members)
    family = members.decode("record.json").get("family")
    chosen = farthest_point_sampling(record.centers[None], min(views, record.views))[0].tolist()
    pictures = [_pictures(read_view(members, record, view), record.depth_range) for view in chosen]
    title = f"{members.key} ({family})" if family else members.key
    return title, [*map(list, zip(*pictures, strict=True)), *_condition_row(members, record.conditions, views)]


def _latent_rows(members: Members, views: int) -> tuple[str, list[list[Picture]]]:
    return members.key, _condition_row(members, LatentRecord.read(members).conditions, views)


def _condition_row(members: Members, conditions: Conditions, views: int) -> list[list[Picture]]:
    """A row of condition views over white; no row if there are none."""
    if not len(conditions):
        return []
    images = (read_condition(members, conditions, view) for view in spread(conditions, views))
    return [[_as_picture(_over_white(image[:3], image[3:])) for image in images]]


_ROWS: Mapping[str, Callable[[Members, int], tuple[str, list[list[Picture]]]]] = {
    OBJECTS: _object_rows,
    LATENTS: _latent_rows,
}


def _pictures(view: dict[str, Tensor], depth_range: tuple[float, float]) -> list[Picture]:
    """Colour over white, depth from near (dark) to far (light), and normals as colours."""
    near, far = depth_range
    hit = view["depth"] > 0
    depth = torch.where(hit, (view["depth"] - near) / (far - near), 1.0).expand(3, -1, -1)
    normal = torch.where(hit, (view["normal"] + 1) / 2, 1.0)
    return [_as_picture(image) for image in (_over_white(view["color"], view["alpha"]), depth, normal)]


def _over_white(color: Tensor, alpha: Tensor) -> Tensor:
    return color * alpha + 1 - alpha


def _as_picture(image: Tensor) -> Picture:
    return (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).contiguous().numpy()
