"""Load Wavefront .obj files: trimesh reads the geometry, material libraries (.mtl) are read here."""

import io
import re
from pathlib import Path

import numpy as np
import trimesh
from trimesh.visual import ColorVisuals, TextureVisuals

from datamodules.prepare.mesh_assets import MemoryResolver, decode_texture, find_asset
from datamodules.prepare.mesh_types import Material, MeshError, TexturedMesh, build_mesh, join_meshes
from datamodules.prepare.textures import srgb_to_linear

_OPTIONS = re.compile(r"^(?:-[a-z]+(?:\s+(?:on|off|[-+\d.eE]+))+\s+)+", re.IGNORECASE)
_LIBRARY = "materials.mtl"
# Lines that name material libraries, and comments, in which trimesh would find some too.
_REFERENCES = re.compile(rb"^[ \t]*(?:#|mtllib)[^\n]*", re.MULTILINE)


def load_obj(path: Path, max_faces: int) -> TexturedMesh:
    """Load an .obj file in its own axes.

    A material's colour is its texture (map_Kd) or, where it has none, its diffuse colour (Kd, taken as sRGB) with its
    opacity (d). Vertex colours are sRGB.

    Args:
        path: the file.
        max_faces: most triangles accepted; polygons count as the triangles they are cut into.

    Returns:
        All parts as one mesh, with one material for each part.

    Raises:
        MeshError: if the file cannot be used; the message says why.
    """
    libraries = _scan(path, max_faces)
    materials: dict[str, Material] = {}
    for library in libraries:
        materials |= _read_library(find_asset(path.parent, library))
    # trimesh gets a library of names alone, to tell which part has which material.
    names = "".join(f"newmtl {name}\n" for name in materials).encode()
    text = f"mtllib {_LIBRARY}\n".encode() + _REFERENCES.sub(b"", path.read_bytes())
    scene = trimesh.load_scene(
        io.BytesIO(text), file_type="obj", resolver=MemoryResolver({_LIBRARY: names}), process=False
    )
    return join_meshes([_part(scene.geometry[name], materials) for name in sorted(scene.geometry)])


def _scan(path: Path, max_faces: int) -> list[str]:
    """Count faces line by line, and list the material libraries."""
    faces, vertices, libraries = 0, 0, []
    with path.open("rb") as file:
        for line in file:
            if line[:2] in (b"f ", b"f\t"):
                faces += max(0, len(line.split()) - 3)
            elif line[:2] in (b"v ", b"v\t"):
                vertices += 1
            elif line.startswith(b"mtllib"):
                libraries.append(line[6:].decode(errors="replace").strip())
            if faces > max_faces or vertices > 3 * max_faces:
                raise MeshError(f"has more than the {max_faces} faces allowed; simplify it first")
    if faces == 0:
        raise MeshError("the file has no triangles")
    return libraries


def _read_library(path: Path) -> dict[str, Material]:
    """All materials of an .mtl file by name."""
    fields: dict[str, dict[str, str]] = {}
    current: dict[str, str] = {}
    for line in path.read_text(errors="replace").splitlines():
        key, _, value = line.strip().partition(" ")
        if key.lower() == "newmtl":
            current = fields.setdefault(" ".join(value.split()), {})
        elif value:
            current[key.lower()] = value.strip()
    return {name: _material(entry, path.parent) for name, entry in fields.items()}


def _material(entry: dict[str, str], folder: Path) -> Material:
    opacity = float(entry.get("d", "1").split()[-1])
    if "map_kd" in entry:
        name = _OPTIONS.sub("", entry["map_kd"])
        texture = decode_texture(find_asset(folder, name).read_bytes(), name)
        return Material((1.0, 1.0, 1.0, opacity), texture, alpha_mode="BLEND" if opacity < 1 else "OPAQUE")
    diffuse = np.array([float(value) for value in entry.get("kd", "1 1 1").split()[:3]])
    red, green, blue = srgb_to_linear(np.round(diffuse.clip(0, 1) * 255).astype(np.uint8)).tolist()
    return Material((red, green, blue, opacity), alpha_mode="BLEND" if opacity < 1 else "OPAQUE")


def _part(geometry: trimesh.Trimesh, materials: dict[str, Material]) -> TexturedMesh:
    visual = geometry.visual
    uvs, colors, material = None, None, None
    if isinstance(visual, TextureVisuals):
        material = materials.get(getattr(visual.material, "name", None) or "")
        uvs = None if visual.uv is None else visual.uv * [1, -1] + [0, 1]  # v points up in .obj
    elif isinstance(visual, ColorVisuals) and visual.kind == "vertex":
        colors = srgb_to_linear(np.asarray(visual.vertex_colors)[:, :3])
    normals = geometry.vertex_normals if "vertex_normals" in geometry._cache else None
    return build_mesh(geometry.vertices, geometry.faces, material, uvs=uvs, normals=normals, colors=colors)
