import json

import numpy as np
import pytest
import trimesh

from datamodules.errors import DataError
from datamodules.prepare.mesh import MeshError, load_mesh
from datamodules.prepare.objects import (
    ObjectSettings,
    encode_object,
    find_meshes,
    make_mesh_object,
    make_toy_object,
    toy_sources,
)
from datamodules.prepare.plan import Source

SMALL = ObjectSettings(views=3, size=16, points=64, supersampling=1)


def box_in(path, extents=(4, 2, 1), offset=(10, 0, 0)):
    path.parent.mkdir(parents=True, exist_ok=True)
    mesh = trimesh.creation.box(extents)
    mesh.apply_translation(offset)
    mesh.export(path)
    return path


def test_meshes_are_found_with_unique_keys(tmp_path):
    for name in ("b/chair.v2.obj", "b/chair_v2.ply", "a/table.obj", "a/Table 1.ply", "x" * 90 + ".ply"):
        box_in(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no mesh")
    sources = find_meshes(tmp_path)
    assert [source.name for source in sources] == sorted(source.name for source in sources)
    keys = [source.key for source in sources]
    assert len(set(keys)) == len(keys) == 5
    assert "a_table" in keys
    assert "a_Table_1" in keys
    assert all(len(key) <= 64 and "." not in key for key in keys)
    assert sources == find_meshes(tmp_path)


def test_a_folder_without_meshes_is_an_error(tmp_path):
    with pytest.raises(DataError, match="no mesh file"):
        find_meshes(tmp_path)


def test_the_record_says_how_the_mesh_was_normalised(tmp_path):
    box_in(tmp_path / "box.ply")
    sample = make_mesh_object(tmp_path, SMALL, find_meshes(tmp_path)[0])
    record = json.loads(sample.members["record.json"])
    assert sample.key == record["name"] == "box"
    assert record["source"] == "box.ply"
    assert record["schema"] == 1
    assert (record["views"], record["size"], record["points"]) == (3, 16, 64)
    raw = load_mesh(tmp_path / "box.ply").vertices
    normalised = (raw - record["center"]) * record["scale"]
    assert 0.49 < abs(normalised).max() <= 0.5
    np.testing.assert_allclose(normalised.max(0), -normalised.min(0), atol=1e-9)


def test_cameras_differ_between_objects_and_seeds_but_not_between_runs():
    def cameras(name, seed=0):
        source, settings = Source("k", name, 0), ObjectSettings(views=3, size=8, points=8, seed=seed)
        return json.loads(make_toy_object(settings, source).members["record.json"])["world_to_camera"]

    assert cameras("a") == cameras("a")
    assert cameras("a") != cameras("b")
    assert cameras("a") != cameras("a", seed=1)
    centers = [-np.array(matrix)[:3, :3].T @ np.array(matrix)[:3, 3] for matrix in cameras("a")]
    np.testing.assert_allclose(np.linalg.norm(centers, axis=1), 2.0, rtol=1e-5)


def test_equal_input_gives_equal_bytes():
    source = toy_sources(3)[2]
    assert make_toy_object(SMALL, source) == make_toy_object(SMALL, source)


def test_bad_meshes_raise_mesh_errors(tmp_path):
    (tmp_path / "broken.obj").write_text("f 1 2 3\n")
    (tmp_path / "empty.ply").write_bytes(b"")
    for source in find_meshes(tmp_path):
        with pytest.raises(MeshError):
            make_mesh_object(tmp_path, SMALL, source)


def test_a_point_like_mesh_is_refused(tmp_path):
    (tmp_path / "flat.obj").write_text("v 0 0 0\nv 0 0 0\nv 0 0 0\nf 1 2 3\n")
    with pytest.raises(MeshError):
        encode_object(load_mesh(tmp_path / "flat.obj"), Source("k", "flat.obj", 0), SMALL)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"views": 0}, "must be at least 1"),
        ({"fov_degrees": 180}, "field of view"),
        ({"radius": 0.5}, "cameras inside the object"),
        ({"seed": -1}, "seed -1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(setting, message):
    with pytest.raises(DataError, match=message):
        ObjectSettings(**setting)


def test_a_count_is_needed():
    with pytest.raises(DataError, match="at least 1 object"):
        toy_sources(0)
