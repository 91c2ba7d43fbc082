"""Runs `gsforge` on several ranks of this machine."""

import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.processes import start

HERE = Path(__file__).parent


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
    if str(HERE) not in sys.path:
        sys.path.insert(0, str(HERE))  # for `class_path: small...`, here and in the forked processes
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
        elif process.exitcode not in (0, 75):  # a launcher ends the others when one has failed
            deadline = min(deadline, time.monotonic() + 4)
    return Ended([process.exitcode or 0 for process in processes], [file.read_text() for file in files])
