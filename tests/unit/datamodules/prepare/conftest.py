"""Small mesh files, written by hand so that every byte of them is known."""

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from gsforge.core.cameras import Cameras, cameras_around

QUAD = np.array([[-1, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]], np.float32)  # seen from +z
QUAD_FACES = np.array([[0, 1, 2], [0, 2, 3]], np.uint32)
QUAD_UVS = np.array([[0, 1], [1, 1], [1, 0], [0, 0]], np.float32)  # v down, as in glTF
QUADRANTS = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 255]]], np.uint8)


def png(pixels: np.ndarray, repeats: int = 16) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels.repeat(repeats, axis=0).repeat(repeats, axis=1)).save(stream, "png")
    return stream.getvalue()


def data_uri(data: bytes) -> str:
    return "data:application/octet-stream;base64," + base64.b64encode(data).decode()


class GltfBuilder:
    """Collects arrays into one buffer."""

    def __init__(self) -> None:
        self.data = b""
        self.header: dict[str, Any] = {"asset": {"version": "2.0"}, "bufferViews": [], "accessors": []}

    def accessor(self, values: np.ndarray, **extra: Any) -> int:
        kinds = {"float32": 5126, "uint32": 5125, "uint16": 5123, "uint8": 5121}
        view = {"buffer": 0, "byteOffset": len(self.data), "byteLength": values.nbytes}
        self.data += values.tobytes() + b"\0" * (-values.nbytes % 4)
        self.header["bufferViews"].append(view)
        shape = "SCALAR" if values.ndim == 1 else f"VEC{values.shape[1]}"
        accessor = {"componentType": kinds[str(values.dtype)], "count": len(values), "type": shape}
        self.header["accessors"].append(accessor | {"bufferView": len(self.header["bufferViews"]) - 1} | extra)
        return len(self.header["accessors"]) - 1

    def quad(self, material: int | None = None, **attributes: np.ndarray) -> dict[str, Any]:
        arrays = {"POSITION": QUAD, "TEXCOORD_0": QUAD_UVS, **attributes}
        primitive = {
            "attributes": {name: self.accessor(values) for name, values in arrays.items()},
            "indices": self.accessor(QUAD_FACES.ravel()),
        }
        return primitive if material is None else primitive | {"material": material}

    def save(self, path: Path, **header: Any) -> Path:
        content = {"nodes": [{"mesh": 0}], "buffers": [{"uri": data_uri(self.data), "byteLength": len(self.data)}]}
        path.write_text(json.dumps(self.header | content | header))
        return path


@pytest.fixture
def textured_quad(tmp_path: Path) -> Callable[..., Path]:
    """Writes a quad with red, green / blue, white quadrants; arguments go into its material."""

    def write(pixels: np.ndarray = QUADRANTS, attributes: dict[str, np.ndarray] | None = None, **material: Any) -> Path:
        builder = GltfBuilder()
        primitive = builder.quad(0, **(attributes or {}))
        metallic = {"baseColorTexture": {"index": 0}} | material.pop("pbrMetallicRoughness", {})
        return builder.save(
            tmp_path / "quad.gltf",
            meshes=[{"primitives": [primitive]}],
            materials=[{"pbrMetallicRoughness": metallic} | material],
            textures=[{"source": 0}],
            images=[{"uri": data_uri(png(pixels))}],
        )

    return write


@pytest.fixture
def builder() -> GltfBuilder:
    return GltfBuilder()


@pytest.fixture
def front() -> Cameras:
    """Looks along +y at the unit box: what faces +z in a glTF file faces this camera."""
    return cameras_around(torch.tensor([[0.0, -1.0, 0.0]]), radius=3.0, fov=0.4, size=32)
