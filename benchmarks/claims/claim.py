"""A claim is stated as data before anything is measured; `command_line` measures it over seeds and judges it."""

import argparse
import datetime
import importlib.metadata
import platform
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks.claims import report
from benchmarks.claims.plot import Panel
from benchmarks.claims.report import Result
from benchmarks.claims.rules import Numbers, Rule
from benchmarks.claims.seeds import SeedFile
from benchmarks.claims.statistics import mean_interval
from gsforge.training.provenance import provenance

FEWEST_SEEDS = 3


@dataclass(frozen=True)
class Claim:
    """What a paper says, and what has to be measured for it to hold.

    Attributes:
        paper: package of the claim under `benchmarks.claims`.
        name: of its module, and of the files that are written.
        sentence: the claim.
        source: where the paper says it.
        compared: what is measured, and against what.
        rules: all of them have to hold.
        measure: (seed, quick) to numbers by name, the same names for every seed.
        draw: (numbers, quick) to the plot.
        seeds: how many unless the command line says otherwise.
    """

    paper: str
    name: str
    sentence: str
    source: str
    compared: str
    rules: tuple[Rule, ...]
    measure: Callable[[int, bool], dict[str, float]]
    draw: Callable[[Numbers, bool], list[Panel]]
    seeds: int = 5

    @property
    def module(self) -> str:
        """What `python -m` is given."""
        return f"benchmarks.claims.{self.paper}.{self.name}"


def command_line(claim: Claim, arguments: Sequence[str] | None = None) -> int:
    """Measure a claim as the command line says, print and write what was found.

    Args:
        claim: the claim.
        arguments: words after the command; those of the process by default.

    Returns:
        0 if the claim holds, or with --quick; 1 otherwise.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(prog=f"python -m {claim.module}", description=claim.sentence)
    parser.add_argument("--quick", action="store_true", help="small sizes: shows that everything runs, proves nothing")
    parser.add_argument(
        "--seeds", type=_enough, default=claim.seeds, metavar="N", help=f"number of seeds (default: {claim.seeds})"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs/claims") / claim.paper, help="folder for plot, .json and .md"
    )
    options = parser.parse_args(arguments)
    command = shlex.join(["python", "-m", claim.module, *arguments])
    result = run(claim, seeds=range(options.seeds), quick=options.quick, out=options.out, command=command)
    return 0 if result.passed or options.quick else 1


def _enough(text: str) -> int:
    if not text.isdecimal() or int(text) < FEWEST_SEEDS:
        raise argparse.ArgumentTypeError(f"expected {FEWEST_SEEDS} or more seeds, got {text}")
    return int(text)


def run(claim: Claim, seeds: Sequence[int], quick: bool, out: Path, command: str) -> Result:
    """Measure a claim on one thread, print and write what was found.

    Seeds that the same commit, without changes, measured before it was interrupted are not measured again.

    Args:
        claim: the claim.
        seeds: one measurement each.
        quick: whether with small sizes.
        out: folder for `<name>.json`, `<name>.md` and `<name>.svg`.
        command: to write down.

    Returns:
        What was found.
    """
    console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 120)
    report.announce(claim.sentence, claim.source, claim.compared, [rule.sentence for rule in claim.rules], console)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    versions, measured, seconds = _versions(), [], 0.0
    kept = SeedFile(out / f"{claim.name}.seeds.json", _conditions(versions, quick))
    for seed, values, taken in kept.measure(seeds, lambda seed: claim.measure(seed, quick)):
        measured.append(values)
        seconds += taken
        console.print(f"[dim]seed {seed}: {taken:.0f} s[/]")
    torch.set_num_threads(threads)
    numbers = {name: mean_interval([values[name] for values in measured]) for name in measured[0]}
    result = Result(
        name=claim.name,
        claim=claim.sentence,
        source=claim.source,
        compared=claim.compared,
        command=command,
        quick=quick,
        date=datetime.date.today().isoformat(),
        seeds=list(seeds),
        seconds=round(seconds),
        versions=versions,
        rules=[rule.judge(numbers) for rule in claim.rules],
        numbers=numbers,
    )
    report.write(result, claim.draw(numbers, quick), out)
    report.show(result, out, console)
    kept.remove()
    return result


def _versions() -> dict[str, str]:
    packages = ("gsforge", "torch", "numpy", "scipy")
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in packages}


def _conditions(versions: dict[str, str], quick: bool) -> dict[str, Any] | None:
    """What numbers of a seed depend on; None where the code is not that of a commit."""
    code = provenance()
    return versions | {"quick": quick, "commit": code["commit"]} if code.get("changed") is False else None
