"""Render meshes to colour, depth and normals by ray casting on the CPU."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from embreex.mesh_construction import TriangleMesh
from embreex.rtcore_scene import EmbreeScene
from numpy.typing import NDArray

from datamodules.prepare.appearance import SOLID_ALPHA, Appearance
from datamodules.prepare.mesh_types import TexturedMesh, unit
from datamodules.prepare.textures import linear_to_srgb
from gsforge.core.cameras import Cameras

DEFAULT_SHADING = 0.5
# The hemisphere's pole leans away from z, so that vertical sides differ from each other.
_SKY = np.array([0.34, 0.2, 0.92], np.float32) / np.float32(np.linalg.norm([0.34, 0.2, 0.92]))
_RAYS_AT_ONCE = 1 << 18
_MAX_LAYERS = 16
_STEP_BEHIND = 2e-5  # past a surface that a ray goes through; objects are one unit wide
_FAR, _NEAR = 100.0, 2.0  # from farther than the first, rays start this near: 32 bits are too coarse for the whole way


@dataclass(frozen=True)
class Views:
    """Rendered views of one object.

    Attributes:
        color: [V, H, W, 4] uint8 sRGB and straight alpha (the covered part of the pixel).
        depth: [V, H, W] float32 camera z at the pixel centre, 0 where there is no surface.
        normal: [V, H, W, 3] float32 world-space unit normals that face the camera, 0 where there is no surface.
    """

    color: NDArray[np.uint8]
    depth: NDArray[np.float32]
    normal: NDArray[np.float32]


@dataclass
class _Samples:
    """What n rays saw: premultiplied linear colour, alpha, and distance and normal of the first solid surface."""

    color: NDArray[np.float32]
    alpha: NDArray[np.float32]
    distance: NDArray[np.float32]
    normal: NDArray[np.float32]

    @classmethod
    def empty(cls, count: int) -> "_Samples":
        return cls(*(np.zeros(shape, np.float32) for shape in ((count, 3), count, count, (count, 3))))


def render_views(
    mesh: TexturedMesh, cameras: Cameras, supersampling: int = 3, shading: float = DEFAULT_SHADING
) -> Views:
    """Render a mesh from several cameras.

    The colour is the base colour times a fixed hemisphere light, which makes the shape visible and is the same from
    every camera: 1 on surfaces that face the sky, falling to 1 - shading on those that face away. Both sides of a
    face are visible. Colours are averaged in linear light over the samples of a pixel that hit the object; up to
    16 translucent layers are composited, and a surface has depth and a normal if its alpha is at least 0.5.

    Args:
        mesh: the object, about one unit wide.
        cameras: C cameras without batch dimensions.
        supersampling: rays along each side of a pixel.
        shading: strength of the hemisphere light, 0 (none) to 1.

    Returns:
        One view for each camera.
    """
    caster = _Caster(mesh, shading)
    count, height, width = cameras.count, cameras.height, cameras.width
    views = Views(
        np.zeros((count, height, width, 4), np.uint8),
        np.zeros((count, height, width), np.float32),
        np.zeros((count, height, width, 3), np.float32),
    )
    for view in range(count):
        for rows, columns in _windows(mesh, cameras, view, supersampling):
            seen = _render_window(caster, _cropped(cameras, view, rows, columns), supersampling)
            views.color[view, rows, columns], views.depth[view, rows, columns], views.normal[view, rows, columns] = seen
    return views


def _windows(mesh: TexturedMesh, cameras: Cameras, view: int, supersampling: int) -> Iterator[tuple[slice, slice]]:
    """Rows and columns of the image that the object's box covers, in bands of a bounded number of rays."""
    box = np.stack([mesh.vertices.min(axis=0), mesh.vertices.max(axis=0)])
    corners = torch.tensor([[box[i, 0], box[j, 1], box[k, 2]] for i in (0, 1) for j in (0, 1) for k in (0, 1)])
    pixels, depth = cameras.map(torch.Tensor.double).project(corners)
    low, high = np.zeros(2, int), np.array([cameras.width, cameras.height])
    if depth[view].min() > 0:
        seen = pixels[view].numpy()
        low = np.clip(np.floor(seen.min(axis=0)) - 1, 0, high).astype(int)
        high = np.clip(np.ceil(seen.max(axis=0)) + 1, 0, high).astype(int)
    band = max(1, _RAYS_AT_ONCE // (supersampling**2 * max(1, high[0] - low[0])))
    if high[0] > low[0]:
        for top in range(low[1], high[1], band):
            yield slice(top, min(top + band, high[1])), slice(low[0], high[0])


def _cropped(cameras: Cameras, view: int, rows: slice, columns: slice) -> Cameras:
    """One camera, whose image is a window of the view's."""
    shift = torch.eye(3, dtype=cameras.intrinsics.dtype)
    shift[0, 2], shift[1, 2] = -columns.start, -rows.start
    intrinsics = shift @ cameras.intrinsics[view : view + 1]
    width, height = columns.stop - columns.start, rows.stop - rows.start
    return Cameras(cameras.world_to_camera[view : view + 1], intrinsics, width, height)


def _render_window(
    caster: "_Caster", camera: Cameras, supersampling: int
) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.float32]]:
    """Colour, depth and normals of one camera's whole image."""
    forward = camera.world_to_camera[0, 2, :3].numpy().astype(np.float32)
    focal = float(camera.intrinsics[0, 0, 0])
    height, width, s = camera.height, camera.width, supersampling
    distance = float(camera.centers.norm())
    skipped = distance - _NEAR if distance > _FAR else 0.0

    def cast(samples_per_side: int) -> tuple[_Samples, NDArray[np.float32]]:
        centers, towards = camera.rays(samples_per_side)
        rays = (centers + skipped * towards, towards)
        origins, directions = (tensor.reshape(-1, 3).numpy().astype(np.float32) for tensor in rays)
        samples = caster.cast(origins, directions, forward / (focal * samples_per_side), skipped)
        return samples, (samples.distance * (directions @ forward)).astype(np.float32)

    samples, depth = cast(s)
    color = samples.color.reshape(height, s, width, s, 3).sum(axis=1).sum(axis=2) / s**2
    alpha = samples.alpha.reshape(height, s, width, s, 1).sum(axis=1).sum(axis=2) / s**2
    straight = np.divide(color, alpha, out=np.zeros_like(color), where=alpha > 0)
    rgba = np.concatenate([linear_to_srgb(straight), np.round(alpha * 255).astype(np.uint8)], axis=-1)
    if s % 2 == 0:  # no sample lies at the pixel centre
        samples, depth = cast(1)
        s = 1
    centers = (slice(s // 2, None, s), slice(s // 2, None, s))
    normal = samples.normal.reshape(height * s, width * s, 3)[centers]
    return rgba, depth.reshape(height * s, width * s)[centers], normal


class _Caster:
    """An Embree scene of one mesh, and its shading."""

    def __init__(self, mesh: TexturedMesh, shading: float) -> None:
        self.mesh = mesh
        self.shading = shading
        self.appearance = Appearance(mesh)
        self.scene = EmbreeScene(robust=True)
        TriangleMesh(
            self.scene,
            np.ascontiguousarray(mesh.vertices, dtype=np.float32),
            np.ascontiguousarray(mesh.faces, dtype=np.int32),
        )

    def cast(
        self,
        origins: NDArray[np.float32],
        directions: NDArray[np.float32],
        spread: NDArray[np.float32],
        skipped: float,
    ) -> _Samples:
        """Follow rays through translucent surfaces to the first opaque one.

        Args:
            origins: [n, 3], where the rays start.
            directions: [n, 3] of unit length.
            spread: [3]; its product with a ray's vector from the camera is the width of a sample there.
            skipped: distance of the origins from the camera.
        """
        samples = _Samples.empty(len(origins))
        rays = np.arange(len(origins))
        travelled = np.zeros(len(origins), np.float32)
        for _ in range(_MAX_LAYERS):
            starts = origins[rays] + travelled[:, None] * directions[rays]
            hits = self.scene.run(starts, directions[rays], query="INTERSECT", output=True)
            found = np.flatnonzero(hits["primID"] >= 0)
            if not found.size:
                break
            rays, travelled = rays[found], travelled[found] + hits["tfar"][found]
            u, v = hits["u"][found], hits["v"][found]
            barycentric = np.stack([1 - u - v, u, v], axis=1)
            distances = travelled + np.float32(skipped)
            self._shade(samples, rays, directions, spread, distances, hits["primID"][found], barycentric)
            through = np.flatnonzero(samples.alpha[rays] < 1 - 1 / 255)
            if not through.size:
                break
            rays, travelled = rays[through], travelled[through] + np.float32(_STEP_BEHIND)
        return samples

    def _shade(
        self,
        samples: _Samples,
        rays: NDArray[np.integer],
        directions: NDArray[np.float32],
        spread: NDArray[np.float32],
        distances: NDArray[np.float32],
        faces: NDArray[np.integer],
        barycentric: NDArray[np.float32],
    ) -> None:
        """Composite one surface behind what the rays have seen so far."""
        towards = directions[rays]
        normals, cosines = self._facing_normals(towards, faces, barycentric)
        footprints = distances * (towards @ spread) / np.sqrt(np.maximum(cosines, 0.05))
        colors = self.appearance.colors(faces, barycentric, footprints)
        light = 1 - self.shading * (0.5 - 0.5 * (normals @ _SKY))
        weights = (1 - samples.alpha[rays]) * colors[:, 3]
        samples.color[rays] += (weights * light)[:, None] * colors[:, :3]
        samples.alpha[rays] += weights
        solid = (colors[:, 3] >= SOLID_ALPHA) & (samples.distance[rays] == 0)
        samples.distance[rays[solid]] = distances[solid]
        samples.normal[rays[solid]] = normals[solid]

    def _facing_normals(
        self, towards: NDArray[np.float32], faces: NDArray[np.integer], barycentric: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Shading normals turned to the camera, and the cosine between the face and the ray."""
        flat = self.mesh.face_normals[faces]
        cosines = -np.einsum("nd,nd->n", flat, towards)
        flat = np.where(cosines[:, None] < 0, -flat, flat)
        smooth = unit(np.einsum("nk,nkd->nd", barycentric, self.mesh.corner_normals[faces]))
        # Some files store normals against the winding of their faces.
        smooth = np.where(np.einsum("nd,nd->n", smooth, flat)[:, None] < 0, -smooth, smooth)
        visible = np.einsum("nd,nd->n", smooth, towards) < 0
        return np.where(visible[:, None], smooth, flat).astype(np.float32), np.abs(cosines)
