"""Meshes, or generated toy objects, to shards of posed views and surface points."""

import io
import json
import math
import re
import zlib
from collections import Counter
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from datamodules.conditions import member_name
from datamodules.errors import DataError
from datamodules.object_format import DEPTH_LEVELS, RECORD_SCHEMA
from datamodules.prepare.condition_views import draw_cameras, render_conditions
from datamodules.prepare.mesh import MeshError, TexturedMesh, load_mesh, normalise
from datamodules.prepare.plan import Source
from datamodules.prepare.raycast import Views, render_views
from datamodules.prepare.surface import sample_surface
from datamodules.prepare.toy import toy_object
from datamodules.shards import EncodedSample, encode_npy
from gsforge.core.cameras import cameras_around, sphere_hammersley

MESH_SUFFIXES = (".glb", ".gltf", ".obj", ".ply")
EXPECTED = (MeshError, OSError, MemoryError)
_HALF_DIAGONAL = 0.9  # a little more than sqrt(3) / 2: no point of the unit cube lies farther from its centre
_PNG_LEVEL = 4


@dataclass(frozen=True)
class ObjectSettings:
    """How objects are rendered and sampled; the defaults are the published DeG pipeline's, without its renderer.

    Attributes:
        views: views around each object, a spherical Hammersley set shifted at random for every object.
        size: side of the images in pixels.
        supersampling: rays along each side of a pixel, for antialiasing.
        points: surface points of each object.
        fov_degrees: field of view in degrees.
        radius: distance of the cameras from the centre; objects are one unit wide.
        seed: seed of the camera layouts and surface points.
        up: the axis that points up in mesh files; by default as their format says.
        condition_views: views of each object for conditioning, from other cameras than `views`; see `draw_cameras`.
        condition_size: side of their images in pixels.
    """

    views: int = 150
    size: int = 512
    supersampling: int = 3
    points: int = 32768
    fov_degrees: float = 40.0
    radius: float = 2.0
    seed: int = 0
    up: Literal["y", "z"] | None = None
    condition_views: int = 0
    condition_size: int = 1024

    def __post_init__(self) -> None:
        if min(self.views, self.size, self.supersampling, self.points, self.condition_size) < 1:
            raise DataError("views, size, supersampling, points and condition size must be at least 1")
        if not 0 <= self.condition_views <= 1000:
            raise DataError(f"condition views: expected 0 to 1000, got {self.condition_views}")
        if not 0 < self.fov_degrees < 170:
            raise DataError(f"a field of view of {self.fov_degrees} degrees is not between 0 and 170")
        if self.radius <= _HALF_DIAGONAL:
            raise DataError(f"radius {self.radius} puts cameras inside the object; it must exceed {_HALF_DIAGONAL}")
        if not 0 <= self.seed < 2**32:
            raise DataError(f"seed {self.seed} is not in [0, 2^32)")

    def to_json(self) -> dict[str, Any]:
        """All settings as JSON values.

        Returns:
            The settings by name; without those of condition views, if there are none.
        """
        settings = asdict(self)
        if not self.condition_views:
            del settings["condition_views"], settings["condition_size"]
        return settings


def find_meshes(folder: Path) -> list[Source]:
    """All mesh files below a folder in the order of their paths, with a unique key each.

    Args:
        folder: where to look, subfolders included.

    Returns:
        One source for each file, named by its path below the folder.

    Raises:
        DataError: if there is none.
    """
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in MESH_SUFFIXES and path.is_file())
    if not files:
        raise DataError(f"no mesh file ({', '.join(MESH_SUFFIXES)}) below {folder}")
    names = [path.relative_to(folder).as_posix() for path in files]
    short = [re.sub(r"[^A-Za-z0-9_-]+", "_", str(Path(name).with_suffix("")))[-48:] for name in names]
    uses = Counter(short)
    keys = [
        key if uses[key] == 1 else f"{key}-{sha256(name.encode()).hexdigest()[:12]}"
        for key, name in zip(short, names, strict=True)
    ]
    return [Source(key, name, number) for number, (key, name) in enumerate(zip(keys, names, strict=True))]


def toy_sources(count: int) -> list[Source]:
    """Sources of generated objects.

    Args:
        count: number of objects.

    Returns:
        Sources named toy_000000, toy_000001 and so on, numbered from 0.

    Raises:
        DataError: if `count` is not positive.
    """
    if count < 1:
        raise DataError(f"--count {count}: at least 1 object is needed")
    return [Source(f"toy_{number:06d}", f"toy_{number:06d}", number) for number in range(count)]


def make_mesh_object(folder: Path, settings: ObjectSettings, source: Source) -> EncodedSample:
    """Turn one mesh file into a sample.

    Args:
        folder: what the source's name is relative to.
        settings: how to render.
        source: the object to make: its key, name and number.

    Returns:
        The encoded sample.

    Raises:
        MeshError: if the file cannot be used.
    """
    return encode_object(load_mesh(folder / source.name, up=settings.up), source, settings)


def make_toy_object(settings: ObjectSettings, source: Source) -> EncodedSample:
    """Generate one toy object and turn it into a sample.

    Args:
        settings: how to render; its seed and the source's number decide on the object.
        source: the object to make: its key, name and number.

    Returns:
        The encoded sample, with the object's family in its record.
    """
    mesh, family = toy_object(settings.seed, source.number)
    return encode_object(mesh, source, settings, family)


def encode_object(
    mesh: TexturedMesh, source: Source, settings: ObjectSettings, family: str | None = None
) -> EncodedSample:
    """Render and sample an object, and encode the members of its sample.

    Args:
        mesh: the object, z up, of any size and place.
        source: its name and key, which also shift the cameras and seed the points.
        settings: how to render.
        family: kind of a generated object, for its record.

    Returns:
        The sample: record, colour, depth and normal images of each view, surface points, and condition views.

    Raises:
        MeshError: if the mesh has no extent or no surface.
    """
    mesh, center, scale = normalise(mesh)
    seed = zlib.crc32(f"{settings.seed}/{source.name}".encode())
    shift = np.random.RandomState(seed).random_sample(2)
    directions = sphere_hammersley(settings.views, (float(shift[0]), float(shift[1])))
    fov = math.radians(settings.fov_degrees)
    cameras = cameras_around(directions, settings.radius, fov, settings.size)
    depth_range = (settings.radius - _HALF_DIAGONAL, settings.radius + _HALF_DIAGONAL)
    surface = sample_surface(mesh, settings.points, seed)
    record = {
        "schema": RECORD_SCHEMA,
        "name": source.key,
        "source": Path(source.name).name,
        "family": family,
        "views": settings.views,
        "size": settings.size,
        "fov": fov,
        "radius": settings.radius,
        "world_to_camera": cameras.world_to_camera.tolist(),
        "intrinsics": cameras.intrinsics.tolist(),
        "depth_range": depth_range,
        "center": center.tolist(),
        "scale": scale,
        "points": settings.points,
        "seed": seed,
    }
    conditions, pictures = _conditions(mesh, settings, source)
    members = {"record.json": json.dumps(record | conditions).encode()}
    members |= _encode_views(render_views(mesh, cameras, settings.supersampling), depth_range) | pictures
    arrays: dict[str, NDArray[Any]] = {
        "points": surface.points,
        "point_normals": surface.normals,
        "point_colors": surface.colors,
    }
    return EncodedSample(source.key, members | {f"{name}.npy": encode_npy(array) for name, array in arrays.items()})


def _conditions(
    mesh: TexturedMesh, settings: ObjectSettings, source: Source
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The record's part about condition views, and their images."""
    count, size = settings.condition_views, settings.condition_size
    if not count:
        return {}, {}
    # A generator of their own, so that the other draws are the same with and without condition views.
    random = np.random.RandomState(zlib.crc32(f"{settings.seed}/{source.name}/conditions".encode()))
    cameras = draw_cameras(count, random)
    views = render_conditions(mesh, cameras, size, settings.supersampling)
    images = {member_name(view): _encode_png(image) for view, image in enumerate(views.color)}
    return {"conditions": {"size": size, "cameras": cameras.tolist()}}, images


def _encode_views(views: Views, depth_range: tuple[float, float]) -> dict[str, bytes]:
    near, far = depth_range
    hit = views.depth > 0
    levels = 1 + np.round((views.depth - near) * (DEPTH_LEVELS / (far - near)))
    depths = np.where(hit, levels, 0).astype(np.uint16)
    normals = (np.round((views.normal + 1) * 127.5) * hit[..., None]).astype(np.uint8)
    images: dict[str, NDArray[Any]] = {"color": views.color, "depth": depths, "normal": normals}
    return {
        f"{name}.{view:03d}.png": _encode_png(image)
        for name, stack in images.items()
        for view, image in enumerate(stack)
    }


def _encode_png(image: NDArray[np.uint8] | NDArray[np.uint16]) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "png", compress_level=_PNG_LEVEL)
    return stream.getvalue()
