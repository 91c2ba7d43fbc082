"""Materials of glTF files: base colour factor, texture, wrapping, alpha mode and texture transform."""

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodules.prepare.gltf_header import base_color, texture_transform
from datamodules.prepare.mesh_assets import decode_texture, read_uri
from datamodules.prepare.mesh_types import Material, MeshError, Wrap

_WRAPS: dict[int, Wrap] = {10497: "repeat", 33071: "clamp", 33648: "mirror"}


def read_materials(header: dict[str, Any], buffers: list[bytes], folder: Path) -> list[Material]:
    """Read all materials of a file, and after them the one of primitives that name none.

    Args:
        header: the parsed JSON.
        buffers: contents of the file's buffers.
        folder: the folder of the file; textures are read from there alone.

    Returns:
        The materials in the order of the file, then a plain white one.

    Raises:
        MeshError: for a texture that is missing, outside the folder, or of a kind that is not read.
    """
    images: dict[int, NDArray[np.uint8]] = {}
    materials = []
    for material in header.get("materials", []):
        factor, reference = base_color(material)
        texture, wrap = None, (_WRAPS[10497], _WRAPS[10497])
        if reference is not None:
            description = header["textures"][reference["index"]]
            source = _image_index(description)
            if source not in images:
                images[source] = _read_image(header, source, buffers, folder)
            texture = images[source]
            sampler = header["samplers"][description["sampler"]] if "sampler" in description else {}
            wrap = (_WRAPS[sampler.get("wrapS", 10497)], _WRAPS[sampler.get("wrapT", 10497)])
        red, green, blue, alpha = (float(value) for value in factor)
        cutoff = float(material.get("alphaCutoff", 0.5))
        materials.append(
            Material((red, green, blue, alpha), texture, wrap, material.get("alphaMode", "OPAQUE"), cutoff)
        )
    return [*materials, Material()]


def uv_matrix(material: dict[str, Any]) -> NDArray[np.float64]:
    """[2, 3] affine map of texture coordinates from a material's KHR_texture_transform.

    Scaled first, then turned counter-clockwise as seen with v down, then shifted.

    Args:
        material: the JSON of one material; empty for the default one.

    Returns:
        [2, 3] matrix; (u, v, 1) in the file's coordinates maps to (u, v) in the image, v down.
    """
    reference = base_color(material)[1]
    transform = {} if reference is None else texture_transform(reference)
    angle = transform.get("rotation", 0.0)
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    scale, offset = transform.get("scale", [1.0, 1.0]), transform.get("offset", [0.0, 0.0])
    return np.column_stack([turn * np.asarray(scale, float), np.asarray(offset, float)])


def _image_index(texture: dict[str, Any]) -> int:
    webp = texture.get("extensions", {}).get("EXT_texture_webp", {})
    source = webp.get("source", texture.get("source"))
    if source is None:
        names = ", ".join(texture.get("extensions", {})) or "no image"
        raise MeshError(f"has a texture that is not read ({names}); convert its images to png or jpeg first")
    return source


def _read_image(header: dict[str, Any], index: int, buffers: list[bytes], folder: Path) -> NDArray[np.uint8]:
    image = header["images"][index]
    if "uri" in image:
        uri = image["uri"]
        return decode_texture(read_uri(folder, uri), "data URI" if uri.startswith("data:") else uri)
    view = header["bufferViews"][image["bufferView"]]
    start = view.get("byteOffset", 0)
    return decode_texture(
        buffers[view["buffer"]][start : start + view["byteLength"]], image.get("name", f"image {index}")
    )
