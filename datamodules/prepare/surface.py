"""Coloured points on the surface of a mesh."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from datamodules.prepare.appearance import SOLID_ALPHA, Appearance
from datamodules.prepare.mesh_types import MeshError, TexturedMesh, unit
from datamodules.prepare.textures import linear_to_srgb

_MAX_ROUNDS = 64


@dataclass(frozen=True)
class SurfacePoints:
    """Points on a surface.

    Attributes:
        points: [N, 3] float32.
        normals: [N, 3] float16 unit shading normals.
        colors: [N, 3] uint8 sRGB base colour, without shading.
    """

    points: NDArray[np.float32]
    normals: NDArray[np.float16]
    colors: NDArray[np.uint8]


def sample_surface(mesh: TexturedMesh, count: int, seed: int) -> SurfacePoints:
    """Draw points uniformly over the solid surface (where alpha is at least 0.5).

    Args:
        mesh: the object.
        count: number of points.
        seed: of the draw; the same mesh, count and seed give the same points.

    Returns:
        Exactly `count` points, in the frame and units of the mesh.

    Raises:
        MeshError: if the mesh has no area, or next to none of it is solid.
    """
    cumulative = np.cumsum(mesh.face_areas)
    if not cumulative[-1] > 0:
        raise MeshError("all faces are degenerate: there is no surface to draw points from")
    generator = np.random.default_rng(seed)
    appearance = Appearance(mesh, filtered=False)
    parts: list[tuple[NDArray[np.float32], NDArray[np.float16], NDArray[np.uint8]]] = []
    missing = count
    for _ in range(_MAX_ROUNDS):
        part = _draw(mesh, appearance, cumulative, count, generator)
        parts.append((part[0][:missing], part[1][:missing], part[2][:missing]))
        missing -= len(parts[-1][0])
        if missing == 0:
            return SurfacePoints(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))
    raise MeshError(f"hardly any of the surface is solid: {count - missing} of {count} points found")


def _draw(
    mesh: TexturedMesh,
    appearance: Appearance,
    cumulative: NDArray[np.float64],
    count: int,
    generator: np.random.Generator,
) -> tuple[NDArray[np.float32], NDArray[np.float16], NDArray[np.uint8]]:
    """Draw `count` places on the surface and keep those that are solid."""
    uniform = generator.random((count, 3))
    faces = np.searchsorted(cumulative, uniform[:, 0] * cumulative[-1], side="right")
    faces = np.minimum(faces, len(cumulative) - 1)
    root = np.sqrt(uniform[:, 1])  # uniform over the triangle
    weights = np.stack([1 - root, root * (1 - uniform[:, 2]), root * uniform[:, 2]], axis=1).astype(np.float32)
    colors = appearance.colors(faces, weights)
    solid = np.flatnonzero(colors[:, 3] >= SOLID_ALPHA)
    faces, weights = faces[solid], weights[solid]
    points = np.einsum("nk,nkd->nd", weights, mesh.vertices[mesh.faces[faces]])
    normals = unit(np.einsum("nk,nkd->nd", weights, mesh.corner_normals[faces]))
    return points.astype(np.float32), normals.astype(np.float16), linear_to_srgb(colors[solid, :3])
