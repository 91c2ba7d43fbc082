"""The options of `gsforge data`. Imports nothing heavy, so that `--help` is immediate."""

import argparse
import os
from pathlib import Path
from typing import TypeAlias

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def parser() -> argparse.ArgumentParser:
    """All commands of `gsforge data` with their options.

    Returns:
        A parser; what it parses holds `command`, the name of the command that was chosen.
    """
    main = argparse.ArgumentParser(prog="gsforge data", description="Make, check and look at sets of shards.")
    commands = main.add_subparsers(required=True, metavar="COMMAND")
    prepare = commands.add_parser("prepare", help="turn raw data into shards").add_subparsers(
        required=True, metavar="KIND"
    )
    _add_prepare_objects(prepare)
    toy = commands.add_parser("toy", help="make a small set offline").add_subparsers(required=True, metavar="KIND")
    _add_toy_objects(toy)
    _add_encode(commands)
    _add_check(commands)
    _add_show(commands)
    return main


def _add(commands: Commands, name: str, summary: str, details: str) -> argparse.ArgumentParser:
    return commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}. {details}",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )


def _add_prepare_objects(commands: Commands) -> None:
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
    _add_rendering(parser, views=150, size=512, points=32768, shard_size=32, condition_size=1024)
    parser.add_argument("--up", choices=["y", "z"], help="axis that points up in the files; None: as their format says")
    _add_work(parser, workers=len(os.sched_getaffinity(0)))
    _add_ranks(parser)
    parser.set_defaults(command="prepare objects")


def _add_toy_objects(commands: Commands) -> None:
    parser = _add(
        commands,
        "objects",
        "make procedural textured objects",
        "Use another --seed for a validation set: no object is in both.",
    )
    parser.add_argument("--count", type=int, default=64, help="number of objects")
    _add_rendering(parser, views=16, size=64, points=8192, shard_size=16, condition_size=64)
    _add_work(parser, workers=0)
    parser.set_defaults(command="toy objects", up=None, rank=0, world=1)


def _add_rendering(
    parser: argparse.ArgumentParser, views: int, size: int, points: int, shard_size: int, condition_size: int
) -> None:
    parser.add_argument("--out", type=Path, required=True, help="folder of the set; new, or of a run to continue")
    parser.add_argument("--views", type=int, default=views, help="views around each object")
    parser.add_argument("--size", type=int, default=size, help="side of the images in pixels")
    parser.add_argument("--supersampling", type=int, default=3, help="rays along each side of a pixel; odd is faster")
    parser.add_argument("--points", type=int, default=points, help="surface points of each object")
    parser.add_argument("--fov", type=float, default=40.0, help="field of view in degrees")
    parser.add_argument("--radius", type=float, default=2.0, help="distance of the cameras; objects are one unit wide")
    parser.add_argument(
        "--condition-views",
        type=int,
        default=0,
        help="further views, from cameras near and far, for a generative model to be conditioned on",
    )
    parser.add_argument("--condition-size", type=int, default=condition_size, help="side of their images in pixels")
    parser.add_argument("--seed", type=int, default=0, help="seed of everything random")
    parser.add_argument("--shard-size", type=int, default=shard_size, help="objects in one shard")


def _add_work(parser: argparse.ArgumentParser, workers: int) -> None:
    parser.add_argument("--workers", type=int, default=workers, help="worker processes; 0 works in this process")
    parser.add_argument(
        "--timeout", type=float, default=600.0, help="seconds after which a worker's object is given up"
    )


def _add_ranks(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rank", type=int, default=0, help="which part of the work this process does, from 0")
    parser.add_argument("--world", type=int, default=1, help="number of parts")


def _add_encode(commands: Commands) -> None:
    parser = _add(
        commands,
        "encode",
        "turn a set of objects into the latents of a trained VAE",
        "Latents are ordered by their anchors. It may be stopped at any time, and continues when run again. On a "
        "cluster, start it once for each GPU with --rank and --world.",
    )
    parser.add_argument("run", type=Path, help="run directory of the VAE")
    parser.add_argument("--data", required=True, help="folder or address of the set of objects")
    parser.add_argument("--out", type=Path, required=True, help="folder of the latents; new, or of a run to continue")
    parser.add_argument("--tokens", type=int, nargs="+", help="numbers of latent tokens; None: those of the run")
    parser.add_argument(
        "--turns", type=int, nargs="+", default=[0, 1, 2, 3], help="quarter turns of the objects; 0 alone, or all four"
    )
    parser.add_argument("--condition-views", type=int, help="condition views of each object to copy; None: all")
    parser.add_argument("--checkpoint", type=Path, help="checkpoint file; None: the run's last one")
    parser.add_argument("--batch-size", type=int, default=4, help="objects that are encoded at a time")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="where the VAE computes")
    parser.add_argument(
        "--workers", type=int, default=len(os.sched_getaffinity(0)), help="processes that read objects; 0: this one"
    )
    _add_ranks(parser)
    parser.set_defaults(command="encode")


def _add_check(commands: Commands) -> None:
    parser = _add(
        commands,
        "check",
        "verify a set",
        "Checks hashes, members, shapes, cameras, value ranges, and images against surface points.",
    )
    parser.add_argument("folder", type=Path, help="folder of the set")
    parser.add_argument("--workers", type=int, default=0, help="worker processes; 0 works in this process")
    parser.set_defaults(command="check")


def _add_show(commands: Commands) -> None:
    parser = _add(
        commands, "show", "draw a contact sheet of a set", "Rows: colour, depth, normals; condition views, if any."
    )
    parser.add_argument("folder", help="folder or address of the set")
    parser.add_argument("--out", type=Path, required=True, help="the PNG file to write")
    parser.add_argument("--objects", type=int, default=12, help="most objects to show")
    parser.add_argument("--views", type=int, default=4, help="most views of each object")
    parser.add_argument("--size", type=int, default=96, help="side of each picture in pixels")
    parser.add_argument("--columns", type=int, default=3, help="objects side by side")
    parser.set_defaults(command="show")
