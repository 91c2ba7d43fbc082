import json
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules.prepare.mesh import MeshError, load_mesh, normalise
from datamodules.prepare.raycast import render_views

QUAD_OBJ = "v -1 -1 0\nv 1 -1 0\nv 1 1 0\nv -1 1 0\nvt 0 0\nvt 1 0\nvt 1 1\nvt 0 1\n"
FACES_OBJ = "f 1/1 2/2 3/3\nf 1/1 3/3 4/4\n"
QUADRANTS = [[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]]


def image_of(path: Path, cameras, **options) -> np.ndarray:
    mesh, _, _ = normalise(load_mesh(path, **options))
    return render_views(mesh, cameras, supersampling=1, shading=0.0).color[0]


def quadrants(image: np.ndarray) -> list[list[int]]:
    return [image[y, x, :3].tolist() for y in (8, 24) for x in (8, 24)]


def ply(faces: int = 2, vertices: str = "-1 0 -1 255 0 0\n1 0 -1 0 188 0\n1 0 1 0 0 255\n-1 0 1 9 9 9\n") -> str:
    colors = "".join(f"property uchar {name}\n" for name in ("red", "green", "blue"))
    head = f"ply\nformat ascii 1.0\nelement vertex 4\nproperty float x\nproperty float y\nproperty float z\n{colors}"
    return f"{head}element face {faces}\nproperty list uchar int vertex_indices\nend_header\n{vertices}" + (
        "3 0 1 2\n3 0 2 3\n"
    )


def test_gltf_texture_is_upright(textured_quad, front):
    image = image_of(textured_quad(), front)
    assert quadrants(image) == QUADRANTS
    assert image[8, 8, 3] == 255


def test_obj_texture_is_upright(tmp_path, front):
    Image.fromarray(np.array(QUADRANTS, np.uint8).reshape(2, 2, 3).repeat(8, 0).repeat(8, 1)).save(tmp_path / "t.png")
    (tmp_path / "m.mtl").write_text("newmtl a b\nKd 0.1 0.1 0.1\nmap_Kd -s 1 1 1 t.png\n")
    path = tmp_path / "quad.obj"
    path.write_text(f"# mtllib none.mtl\nmtllib m.mtl\n{QUAD_OBJ}usemtl a b\n{FACES_OBJ}")
    assert quadrants(image_of(path, front)) == QUADRANTS


def test_obj_diffuse_colour_is_srgb_and_up_can_be_chosen(tmp_path, front):
    (tmp_path / "m.mtl").write_text("newmtl a\nKd 0.2 0.4 0.6\n")
    path = tmp_path / "quad.obj"
    path.write_text(f"mtllib m.mtl\n{QUAD_OBJ}usemtl a\n{FACES_OBJ}")
    assert image_of(path, front)[16, 16].tolist() == [51, 102, 153, 255]
    assert image_of(path, front, up="z")[..., 3].max() == 0  # seen edge-on
    assert (load_mesh(path).up, load_mesh(path, up="z").up) == ("y", "z")


def test_base_colour_factor_is_linear_and_texture_srgb(textured_quad, front):
    grey = np.full((2, 2, 3), 188, np.uint8)  # half the light
    factor = {"pbrMetallicRoughness": {"baseColorFactor": [0.5, 1.0, 0.0, 1.0]}}
    assert image_of(textured_quad(grey, **factor), front)[16, 16].tolist() == [137, 188, 0, 255]


def test_vertex_colours(textured_quad, builder, tmp_path, front):
    colors = np.full((4, 4), 32768, np.uint16)
    white = np.full((2, 2, 3), 255, np.uint8)
    assert image_of(textured_quad(white, {"COLOR_0": colors}), front)[16, 16].tolist() == [188, 188, 188, 255]
    floats = np.tile(np.array([[0.5, 0.25, 0.0]], np.float32), (4, 1))
    path = builder.save(tmp_path / "plain.gltf", meshes=[{"primitives": [builder.quad(COLOR_0=floats)]}])
    assert image_of(path, front)[16, 16].tolist() == [188, 137, 0, 255]
    path = tmp_path / "quad.ply"
    path.write_text(ply())
    np.testing.assert_allclose(load_mesh(path).corner_colors[0, 1], [0, 0.503, 0, 1], atol=1e-3)
    path.write_text(ply(vertices="".join(f"{x} 0 {z} 7 188 99\n" for x, z in ((-1, -1), (1, -1), (1, 1), (-1, 1)))))
    assert image_of(path, front)[16, 16].tolist() == [7, 188, 99, 255]


def test_texture_transform_and_second_uv_set(textured_quad, front):
    transform = {"KHR_texture_transform": {"offset": [0.5, 0.0], "texCoord": 1}}
    reference = {"baseColorTexture": {"index": 0, "extensions": transform}}
    uvs = np.array([[0, 1], [1, 1], [1, 0], [0, 0]], np.float32)
    path = textured_quad(attributes={"TEXCOORD_0": 0 * uvs, "TEXCOORD_1": uvs}, pbrMetallicRoughness=reference)
    assert quadrants(image_of(path, front)) == [QUADRANTS[i] for i in (1, 0, 3, 2)]
    transform["KHR_texture_transform"] = {"rotation": np.pi / 2, "offset": [0.0, 1.0]}
    path = textured_quad(pbrMetallicRoughness=reference)
    assert quadrants(image_of(path, front)) == [QUADRANTS[i] for i in (2, 0, 3, 1)]  # the image turned clockwise


def test_alpha_modes(textured_quad, front):
    pixels = np.array([[[255, 0, 0, 255], [255, 0, 0, 0]], [[255, 0, 0, 102], [255, 0, 0, 204]]], np.uint8)

    def alphas(**material) -> list[int]:
        image = image_of(textured_quad(pixels, **material), front)
        return [int(image[y, x, 3]) for y in (8, 24) for x in (8, 24)]

    assert alphas() == [255, 255, 255, 255]
    assert alphas(alphaMode="MASK", alphaCutoff=0.3) == [255, 0, 255, 255]
    assert alphas(alphaMode="BLEND") == [255, 0, 102, 204]


def test_node_transforms_and_materials(builder, tmp_path):
    red = {"pbrMetallicRoughness": {"baseColorFactor": [1, 0, 0, 1]}}
    nodes = [
        {"children": [1, 2], "translation": [0, 10, 0], "scale": [2, 2, 2]},
        {"mesh": 0, "rotation": [0, np.sqrt(0.5), 0, np.sqrt(0.5)]},
        {"mesh": 1, "scale": [-1, 1, 1], "translation": [0, 0, 3]},
        {"mesh": 0},  # not in the scene
    ]
    path = builder.save(
        tmp_path / "two.gltf",
        meshes=[{"primitives": [builder.quad(0), builder.quad()]}, {"primitives": [builder.quad(0)]}],
        materials=[red],
        nodes=nodes,
        scenes=[{"nodes": [0]}],
    )
    mesh = load_mesh(path)
    assert len(mesh.faces) == 6
    used = [mesh.materials[index].base_color for index in mesh.face_materials]
    assert used == [(1, 0, 0, 1)] * 2 + [(1, 1, 1, 1)] * 2 + [(1, 0, 0, 1)] * 2
    turned, mirrored = mesh.vertices[mesh.faces[0]], mesh.vertices[mesh.faces[4]]
    np.testing.assert_allclose(turned[:, 0], 0, atol=1e-6)  # a quarter turn about the vertical axis
    np.testing.assert_allclose(sorted(set(mesh.vertices[:, 2].round(5))), [8, 12])  # y up became z up
    np.testing.assert_allclose(mirrored[:, 1], -6)
    np.testing.assert_allclose(mesh.face_normals[4], [0, -1, 0], atol=1e-6)  # still faces the front
    np.testing.assert_allclose(mesh.corner_normals[4, 0], [0, -1, 0], atol=1e-6)


def test_binary_container(textured_quad, tmp_path, front):
    header = json.loads(textured_quad().read_text())
    binary = bytes(4 - len(b"") % 4)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 4)
    chunks = struct.pack("<II", len(text), 0x4E4F534A) + text + struct.pack("<II", len(binary), 0x004E4942) + binary
    path = tmp_path / "quad.glb"
    path.write_bytes(struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks)
    assert quadrants(image_of(path, front)) == QUADRANTS
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(MeshError, match=r"quad\.glb: cannot be parsed"):
        load_mesh(path)


def test_normalise_is_undone_by_centre_and_scale(textured_quad):
    mesh = load_mesh(textured_quad())
    small, center, scale = normalise(mesh)
    assert 0.49 < np.abs(small.vertices).max() < 0.5
    np.testing.assert_allclose(small.vertices / scale + center, mesh.vertices, atol=1e-12)


@pytest.mark.parametrize("suffix", ["glb", "gltf", "obj", "ply", "stl"])
def test_garbage_is_refused(tmp_path, suffix):
    path = tmp_path / f"broken.{suffix}"
    path.write_bytes(b"\x00\xff{not a mesh" * 40)
    with pytest.raises(MeshError, match="broken"):
        load_mesh(path)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (QUAD_OBJ, "no triangles"),
        (f"mtllib gone.mtl\n{QUAD_OBJ}{FACES_OBJ}", r"missing file 'gone\.mtl'"),
        (f"mtllib m.mtl\n{QUAD_OBJ}usemtl a\n{FACES_OBJ}", r"missing file 'gone\.png'"),
        (f"mtllib ../m.mtl\n{QUAD_OBJ}{FACES_OBJ}", "outside its folder"),
        (f"mtllib /etc/hostname\n{QUAD_OBJ}{FACES_OBJ}", "outside its folder"),
        (f"{QUAD_OBJ.replace('1 1 0', 'nan 1 0')}{FACES_OBJ}", "not finite"),
        (f"{QUAD_OBJ}f 1 2 9\n", "cannot be parsed|refer to vertices"),
        ("v 1 1 1\nv 1 1 1\nv 1 1 1\nf 1 2 3\n", "no area"),
        (QUAD_OBJ + 6 * FACES_OBJ, "more than the 10 faces"),
        (QUAD_OBJ + "f " + " ".join(["1", "2", "3"] * 5) + "\n", "more than the 10 faces"),
    ],
)
def test_unusable_obj_is_refused(tmp_path, text, reason):
    (tmp_path / "m.mtl").write_text("newmtl a\nmap_Kd gone.png\n")
    path = tmp_path / "object.obj"
    path.write_text(text)
    with pytest.raises(MeshError, match=reason):
        load_mesh(path, max_faces=10)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (ply(faces=10_000_000), "10000000 faces"),
        (ply(faces=0), "no faces"),
        (ply().replace("ascii 1.0\n", "ascii 1.0\ncomment TextureFile ../a.png\n"), "outside its folder"),
        (ply(vertices="nan 0 0 1 1 1\n" * 4), "not finite"),
    ],
)
def test_unusable_ply_is_refused(tmp_path, text, reason):
    path = tmp_path / "object.ply"
    path.write_text(text)
    with pytest.raises(MeshError, match=reason):
        load_mesh(path)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"extensionsRequired": ["KHR_draco_mesh_compression"]}, "KHR_draco_mesh_compression"),
        ({"asset": {"version": "1.0"}}, "version 2, got 1.0"),
        ({"images": [{"uri": "gone%20.png"}]}, r"missing file 'gone \.png'"),
        ({"images": [{"uri": "../../secret.png"}]}, "outside its folder"),
        ({"images": [{"uri": "/etc/hostname"}]}, "outside its folder"),
        ({"images": [{"uri": "https://example.org/a.png"}]}, "only files beside the mesh"),
        ({"images": [{"uri": "data:image/png;base64,AAAA"}]}, "cannot be decoded"),
        ({"buffers": [{"uri": "gone.bin"}]}, r"missing file 'gone\.bin'"),
        ({"meshes": []}, "no triangles"),
        ({"nodes": [{"mesh": 0, "children": [1]}, {"children": [0]}], "scenes": [{"nodes": [0]}]}, "own ancestor"),
        ({"nodes": [{"mesh": 0}] * 100}, "has 200 faces, more than the 100"),
        ({"nodes": [{"mesh": 0, "scale": [0, 0, 0]}]}, "no area"),
        ({"nodes": [{"mesh": 7}]}, "cannot be parsed"),
    ],
)
def test_unusable_gltf_is_refused(textured_quad, changes, reason):
    path = textured_quad()
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(MeshError, match=reason):
        load_mesh(path, max_faces=100)


def test_gltf_counts_are_checked_before_data_is_read(textured_quad):
    path = textured_quad()
    header = json.loads(path.read_text())
    header["accessors"][-1]["count"] = 30_000_000
    header["buffers"] = [{"uri": "never_read.bin"}]
    path.write_text(json.dumps(header))
    with pytest.raises(MeshError, match="10000000 faces"):
        load_mesh(path)


def write_huge_ply(path: Path) -> None:
    head = "ply\nformat binary_little_endian 1.0\nelement vertex 5000000\n"
    head += "".join(f"property float {axis}\n" for axis in "xyz")
    path.write_bytes(f"{head}element face 10000000\nproperty list uchar int vertex_indices\nend_header\n".encode())
    with path.open("r+b") as file:
        file.truncate(12 * 5_000_000 + 13 * 10_000_000)  # a hole: takes no room on the disk


def write_huge_glb(path: Path) -> None:
    accessors = [
        {"bufferView": 0, "componentType": 5126, "count": 5_000_000, "type": "VEC3"},
        {"bufferView": 1, "componentType": 5125, "count": 30_000_000, "type": "SCALAR"},
    ]
    sizes = [12 * 5_000_000, 4 * 30_000_000]
    header = {
        "asset": {"version": "2.0"},
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0}, "indices": 1}]}],
        "accessors": accessors,
        "bufferViews": [{"buffer": 0, "byteOffset": sum(sizes[:i]), "byteLength": sizes[i]} for i in range(2)],
        "buffers": [{"byteLength": sum(sizes)}],
    }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 4)
    total = 28 + len(text) + sum(sizes)
    chunks = struct.pack("<II", len(text), 0x4E4F534A) + text + struct.pack("<II", sum(sizes), 0x004E4942)
    path.write_bytes(struct.pack("<4sII", b"glTF", 2, total) + chunks)
    with path.open("r+b") as file:
        file.truncate(total)


@pytest.mark.parametrize("suffix", ["ply", "glb"])
def test_ten_million_faces_are_refused_in_little_memory(tmp_path, suffix):
    path = tmp_path / f"huge.{suffix}"
    {"ply": write_huge_ply, "glb": write_huge_glb}[suffix](path)
    tracemalloc.start()
    try:
        with pytest.raises(MeshError, match=rf"huge\.{suffix}: has .*5000000 .*simplify it first"):
            load_mesh(path)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()
