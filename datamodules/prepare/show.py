"""`gsforge data show`: a contact sheet of some objects of a set."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from datamodules.index import read_index
from datamodules.object_format import KIND, ObjectRecord, read_view
from datamodules.samples import Members, SampleStore
from gsforge.core.sampling import farthest_point_sampling

_TEXT_HEIGHT = 14
_GAP = 6
_PAPER = (255, 255, 255)
_INK = (20, 20, 20)


def contact_sheet(folder: str, objects: int, views: int, size: int, columns: int) -> Image.Image:
    """Draw evenly chosen objects of a set: for each its name, and rows of colour, depth and normals.

    Args:
        folder: folder or address of the set.
        objects: most objects to show.
        views: most views of each object.
        size: side of each picture in pixels.
        columns: objects side by side.

    Returns:
        The sheet, an RGB image.

    Raises:
        DataError: if the set or one of the chosen objects cannot be read.
    """
    store = SampleStore({folder: read_index(folder, KIND)})
    chosen = np.unique(np.linspace(0, len(store) - 1, min(objects, len(store))).round().astype(int)).tolist()
    tiles = [_object_tile(store.read(index), views, size) for index in chosen]
    width, height = max(tile.width for tile in tiles), tiles[0].height
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


def _object_tile(members: Members, views: int, size: int) -> Image.Image:
    record = ObjectRecord.read(members)
    family = members.decode("record.json").get("family")
    chosen = farthest_point_sampling(record.centers[None], min(views, record.views))[0].tolist()
    tile = Image.new("RGB", (len(chosen) * size, _TEXT_HEIGHT + 3 * size), _PAPER)
    title = f"{members.key} ({family})" if family else members.key
    ImageDraw.Draw(tile).text((0, 0), title, fill=_INK)
    for column, view in enumerate(chosen):
        for row, picture in enumerate(_pictures(read_view(members, record, view), record.depth_range)):
            scaled = Image.fromarray(picture).resize((size, size), Image.Resampling.BICUBIC)
            tile.paste(scaled, (column * size, _TEXT_HEIGHT + row * size))
    return tile


def _pictures(view: dict[str, Tensor], depth_range: tuple[float, float]) -> list[NDArray[np.uint8]]:
    """Colour over white, depth from near (dark) to far (light), and normals as colours."""
    near, far = depth_range
    hit = view["depth"] > 0
    color = view["color"] * view["alpha"] + 1 - view["alpha"]
    depth = torch.where(hit, (view["depth"] - near) / (far - near), 1.0).expand(3, -1, -1)
    normal = torch.where(hit, (view["normal"] + 1) / 2, 1.0)
    return [
        (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).contiguous().numpy()
        for image in (color, depth, normal)
    ]
