import json

import pytest

from datamodules.errors import DataError
from datamodules.index import INDEX_NAME, Index, read_index, write_index


def edit(folder, change):
    path = folder / INDEX_NAME
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_round_trip(write_numbers):
    folder = write_numbers([3, 2])
    index = read_index(str(folder), "numbers")
    assert index.samples == 5
    assert [shard.file for shard in index.shards] == ["shard-000000.tar", "shard-000001.tar"]
    assert [sample.key for sample in index.shards[1].samples] == ["sample_0003", "sample_0004"]
    assert read_index(f"file://{folder}") == index


def test_a_missing_index_says_what_to_do(tmp_path):
    with pytest.raises(DataError, match="run the same command again"):
        read_index(str(tmp_path))


def test_another_version_is_refused(write_numbers):
    folder = write_numbers([1])
    edit(folder, lambda content: content.update(schema=2))
    with pytest.raises(DataError, match=r"schema version 2.*reads version 1"):
        read_index(str(folder))


def test_another_kind_is_refused(write_numbers):
    with pytest.raises(DataError, match="a set of numbers; a set of objects is needed"):
        read_index(str(write_numbers([1])), "objects")


def test_a_missing_shard_is_named(write_numbers):
    folder = write_numbers([1, 1])
    (folder / "shard-000001.tar").unlink()
    with pytest.raises(DataError, match=r"shard-000001\.tar is listed in index\.json but missing"):
        read_index(str(folder))


def test_a_truncated_shard_is_named(write_numbers):
    folder = write_numbers([1])
    with (folder / "shard-000000.tar").open("ab") as stream:
        stream.truncate(700)
    with pytest.raises(DataError, match=r"shard-000000\.tar has 700 bytes"):
        read_index(str(folder))


@pytest.mark.parametrize("name", ["../shard.tar", "/etc/passwd", "sub/shard.tar", "..", ".hidden.tar", "s3://x"])
def test_a_shard_outside_the_folder_is_refused(write_numbers, name):
    folder = write_numbers([1])
    edit(folder, lambda content: content["shards"][0].update(file=name))
    with pytest.raises(DataError, match="not a plain file name inside the folder"):
        read_index(str(folder))


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content.pop("shards"),
        lambda content: content["shards"][0].pop("sha256"),
        lambda content: content["shards"][0].update(samples=[["key", 0]]),
        lambda content: content["shards"][0].update(samples=[["key", 0, 10**9, 0]]),
        lambda content: content["shards"][0].update(samples=[["key", -512, 512, 0]]),
        lambda content: content.update(shards=[7]),
    ],
)
def test_damage_is_reported(write_numbers, change):
    folder = write_numbers([1])
    edit(folder, change)
    with pytest.raises(DataError, match="is damaged"):
        read_index(str(folder))


def test_broken_json_is_reported(write_numbers):
    folder = write_numbers([1])
    (folder / INDEX_NAME).write_text('{"schema": 1, "sha')
    with pytest.raises(DataError, match="cannot read"):
        read_index(str(folder))


def test_an_empty_set_is_refused(tmp_path):
    write_index(tmp_path, Index("numbers", ()))
    with pytest.raises(DataError, match="lists no sample"):
        read_index(str(tmp_path))


def test_writing_replaces_in_one_step_and_leaves_no_other_file(tmp_path):
    write_index(tmp_path, Index("a", ()))
    write_index(tmp_path, Index("b", ()))
    assert json.loads((tmp_path / INDEX_NAME).read_text())["kind"] == "b"
    assert [path.name for path in tmp_path.iterdir()] == [INDEX_NAME]
