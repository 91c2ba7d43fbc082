import json
from collections.abc import Callable
from pathlib import Path

import pytest

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
