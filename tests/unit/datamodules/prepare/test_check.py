import io
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from datamodules.errors import DataError, SampleError
from datamodules.index import INDEX_NAME, read_index
from datamodules.prepare.check import check_object, check_shard, shard_tasks
from datamodules.samples import Members, SampleStore


@pytest.fixture
def members(toy_objects):
    return SampleStore({str(toy_objects): read_index(str(toy_objects))}).read(0)


def problems(members, change):
    content = dict(members.content)
    record = json.loads(content["record.json"])
    change(content, record)
    content["record.json"] = json.dumps(record).encode()
    return " | ".join(check_object(Members(members.key, members.source, content)))


def npy(array):
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def test_a_good_set_has_no_problems(toy_objects):
    reports = [check_shard(task) for task in shard_tasks(toy_objects)]
    assert [report.problems for report in reports] == [[], []]
    assert sum(report.samples for report in reports) == 8


def mirror_cameras(content, record):
    for matrix in record["world_to_camera"]:
        matrix[0] = [-value for value in matrix[0]]


def flip_axes(content, record):
    """OpenGL cameras in place of OpenCV ones: still rotations, but they look the other way."""
    for matrix in record["world_to_camera"]:
        matrix[1], matrix[2] = [-value for value in matrix[1]], [-value for value in matrix[2]]


def shift_views(content, record):
    record["world_to_camera"] = record["world_to_camera"][1:] + record["world_to_camera"][:1]


def scale_points(factor):
    def change(content, record):
        points = np.load(io.BytesIO(content["points.npy"]), allow_pickle=False)
        content["points.npy"] = npy((points * factor).astype(np.float32))

    return change


def empty_view(content, record):
    stream = io.BytesIO()
    Image.fromarray(np.zeros((32, 32), np.uint16)).save(stream, "png")
    content["depth.004.png"] = stream.getvalue()


BAD = {
    "mirrored": (mirror_cameras, "no rotation and translation"),
    "OpenGL": (flip_axes, "project beside the object"),
    "mixed up": (shift_views, "project beside the object"),
    "depth": (lambda c, r: r.update(depth_range=[1.3, 3.1]), "in front of the rendered depth"),
    "grown": (scale_points(1.3), "points leave the unit cube"),
    "bottom row": (lambda c, r: r["world_to_camera"][0][3].__setitem__(0, 0.5), "last row"),
    "focal": (lambda c, r: r["intrinsics"][0][0].__setitem__(0, -30.0), "focal length"),
    "normals": (
        lambda c, r: c.update({"point_normals.npy": npy(np.ones((1024, 3), np.float16))}),
        "not of unit length",
    ),
    "extra": (lambda c, r: c.update({"notes.json": b"1"}), "unknown members: notes.json"),
    "nothing": (empty_view, "view 4 shows nothing"),
}


@pytest.mark.parametrize("name", BAD)
def test_problems_are_found(members, name):
    change, message = BAD[name]
    assert message in problems(members, change)


def test_a_missing_view_is_reported(members):
    with pytest.raises(SampleError, match="no member"):
        problems(members, lambda content, record: content.pop("normal.003.png"))


def copied(toy_objects, tmp_path):
    folder = tmp_path / "set"
    shutil.copytree(toy_objects, folder)
    return folder


def test_a_flipped_bit_is_found(toy_objects, tmp_path):
    folder = copied(toy_objects, tmp_path)
    sample = read_index(str(folder)).shards[1].samples[2]
    with (folder / "shard-000001.tar").open("r+b") as stream:
        stream.seek(sample.offset + 600)
        byte = stream.read(1)
        stream.seek(sample.offset + 600)
        stream.write(bytes([byte[0] ^ 1]))
    good, bad = (check_shard(task) for task in shard_tasks(folder))
    assert good.problems == []
    text = " | ".join(bad.problems)
    assert "sha256" in text
    assert f"differs from the index: {sample.key}" in text


def test_a_broken_tar_is_found(toy_objects, tmp_path):
    folder = copied(toy_objects, tmp_path)
    path = folder / "shard-000000.tar"
    path.write_bytes(b"x" * path.stat().st_size)
    assert "not a whole tar file" in check_shard(shard_tasks(folder)[0]).problems[0]


def test_a_repeated_key_is_found(toy_objects, tmp_path):
    folder = copied(toy_objects, tmp_path)
    content = json.loads((folder / INDEX_NAME).read_text())
    content["shards"][1]["samples"][0][0] = content["shards"][0]["samples"][0][0]
    (folder / INDEX_NAME).write_text(json.dumps(content))
    with pytest.raises(DataError, match="'toy_000000' occurs twice"):
        shard_tasks(folder)
