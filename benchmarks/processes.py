"""`gsforge` commands in processes forked from one that has imported everything: they start at once."""

import multiprocessing
import os
import sys
from collections.abc import Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

_PRELOADED = [
    "gsforge.cli.run",
    "gsforge.training.strategies",
    "gsforge.methods.deg.module",
    "gsforge.methods.deg.flow",
    "datamodules.objects",
    "datamodules.latents",
]
_CONTEXT = multiprocessing.get_context("forkserver")


def start(arguments: Sequence[str], log: Path | None = None, variables: Mapping[str, str] | None = None) -> BaseProcess:
    """Start a command; it has a process, a working directory and an environment as if a shell had started it.

    Args:
        arguments: what follows `gsforge`.
        log: file for what it writes; None: where this process writes.
        variables: of the environment, beside those of this process.

    Returns:
        The process. Its exit code is negative where a signal killed it.
    """
    _CONTEXT.set_forkserver_preload(_PRELOADED)
    environment = {**os.environ, **(variables or {})}
    process = _CONTEXT.Process(target=_command, args=(list(arguments), log, environment))
    process.start()
    return process


def run(arguments: Sequence[str], log: Path | None = None, variables: Mapping[str, str] | None = None) -> int:
    """Run a command to its end.

    Args:
        arguments: as for `start`.
        log: as for `start`.
        variables: as for `start`.

    Returns:
        Its exit code.
    """
    process = start(arguments, log, variables)
    process.join()
    return process.exitcode or 0


def _command(arguments: list[str], log: Path | None, environment: dict[str, str]) -> None:
    if log is not None:
        with log.open("a") as stream:
            os.dup2(stream.fileno(), 1)
            os.dup2(stream.fileno(), 2)
    os.environ.clear()
    os.environ.update(environment)
    multiprocessing.set_start_method("fork", force=True)  # of loader workers, as in a process that was not forked
    from gsforge.cli import main

    sys.exit(main(arguments))
