"""Tar files read in a plain loop: what decoding costs where nothing is shuffled, checked or put into batches."""

import json
import tarfile
import urllib.request
from collections.abc import Iterator, Sequence
from itertools import count, groupby
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import IterableDataset, get_worker_info

from benchmarks.speed.data_sets import Work
from datamodules.index import INDEX_NAME, join
from datamodules.samples import Members

_ARRAYS = ("points", "point_normals", "point_colors")
_IMAGES = ("color", "depth", "normal")


def shards_of(folder: str) -> list[str]:
    """The tar files of a set, found without fsspec: peers must not inherit its connections.

    Args:
        folder: path or address of the set.

    Returns:
        Their paths or addresses.
    """
    with urllib.request.urlopen(_url(join(folder, INDEX_NAME))) as stream:
        return [join(folder, shard["file"]) for shard in json.load(stream)["shards"]]


def _url(address: str) -> str:
    return address if "://" in address else Path(address).absolute().as_uri()


def read_raw(shards: Sequence[str]) -> Iterator[Members]:
    """Read tar files one after the other, from their first byte to their last.

    Args:
        shards: paths or addresses.

    Yields:
        The files of each sample, not decoded.
    """
    for address in shards:
        with _archive(address) as archive:
            for key, group in groupby(archive, key=lambda member: member.name.partition(".")[0]):
                content = {
                    member.name.partition(".")[2]: archive.extractfile(member).read()  # type: ignore[union-attr]
                    for member in group
                }
                yield Members(key, address, content)


def _archive(address: str) -> tarfile.TarFile:
    if not address.startswith("http"):
        return tarfile.open(address, "r:")
    return tarfile.open(fileobj=urllib.request.urlopen(address), mode="r|", bufsize=1 << 18)


def decode_raw(members: Members, work: Work, random: np.random.RandomState) -> dict[str, Any]:
    """Decode what a training sample needs, and no more: no checks, no tensors.

    Args:
        members: files of the sample.
        work: how many views.
        random: draws the views.

    Returns:
        Member name -> decoded content.
    """
    record = members.decode("record.json")
    views = random.choice(record["views"], work.views, replace=False).tolist()
    names = [f"{image}.{view:03d}.png" for view in views for image in _IMAGES] + [f"{name}.npy" for name in _ARRAYS]
    return {"record.json": record} | {name: members.decode(name) for name in names}


class RawBatches(IterableDataset[list[str]]):
    """Every process takes its shards, in order, again and again, and gives the keys away, not the samples.

    Args:
        folder: the set.
        work: what to decode.
        tensors: whether to make tensors too, as our DataModule does.
    """

    def __init__(self, folder: str, work: Work, tensors: bool) -> None:
        self._shards, self._work, self._tensors = shards_of(folder), work, tensors

    def __iter__(self) -> Iterator[list[str]]:
        """Keys of one batch after the other."""
        info = get_worker_info()
        shards = self._shards[info.id :: info.num_workers] if info else self._shards
        assemble, keys = self._work.assemble, []
        for number, members in enumerate(members for _ in count() for members in read_raw(shards)):
            if self._tensors:
                assemble(members, generator(number))
            else:
                decode_raw(members, self._work, generator(number))
            keys.append(members.key)
            if len(keys) == self._work.batch:
                yield keys
                keys = []


def generator(number: int) -> np.random.RandomState:
    """A generator of a sample's own.

    Args:
        number: of the sample in its process.

    Returns:
        The generator.
    """
    info = get_worker_info()
    return np.random.RandomState([info.id if info else 0, number])
