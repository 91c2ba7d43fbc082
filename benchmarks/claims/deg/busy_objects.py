"""Objects of which half is flat and half a checkerboard, with thin rods, through the project's own preparation."""

import logging
import math
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from lightning import Trainer
from rich.console import Console

from datamodules.object_format import KIND
from datamodules.objects import ObjectsDataModule
from datamodules.prepare.mesh_types import Material, TexturedMesh, build_mesh, join_meshes
from datamodules.prepare.objects import EXPECTED, ObjectSettings, encode_object
from datamodules.prepare.plan import SetPlan, Source
from datamodules.prepare.sets import write_set
from datamodules.prepare.toy_shapes import Part, rod, superquadric
from datamodules.prepare.toy_textures import color_pair, random_color
from datamodules.shards import EncodedSample
from gsforge.methods.deg.views import Batch

SQUARES = (10, 6)  # of the whole checkerboard, around and along the body; half of those around are flat
_RADIUS = 1.4  # of the cameras; near, so that objects fill the images
_TEXEL = 16  # texels along a side of a square
_PER_VIEW = ("images", "alphas", "depths", "normals", "world_to_camera", "intrinsics")


@dataclass(frozen=True)
class Shown:
    """How objects are seen.

    Attributes:
        objects: how many.
        size: side of the images, pixels.
        views: to train with.
        held_out: views that are only compared; their cameras are not those of training.
        feature_views: views that feed the encoder when the others are compared.
        points: of the surface.
    """

    objects: int
    size: int
    views: int
    held_out: int
    feature_views: int
    points: int


def busy_mesh(seed: int, index: int) -> TexturedMesh:
    """A rounded body, one side of one colour and the other a checkerboard, on rods, with one on top.

    Args:
        seed: of a set.
        index: in the set.

    Returns:
        The mesh, z up.
    """
    generator = np.random.default_rng([seed, index])
    sizes, exponents = generator.uniform(0.28, 0.4, 3), generator.uniform(0.3, 1.0, 2)
    x, y, z = map(float, sizes)
    body = superquadric((x, y, z), (float(exponents[0]), float(exponents[1])), (1, 1))
    linear = random_color(generator) ** 2.2
    metal = Material((float(linear[0]), float(linear[1]), float(linear[2]), 1.0))
    places = [(sign * 0.7 * x, other * 0.7 * y) for sign in (-1, 1) for other in (-1, 1)]
    rods = [rod((1.2 * a, 1.2 * b, -z - 0.15), (a, b, 0.0), 0.02) for a, b in places]
    rods.append(rod((0.02, 0.03, 0.0), (0.1, 0.0, z + 0.15), 0.02))
    surface = Material(texture=half_checkerboard(generator))
    return join_meshes([_mesh(body, surface), *(_mesh(part, metal) for part in rods)])


def half_checkerboard(generator: np.random.Generator) -> np.ndarray:
    """A texture of which the left half has one colour and the right half is a checkerboard of two others.

    Args:
        generator: of the colours.

    Returns:
        [H, W, 4] uint8 sRGB, opaque.
    """
    columns, rows = SQUARES
    y, x = np.indices((rows * _TEXEL, columns * _TEXEL)) // _TEXEL
    light, dark = color_pair(generator)
    checker = np.where(((x + y) % 2 == 0)[..., None], light, dark)
    rgb = np.where((x < columns // 2)[..., None], random_color(generator), checker)
    return np.round(np.concatenate([rgb, np.ones_like(rgb[..., :1])], axis=-1) * 255).astype(np.uint8)


def load_objects(shown: Shown, seed: int) -> tuple[Batch, Batch]:
    """Make objects, render and sample them, and read them back.

    Args:
        shown: how they are seen.
        seed: of the objects and their cameras.

    Returns:
        training: one batch with all objects, all their views and points.
        held_out: the same objects; views that feed the encoder, which training has too, then others.
    """
    with tempfile.TemporaryDirectory() as folder:
        train = _load(Path(folder) / "train", shown, shown.views, seed, camera_seed=2 * seed)
        other = _load(Path(folder) / "held_out", shown, shown.held_out, seed, camera_seed=2 * seed + 1)
    seen = slice(shown.feature_views)
    views = {name: torch.cat([train[name][:, seen], other[name]], 1) for name in _PER_VIEW}
    return train, train | views


def draw_batch(training: Batch, copies: int, views: int, points: int, generator: torch.Generator) -> Batch:
    """One of the objects, with views and points drawn anew, as in training from shards.

    Args:
        training: from `load_objects`.
        copies: how often the batch holds it.
        views: of the object.
        points: of the object.
        generator: of the draws.

    Returns:
        A batch of the step.
    """

    def some(name: str, count: int) -> torch.Tensor:
        return torch.randperm(training[name].shape[1], generator=generator)[:count]

    rows = torch.randint(len(training["key"]), (1,), generator=generator).expand(copies)
    chosen_views, chosen_points = some("images", views), some("points", points)
    batch = {name: training[name][rows][:, chosen_views] for name in _PER_VIEW}
    return batch | {
        "key": [training["key"][row] for row in rows.tolist()],
        "points": training["points"][rows][:, chosen_points],
        "position": rows,
    }


def _mesh(part: Part, material: Material) -> TexturedMesh:
    return build_mesh(part.vertices, part.faces, material, part.uvs, part.normals)


def _encode(seed: int, settings: ObjectSettings, source: Source) -> EncodedSample:
    return encode_object(busy_mesh(seed, source.number), source, settings)


def _load(folder: Path, shown: Shown, views: int, seed: int, camera_seed: int) -> Batch:
    settings = ObjectSettings(views=views, size=shown.size, points=shown.points, radius=_RADIUS, seed=camera_seed)
    sources = [Source(f"busy_{number}", f"busy_{number}", number) for number in range(shown.objects)]
    plan = SetPlan(folder, KIND, settings.to_json(), sources, shown.objects)
    write_set(plan, partial(_encode, seed, settings), EXPECTED, Console(quiet=True), workers=0, timeout=math.inf)
    data = ObjectsDataModule(
        str(folder), str(folder), eval_batch_size=shown.objects, eval_views=views, points=shown.points, num_workers=0
    )
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)  # it names devices each time
    data.trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    data.setup("validate")
    (batch,) = data.val_dataloader()
    return batch
