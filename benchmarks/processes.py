"""`gsforge` commands in processes forked from one that has imported everything: they start at once."""

import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

PREEMPTED = 75
GRACE = 4.0  # seconds that ranks have when another one has failed
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


@dataclass(frozen=True)
class Ended:
    """How the ranks of a run ended.

    Attributes:
        codes: exit code of each rank; -9 when it was killed.
        output: what each wrote.
    """

    codes: list[int]
    output: list[str]

    @property
    def code(self) -> int:
        """Exit code of the first rank."""
        return self.codes[0]


def run_ranks(arguments: Sequence[str], ranks: int, logs: Path, timeout: float = 120) -> Ended:
    """Run a command on some ranks, as a launcher does.

    Args:
        arguments: what follows `gsforge`.
        ranks: number of processes.
        logs: folder for what they write.
        timeout: seconds after which they are killed.

    Returns:
        How they ended.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        common = {"WORLD_SIZE": ranks, "NODE_RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free.getsockname()[1]}
    logs.mkdir(parents=True, exist_ok=True)
    files = [logs / f"rank_{rank}.txt" for rank in range(ranks)]
    processes = []
    for rank, file in enumerate(files):
        file.unlink(missing_ok=True)
        names = {**common, "LOCAL_RANK": rank} if ranks > 1 else {}
        processes.append(start(arguments, file, {name: str(value) for name, value in names.items()}))
    deadline = time.monotonic() + timeout
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
        if process.is_alive():
            process.kill()
            process.join()
        elif process.exitcode not in (0, PREEMPTED):  # a launcher ends the others when one has failed
            deadline = min(deadline, time.monotonic() + GRACE)
    return Ended([process.exitcode or 0 for process in processes], [file.read_text() for file in files])


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
