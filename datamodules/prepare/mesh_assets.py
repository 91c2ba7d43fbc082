"""Files that a mesh refers to: found only beside it, and decoded to textures of a bounded size."""

import base64
import io
from pathlib import Path
from urllib.parse import unquote

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from trimesh.resolvers import Resolver

from datamodules.prepare.mesh_types import MeshError

_MAX_TEXTURE_SIDE = 2048
# Pillow goes by content, not by name, and knows formats that start other programs (PostScript).
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TGA", "TIFF", "GIF")


class MemoryResolver(Resolver):
    """Gives trimesh the named bytes that were already read and checked, and no other file.

    Args:
        files: contents by name.
    """

    def __init__(self, files: dict[str, bytes]) -> None:
        self._files = files

    def get(self, key: str) -> bytes:
        """The contents of a file.

        Args:
            key: its name.

        Returns:
            Its bytes.

        Raises:
            KeyError: if there is no such file.
        """
        return self._files[key]

    def keys(self) -> list[str]:
        """All names.

        Returns:
            The names in the order in which the files were added.
        """
        return list(self._files)

    def write(self, name: str, data: bytes) -> None:
        """Add a file.

        Args:
            name: its name; a file of that name is replaced.
            data: its contents.
        """
        self._files[name] = data

    def namespaced(self, namespace: str) -> "MemoryResolver":
        """The files below a folder.

        Args:
            namespace: the folder, with or without a slash at its end.

        Returns:
            A resolver of these files alone, named without the folder.
        """
        start = namespace.rstrip("/") + "/"
        return MemoryResolver(
            {key.removeprefix(start): self._files[key] for key in self._files if key.startswith(start)}
        )


def find_asset(folder: Path, name: str) -> Path:
    """Find a file that a mesh refers to.

    Args:
        folder: the folder of the mesh.
        name: path as written in the mesh file.

    Returns:
        The resolved path of the file.

    Raises:
        MeshError: if the path leads out of the folder, or there is no such file.
    """
    relative = name.replace("\\", "/")
    path = (folder / relative).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise MeshError(f"refers to '{name}', outside its folder; put the file beside the mesh")
    if not path.is_file():
        raise MeshError(f"refers to the missing file '{name}'")
    return path


def read_uri(folder: Path, uri: str) -> bytes:
    """Contents of a glTF reference: a data: URI, or a file in the mesh's folder.

    Args:
        folder: the folder of the mesh.
        uri: the reference as written in the file.

    Returns:
        The bytes.

    Raises:
        MeshError: for another scheme, a missing file, or one outside the folder.
    """
    if uri.startswith("data:"):
        header, _, payload = uri.partition(",")
        if not header.endswith(";base64"):
            raise MeshError(f"has a data URI that is not base64: '{header[:60]}'")
        return base64.b64decode(payload)
    if "://" in uri:
        raise MeshError(f"refers to '{uri}'; only files beside the mesh are read")
    return find_asset(folder, unquote(uri)).read_bytes()


def decode_texture(data: bytes, name: str) -> NDArray[np.uint8]:
    """Decode an image to [H, W, 4] sRGB and alpha; one with a side above 2048 is shrunk by a whole factor.

    Args:
        data: contents of the image file.
        name: what error messages call the image.

    Returns:
        [H, W, 4] uint8 sRGB colours and straight alpha, first row at the top.

    Raises:
        MeshError: if the image cannot be decoded, or is of no common format.
    """
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            factor = -(-max(image.size) // _MAX_TEXTURE_SIDE)
            rgba = image.convert("RGBA")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise MeshError(f"the texture '{name}' cannot be decoded: {error}") from error
    return np.asarray(rgba.reduce(factor) if factor > 1 else rgba)
