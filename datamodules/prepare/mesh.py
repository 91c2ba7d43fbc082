"""Load mesh files as textured triangles, z up, and bring them into the unit box."""

import struct
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from datamodules.prepare.gltf import load_gltf
from datamodules.prepare.mesh_types import Material, MeshError, TexturedMesh, build_mesh, join_meshes
from datamodules.prepare.ply_mesh import load_ply
from datamodules.prepare.wavefront import load_obj

__all__ = ["Material", "MeshError", "TexturedMesh", "build_mesh", "join_meshes", "load_mesh", "normalise"]

_LOADERS = {".glb": load_gltf, ".gltf": load_gltf, ".obj": load_obj, ".ply": load_ply}
_MARGIN = 1e-3  # keeps surface points strictly inside the box after rounding
# What the parsers raise on files that are cut off or contradict themselves.
_PARSE_ERRORS = (
    *(ValueError, KeyError, IndexError, TypeError, AttributeError, AssertionError, OverflowError, EOFError),
    *(RecursionError, NotImplementedError, struct.error),
)


def load_mesh(path: Path, max_faces: int = 5_000_000, up: Literal["y", "z"] | None = None) -> TexturedMesh:
    """Load a .glb, .gltf, .obj or .ply file.

    The number of faces is read from the file's header (or counted line by line) before anything else is loaded.
    Files that the mesh refers to must lie in its folder or below.

    Args:
        path: the file.
        max_faces: most faces that are accepted, instances counted.
        up: the axis that points up in the file; by default y for .glb, .gltf (their standard) and .obj, z for .ply.

    Returns:
        The mesh, turned so that z is up (y up: (x, y, z) becomes (x, -z, y)); units are those of the file.

    Raises:
        MeshError: if the file is of another kind, cannot be read, has no faces, too many of them, vertices that are
            not finite, no extent, or refers to a missing file or to one outside its folder.
    """
    suffix = path.suffix.lower()
    if suffix not in _LOADERS:
        raise MeshError(f"{path.name}: expected one of {', '.join(_LOADERS)}, got '{suffix}'")
    try:
        mesh = _LOADERS[suffix](path, max_faces)
        _check(mesh)
    except MeshError as error:
        raise MeshError(f"{path.name}: {error}") from error
    except OSError as error:
        raise MeshError(f"{path.name}: cannot be read: {error}") from error
    except _PARSE_ERRORS as error:
        raise MeshError(f"{path.name}: cannot be parsed: {type(error).__name__}: {error}") from error
    return _from_y_up(mesh) if (up or ("z" if suffix == ".ply" else "y")) == "y" else mesh


def normalise(mesh: TexturedMesh) -> tuple[TexturedMesh, NDArray[np.float64], float]:
    """Centre a mesh's bounding box on the origin, and scale its longest side to just under one.

    Args:
        mesh: the mesh.

    Returns:
        mesh: inside [-0.5, 0.5]^3, strictly.
        center: [3] of the bounding box before.
        scale: positions after = (positions before - center) * scale.

    Raises:
        MeshError: if the mesh has no extent.
    """
    low, high = _bounds(mesh)
    center, extent = (low + high) / 2, float((high - low).max())
    if not 0 < extent < np.inf:
        raise MeshError(f"the bounding box has the extent {extent}: there is nothing to scale")
    scale = (1 - _MARGIN) / extent
    return replace(mesh, vertices=(mesh.vertices - center) * scale), center, scale


def _bounds(mesh: TexturedMesh) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    used = np.zeros(len(mesh.vertices), bool)
    used[mesh.faces] = True
    return mesh.vertices[used].min(axis=0), mesh.vertices[used].max(axis=0)


def _check(mesh: TexturedMesh) -> None:
    if not len(mesh.faces):
        raise MeshError("the file has no triangles")
    low, high = _bounds(mesh)
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise MeshError("vertex positions are not finite (NaN or infinity)")
    if not mesh.face_areas.sum() > 0:
        raise MeshError(f"the faces have no area (extent {', '.join(f'{side:g}' for side in high - low)})")


def _from_y_up(mesh: TexturedMesh) -> TexturedMesh:
    rotation = np.array([[1, 0, 0], [0, 0, -1], [0, 1, 0]], np.float64)
    return replace(
        mesh,
        vertices=mesh.vertices @ rotation.T,
        corner_normals=mesh.corner_normals @ rotation.T.astype(np.float32),
        up="y",
    )
