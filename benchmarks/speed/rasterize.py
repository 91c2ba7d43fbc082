"""Time our renderer on the CPU against others that draw the same image, taking turns in one process.

    python -m benchmarks.speed.rasterize [--quick] [--threads N] [--peer-dir DIR] [--splats FILE] [--out DIR]

Scenes, peers and what the numbers mean: benchmarks/speed/README.md. The last line is the ratio to gsplat's torch code.
"""

import argparse
import itertools
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console

from benchmarks.speed import captured, experiments, measure, report
from benchmarks.speed.measure import Rounds
from benchmarks.speed.peers import Contender, from_folder, gsplat_torch, own
from benchmarks.speed.results import Results
from benchmarks.speed.scenes import Cell
from gsforge.render.api import Backend


@dataclass(frozen=True)
class Plan:
    """Sizes of a benchmark.

    Attributes:
        cells: scenes drawn by all contenders.
        details: scenes for the cost of a contribution and the scaling over threads.
        rounds: how often each task is repeated.
    """

    cells: tuple[Cell, ...]
    details: tuple[Cell, ...]
    rounds: Rounds


FULL = Plan(
    cells=tuple(
        Cell(count, size, degree)
        for degree, count, size in itertools.product((3, 0), (2000, 20_000, 200_000), (64, 256, 512))
    ),
    details=(Cell(20_000, 256, 3), Cell(200_000, 512, 3)),
    rounds=Rounds(least=5, most=25, seconds=8),
)
QUICK = Plan(
    cells=tuple(Cell(count, size, degree) for degree in (3, 0) for count, size in ((2000, 64), (20_000, 256))),
    details=(Cell(20_000, 256, 3),),
    rounds=Rounds(least=5, most=15, seconds=3),
)


def main() -> int:
    """Run the benchmark as the command line says.

    Returns:
        0.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed.rasterize", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="four scenes, under 90 seconds")
    parser.add_argument("--threads", type=_positive, default=1, help="threads of every contender (default: 1)")
    parser.add_argument("--peer-dir", type=Path, help="folder with the peer.py of one more renderer")
    parser.add_argument("--splats", type=Path, action="append", default=[], help=".ply file to draw with every backend")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"), help="folder for rasterize.md and .json")
    arguments = parser.parse_args()
    peers = [gsplat_torch()] + ([from_folder(arguments.peer_dir)] if arguments.peer_dir else [])
    if missing := [str(path) for path in arguments.splats if not path.is_file()]:
        parser.error(f"--splats: expected a file, found none at {', '.join(missing)}")
    run(QUICK if arguments.quick else FULL, peers, arguments.threads, arguments.out, splats=arguments.splats)
    return 0


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number of threads >= 1, got {text}")
    return int(text)


def run(
    plan: Plan, peers: Sequence[Contender], threads: int, out: Path, backend: Backend = "cpu",
    splats: Sequence[Path] = (),
) -> Results:  # fmt: skip
    """Check the peers, time all contenders, show and write the results.

    Args:
        plan: what is drawn, and how often.
        peers: renderers to compare with; gsplat's torch code first.
        threads: that every contender may use.
        out: folder for `rasterize.md` and `rasterize.json`.
        backend: of our renderer.
        splats: captured scenes, to draw with each of our backends.

    Returns:
        The results.
    """
    console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 120)
    out.mkdir(parents=True, exist_ok=True)
    ours, rounds, machine = own(backend), plan.rounds, measure.machine()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)

    def each(what: str, cells: Sequence[Cell]) -> Iterator[Cell]:
        for cell in cells:
            console.print(f"[dim]{what} {cell}[/]")
            yield cell

    results = Results(
        command=shlex.join(["python", "-m", "benchmarks.speed.rasterize", *sys.argv[1:]]),
        machine=machine,
        threads=threads,
        peak_gflops=measure.peak_gflops(),
        cells=[experiments.compare([ours, *peers], rounds, cell) for cell in each("compare", plan.cells)],
        contribution=[experiments.contribution(backend, rounds, cell) for cell in each("contribution", plan.details)],
        scaling=[experiments.scaling(ours, rounds, cell) for cell in each("threads", plan.details)],
        captured=[captured.compare_backends(path, out) for path in splats],
    )
    torch.set_num_threads(before)
    report.write(results, out)
    report.show(results, out, console)
    return results


if __name__ == "__main__":
    sys.exit(main())
