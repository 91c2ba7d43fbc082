"""The JSON header of a glTF file: what is refused before any geometry is read, and the part that trimesh needs."""

from typing import Any

from datamodules.prepare.mesh_types import MeshError

_READABLE_EXTENSIONS = {"KHR_texture_transform", "EXT_texture_webp", "KHR_lights_punctual"}
_TRIANGLES, _STRIP, _FAN = 4, 5, 6
_FLOAT = 5126
_ATTRIBUTES = {"POSITION": "POSITION", "NORMAL": "_NORMAL", "COLOR_0": "_COLOR"}
_NODE_KEYS = ("matrix", "translation", "rotation", "scale")
# Three corners with an index, and with a position, a normal, a colour and two sets of texture coordinates of their own.
_ENTRIES_PER_FACE = 18
_UNUSED_ACCESSOR = {"componentType": _FLOAT, "count": 0, "type": "VEC3"}
_ACCESSOR_KEYS = ("bufferView", "byteOffset", "componentType", "count", "type")


def check_header(header: dict[str, Any], max_faces: int) -> None:
    """Refuse what cannot be read, or would take too much memory.

    Args:
        header: the parsed JSON.
        max_faces: most faces accepted, instances counted.

    Raises:
        MeshError: naming the extension, the count or the node that is refused.
    """
    version = str(header.get("asset", {}).get("version", "missing"))
    if not version.startswith("2."):
        raise MeshError(f"expected glTF version 2, got {version}")
    for extension in header.get("extensionsRequired", []):
        if extension not in _READABLE_EXTENSIONS and not extension.startswith("KHR_materials_"):
            raise MeshError(f"needs the extension {extension}, which is not read; convert the file to plain glTF first")
    used = _used_accessors(header)
    entries = sum(header["accessors"][index]["count"] for index in used)
    if entries > _ENTRIES_PER_FACE * max_faces:
        raise MeshError(f"has arrays of {entries} entries in all, too many for the {max_faces} faces allowed")
    faces = _count_faces(header)
    if faces == 0:
        raise MeshError("the file has no triangles")
    if faces > max_faces:
        raise MeshError(f"has {faces} faces, more than the {max_faces} allowed; simplify it first")


def simplified_header(header: dict[str, Any]) -> dict[str, Any]:
    """Keep nodes and triangles alone, in a form that trimesh reads without loss or random names.

    Attributes besides positions are renamed to custom ones, which trimesh hands over as they are. Each primitive
    becomes a mesh of its own below its node; its material's name is the material's index, and the number of
    materials where it names none. Buffers are named by their index.

    Args:
        header: the parsed JSON, which `check_header` has accepted.

    Returns:
        A new header; the one given stays as it is.

    Raises:
        MeshError: if geometry is stored in sparse arrays.
    """
    used = _used_accessors(header)
    nodes: list[dict[str, Any]] = [
        {
            "name": str(index),
            "children": list(node.get("children", [])),
            **{k: node[k] for k in _NODE_KEYS if k in node},
        }
        for index, node in enumerate(header["nodes"])
    ]
    meshes: list[dict[str, Any]] = []
    indices: dict[int, list[int]] = {}
    for node, original in zip(list(nodes), header["nodes"], strict=True):
        if "mesh" not in original:
            continue
        mesh = original["mesh"]
        if mesh not in indices:
            primitives = [p for p in header["meshes"][mesh]["primitives"] if p.get("mode", _TRIANGLES) >= _TRIANGLES]
            indices[mesh] = list(range(len(meshes), len(meshes) + len(primitives)))
            meshes += [{"primitives": [_simplified_primitive(header, primitive)]} for primitive in primitives]
        for index in indices[mesh]:
            node["children"].append(len(nodes))
            nodes.append({"name": str(len(nodes)), "mesh": index})
    return {
        "asset": {"version": "2.0"},
        "scene": 0,
        "scenes": [{"nodes": _roots(header)}],
        "nodes": nodes,
        "meshes": meshes,
        "accessors": [
            {k: accessor[k] for k in _ACCESSOR_KEYS if k in accessor} if index in used else _UNUSED_ACCESSOR
            for index, accessor in enumerate(header["accessors"])
        ],
        "bufferViews": header["bufferViews"],
        "buffers": [{"uri": str(index)} for index in range(len(header.get("buffers", [])))],
        "materials": [{"name": str(index)} for index in range(len(header.get("materials", [])) + 1)],
    }


def base_color(material: dict[str, Any]) -> tuple[list[float], dict[str, Any] | None]:
    """Linear factor and texture reference of a material's base colour, or of its diffuse colour in the older model.

    Args:
        material: the JSON of one material; empty for the default one.

    Returns:
        factor: [4] linear RGBA, white by default.
        texture: the JSON reference to the texture, or None.
    """
    specular = material.get("extensions", {}).get("KHR_materials_pbrSpecularGlossiness")
    if specular is not None and "pbrMetallicRoughness" not in material:
        return specular.get("diffuseFactor", [1.0] * 4), specular.get("diffuseTexture")
    metallic = material.get("pbrMetallicRoughness", {})
    return metallic.get("baseColorFactor", [1.0] * 4), metallic.get("baseColorTexture")


def texture_transform(reference: dict[str, Any]) -> dict[str, Any]:
    """The KHR_texture_transform of a texture reference, or an empty one.

    Args:
        reference: the JSON reference to a texture.

    Returns:
        The JSON of the extension.
    """
    return reference.get("extensions", {}).get("KHR_texture_transform", {})


def _used_accessors(header: dict[str, Any]) -> set[int]:
    """Arrays that triangles refer to, animations and skins left out."""
    used: set[int] = set()
    for mesh in header.get("meshes", []):
        for primitive in mesh["primitives"]:
            if primitive.get("mode", _TRIANGLES) < _TRIANGLES:  # points and lines
                continue
            attributes = primitive["attributes"].items()
            used |= {index for name, index in attributes if name in _ATTRIBUTES or name.startswith("TEXCOORD_")}
            used |= {primitive["indices"]} if "indices" in primitive else set()
    return used


def _simplified_primitive(header: dict[str, Any], primitive: dict[str, Any]) -> dict[str, Any]:
    materials = header.get("materials", [])
    material = primitive.get("material", len(materials))
    attributes = {
        new: primitive["attributes"][old] for old, new in _ATTRIBUTES.items() if old in primitive["attributes"]
    }
    reference = base_color(materials[material])[1] if material < len(materials) else None
    if reference is not None:
        channel = texture_transform(reference).get("texCoord", reference.get("texCoord", 0))
        if f"TEXCOORD_{channel}" in primitive["attributes"]:
            attributes["_UV"] = primitive["attributes"][f"TEXCOORD_{channel}"]
    for index in [*attributes.values(), *([primitive["indices"]] if "indices" in primitive else [])]:
        if "sparse" in header["accessors"][index]:
            raise MeshError(
                "stores geometry in sparse arrays, which are not read; convert the file to plain glTF first"
            )
    simplified = {"attributes": attributes, "material": material, "mode": primitive.get("mode", _TRIANGLES)}
    return simplified | ({"indices": primitive["indices"]} if "indices" in primitive else {})


def _roots(header: dict[str, Any]) -> list[int]:
    """Root nodes of the default scene; of the whole file where it has no scene."""
    if header.get("scenes"):
        return header["scenes"][header.get("scene", 0)].get("nodes", [])
    children = {child for node in header["nodes"] for child in node.get("children", [])}
    return [index for index in range(len(header["nodes"])) if index not in children]


def _count_faces(header: dict[str, Any]) -> int:
    """Faces of the default scene, each instance counted; refuses node graphs that are not trees."""
    if not header.get("nodes") or not header.get("meshes"):
        return 0
    sizes = [sum(_primitive_faces(header, p) for p in mesh["primitives"]) for mesh in header["meshes"]]
    total, seen, waiting = 0, set(), list(_roots(header))
    while waiting:
        index = waiting.pop()
        if index in seen:
            raise MeshError(f"the node {index} has two parents or is its own ancestor")
        seen.add(index)
        node = header["nodes"][index]
        total += sizes[node["mesh"]] if "mesh" in node else 0
        waiting += node.get("children", [])
    return total


def _primitive_faces(header: dict[str, Any], primitive: dict[str, Any]) -> int:
    mode = primitive.get("mode", _TRIANGLES)
    if mode < _TRIANGLES:  # points and lines
        return 0
    if mode == _FAN:
        raise MeshError("has triangle fans, which are not read; convert the file to plain triangles first")
    accessors = header["accessors"]
    positions = accessors[primitive["attributes"]["POSITION"]]
    if positions["componentType"] != _FLOAT or positions["type"] != "VEC3":
        raise MeshError("vertex positions are not three floats each")
    corners = accessors[primitive["indices"]]["count"] if "indices" in primitive else positions["count"]
    return max(0, corners - 2) if mode == _STRIP else corners // 3
