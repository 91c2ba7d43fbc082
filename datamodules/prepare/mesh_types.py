"""What every mesh loader and toy object produces: triangles with materials, and the error that refuses a mesh."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Wrap = Literal["repeat", "clamp", "mirror"]
AlphaMode = Literal["OPAQUE", "MASK", "BLEND"]


class MeshError(ValueError):
    """A mesh that cannot be used; the message says why."""


@dataclass(frozen=True)
class Material:
    """The base colour of a surface; all other reflection properties are left out, since views are rendered unlit.

    Attributes:
        base_color: linear RGBA that multiplies the texture.
        texture: [H, W, 4] sRGB colours and straight alpha, first row at the top, or None.
        wrap: what happens beyond the texture, along u and v.
        alpha_mode: as in glTF: OPAQUE ignores alpha, MASK cuts at `alpha_cutoff`, BLEND composites.
        alpha_cutoff: least alpha that is kept with MASK.
    """

    base_color: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)
    texture: NDArray[np.uint8] | None = None
    wrap: tuple[Wrap, Wrap] = ("repeat", "repeat")
    alpha_mode: AlphaMode = "OPAQUE"
    alpha_cutoff: float = 0.5


@dataclass(frozen=True)
class TexturedMesh:
    """Triangles, z up, with attributes at their corners.

    Attributes:
        vertices: [Nv, 3] float64 positions.
        faces: [F, 3] int64 indices into `vertices`.
        face_materials: [F] int32 indices into `materials`.
        materials: at least one material.
        corner_uvs: [F, 3, 2] float32 texture coordinates, (0, 0) at the top-left corner of the image, v down.
        corner_normals: [F, 3, 3] float32 unit shading normals; those of the face where the file has none.
        corner_colors: [F, 3, 4] float32 linear RGBA that multiplies the material's, or None.
        up: the axis that pointed up in the file, before the rotation to z up.
    """

    vertices: NDArray[np.float64]
    faces: NDArray[np.int64]
    face_materials: NDArray[np.int32]
    materials: tuple[Material, ...]
    corner_uvs: NDArray[np.float32]
    corner_normals: NDArray[np.float32]
    corner_colors: NDArray[np.float32] | None = None
    up: Literal["y", "z"] = "z"

    @cached_property
    def face_crosses(self) -> NDArray[np.float64]:
        """[F, 3] cross products of the edges: along the geometric normal, twice the area long."""
        a, b, c = (self.vertices[self.faces[:, corner]] for corner in range(3))
        return np.cross(b - a, c - a)

    @cached_property
    def face_normals(self) -> NDArray[np.float32]:
        """[F, 3] geometric unit normals; zero for a degenerate face."""
        return unit(self.face_crosses).astype(np.float32)

    @cached_property
    def face_areas(self) -> NDArray[np.float64]:
        """[F] areas."""
        return 0.5 * np.linalg.norm(self.face_crosses, axis=1)


def unit(vectors: NDArray[np.floating]) -> NDArray[np.floating]:
    """Vectors [..., 3] scaled to length one; zero stays zero.

    Args:
        vectors: [..., 3] real numbers.

    Returns:
        [..., 3] vectors of the same type.
    """
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)


def build_mesh(
    vertices: NDArray[np.floating],
    faces: NDArray[np.integer],
    material: Material | None = None,
    uvs: NDArray[np.floating] | None = None,
    normals: NDArray[np.floating] | None = None,
    colors: NDArray[np.floating] | None = None,
) -> TexturedMesh:
    """Make a one-material mesh from attributes that belong to vertices.

    Args:
        vertices: [Nv, 3].
        faces: [F, 3] indices.
        material: plain white by default.
        uvs: [Nv, 2] texture coordinates, v down; zeros by default.
        normals: [Nv, 3] shading normals of any length; face normals where absent, zero or not finite.
        colors: [Nv, 3 or 4] linear colours.

    Returns:
        The mesh, in the axes and units of `vertices`.

    Raises:
        MeshError: if a face refers to a vertex that does not exist, or an attribute has another length.
    """
    faces = faces.astype(np.int64).reshape(-1, 3)
    if len(faces) and (faces.min() < 0 or faces.max() >= len(vertices)):
        raise MeshError(f"faces refer to vertices {faces.min()}..{faces.max()}, but there are {len(vertices)}")
    for name, values in (("uvs", uvs), ("normals", normals), ("colors", colors)):
        if values is not None and len(values) != len(vertices):
            raise MeshError(f"{name} has {len(values)} entries for {len(vertices)} vertices")
    corner_uvs = np.zeros((len(faces), 3, 2), np.float32)
    if uvs is not None:
        corner_uvs = np.nan_to_num(np.asarray(uvs, np.float32)[faces], posinf=0.0, neginf=0.0)
    mesh = TexturedMesh(
        vertices=vertices.astype(np.float64),
        faces=faces,
        face_materials=np.zeros(len(faces), np.int32),
        materials=(material or Material(),),
        corner_uvs=corner_uvs,
        corner_normals=np.zeros((len(faces), 3, 3), np.float32),
        corner_colors=None if colors is None else _rgba(np.asarray(colors, np.float32))[faces],
    )
    return replace(mesh, corner_normals=_corner_normals(mesh, normals))


def join_meshes(meshes: list[TexturedMesh]) -> TexturedMesh:
    """Put several meshes into one; materials are kept apart.

    Args:
        meshes: in the same axes and units.

    Returns:
        One mesh with the faces and materials in the order given; missing corner colours become white if any mesh has
        some.

    Raises:
        MeshError: if the list is empty.
    """
    if not meshes:
        raise MeshError("the file has no triangles")
    firsts = np.cumsum([0] + [len(mesh.vertices) for mesh in meshes])
    material_firsts = np.cumsum([0] + [len(mesh.materials) for mesh in meshes])
    colors = None
    if any(mesh.corner_colors is not None for mesh in meshes):
        colors = np.concatenate([_colors_or_white(mesh) for mesh in meshes])
    return TexturedMesh(
        vertices=np.concatenate([mesh.vertices for mesh in meshes]),
        faces=np.concatenate([mesh.faces + first for mesh, first in zip(meshes, firsts, strict=False)]),
        face_materials=np.concatenate(
            [mesh.face_materials + np.int32(first) for mesh, first in zip(meshes, material_firsts, strict=False)]
        ),
        materials=tuple(material for mesh in meshes for material in mesh.materials),
        corner_uvs=np.concatenate([mesh.corner_uvs for mesh in meshes]),
        corner_normals=np.concatenate([mesh.corner_normals for mesh in meshes]),
        corner_colors=colors,
        up=meshes[0].up,
    )


def _rgba(colors: NDArray[np.float32]) -> NDArray[np.float32]:
    if colors.shape[1] == 4:
        return colors
    return np.concatenate([colors, np.ones((len(colors), 1), np.float32)], axis=1)


def _colors_or_white(mesh: TexturedMesh) -> NDArray[np.float32]:
    return np.ones((len(mesh.faces), 3, 4), np.float32) if mesh.corner_colors is None else mesh.corner_colors


def _corner_normals(mesh: TexturedMesh, normals: NDArray[np.floating] | None) -> NDArray[np.float32]:
    flat = np.broadcast_to(mesh.face_normals[:, None], (len(mesh.faces), 3, 3))
    if normals is None:
        return flat.copy()
    smooth = unit(np.nan_to_num(np.asarray(normals, np.float32), posinf=0.0, neginf=0.0))[mesh.faces]
    return np.where((smooth == 0).all(-1, keepdims=True), flat, smooth)
