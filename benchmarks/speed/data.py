"""Time our DataModule against reading the same tar files raw and against WebDataset, taking turns.

    python -m benchmarks.speed.data [--quick] [--latency MS] [--data DIR] [--out DIR]

What the numbers mean: benchmarks/speed/README.md. The last line is our samples a second over those of raw decoding.
"""

import argparse
import gc
import itertools
import shlex
import sys
import time
import warnings
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from fsspec.implementations.http import HTTPFileSystem
from rich.console import Console

from benchmarks.speed import data_report, measure
from benchmarks.speed.data_parts import Resume, time_parts, time_resume, time_transfer
from benchmarks.speed.data_peers import Contender, contenders
from benchmarks.speed.data_report import DataResults, Speed
from benchmarks.speed.data_server import serve
from benchmarks.speed.data_sets import SetSize, Work, drop, files_of, make_set, resident, warm


@dataclass(frozen=True)
class Plan:
    """Sizes of a benchmark.

    Attributes:
        data: the set that is read.
        work: what is made of it.
        workers: numbers of processes; 0 is one of them.
        samples: of a turn; with what is read ahead fewer than the set has, so that a cold turn stays cold.
        rounds: turns of each contender on local files.
        http_rounds: turns over http.
        shards: the set that resumes are timed on.
        resumes: rounds of them.
    """

    data: SetSize
    work: Work
    workers: tuple[int, ...]
    samples: int
    rounds: int
    http_rounds: int
    shards: SetSize
    resumes: int


FULL = Plan(
    data=SetSize(objects=64, views=24, size=128, points=32768, shards=16, shard_samples=16),
    work=Work(views=4, points=8192, size=128, batch=8),
    workers=(0, 1, 2, 3),
    samples=48,
    rounds=3,
    http_rounds=2,
    shards=SetSize(objects=8, views=1, size=16, points=64, shards=1000, shard_samples=32),
    resumes=9,
)
QUICK = Plan(
    data=SetSize(objects=4, views=8, size=64, points=8192, shards=8, shard_samples=16),
    work=Work(views=4, points=2048, size=64, batch=4, buffer=8),
    workers=(0, 2),
    samples=24,
    rounds=2,
    http_rounds=1,
    shards=SetSize(objects=2, views=1, size=16, points=64, shards=100, shard_samples=8),
    resumes=2,
)


def main() -> int:
    """Run the benchmark as the command line says.

    Returns:
        0.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed.data", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small sets, under a minute")
    parser.add_argument("--latency", type=float, default=20.0, help="milliseconds before every answer over http")
    parser.add_argument("--data", type=Path, default=Path("data/speed"), help="folder of the sets, kept between runs")
    parser.add_argument(
        "--out",
        type=Path,
        help="folder for data.md and data.json (default: benchmarks/speed/results; runs/bench with --quick)",
    )
    arguments = parser.parse_args()
    out = arguments.out or Path("runs/bench" if arguments.quick else "benchmarks/speed/results")
    run(QUICK if arguments.quick else FULL, arguments.data, out, arguments.latency)
    return 0


def run(plan: Plan, folder: Path, out: Path, latency_ms: float = 20.0) -> DataResults:
    """Make the sets, time all contenders, show and write the results.

    Args:
        plan: what is read, and how often.
        folder: where sets are kept.
        out: folder for `data.md` and `data.json`.
        latency_ms: that the server adds to a request.

    Returns:
        The results.
    """
    console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 140)
    out.mkdir(parents=True, exist_ok=True)
    warnings.filterwarnings("ignore", message="This DataLoader will create")  # more processes than cores, on purpose
    warnings.filterwarnings("ignore", message=".*srun")
    data, many = make_set(folder, plan.data), make_set(folder, plan.shards)
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # as worker processes have
    drop(files_of(data))
    held = resident(files_of(data))
    results = DataResults(
        command=shlex.join(["python", "-m", "benchmarks.speed.data", *sys.argv[1:]]),
        machine=_machine(),
        data={
            "set": str(plan.data),
            "work": f"{plan.work.views} views and {plan.work.points} points of each, batches of {plan.work.batch}",
            "turn": f"{plan.samples} samples; {plan.rounds} rounds of local files, {plan.http_rounds} over http",
        },
        latency_ms=latency_ms,
        gain=measure.parallel_gain(2),
        resident=held,
        file_system=_file_system(data),
        speeds=_compare(plan, data, latency_ms / 1e3, console),
        parts=_parts(plan, data, console),
        transfer_ms=time_transfer(data, plan.work, 4 * plan.samples, plan.rounds),
        resume_set=str(plan.shards),
        resumes=_resumes(plan, many, data, console),
    )
    torch.set_num_threads(before)
    data_report.write(results, out)
    data_report.show(results, out, console)
    return results


def _compare(plan: Plan, data: Path, latency: float, console: Console) -> list[Speed]:
    """Every contender at both places, cold and warm, with every number of processes."""
    speeds = []
    with ExitStack() as stack:
        places = {"local": str(data), "http": stack.enter_context(serve(data, latency))}
        for (place, folder), cold in itertools.product(places.items(), (False, True)):
            console.print(f"[dim]compare {place}, {'cold' if cold else 'warm'}[/]")
            rounds = plan.rounds if place == "local" else plan.http_rounds
            everybody = contenders()
            rates: dict[int, dict[str, list[float]]] = {
                workers: {contender.name: [] for contender in everybody} for workers in plan.workers
            }
            for _, workers, contender in itertools.product(range(rounds), plan.workers, everybody):
                (drop if cold else warm)(files_of(data))
                rates[workers][contender.name].append(_turn(contender, folder, plan, workers))
            speeds += [Speed(place, cold, workers, rates[workers]) for workers in plan.workers]
    return speeds


def _turn(contender: Contender, folder: str, plan: Plan, workers: int) -> float:
    """Samples a second, once every process has given a batch."""
    if "://" in folder:
        HTTPFileSystem.clear_instance_cache()  # a connection that another turn's processes inherited may be dead,
        gc.collect()  # and a process that inherits one to be closed waits for a second
    with contender.open(folder, plan.work, workers) as batches:
        for _ in range(max(1, workers)):
            next(batches)
        started, samples = time.perf_counter(), 0
        while samples < plan.samples:
            samples += len(next(batches))
        return samples / (time.perf_counter() - started)


def _parts(plan: Plan, data: Path, console: Console) -> dict[str, dict[str, float]]:
    console.print("[dim]parts[/]")
    return {
        name: time_parts(data, plan.work, plan.samples, plan.rounds, cold)
        for name, cold in (("warm", False), ("cold", True))
    }


def _resumes(plan: Plan, many: Path, val: Path, console: Console) -> list[Resume]:
    console.print(f"[dim]resume, {plan.shards.shards} shards[/]")
    work = Work(views=plan.shards.views, points=plan.shards.points, size=plan.shards.size, batch=plan.work.batch)
    counts = sorted({0, max(plan.workers)})
    return [
        time_resume(many, val, work, workers, plan.resumes, cold)
        for cold, workers in itertools.product((False, True), counts)
    ]


def _machine() -> dict[str, str]:
    versions = [f"{name} {version(name)}" for name in ("torch", "webdataset", "fsspec", "pillow", "numpy")]
    return measure.machine() | {"versions": f"Python {sys.version.split()[0]}, {', '.join(versions)}"}


def _file_system(path: Path) -> str:
    """Type of the file system that holds a path, as Linux names it."""
    mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    holding = [(len(mount), kind) for mount, kind in mounts if path.resolve().is_relative_to(mount)]
    return max(holding)[1]


if __name__ == "__main__":
    sys.exit(main())
