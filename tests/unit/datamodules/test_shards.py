import subprocess
import sys
import tarfile

import pytest
import webdataset

from datamodules.errors import DataError
from datamodules.shards import EncodedSample, describe_shard, write_shard


def samples(count, size=2000):
    return [EncodedSample(f"key_{i}", {"b.json": b"[%d]" % i, "a.npy": bytes([i]) * size}) for i in range(count)]


def test_equal_input_gives_equal_bytes(tmp_path):
    first, second = (write_shard(tmp_path / name, samples(3)) for name in ("a.tar", "b.tar"))
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    assert first.sha256 == second.sha256
    assert first.samples == second.samples


def test_webdataset_reads_it(tmp_path):
    write_shard(tmp_path / "a.tar", samples(3))
    found = list(webdataset.WebDataset(str(tmp_path / "a.tar"), shardshuffle=False))
    assert [sample["__key__"] for sample in found] == ["key_0", "key_1", "key_2"]
    assert found[2]["b.json"] == b"[2]"


def test_extents_are_those_of_the_file(tmp_path):
    entry = write_shard(tmp_path / "a.tar", samples(3))
    assert describe_shard(tmp_path / "a.tar", "a.tar") == entry
    content = (tmp_path / "a.tar").read_bytes()
    assert entry.size == len(content)
    for sample in entry.samples:
        assert content[sample.offset :].startswith(sample.key.encode())
    assert entry.samples[1].offset == entry.samples[0].size


def test_no_samples_no_file(tmp_path):
    assert write_shard(tmp_path / "a.tar", []) is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("key", ["a.b", "a/b", "../a", "", "x" * 65, "ä"])
def test_a_bad_key_is_refused_and_leaves_nothing(tmp_path, key):
    with pytest.raises(ValueError, match="cannot be a sample key"):
        write_shard(tmp_path / "a.tar", [EncodedSample(key, {"a.json": b"1"})])
    assert list(tmp_path.iterdir()) == []


def test_an_error_while_making_samples_leaves_nothing(tmp_path):
    def failing():
        yield samples(1)[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shard(tmp_path / "a.tar", failing())
    assert list(tmp_path.iterdir()) == []


# The operating system refuses to let the file grow beyond 100 kB, as on a full disk: at the end, then in the middle.
FULL_DISK = """
import resource, sys
from pathlib import Path
from datamodules.errors import DataError
from datamodules.shards import EncodedSample, write_shard
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
for count in (4, 200):
    try:
        write_shard(Path(sys.argv[1]), [EncodedSample(f"key_{i}", {"a.npy": bytes(30_000)}) for i in range(count)])
    except DataError as error:
        print(f"refused: {error}")
"""


def test_a_full_disk_leaves_nothing_and_says_how_to_go_on(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"former")
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path / "a.tar")]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout.count("a.tar: File too large") == 2
    assert result.stdout.count("run the same command again") == 2
    assert result.stderr == ""
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar"]
    assert (tmp_path / "a.tar").read_bytes() == b"former"


def test_what_is_no_tar_is_reported(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"no tar at all" * 100)
    with pytest.raises(DataError, match="not a whole tar file"):
        describe_shard(tmp_path / "a.tar", "a.tar")


def test_members_are_plain_and_undated(tmp_path):
    write_shard(tmp_path / "a.tar", samples(1))
    with tarfile.open(tmp_path / "a.tar") as archive:
        assert [(member.name, member.mtime, member.isreg()) for member in archive] == [
            ("key_0.a.npy", 0, True),
            ("key_0.b.json", 0, True),
        ]
