"""Runs the trials."""

import argparse
import shutil
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

import benchmarks.chaos
from benchmarks.chaos.table import table, write
from benchmarks.chaos.trials import Chaos

RESULTS = Path(__file__).parent / "results"


def main() -> int:
    """Run the trials.

    Returns:
        0 if no trial failed.
    """
    description = str(benchmarks.chaos.__doc__).splitlines()[0]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chaos", description=description)
    parser.add_argument("--trials", type=int, default=24, help="runs (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn (%(default)s)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the table (%(default)s)")
    parser.add_argument("--work", type=Path, default=Path("runs/chaos"), help="folder for data and runs, emptied first")
    options = parser.parse_args()
    started = time.monotonic()
    shutil.rmtree(options.work, ignore_errors=True)
    options.work.mkdir(parents=True)
    chaos = Chaos(options.work.resolve(), options.seed)
    chaos.prepare()
    console = Console(highlight=False, soft_wrap=True)
    trials = []
    for number in track(range(options.trials), "trials", console=console):
        trials.append(chaos.trial(number))
        for failure in trials[-1].failures:
            console.print(f"[red]trial {number}[/]: {failure}")
        # After each: what a longer run has shown so far is what a shorter one would have.
        command = f"python -m benchmarks.chaos --trials {len(trials)} --seed {options.seed}"
        write(trials, command, time.monotonic() - started, options.out)
    columns, rows = table(trials)
    shown = Table(*columns)
    for row in rows:
        shown.add_row(*row)
    console.print(shown)
    failed = sum(bool(trial.failures) for trial in trials)
    console.print(f"{len(trials)} trials, {sum(len(trial.blows) for trial in trials)} disturbances, {failed} failures")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
