"""Parametric surfaces with texture coordinates, from which toy objects are put together."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
_DIFFERENCE = 1e-4
_SHARP = 0.8  # cosine of the bend from which a profile has an edge


@dataclass(frozen=True)
class Part:
    """A surface whose attributes belong to vertices: positions, faces, texture coordinates, and normals or None.

    Attributes:
        vertices: [Nv, 3] positions.
        faces: [F, 3] indices into `vertices`.
        uvs: [Nv, 2] texture coordinates, v down.
        normals: [Nv, 3] of any length, or None for those of the faces.
    """

    vertices: Array
    faces: NDArray[np.int64]
    uvs: Array
    normals: Array | None = None

    def shifted(self, x: float = 0, y: float = 0, z: float = 0) -> "Part":
        """The part moved.

        Args:
            x: distance along x.
            y: distance along y.
            z: distance along z.

        Returns:
            The moved part.
        """
        return replace(self, vertices=self.vertices + np.array([x, y, z], float))

    def turned(self, angle: float, axis: int = 2) -> "Part":
        """The part turned about an axis through the origin, by radians.

        Args:
            angle: in radians, counter-clockwise as seen with the axis pointing at the viewer.
            axis: 0, 1 or 2 for x, y or z.

        Returns:
            The turned part.
        """
        first, second = (axis + 1) % 3, (axis + 2) % 3
        rotation = np.eye(3)
        rotation[[first, second], [first, second]] = np.cos(angle)
        rotation[first, second], rotation[second, first] = -np.sin(angle), np.sin(angle)
        normals = None if self.normals is None else self.normals @ rotation.T
        return replace(self, vertices=self.vertices @ rotation.T, normals=normals)


def surface(
    position: Callable[[Array, Array], Array], rows: int, columns: int, tiles: tuple[float, float] = (1, 1)
) -> Part:
    """Sample a smooth surface on a grid.

    Args:
        position: maps u and v in [0, 1], of one shape, to points [..., 3]; du x dv points outwards.
        rows: cells along v.
        columns: cells along u.
        tiles: how often the texture repeats along u and v.

    Returns:
        The part, with smooth normals.
    """
    u, v = np.meshgrid(np.linspace(0, 1, columns + 1), np.linspace(0, 1, rows + 1))
    along_u = position(u + _DIFFERENCE, v) - position(u - _DIFFERENCE, v)
    along_v = position(u, v + _DIFFERENCE) - position(u, v - _DIFFERENCE)
    normals = np.cross(along_u, along_v)
    lengths = np.linalg.norm(normals, axis=-1, keepdims=True)
    normals = np.where(lengths > 1e-4 * lengths.max(), normals, 0)  # none at poles: the faces' are taken there
    corner = np.arange(rows * (columns + 1)).reshape(rows, columns + 1)[:, :-1].ravel()
    above = corner + columns + 1
    faces = np.concatenate([np.stack([corner, corner + 1, above + 1], 1), np.stack([corner, above + 1, above], 1)])
    uvs = np.stack([u * tiles[0], (1 - v) * tiles[1]], axis=-1)
    return Part(position(u, v).reshape(-1, 3), faces, uvs.reshape(-1, 2), normals.reshape(-1, 3))


def lathe(heights: Array, radii: Array, columns: int = 48, tiles: tuple[float, float] = (3, 2)) -> Part:
    """Turn a profile around z. Where the profile bends sharply, the surface has an edge.

    Args:
        heights: [n] z along the profile, which is walked with the outside on its right (outer walls upwards).
        radii: [n] distances from the axis.
        columns: cells around the axis.
        tiles: repeats of the texture around the axis and along the profile.

    Returns:
        The part about the z axis, with smooth normals between its edges.
    """
    steps = np.stack([np.diff(radii), np.diff(heights)], axis=1)
    lengths = np.linalg.norm(steps, axis=1)
    knots = np.concatenate([[0], np.cumsum(lengths)]) / lengths.sum()
    cosines = (steps[1:] * steps[:-1]).sum(axis=1) / (lengths[1:] * lengths[:-1])
    edges = [0, *(np.flatnonzero(cosines < _SHARP) + 1), len(heights) - 1]
    runs = []
    for first, last in itertools.pairwise(edges):
        run = _lathe_run(heights[first : last + 1], radii[first : last + 1], knots[first : last + 1], columns, tiles[0])
        runs.append(replace(run, uvs=run.uvs * [1, tiles[1]]))
    return joined(runs)


def _lathe_run(heights: Array, radii: Array, knots: Array, columns: int, tiles: float) -> Part:
    """A smooth stretch of a profile, whose points lie at `knots` in [0, 1] of the whole."""
    span = knots[-1] - knots[0]

    def position(u: Array, v: Array) -> Array:
        place = knots[0] + v * span
        radius, height = np.interp(place, knots, radii), np.interp(place, knots, heights)
        angle = 2 * np.pi * u
        return np.stack([radius * np.cos(angle), radius * np.sin(angle), height], axis=-1)

    part = surface(position, 2 * (len(heights) - 1), columns, (tiles, span))
    return replace(part, uvs=part.uvs + np.array([0, 1 - knots[-1]]))


def sphere(radius: float = 0.5, tiles: tuple[float, float] = (4, 2)) -> Part:
    """A sphere about the origin.

    Args:
        radius: of the sphere.
        tiles: repeats of the texture around the z axis and along it.

    Returns:
        The part, with smooth normals.
    """
    return superquadric((radius, radius, radius), (1.0, 1.0), tiles)


def superquadric(sizes: tuple[float, float, float], exponents: tuple[float, float], tiles: tuple[float, float]) -> Part:
    """A superquadric about the origin: exponents below one are boxy, one is round, two is pinched.

    Args:
        sizes: half extents along x, y, z.
        exponents: of the cross-sections that contain z, and of the one across it.
        tiles: repeats of the texture around the axis and along it.

    Returns:
        The part, with smooth normals.
    """

    def power(values: Array, exponent: float) -> Array:
        return np.sign(values) * np.abs(values) ** exponent

    def position(u: Array, v: Array) -> Array:
        azimuth, polar = 2 * np.pi * u, np.pi * (v - 0.5)
        ring = power(np.cos(polar), exponents[0])
        x = sizes[0] * ring * power(np.cos(azimuth), exponents[1])
        y = sizes[1] * ring * power(np.sin(azimuth), exponents[1])
        return np.stack([x, y, sizes[2] * power(np.sin(polar), exponents[0])], axis=-1)

    return surface(position, 48, 64, tiles)


def tube(path: Callable[[Array], Array], radius: float, rows: int = 96, tiles: tuple[float, float] = (1, 8)) -> Part:
    """A round tube along a curve.

    Args:
        path: maps [0, 1] to points [..., 3]; never straight along (0.21, 0.13, 0.97).
        radius: of the tube.
        rows: cells along the curve.
        tiles: repeats of the texture around the tube and along it.

    Returns:
        The part, open at both ends, with smooth normals.
    """
    reference = np.array([0.21, 0.13, 0.97])

    def position(u: Array, v: Array) -> Array:
        tangent = path(v + _DIFFERENCE) - path(v - _DIFFERENCE)
        tangent /= np.linalg.norm(tangent, axis=-1, keepdims=True)
        side = np.cross(tangent, reference)
        side /= np.linalg.norm(side, axis=-1, keepdims=True)
        other = np.cross(tangent, side)
        angle = 2 * np.pi * u[..., None]
        return path(v) + radius * (np.cos(angle) * side + np.sin(angle) * other)

    return surface(position, rows, 20, tiles)


def rod(start: tuple[float, float, float], end: tuple[float, float, float], radius: float) -> Part:
    """A thin straight tube between two points.

    Args:
        start: x, y, z of one end.
        end: x, y, z of the other end.
        radius: of the rod.

    Returns:
        The part, open at both ends, with smooth normals.
    """
    first, last = np.array(start, float), np.array(end, float)
    return tube(lambda t: first + t[..., None] * (last - first), radius, rows=4, tiles=(1, 4))


def box(sizes: tuple[float, float, float], density: float = 2.0) -> Part:
    """A box about the origin; each side carries the texture upright, `density` tiles to a unit of length.

    Args:
        sizes: full extents along x, y, z.
        density: tiles of the texture to a unit of length.

    Returns:
        The part, with flat sides.
    """
    sides = []
    for axis in range(3):
        for sign in (-1.0, 1.0):
            across, up = ((1, 2), (0, 2), (0, 1))[axis]
            corners = np.zeros((4, 3))
            corners[:, axis] = sign
            corners[:, across], corners[:, up] = [-1, 1, 1, -1], [-1, -1, 1, 1]
            if sign * (1, -1, 1)[axis] < 0:  # the texture reads left to right from outside
                corners[:, across] *= -1
            uvs = np.array([[0, 1], [1, 1], [1, 0], [0, 0]]) * (density * np.array([sizes[across], sizes[up]]))
            sides.append(Part(corners * np.array(sizes) / 2, np.array([[0, 1, 2], [0, 2, 3]]), uvs))
    return joined(sides)


def prism(outline: Array, height: float, density: float = 2.0) -> Part:
    """An outline in the xy-plane, star-shaped about the origin and counter-clockwise, drawn out along z.

    Args:
        outline: [n, 2] corners.
        height: extent along z, centred on the origin.
        density: tiles of the texture to a unit of length.

    Returns:
        The closed part, with flat sides.
    """
    count = len(outline)
    following = np.roll(outline, -1, axis=0)
    sides = []
    starts = np.concatenate([[0], np.cumsum(np.linalg.norm(following - outline, axis=1))]) * density
    for index in range(count):
        ends = np.array([outline[index], following[index], following[index], outline[index]])
        vertices = np.column_stack([ends, [-height / 2, -height / 2, height / 2, height / 2]])
        u = starts[[index, index + 1, index + 1, index]]
        uvs = np.column_stack([u, np.array([1, 1, 0, 0]) * density * height])
        sides.append(Part(vertices, np.array([[0, 1, 2], [0, 2, 3]]), uvs))
    ring = np.arange(count)
    for z, order in ((height / 2, 1), (-height / 2, -1)):
        vertices = np.column_stack([np.vstack([outline, [[0, 0]]]), np.full(count + 1, z)])
        fan = np.stack([ring, (ring + 1) % count, np.full(count, count)], axis=1)[:, ::order]
        sides.append(Part(vertices, fan, vertices[:, :2] * [order, -1] * density))
    return joined(sides)


def joined(parts: list[Part]) -> Part:
    """Several parts as one; it has smooth normals if all of them have.

    Args:
        parts: at least one.

    Returns:
        One part with the vertices and faces in the order given.
    """
    firsts = np.cumsum([0] + [len(part.vertices) for part in parts])
    normals = [part.normals for part in parts if part.normals is not None]
    return Part(
        np.concatenate([part.vertices for part in parts]),
        np.concatenate([part.faces + first for part, first in zip(parts, firsts, strict=False)]),
        np.concatenate([part.uvs for part in parts]),
        np.concatenate(normals) if len(normals) == len(parts) else None,
    )
