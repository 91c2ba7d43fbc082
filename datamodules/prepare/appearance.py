"""The base colour of a mesh at any place on its surface, for rendered views and for surface points alike."""

import numpy as np
from numpy.typing import NDArray

from datamodules.prepare.mesh_types import TexturedMesh
from datamodules.prepare.textures import MipTexture

SOLID_ALPHA = 0.5
"""Alpha from which a surface counts as solid: it then has depth, normals and surface points."""


class Appearance:
    """Textures of a mesh, filtered once, and lookups of its colour.

    Args:
        mesh: the mesh.
        filtered: prepare textures for lookups with a footprint; not needed for lookups in full detail.
    """

    def __init__(self, mesh: TexturedMesh, filtered: bool = True) -> None:
        self.mesh = mesh
        textures: dict[int, MipTexture] = {}
        self._textures: list[MipTexture | None] = []
        for material in mesh.materials:  # materials often share one image
            image = material.texture
            if image is not None and id(image) not in textures:
                textures[id(image)] = MipTexture.build(image, material.wrap, filtered)
            texture = None if image is None else textures[id(image)]
            if texture is not None and texture.wrap != material.wrap:
                texture = MipTexture(texture.texels, texture.sizes, texture.starts, material.wrap)
            self._textures.append(texture)
        self._factors = np.array([material.base_color for material in mesh.materials], np.float32)
        self._uv_density = self._uvs_per_length() if textures else np.zeros(0, np.float32)
        self.translucent = any(material.alpha_mode != "OPAQUE" for material in mesh.materials)

    def colors(
        self,
        faces: NDArray[np.integer],
        barycentric: NDArray[np.float32],
        footprints: NDArray[np.float32] | None = None,
    ) -> NDArray[np.float32]:
        """Look up base colours.

        Args:
            faces: [n] face indices.
            barycentric: [n, 3] weights of the faces' corners.
            footprints: [n] width on the surface, in world units, over which to average; full detail by default.

        Returns:
            [n, 4] linear RGB and the alpha that the material's alpha mode makes of it.
        """
        used = self.mesh.face_materials[faces]
        colors = self._factors[used]
        for index in np.unique(used):
            texture = self._textures[index]
            if texture is None:
                continue
            chosen = np.flatnonzero(used == index)
            uvs = np.einsum("nk,nkd->nd", barycentric[chosen], self.mesh.corner_uvs[faces[chosen]])
            lods = None if footprints is None else self._lods(texture, faces[chosen], footprints[chosen])
            colors[chosen] *= texture.sample(uvs, lods)
        if self.mesh.corner_colors is not None:
            colors *= np.einsum("nk,nkd->nd", barycentric, self.mesh.corner_colors[faces])
        colors[:, 3] = self._alphas(colors[:, 3], used)
        return np.clip(colors, 0.0, 1.0, out=colors)

    def _alphas(self, alphas: NDArray[np.float32], used: NDArray[np.int32]) -> NDArray[np.float32]:
        if not self.translucent:
            return np.ones_like(alphas)
        modes = np.array([material.alpha_mode for material in self.mesh.materials])[used]
        cutoffs = np.array([material.alpha_cutoff for material in self.mesh.materials], np.float32)[used]
        return np.select([modes == "OPAQUE", modes == "MASK"], [1.0, alphas >= cutoffs], alphas).astype(np.float32)

    def _lods(
        self, texture: MipTexture, faces: NDArray[np.integer], footprints: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        texels = self._uv_density[faces] * footprints * np.sqrt(texture.sizes[0].prod())
        return np.log2(np.maximum(texels, 1e-6)).astype(np.float32)

    def _uvs_per_length(self) -> NDArray[np.float32]:
        """[F] how much texture coordinates change along the surface, the geometric mean over its two directions."""
        corners = self.mesh.corner_uvs
        first, second = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
        uv_areas = 0.5 * np.abs(first[:, 0] * second[:, 1] - first[:, 1] * second[:, 0])
        areas = self.mesh.face_areas
        return np.sqrt(np.divide(uv_areas, areas, out=np.zeros(len(areas)), where=areas > 0)).astype(np.float32)
