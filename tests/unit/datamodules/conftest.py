import json
from collections.abc import Callable
from pathlib import Path

import pytest

from datamodules.commands import main
from datamodules.index import Index, write_index
from datamodules.shards import EncodedSample, write_shard

WriteSet = Callable[..., Path]


@pytest.fixture
def write_numbers(tmp_path: Path) -> WriteSet:
    """Writes a set whose samples hold their own number; takes the number of samples of each shard."""

    def write(sizes: list[int], name: str = "numbers") -> Path:
        folder = tmp_path / name
        folder.mkdir()
        first, shards = 0, []
        for number, size in enumerate(sizes):
            samples = [
                EncodedSample(f"sample_{value:04d}", {"number.json": json.dumps(value).encode()})
                for value in range(first, first + size)
            ]
            first += size
            shards.append(write_shard(folder / f"shard-{number:06d}.tar", samples))
        write_index(folder, Index("numbers", tuple(shards)))
        return folder

    return write


@pytest.fixture(scope="session")
def conditioned_objects(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six toy objects in 3 shards: 5 views of 32 px, 512 points, 3 condition views. Shared: copy before a change."""
    folder = tmp_path_factory.mktemp("conditioned") / "objects"
    sizes = "--count 6 --views 5 --size 32 --points 512 --shard-size 2 --condition-views 3 --condition-size 40"
    assert main(["toy", "objects", "--out", str(folder), "--seed", "3", *sizes.split()]) == 0
    return folder
