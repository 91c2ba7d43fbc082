"""Write a set of shards so that a stopped run continues where it was, on any number of processes and machines.

The work is cut into shards beforehand, by the order of the sources. A finished shard has a manifest in the hidden
folder `.prepare`; the index is put together from the manifests once all are there. So nothing is locked or done twice.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Task as ProgressTask
from rich.text import Text

from datamodules.errors import DataError
from datamodules.files import atomic_file
from datamodules.index import Index, ShardEntry, write_index
from datamodules.prepare.pool import Failure, Pool
from datamodules.shards import EncodedSample, write_shard

_SCHEMA = 1
_STATE = ".prepare"
FAILURES_NAME = "failures.jsonl"


class Source(NamedTuple):
    """One sample to be made.

    Attributes:
        key: its name in the set.
        name: where it comes from: a path below the raw folder, or the name of a generated object.
        number: its place in the list of sources.
    """

    key: str
    name: str
    number: int


@dataclass(frozen=True)
class SetPlan:
    """What a set is made of; a run that continues must have the same.

    Attributes:
        out: folder of the set.
        kind: what a sample is.
        settings: everything that decides on the content of the samples, as JSON values.
        sources: all samples of the set, whichever rank makes them.
        shard_size: samples in a shard.
    """

    out: Path
    kind: str
    settings: dict[str, Any]
    sources: Sequence[Source]
    shard_size: int

    @property
    def shards(self) -> int:
        """Number of shards."""
        return -(-len(self.sources) // self.shard_size)

    def shard_sources(self, number: int) -> Sequence[Source]:
        """The sources of one shard.

        Args:
            number: of the shard, 0 <= number < shards.

        Returns:
            Its sources; the last shard may have fewer than `shard_size`.
        """
        return self.sources[number * self.shard_size : (number + 1) * self.shard_size]

    def manifest(self, number: int) -> Path:
        """Where the manifest of a finished shard lies.

        Args:
            number: of the shard, 0 <= number < shards.

        Returns:
            The path, whether or not the file is there.
        """
        return self.out / _STATE / f"shard-{number:06d}.json"

    def describe(self) -> dict[str, Any]:
        """What must not change between two runs into the same folder.

        Returns:
            The settings with the kind, shard size, number and hash of the sources, as JSON values.
        """
        names = hashlib.sha256("\n".join(source.name for source in self.sources).encode()).hexdigest()
        return {
            "schema": _SCHEMA,
            "kind": self.kind,
            "shard_size": self.shard_size,
            "sources": len(self.sources),
            "sources_sha256": names,
            **self.settings,
        }


@dataclass(frozen=True)
class SetSummary:
    """State of a set after a run.

    Attributes:
        shards: number of shards that are finished, by any rank.
        planned: number of shards of the whole set.
        samples: samples in the finished shards.
        failures: sources of finished shards of which no sample could be made.
    """

    shards: int
    planned: int
    samples: int
    failures: int

    @property
    def complete(self) -> bool:
        """Whether all shards are there, and so the index."""
        return self.shards == self.planned


def write_set(
    plan: SetPlan,
    recipe: Callable[[Source], EncodedSample],
    expected: tuple[type[Exception], ...],
    console: Console,
    *,
    workers: int,
    timeout: float,
    rank: int = 0,
    world: int = 1,
) -> SetSummary:
    """Make this rank's part of a set, except for what is finished; write the index if nothing is missing then.

    Args:
        plan: what to make.
        recipe: makes one sample; picklable.
        expected: exceptions by which the recipe says that a source cannot be used.
        console: where progress is shown.
        workers: processes; 0 works in this one.
        timeout: seconds that one sample may take.
        rank: which part, 0 <= rank < world.
        world: number of parts.

    Returns:
        State of the whole set, with what other ranks have finished.

    Raises:
        DataError: if the folder belongs to another plan, the disk is full, or no source at all could be used.
    """
    _adopt(plan)
    todo = [number for number in range(rank, plan.shards, world) if _finished(plan, number) is None]
    total = sum(len(plan.shard_sources(number)) for number in todo)
    with _progress(console) as progress, Pool(recipe, expected, workers, timeout) as pool:
        bar = progress.add_task(plan.kind, total=total)
        for number in todo:
            shard, failures = _write_one(plan, number, pool, lambda: progress.advance(bar))
            for failure in failures:
                reason = failure["reason"].removeprefix(f"{Path(failure['source']).name}: ")
                console.print(f"left out {failure['source']}: {reason}", style="yellow")
            made = len(shard.samples) if shard else 0
            console.print(f"shard {number + 1} of {plan.shards}: {made} {plan.kind}, {len(failures)} failed")
    return finish(plan)


def _adopt(plan: SetPlan) -> None:
    """Claim the folder for this plan, or see that it is the one that was begun there."""
    path, wanted = plan.out / _STATE / "plan.json", plan.describe()
    if not path.exists():
        if plan.out.exists() and any(plan.out.iterdir()) and not path.parent.exists():
            raise DataError(f"{plan.out} is not empty and was not begun by this command; give a new folder as --out")
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as stream:
            stream.write(json.dumps(wanted, indent=1).encode())
        return
    found = json.loads(path.read_text())
    differences = [
        f"  {name}: {found.get(name)!r} there, {wanted.get(name)!r} now"
        for name in sorted(found.keys() | wanted.keys())
        if found.get(name) != wanted.get(name)
    ]
    if differences:
        raise DataError(
            f"{plan.out} was begun with other settings or sources:\n" + "\n".join(differences) + "\n"
            "Repeat the command with the former ones, or give a new folder as --out."
        )


def _finished(plan: SetPlan, number: int) -> dict[str, Any] | None:
    """The manifest of a shard, if it is finished and its file is still there."""
    path = plan.manifest(number)
    if not path.exists():
        return None
    manifest: dict[str, Any] = json.loads(path.read_text())
    shard = manifest["shard"]
    if shard is not None:
        file = plan.out / shard["file"]
        if not file.exists() or file.stat().st_size != shard["size"]:
            return None
    return manifest


def _write_one(
    plan: SetPlan, number: int, pool: Pool[Source, EncodedSample], advance: Callable[[], None]
) -> tuple[ShardEntry | None, list[dict[str, str]]]:
    """Make one shard; returns its index entry, if any source could be used, and what could not."""
    failures: list[dict[str, str]] = []

    def samples() -> Iterator[EncodedSample]:
        sources = plan.shard_sources(number)
        for source, result in zip(sources, pool.run(sources), strict=True):
            if isinstance(result, Failure):
                failures.append({"source": source.name, "key": source.key, "reason": result.reason})
            else:
                yield result
            advance()

    path = plan.out / f"shard-{number:06d}.tar"
    for leftover in plan.out.glob(f".{path.name}.*.tmp"):
        leftover.unlink()
    shard = write_shard(path, samples())
    manifest = {"shard": shard.to_json() if shard else None, "failures": failures}
    with atomic_file(plan.manifest(number)) as stream:
        stream.write(json.dumps(manifest).encode())
    return shard, failures


def finish(plan: SetPlan) -> SetSummary:
    """Gather what all ranks have finished; write the failures so far, and the index if the set is complete.

    Args:
        plan: what the set is made of.

    Returns:
        State of the set now.

    Raises:
        DataError: if the set is complete and empty.
    """
    manifests = [manifest for number in range(plan.shards) if (manifest := _finished(plan, number)) is not None]
    failures = [failure for manifest in manifests for failure in manifest["failures"]]
    shards = tuple(ShardEntry.from_json(manifest["shard"]) for manifest in manifests if manifest["shard"])
    with atomic_file(plan.out / FAILURES_NAME) as stream:
        stream.writelines(json.dumps(failure).encode() + b"\n" for failure in failures)
    index = Index(plan.kind, shards)
    summary = SetSummary(len(manifests), plan.shards, index.samples, len(failures))
    if summary.complete and not shards:
        raise DataError(f"none of {len(failures)} sources could be used; see {plan.out / FAILURES_NAME}")
    if summary.complete:
        write_index(plan.out, index)
    return summary


class _RateColumn(ProgressColumn):
    """Samples each second."""

    def render(self, task: ProgressTask) -> Text:
        """Draw the rate, once there is one."""
        return Text(f"{task.speed:.2f}/s" if task.speed else "-/s")


def _progress(console: Console) -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _RateColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console)
