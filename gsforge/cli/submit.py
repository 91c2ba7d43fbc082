"""`gsforge submit`: the sbatch command that trains a configuration on a SLURM cluster."""

import argparse
import json
import math
import os
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

import gsforge
from gsforge.core.errors import GsforgeError

SCRIPT = Path(gsforge.__file__).resolve().parents[1] / "slurm" / "train.sbatch"
DEFAULT_LEAD, SHORTEST_LEAD, SAFETY = 300, 120, 3.0
_DEVICES, _NODES = "--trainer.devices", "--trainer.num_nodes"


class SubmitError(GsforgeError):
    """The job cannot be submitted as asked for."""


@dataclass(frozen=True)
class Job:
    """A job, as sbatch is told of it.

    Attributes:
        variables: of the environment, read by train.sbatch.
        options: of sbatch.
        arguments: of `gsforge fit`.
        logs: folder of its logs, which must exist.
    """

    variables: dict[str, str]
    options: list[str]
    arguments: list[str]
    logs: Path

    def command(self) -> list[str]:
        """The command, without its variables.

        Returns:
            sbatch and its arguments.
        """
        return ["sbatch", "--parsable", *self.options, str(SCRIPT), *self.arguments]

    def text(self) -> str:
        """The command as lines to paste into a shell.

        Returns:
            One line that makes the folder of the logs; the command, one line for each option.
        """
        words = [" ".join([*(f"{name}={shlex.quote(value)}" for name, value in self.variables.items()), "sbatch"])]
        words += [shlex.quote(option) for option in [*self.options, str(SCRIPT)]]
        words.append(shlex.join(self.arguments))
        return f"mkdir -p {shlex.quote(str(self.logs))}\n" + " \\\n  ".join(words)


def main(argv: Sequence[str]) -> int:
    """Run `gsforge submit`.

    Args:
        argv: arguments after `gsforge submit`.

    Returns:
        Exit code 0.

    Raises:
        SubmitError: when the job cannot be submitted.
    """
    words = list(argv)
    end = words.index("--") if "--" in words else len(words)
    options, fit = _parser().parse_known_args(words[:end])
    job = build(options, fit, words[end + 1 :])
    console = Console(soft_wrap=True, highlight=False)
    if options.dry_run:
        console.print(job.text(), markup=False)
        return 0
    console.print(f"submitted job {_submit(job)}, logs in {job.logs}", markup=False)
    return 0


def build(options: argparse.Namespace, fit: Sequence[str], extra: Sequence[str]) -> Job:
    """Turn the options of `gsforge submit` into a job.

    Args:
        options: parsed options.
        fit: those of `gsforge fit` beside `--config`.
        extra: those of sbatch after `--`.

    Returns:
        The job.

    Raises:
        SubmitError: when the job cannot be submitted as asked for.
    """
    if not SCRIPT.is_file():
        raise SubmitError(
            f"{SCRIPT} is missing: the job script is part of the repository. Clone it and install gsforge from there "
            "with pip install -e ."
        )
    lines = None if options.array is None else _array_lines(options.array)
    if said := [word for word in sum(lines or [], [*fit]) if word.partition("=")[0] in (_DEVICES, _NODES)]:
        raise SubmitError(f"leave out {said[0]}: it follows from --nodes, --gpus-per-node and --tasks-per-node")
    ranks = options.gpus_per_node or options.tasks_per_node
    arguments = [word for path in options.config for word in ("--config", str(path))]
    arguments += [*fit, f"{_DEVICES}={ranks}", f"{_NODES}={options.nodes}"]
    run_dirs = [_required(_run_dir(arguments))] if lines is None else _array_run_dirs(options.array, lines)
    lead = max(map(measured_lead, run_dirs)) if options.lead is None else options.lead
    _check_time(options.time, lead)
    flags = {
        "nodes": options.nodes,
        "ntasks-per-node": ranks,
        "gres": options.gpus_per_node and f"gpu:{ranks}",
        "time": options.time,
        "signal": f"USR2@{lead}",
        "partition": options.partition,
        "account": options.account,
    }
    variables = {"GSFORGE_MAX_CRASHES": str(options.max_crashes)}
    if lines is None:
        logs = run_dirs[0] / "slurm"
        flags |= {"job-name": run_dirs[0].name, "output": logs / "%j.log"}
    else:
        logs = Path(os.path.commonpath([path.absolute() for path in run_dirs])) / "slurm"
        flags |= {"job-name": options.array.stem, "output": logs / "%A_%a.log", "array": f"1-{len(lines)}"}
        variables["GSFORGE_ARRAY"] = str(options.array.absolute())
    written = [f"--{name}={value}" for name, value in flags.items() if value is not None]
    return Job(variables, [*written, *extra], arguments, logs)


def measured_lead(run_dir: Path) -> int:
    """How long before its end a run must be warned, from what its saves took so far.

    Args:
        run_dir: run directory; it need not exist.

    Returns:
        Seconds: three times a step and a save, at least two minutes; five minutes where nothing is known.

    Raises:
        SubmitError: when the file of the costs cannot be read.
    """
    file = run_dir / "save_cost.json"
    if not file.is_file():
        return DEFAULT_LEAD
    try:
        costs = json.loads(file.read_text(encoding="utf-8"))
        seconds = sum(float(costs[name]) for name in ("stall", "write", "step"))
    except (ValueError, KeyError, TypeError) as error:
        raise SubmitError(
            f"{file}: expected the seconds of stall, write and step, got {error!r}; give --lead"
        ) from error
    return max(SHORTEST_LEAD, math.ceil(SAFETY * seconds))


def seconds_of(time: str) -> int:
    """Length of a time limit as sbatch reads it.

    Args:
        time: minutes, minutes:seconds, hours:minutes:seconds, days-hours, days-hours:minutes or
            days-hours:minutes:seconds.

    Returns:
        Seconds.

    Raises:
        SubmitError: when it is none of these.
    """
    days, dash, rest = time.rpartition("-")
    try:
        numbers = [int(part) for part in rest.split(":")]
        if not dash and len(numbers) < 3:
            numbers.insert(0, 0)  # minutes come first
        hours, minutes, seconds = (*numbers, 0, 0)[: max(3, len(numbers))]
        return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds
    except ValueError as error:
        raise SubmitError(f"--time: expected a time limit such as 4:00:00 or 2-12, got {time!r}") from error


def _check_time(time: str | None, lead: int) -> None:
    if time is not None and seconds_of(time) <= lead:
        raise SubmitError(
            f"--time {time} is no longer than the {lead} s before its end at which the run is told to stop: "
            "ask for more, or give a smaller --lead"
        )


def _run_dir(words: Sequence[str]) -> Path | None:
    """The run directory that `gsforge fit` would use: the last one said, in a file or as an option."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config", dest="said", action="append", type=_run_dir_in)
    parser.add_argument("--run_dir", dest="said", action="append", type=Path)
    said = parser.parse_known_args(words)[0].said or []
    return next((path for path in reversed(said) if path is not None), None)


def _run_dir_in(config: str) -> Path | None:
    try:
        values: Any = yaml.safe_load(Path(config).read_text(encoding="utf-8"))
    except OSError as error:
        raise SubmitError(f"--config {config}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise SubmitError(f"--config {config} is no YAML: {error}") from error
    said = values.get("run_dir") if isinstance(values, dict) else None
    return None if said is None else Path(str(said))


def _required(run_dir: Path | None) -> Path:
    if run_dir is None:
        raise SubmitError("no run_dir in the configuration: the run needs a folder, give --run_dir")
    return run_dir


def _array_lines(file: Path) -> list[list[str]]:
    try:
        lines = [shlex.split(line) for line in file.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise SubmitError(f"--array {file}: {error}") from error
    if not lines or not all(lines):
        raise SubmitError(f"--array {file}: expected a line of arguments for each task, got an empty one")
    return lines


def _array_run_dirs(file: Path, lines: Sequence[Sequence[str]]) -> list[Path]:
    run_dirs = [_run_dir(line) for line in lines]
    found = [path for path in run_dirs if path is not None]
    if len(set(found)) < len(lines):
        raise SubmitError(f"--array {file}: every line needs a --run_dir of its own, for two tasks cannot share one")
    return found


def _submit(job: Job) -> str:
    needed = ["sbatch"] if "GSFORGE_LAUNCHER" in os.environ else ["sbatch", "gsforge"]
    if missing := [program for program in needed if shutil.which(program) is None]:
        raise SubmitError(
            f"{' and '.join(missing)} not found. Submit where SLURM's commands are, with gsforge's environment active, "
            "for the job inherits it; --dry-run only shows the command"
        )
    job.logs.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(job.command(), env=os.environ | job.variables, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SubmitError(f"sbatch refused the job: {done.stderr.strip()}")
    return done.stdout.strip()


def _at_least_one(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, got {number}")
    return number


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gsforge submit",
        description="Train on a SLURM cluster. Further options are those of `gsforge fit`; after --, of sbatch.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config", type=Path, action="append", required=True, help="as of gsforge fit; may be repeated"
    )
    parser.add_argument("--nodes", type=_at_least_one, default=1, help="number of nodes (%(default)s)")
    ranks = parser.add_mutually_exclusive_group(required=True)
    ranks.add_argument("--gpus-per-node", type=_at_least_one, help="one rank is started for each")
    ranks.add_argument("--tasks-per-node", type=_at_least_one, help="ranks of a node, without GPUs")
    parser.add_argument("--time", help="limit of one attempt, e.g. 4:00:00; the partition's by default")
    parser.add_argument("--partition", help="queue to submit to")
    parser.add_argument("--account", help="account to charge")
    parser.add_argument("--array", type=Path, help="file with a line of arguments for each task of a job array")
    parser.add_argument(
        "--lead",
        type=_at_least_one,
        help="seconds before its end that an attempt is told to save; by default from what saves took",
    )
    parser.add_argument(
        "--max-crashes", type=int, default=3, help="failed attempts in a row that are tried again (%(default)s)"
    )
    parser.add_argument("--dry-run", action="store_true", help="show the command instead of running it")
    return parser
