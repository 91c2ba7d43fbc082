"""Textures: which image formats are read."""

import io

import numpy as np
import pytest
from PIL import Image

from datamodules.prepare.mesh_assets import decode_texture
from datamodules.prepare.mesh_types import MeshError


def encoded(kind: str) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.full((4, 6, 3), 200, np.uint8)).save(stream, kind)
    return stream.getvalue()


@pytest.mark.parametrize("kind", ["png", "bmp", "tga", "tiff", "gif"])
def test_common_formats_are_read(kind: str) -> None:
    texture = decode_texture(encoded(kind), "name")
    assert texture.shape == (4, 6, 4)
    assert (texture == [200, 200, 200, 255]).all()


def test_postscript_is_refused() -> None:
    with pytest.raises(MeshError, match=r"the texture 'wood\.png' cannot be decoded"):
        decode_texture(encoded("eps"), "wood.png")
