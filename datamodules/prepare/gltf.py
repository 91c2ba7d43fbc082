"""Load glTF 2.0 (.glb, .gltf): trimesh reads geometry and scene graph, materials and textures are read here.

The JSON header is checked and cut down before trimesh sees it. Skins and morph targets are left out: an animated
object appears as it was modelled. Points, lines, cameras and lights are left out as well.
"""

import io
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import trimesh
from numpy.typing import NDArray

from datamodules.prepare.gltf_header import check_header, simplified_header
from datamodules.prepare.gltf_materials import read_materials, uv_matrix
from datamodules.prepare.mesh_assets import MemoryResolver, read_uri
from datamodules.prepare.mesh_types import Material, MeshError, TexturedMesh, build_mesh, join_meshes

_MAX_HEADER_BYTES = 256 << 20
_JSON_CHUNK, _BINARY_CHUNK = 0x4E4F534A, 0x004E4942


def load_gltf(path: Path, max_faces: int) -> TexturedMesh:
    """Load a .glb or .gltf file, with all node transforms applied, in the file's own axes.

    Args:
        path: the file.
        max_faces: most faces accepted, instances counted.

    Returns:
        All triangles of the default scene as one mesh, one material for each part.

    Raises:
        MeshError: if the file cannot be used; the message says why.
    """
    with path.open("rb") as file:
        header, binary_bytes = _read_header(file, path.suffix.lower() == ".glb")
        check_header(header, max_faces)
        binary = file.read(binary_bytes)
    buffers = [
        read_uri(path.parent, buffer["uri"]) if "uri" in buffer else binary for buffer in header.get("buffers", [])
    ]
    return join_meshes(_parts(header, buffers, read_materials(header, buffers, path.parent)))


def _read_header(file: io.BufferedReader, is_binary: bool) -> tuple[dict[str, Any], int]:
    """The JSON header, and the size of the binary chunk that `file` then stands at."""
    if not is_binary:
        text = file.read(_MAX_HEADER_BYTES + 1)
        if len(text) > _MAX_HEADER_BYTES:
            raise MeshError("the .gltf text is larger than 256 MB; store the mesh as .glb")
        return json.loads(text), 0
    magic, version, _, json_bytes, kind = struct.unpack("<4sIIII", file.read(20))
    if magic != b"glTF" or version != 2 or kind != _JSON_CHUNK or json_bytes > _MAX_HEADER_BYTES:
        raise MeshError(f"is not a binary glTF 2.0 file (it starts with {magic!r}, version {version})")
    header = json.loads(file.read(json_bytes))
    chunk = file.read(8)
    if len(chunk) < 8:
        return header, 0
    binary_bytes, kind = struct.unpack("<II", chunk)
    return header, binary_bytes if kind == _BINARY_CHUNK else 0


def _parts(header: dict[str, Any], buffers: list[bytes], materials: list[Material]) -> list[TexturedMesh]:
    files = {str(index): data for index, data in enumerate(buffers)}
    text = json.dumps(simplified_header(header)).encode()
    scene = trimesh.load_scene(io.BytesIO(text), file_type="gltf", resolver=MemoryResolver(files), process=False)
    parts = []
    descriptions = [*header.get("materials", []), {}]
    for node in sorted(scene.graph.nodes_geometry, key=int):
        matrix, name = scene.graph[node]
        geometry = scene.geometry[name]
        index = int(geometry.visual.material.name)
        parts.append(_part(geometry, np.asarray(matrix), materials[index], uv_matrix(descriptions[index])))
    return parts


def _part(
    geometry: trimesh.Trimesh, matrix: NDArray[np.float64], material: Material, to_image: NDArray[np.float64]
) -> TexturedMesh:
    attributes = {name: np.asarray(values) for name, values in geometry.vertex_attributes.items()}
    uvs = attributes.get("_UV")
    if uvs is not None:
        uvs = _as_float(uvs) @ to_image[:, :2].T + to_image[:, 2]
    linear, faces = matrix[:3, :3], np.asarray(geometry.faces)
    normals = attributes.get("_NORMAL")
    if normals is not None:
        normals = _as_float(normals) @ np.linalg.pinv(linear)
    if np.linalg.det(linear) < 0:  # a mirrored instance: keep the front of its faces in front
        faces = faces[:, ::-1]
    return build_mesh(
        np.asarray(geometry.vertices) @ linear.T + matrix[:3, 3],
        faces,
        material,
        uvs=uvs,
        normals=normals,
        colors=None if "_COLOR" not in attributes else _as_float(attributes["_COLOR"]),
    )


def _as_float(values: NDArray[Any]) -> NDArray[np.float64]:
    """Attributes as real numbers: integers are fractions of their largest value."""
    if np.issubdtype(values.dtype, np.integer):
        return values.astype(np.float64) / np.iinfo(values.dtype).max
    return values.astype(np.float64)
