"""The `gsforge data` command. Everything heavy is imported only by the sub-command that needs it."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from datamodules.errors import DataError
from datamodules.options import parser
from gsforge.core.errors import GsforgeError

if TYPE_CHECKING:
    from datamodules.prepare.objects import ObjectSettings
    from datamodules.prepare.plan import Source
    from datamodules.prepare.sets import SetSummary
    from datamodules.shards import EncodedSample

OK, FAILED, INTERRUPTED = 0, 1, 130


def main(argv: Sequence[str]) -> int:
    """Run one `gsforge data` command.

    Args:
        argv: the words after `gsforge data`.

    Returns:
        Exit code: 0 done, 1 something is wrong with the data, 130 stopped by Ctrl-C. Wrong usage exits with 2.
    """
    arguments = parser().parse_args(argv)
    try:
        return _COMMANDS[arguments.command](arguments)
    except KeyboardInterrupt:
        _complain("stopped; finished shards are kept. Run the same command again to continue.")
        return INTERRUPTED
    except (GsforgeError, OSError) as error:
        _complain(str(error))
        return FAILED


def _complain(message: str) -> None:
    _console(stderr=True).print(f"gsforge data: {message}", style="bold red")


def _console(stderr: bool = False) -> Console:
    """A console that prints names as they are: not as markup, and not broken into lines."""
    return Console(stderr=stderr, soft_wrap=True, markup=False, highlight=False)


def _settings(arguments: argparse.Namespace) -> "ObjectSettings":
    from datamodules.prepare.objects import ObjectSettings

    return ObjectSettings(
        views=arguments.views,
        size=arguments.size,
        supersampling=arguments.supersampling,
        points=arguments.points,
        fov_degrees=arguments.fov,
        radius=arguments.radius,
        seed=arguments.seed,
        up=arguments.up,
        condition_views=arguments.condition_views,
        condition_size=arguments.condition_size,
    )


def _prepare_objects(arguments: argparse.Namespace) -> int:
    from datamodules.prepare.objects import find_meshes, make_mesh_object

    if not arguments.meshes.is_dir():
        raise DataError(f"{arguments.meshes} is not a folder")
    settings = _settings(arguments)
    recipe = partial(make_mesh_object, arguments.meshes, settings)
    return _write(arguments, settings, find_meshes(arguments.meshes), recipe)


def _toy_objects(arguments: argparse.Namespace) -> int:
    from datamodules.prepare.objects import make_toy_object, toy_sources

    settings = _settings(arguments)
    return _write(arguments, settings, toy_sources(arguments.count), partial(make_toy_object, settings))


def _write(
    arguments: argparse.Namespace,
    settings: "ObjectSettings",
    sources: "Sequence[Source]",
    recipe: "Callable[[Source], EncodedSample]",
) -> int:
    from datamodules.object_format import KIND
    from datamodules.prepare.objects import EXPECTED
    from datamodules.prepare.plan import SetPlan
    from datamodules.prepare.sets import write_set

    _check_rank(arguments)
    if arguments.shard_size < 1 or arguments.workers < 0 or arguments.timeout <= 0:
        raise DataError("--shard-size must be at least 1, --workers at least 0 and --timeout positive")
    plan = SetPlan(arguments.out, KIND, settings.to_json(), sources, arguments.shard_size)
    console = _console()
    summary = write_set(
        plan,
        recipe,
        EXPECTED,
        console,
        workers=arguments.workers,
        timeout=arguments.timeout,
        rank=arguments.rank,
        world=arguments.world,
    )
    _print_summary(console, arguments.out, KIND, summary)
    return OK


def _check_rank(arguments: argparse.Namespace) -> None:
    if not 0 <= arguments.rank < arguments.world:
        raise DataError(f"--rank {arguments.rank} --world {arguments.world}: rank must be from 0 to world - 1")


def _print_summary(console: Console, out: Path, kind: str, summary: "SetSummary") -> None:
    from datamodules.prepare.sets import FAILURES_NAME

    console.print(f"{out}: {summary.samples} {kind} in {summary.shards} of {summary.planned} shards")
    if summary.failures:
        console.print(f"{summary.failures} sources could not be used: {out / FAILURES_NAME}", style="yellow")
    if not summary.complete:
        console.print("The index is written by the rank that finishes last.")


def _encode(arguments: argparse.Namespace) -> int:
    from datamodules.latent_format import KIND
    from datamodules.prepare.encode import EncodeSettings, encode_set
    from datamodules.prepare.trained import open_vae

    _check_rank(arguments)
    settings = EncodeSettings(
        tokens=arguments.tokens,
        turns=arguments.turns,
        condition_views=arguments.condition_views,
        batch_size=arguments.batch_size,
        workers=arguments.workers,
    )
    console = _console()
    trained = open_vae(arguments.run, arguments.checkpoint, arguments.device)
    summary, throughput = encode_set(
        trained, arguments.data, arguments.out, settings, console, rank=arguments.rank, world=arguments.world
    )
    _print_summary(console, arguments.out, KIND, summary)
    console.print(throughput)
    return OK


def _check(arguments: argparse.Namespace) -> int:
    from datamodules.prepare.check import check_shard, report_of, shard_tasks
    from datamodules.prepare.pool import Pool

    console = _console()
    tasks = shard_tasks(arguments.folder)
    samples = problems = 0
    with Pool(check_shard, (DataError, OSError), arguments.workers, timeout=3600.0) as pool:
        for task, result in zip(tasks, pool.run(tasks), strict=True):
            report = report_of(task, result)
            samples, problems = samples + report.samples, problems + len(report.problems)
            for problem in report.problems:
                console.print(problem, style="red")
    console.print(f"{arguments.folder}: {samples} {tasks[0].kind} in {len(tasks)} shards, {problems} problems")
    return FAILED if problems else OK


def _show(arguments: argparse.Namespace) -> int:
    from datamodules.prepare.show import contact_sheet, save_sheet

    sheet = contact_sheet(arguments.folder, arguments.objects, arguments.views, arguments.size, arguments.columns)
    save_sheet(sheet, arguments.out)
    _console().print(f"wrote {arguments.out} ({sheet.width} x {sheet.height})")
    return OK


_COMMANDS: Mapping[str, Callable[[argparse.Namespace], int]] = {
    "prepare objects": _prepare_objects,
    "toy objects": _toy_objects,
    "encode": _encode,
    "check": _check,
    "show": _show,
}
