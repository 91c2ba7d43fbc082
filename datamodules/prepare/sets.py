"""Write a set of shards so that a stopped run continues where it was, on any number of processes and machines.

The work is cut into shards beforehand, by the order of the sources. A finished shard has a manifest in the hidden
folder `.prepare`; the index is put together from the manifests once all are there. So nothing is locked or done twice.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Task as ProgressTask
from rich.text import Text

from datamodules.errors import DataError
from datamodules.files import atomic_file
from datamodules.index import Index, ShardEntry, write_index
from datamodules.prepare.plan import STATE_NAME, SetPlan, Source
from datamodules.prepare.pool import Failure, Pool
from datamodules.shards import EncodedSample, write_shard

FAILURES_NAME = "failures.jsonl"


Make = Callable[[Sequence[Sequence[Source]]], Iterable[EncodedSample | Failure]]
"""Gives for the sources of some shards, one after the other, their samples, or why there is none."""


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
    """Make this rank's part of a set sample by sample, except for what is finished.

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
    with Pool(recipe, expected, workers, timeout) as pool:
        return write_shards(plan, lambda shards: chain.from_iterable(map(pool.run, shards)), console, rank, world)


def write_shards(plan: SetPlan, make: Make, console: Console, rank: int = 0, world: int = 1) -> SetSummary:
    """Make this rank's part of a set, except for what is finished; write the index if nothing is missing then.

    Args:
        plan: what to make.
        make: makes the samples of shards.
        console: where progress is shown.
        rank: which part, 0 <= rank < world.
        world: number of parts.

    Returns:
        State of the whole set, with what other ranks have finished.

    Raises:
        DataError: if the folder belongs to another plan, the disk is full, or no source at all could be used.
    """
    _adopt(plan)
    todo = [number for number in range(rank, plan.shards, world) if _finished(plan, number) is None]
    shards = [plan.shard_sources(number) for number in todo]
    with _progress(console) as progress:
        bar = progress.add_task(plan.kind, total=sum(map(len, shards)))
        results = iter(make(shards))
        for number in todo:
            shard, failures = _write_one(plan, number, results, lambda: progress.advance(bar))
            for failure in failures:
                reason = failure["reason"].removeprefix(f"{Path(failure['source']).name}: ")
                console.print(f"left out {failure['source']}: {reason}", style="yellow")
            made = len(shard.samples) if shard else 0
            console.print(f"shard {number + 1} of {plan.shards}: {made} {plan.kind}, {len(failures)} failed")
    return finish(plan)


def _adopt(plan: SetPlan) -> None:
    """Claim the folder for this plan, or see that it is the one that was begun there."""
    path, wanted = plan.out / STATE_NAME / "plan.json", plan.describe()
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
    plan: SetPlan, number: int, results: Iterator[EncodedSample | Failure], advance: Callable[[], None]
) -> tuple[ShardEntry | None, list[dict[str, str]]]:
    """Make one shard; returns its index entry, if any source could be used, and what could not."""
    failures: list[dict[str, str]] = []

    def samples() -> Iterator[EncodedSample]:
        for source in plan.shard_sources(number):
            result = next(results)
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
