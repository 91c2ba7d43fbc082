"""What the benchmark of the data found, as tables on the terminal, as Markdown and as JSON."""

import json
import statistics
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console

from benchmarks.speed.data_parts import PARTS, TRANSFER, Resume
from benchmarks.speed.report import Sheet

DOES = {
    "gsforge": ["one ranged read for a sample", "yes", "yes", "yes", "yes", "the samples of 16 shards"],
    "raw": ["the shard from end to end", "no", "yes", "no", "no", "no"],
    "raw+tensors": ["the shard from end to end", "no", "yes", "yes", "no", "no"],
    "webdataset": ["the shard from end to end", "no", "yes", "yes", "yes", "shards, and a buffer in each process"],
}
"""What each contender does: reads, checksum, decodes, tensors, batches, shuffles."""


@dataclass(frozen=True)
class Speed:
    """All contenders at one place, with one number of processes.

    Attributes:
        place: local or http.
        cold: whether the page cache had forgotten the set.
        workers: processes.
        samples_per_s: of each round, by contender; ours first.
    """

    place: str
    cold: bool
    workers: int
    samples_per_s: dict[str, list[float]]

    def median(self, name: str) -> float:
        """Samples a second.

        Args:
            name: of the contender.

        Returns:
            The median over rounds.
        """
        return statistics.median(self.samples_per_s[name])

    def ratio(self, peer: str) -> float:
        """Our samples a second over those of a peer, in the same round.

        Args:
            peer: name of the contender.

        Returns:
            The median over rounds.
        """
        ours = next(iter(self.samples_per_s.values()))
        return statistics.median(own / other for own, other in zip(ours, self.samples_per_s[peer], strict=True))

    @property
    def spread(self) -> float:
        """Fastest round over slowest one, the largest of all contenders."""
        return max(max(rounds) / min(rounds) for rounds in self.samples_per_s.values())


@dataclass(frozen=True)
class DataResults:
    """Everything that one run measured.

    Attributes:
        command: that was typed.
        machine: processor, cores, versions, load.
        data: sets and work in words.
        latency_ms: that the server adds to a request.
        gain: arithmetic of two threads over that of one, at that time.
        resident: share of the set in the page cache after it was told to forget it.
        file_system: type of the file system that holds the sets.
        speeds: the comparison.
        parts: milliseconds of our parts by `warm` and `cold`.
        transfer_ms: what a worker process adds to a sample.
        resume_set: the set that resumes were timed on, in words.
        resumes: their times.
    """

    command: str
    machine: dict[str, str]
    data: dict[str, str]
    latency_ms: float
    gain: float
    resident: float
    file_system: str
    speeds: list[Speed]
    parts: dict[str, dict[str, float]]
    transfer_ms: float
    resume_set: str
    resumes: list[Resume]

    @property
    def headline(self) -> Speed:
        """Local files, warm, no worker processes: what other programs on the machine disturb least."""
        return next(speed for speed in self.speeds if (speed.place, speed.cold, speed.workers) == ("local", False, 0))


def show(results: DataResults, out: Path, console: Console) -> None:
    """Print the tables; the last line is our ratio to raw decoding.

    Args:
        results: to print.
        out: folder that `write` was given.
        console: to print on.
    """
    for sheet in _sheets(results):
        sheet.show(console)
    console.print(*_facts(results), f"written to {out / 'data.md'} and {out / 'data.json'}", sep="\n")
    for peer in ("webdataset", "raw+tensors", "raw"):
        console.print(f"ratio {peer} samples/s {results.headline.ratio(peer):.2f}")


def write(results: DataResults, out: Path) -> None:
    """Write `data.md` and `data.json`.

    Args:
        results: to write.
        out: an existing folder.
    """
    ratios = {peer: results.headline.ratio(peer) for peer in DOES if peer != "gsforge"}
    (out / "data.json").write_text(json.dumps(asdict(results) | {"ratio": ratios}, indent=2) + "\n")
    lines = ["# Speed of the data", "", *(f"- {fact}" for fact in _facts(results))]
    for sheet in _sheets(results):
        lines += ["", f"## {sheet.title}", ""]
        lines += [f"| {' | '.join(row)} |" for row in (sheet.columns, ["---"] * len(sheet.columns), *sheet.rows)]
        lines += ["", sheet.note]
    (out / "data.md").write_text("\n".join(lines) + "\n")


def _facts(results: DataResults) -> list[str]:
    spreads = [speed.spread for speed in results.speeds]
    obeyed = "" if results.resident < 0.01 else ", so that `cold` is not cold here"
    return [
        f"command: {results.command}",
        *(f"{name}: {value}" for name, value in results.machine.items()),
        *(f"{name}: {value}" for name, value in results.data.items()),
        f"cold: told to forget the set on {results.file_system}, the page cache held {results.resident:.0%} of it"
        f"{obeyed}; a cache below, of a host or a disk, was not told",
        f"http: a server in a process of its own on the same cores, {results.latency_ms:.0f} ms before every answer",
        f"two threads did {results.gain:.2f} times the arithmetic of one at that time",
        f"noise: the fastest round of a contender was {statistics.median(spreads):.2f} times as fast as its slowest "
        f"(median over the rows; at worst {max(spreads):.2f})",
    ]


def _sheets(results: DataResults) -> Iterator[Sheet]:
    yield _speeds(results)
    yield _duties()
    yield _parts(results)
    yield _resumes(results)


def _speeds(results: DataResults) -> Sheet:
    names = list(results.speeds[0].samples_per_s)
    rows = []
    for speed in results.speeds:
        medians = [f"{speed.median(name):.1f}" for name in names]
        ratios = [f"{speed.ratio(name):.2f}" for name in names[1:]]
        cache = "cold" if speed.cold else "warm"
        rows.append([speed.place, cache, str(speed.workers), *medians, *ratios, f"{speed.spread:.2f}"])
    return Sheet(
        "Samples a second",
        ["from", "cache", "workers", *names, *(f"gsforge / {name}" for name in names[1:]), "noise"],
        rows,
        "Medians over rounds in turns; ratios are medians of those of each round. The clock runs once every process "
        "has given a batch. Noise: fastest round over slowest, the largest of all contenders.",
    )


def _duties() -> Sheet:
    return Sheet(
        "What each does for a sample",
        ["", "reads", "checksum", "decodes", "tensors, checks", "batches", "shuffles"],
        [[name, *does] for name, does in DOES.items()],
        "All read every byte of a sample, decode the same number of drawn views, the record and the surface points "
        "with `datamodules.samples.DECODERS`, and draw from a generator of the sample's own. None changes pictures at "
        "random (jitter): the DataModule of objects does not. With workers, raw hands nothing over but keys.",
    )


def _parts(results: DataResults) -> Sheet:
    warm, cold = results.parts["warm"], results.parts["cold"]
    rows = [
        [part, f"{warm[part]:.2f}", f"{cold[part]:.2f}", f"{warm[part] / sum(warm.values()):.0%}"] for part in PARTS
    ]
    rows.append(["sum", f"{sum(warm.values()):.2f}", f"{sum(cold.values()):.2f}", "100%"])
    rows.append([TRANSFER, f"{results.transfer_ms:.2f}", "", ""])
    return Sheet(
        "Where our time goes, milliseconds for a sample",
        ["part", "warm", "cold", "share, warm"],
        rows,
        "Local files, no workers: the DataModule's functions called one after the other, each under the clock. `to "
        "tensors` is the assembler without its decoding: draws, checks, conversion. The rest is the loader's time less "
        "the parts, and may come out below 0 by noise. Handing over: a ready sample through a loader with one worker, "
        "over one without.",
    )


def _resumes(results: DataResults) -> Sheet:
    rows = []
    for resume in results.resumes:
        times = (resume.setup_ms, resume.loader_ms, resume.batch_ms, resume.total_ms, resume.worst_ms)
        rows.append(["cold" if resume.cold else "warm", str(resume.workers), *(f"{time:.0f}" for time in times)])
    return Sheet(
        "Resume in the middle of an epoch, milliseconds",
        ["cache", "workers", "read indices", "make loader", "first batch", "all", "at worst"],
        rows,
        f"{results.resume_set}. From building the DataModule with a saved position to its first batch; Python, torch "
        "and the trainer are there already.",
    )
