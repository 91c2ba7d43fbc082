"""The `gsforge data` command. Everything heavy is imported only by the sub-command that needs it."""

import argparse
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from datamodules.errors import DataError

if TYPE_CHECKING:
    from datamodules.prepare.objects import ObjectSettings
    from datamodules.prepare.sets import Source
    from datamodules.shards import EncodedSample

OK, FAILED, INTERRUPTED = 0, 1, 130


def main(argv: Sequence[str]) -> int:
    """Run one `gsforge data` command.

    Args:
        argv: the words after `gsforge data`.

    Returns:
        Exit code: 0 done, 1 something is wrong with the data, 130 stopped by Ctrl-C. Wrong usage exits with 2.
    """
    arguments = _parser().parse_args(argv)
    try:
        code: int = arguments.run(arguments)
    except KeyboardInterrupt:
        _complain("stopped; finished shards are kept. Run the same command again to continue.")
        return INTERRUPTED
    except (DataError, OSError) as error:
        _complain(str(error))
        return FAILED
    return code


def _complain(message: str) -> None:
    _console(stderr=True).print(f"gsforge data: {message}", style="bold red")


def _console(stderr: bool = False) -> Console:
    """A console that prints names as they are: not as markup, and not broken into lines."""
    return Console(stderr=stderr, soft_wrap=True, markup=False, highlight=False)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="gsforge data", description="Make, check and look at sets of shards.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    prepare = commands.add_parser("prepare", help="turn raw data into shards").add_subparsers(
        required=True, metavar="KIND"
    )
    _add_prepare_objects(prepare)
    toy = commands.add_parser("toy", help="make a small set offline").add_subparsers(required=True, metavar="KIND")
    _add_toy_objects(toy)
    _add_check(commands)
    _add_show(commands)
    return parser


def _add(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, summary: str, details: str
) -> argparse.ArgumentParser:
    return commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}. {details}",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )


def _add_prepare_objects(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = _add(
        commands,
        "objects",
        "render and sample mesh files (.glb .gltf .obj .ply)",
        "Meshes that cannot be used are listed in failures.jsonl with the reason. It may be stopped at any time, and "
        "continues when run again. On a cluster, start it once for each rank with --rank and --world.",
    )
    parser.add_argument(
        "--meshes", type=Path, required=True, help="folder of mesh files, searched with all folders below it"
    )
    _add_rendering(parser, views=150, size=512, points=32768, shard_size=32)
    parser.add_argument("--up", choices=["y", "z"], help="axis that points up in the files; None: as their format says")
    _add_work(parser, workers=len(os.sched_getaffinity(0)))
    parser.add_argument("--rank", type=int, default=0, help="which part of the work this process does, from 0")
    parser.add_argument("--world", type=int, default=1, help="number of parts")
    parser.set_defaults(run=_prepare_objects)


def _add_toy_objects(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = _add(
        commands,
        "objects",
        "make procedural textured objects",
        "Use another --seed for a validation set: no object is in both.",
    )
    parser.add_argument("--count", type=int, default=64, help="number of objects")
    _add_rendering(parser, views=16, size=64, points=8192, shard_size=16)
    _add_work(parser, workers=0)
    parser.set_defaults(run=_toy_objects, up=None, rank=0, world=1)


def _add_rendering(parser: argparse.ArgumentParser, views: int, size: int, points: int, shard_size: int) -> None:
    parser.add_argument("--out", type=Path, required=True, help="folder of the set; new, or of a run to continue")
    parser.add_argument("--views", type=int, default=views, help="views around each object")
    parser.add_argument("--size", type=int, default=size, help="side of the images in pixels")
    parser.add_argument("--supersampling", type=int, default=3, help="rays along each side of a pixel; odd is faster")
    parser.add_argument("--points", type=int, default=points, help="surface points of each object")
    parser.add_argument("--fov", type=float, default=40.0, help="field of view in degrees")
    parser.add_argument("--radius", type=float, default=2.0, help="distance of the cameras; objects are one unit wide")
    parser.add_argument("--seed", type=int, default=0, help="seed of everything random")
    parser.add_argument("--shard-size", type=int, default=shard_size, help="objects in one shard")


def _add_work(parser: argparse.ArgumentParser, workers: int) -> None:
    parser.add_argument("--workers", type=int, default=workers, help="worker processes; 0 works in this process")
    parser.add_argument(
        "--timeout", type=float, default=600.0, help="seconds after which a worker's object is given up"
    )


def _add_check(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = _add(
        commands,
        "check",
        "verify a set of objects",
        "Checks hashes, members, shapes, cameras, value ranges, and depth maps against surface points.",
    )
    parser.add_argument("folder", type=Path, help="folder of the set")
    parser.add_argument("--workers", type=int, default=0, help="worker processes; 0 works in this process")
    parser.set_defaults(run=_check)


def _add_show(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = _add(commands, "show", "draw a contact sheet of a set", "Rows: colour, depth, normals.")
    parser.add_argument("folder", help="folder or address of the set")
    parser.add_argument("--out", type=Path, required=True, help="the PNG file to write")
    parser.add_argument("--objects", type=int, default=12, help="most objects to show")
    parser.add_argument("--views", type=int, default=4, help="most views of each object")
    parser.add_argument("--size", type=int, default=96, help="side of each picture in pixels")
    parser.add_argument("--columns", type=int, default=3, help="objects side by side")
    parser.set_defaults(run=_show)


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
    from datamodules.prepare.sets import FAILURES_NAME, SetPlan, write_set

    if not 0 <= arguments.rank < arguments.world:
        raise DataError(f"--rank {arguments.rank} --world {arguments.world}: rank must be from 0 to world - 1")
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
    console.print(f"{arguments.out}: {summary.samples} objects in {summary.shards} of {summary.planned} shards")
    if summary.failures:
        console.print(f"{summary.failures} sources could not be used: {arguments.out / FAILURES_NAME}", style="yellow")
    if not summary.complete:
        console.print("The index is written by the rank that finishes last.")
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
    console.print(f"{arguments.folder}: {samples} objects in {len(tasks)} shards, {problems} problems")
    return FAILED if problems else OK


def _show(arguments: argparse.Namespace) -> int:
    from datamodules.prepare.show import contact_sheet, save_sheet

    sheet = contact_sheet(arguments.folder, arguments.objects, arguments.views, arguments.size, arguments.columns)
    save_sheet(sheet, arguments.out)
    _console().print(f"wrote {arguments.out} ({sheet.width} x {sheet.height})")
    return OK
