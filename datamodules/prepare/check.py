"""`gsforge data check`: whether a set is what its index says, and its samples are consistent in themselves."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from datamodules.errors import DataError, SampleError
from datamodules.index import ShardEntry, read_index
from datamodules.latent_format import KIND as LATENTS
from datamodules.object_format import KIND as OBJECTS
from datamodules.prepare.check_latents import check_latents
from datamodules.prepare.check_objects import check_object
from datamodules.prepare.pool import Failure
from datamodules.samples import Members, parse_members
from datamodules.shards import describe_shard

CHECKS: Mapping[str, Callable[[Members], Iterator[str]]] = {OBJECTS: check_object, LATENTS: check_latents}
"""Kind of a set -> what finds the problems of one of its samples."""


@dataclass(frozen=True)
class ShardReport:
    """What was found in one shard.

    Attributes:
        shard: file name.
        samples: number of samples looked at.
        problems: one line each.
    """

    shard: str
    samples: int
    problems: list[str]


class ShardTask(NamedTuple):
    """One shard to check.

    Attributes:
        folder: local folder of its set.
        shard: its index entry.
        kind: what its samples are.
    """

    folder: str
    shard: ShardEntry
    kind: str


def shard_tasks(folder: Path) -> list[ShardTask]:
    """The shards of a set.

    Args:
        folder: local folder of the set.

    Returns:
        One task for each shard, in the order of the index.

    Raises:
        DataError: if the index cannot be used, its kind is unknown, or two samples have the same key.
    """
    index = read_index(str(folder))
    if index.kind not in CHECKS:
        raise DataError(f"{folder} is a set of {index.kind}; this gsforge checks sets of {', '.join(CHECKS)}")
    keys: set[str] = set()
    for shard in index.shards:
        for sample in shard.samples:
            if sample.key in keys:
                raise DataError(f"{folder}: the key {sample.key!r} occurs twice")
            keys.add(sample.key)
    return [ShardTask(str(folder), shard, index.kind) for shard in index.shards]


def check_shard(task: ShardTask) -> ShardReport:
    """Compare a shard with its index entry, and look at each of its samples.

    Args:
        task: the shard, and the folder of its set.

    Returns:
        What was found; problems with the content of the file are reported, not raised.

    Raises:
        OSError: if the file cannot be opened or read.
    """
    path = Path(task.folder) / task.shard.file
    try:
        found = describe_shard(path, task.shard.file)
    except DataError as error:
        return ShardReport(task.shard.file, 0, [str(error)])
    problems = []
    if found.sha256 != task.shard.sha256:
        problems.append(f"{path}: sha256 is {found.sha256}, the index states {task.shard.sha256}")
    if found.samples != task.shard.samples:
        changed = sorted({sample.key for sample in set(found.samples) ^ set(task.shard.samples)})
        problems.append(f"{path}: place or content of samples differs from the index: {', '.join(changed)}")
    with path.open("rb") as stream:
        for sample in found.samples:
            stream.seek(sample.offset)
            extent = stream.read(sample.size)
            try:
                members = parse_members(sample.key, str(path), extent)
                problems += [str(members.error(problem)) for problem in CHECKS[task.kind](members)]
            except SampleError as error:
                problems.append(str(error))
    return ShardReport(task.shard.file, len(found.samples), problems)


def report_of(task: ShardTask, result: ShardReport | Failure) -> ShardReport:
    """The report of a shard, also where the check itself broke down.

    Args:
        task: the shard that was checked.
        result: what the pool returned for it.

    Returns:
        The report; a failure becomes its only problem, with no sample looked at.
    """
    if isinstance(result, Failure):
        return ShardReport(task.shard.file, 0, [f"{task.shard.file}: the check failed: {result.reason}"])
    return result
