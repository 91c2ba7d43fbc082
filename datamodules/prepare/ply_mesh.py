"""Load triangle meshes from .ply files through trimesh."""

import io
from pathlib import Path

import numpy as np
import trimesh
from trimesh.visual import ColorVisuals, TextureVisuals

from datamodules.prepare.mesh_assets import MemoryResolver, decode_texture, find_asset
from datamodules.prepare.mesh_types import Material, MeshError, TexturedMesh, build_mesh
from datamodules.prepare.textures import srgb_to_linear

_MAX_HEADER_BYTES = 1 << 16


def load_ply(path: Path, max_faces: int) -> TexturedMesh:
    """Load a .ply file in its own axes: positions, faces, normals, sRGB vertex colours, texture coordinates.

    Args:
        path: the file.
        max_faces: most faces accepted.

    Returns:
        The mesh, with one material.

    Raises:
        MeshError: if the file cannot be used; the message says why.
    """
    with path.open("rb") as file:
        head = file.read(_MAX_HEADER_BYTES)
    texture = _check_header(head, max_faces)
    material = None
    if texture:
        material = Material(texture=decode_texture(find_asset(path.parent, texture).read_bytes(), texture))
    data = path.read_bytes()
    mesh = trimesh.load_mesh(io.BytesIO(data), file_type="ply", process=False, resolver=MemoryResolver({}))
    uvs = colors = None
    visual = mesh.visual
    if isinstance(visual, TextureVisuals) and visual.uv is not None:
        uvs = visual.uv * [1, -1] + [0, 1]  # v points up in .ply
    elif isinstance(visual, ColorVisuals) and visual.kind == "vertex":
        colors = srgb_to_linear(np.asarray(visual.vertex_colors)[:, :3])
    normals = mesh.vertex_normals if "vertex_normals" in mesh._cache else None
    return build_mesh(mesh.vertices, mesh.faces, material, uvs=uvs, normals=normals, colors=colors)


def _check_header(head: bytes, max_faces: int) -> str:
    """Check element counts, and find the texture's name, or an empty string."""
    text, end, _ = head.partition(b"end_header")
    if not text.startswith(b"ply") or not end:
        raise MeshError("has no .ply header")
    counts, texture = {}, ""
    for line in text.decode(errors="replace").splitlines():
        words = line.split()
        if words[:1] == ["element"]:
            counts[words[1]] = int(words[2])
        elif [word.lower() for word in words[:2]] == ["comment", "texturefile"]:
            texture = line.split(maxsplit=2)[2].strip()
    if counts.get("face", 0) == 0:
        raise MeshError("the file has no faces; point clouds are not meshes")
    if counts["face"] > max_faces or counts.get("vertex", 0) > 3 * max_faces:
        raise MeshError(f"has {counts['face']} faces and {counts.get('vertex', 0)} vertices, "
                        f"more than the {max_faces} faces allowed; simplify it first")  # fmt: skip
    return texture
