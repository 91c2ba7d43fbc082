"""A real SLURM cluster for the tests of this folder, and jobs on it."""

import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
TRAINING = ROOT / "tests" / "unit" / "training"
CONFIGS = ("--config", TRAINING / "tiny.yaml", "--config", ROOT / "configs" / "trainer" / "cpu.yaml")
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY")
sys.path[:0] = [str(ROOT / "slurm" / "local"), str(HERE), str(TRAINING)]

from cluster import Cluster  # noqa: E402

MISSING = [program for program in ("slurmctld", "slurmd", "munged") if shutil.which(program) is None]
REASON = f"needs a SLURM cluster: {', '.join(MISSING)} not installed, see slurm/local/install" if MISSING else ""
if not MISSING and os.geteuid() != 0:
    REASON = "needs a SLURM cluster, whose daemons run as root"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.slurm)
            if REASON:
                item.add_marker(pytest.mark.skip(reason=REASON))


@dataclass(frozen=True)
class Job:
    """A submitted job, or a task of a job array.

    Attributes:
        cluster: where it runs.
        number: its id.
        log: file of its output.
    """

    cluster: Cluster
    number: str
    log: Path

    def fields(self) -> dict[str, str]:
        """What `scontrol show job` says."""
        words = self.cluster.run("scontrol", "--oneliner", "show", "job", self.number).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def attempts(self) -> list[str]:
        """What became of the attempts: the record without its times."""
        file = self.log.with_suffix(".attempts")
        return [line.split(" ", 1)[1] for line in file.read_text().splitlines()] if file.exists() else []

    def wait_for(self, done: Callable[[], Any], seconds: float = 240) -> Any:
        """Wait until something is so; give its value."""
        deadline = time.monotonic() + seconds
        while not (value := done()):
            assert time.monotonic() < deadline, f"{self.fields()}\n{self.attempts()}\n{self.text()}"
            time.sleep(0.5)
        return value

    def end(self) -> str:
        """Wait for the end of the last attempt; give the state and the exit code."""
        fields = self.wait_for(lambda: (fields := self.fields())["JobState"] in ENDED and fields)
        return f"{fields['JobState']} {fields['ExitCode'].partition(':')[0]}"

    def text(self) -> str:
        """The log."""
        return self.log.read_text(errors="replace") if self.log.exists() else "no log"


def environment() -> dict[str, str]:
    """Of a user who has activated the virtual environment."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return os.environ | {"PATH": path, "PYTHONPATH": f"{TRAINING}:{HERE}", "OMP_NUM_THREADS": "1"}


def free_ports(count: int) -> int:
    """The first of several ports in a row that nobody listens at."""
    for _ in range(100):
        first = random.randrange(30000, 32000)
        if all(_is_free(port) for port in range(first, first + count)):
            return first
    raise RuntimeError("no free ports")


def _is_free(port: int) -> bool:
    with socket.socket() as server:
        try:
            server.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


class Submitter:
    """Submits jobs as a user does.

    Args:
        cluster: where to.
    """

    def __init__(self, cluster: Cluster):
        self.cluster = cluster

    def __call__(self, logs: Path, *words: object, arrayed: int = 0, **variables: str) -> list[Job]:
        """Run `gsforge submit` with the small model; words after "--" are for sbatch."""
        arguments = [str(word) for word in ("gsforge", "submit", *CONFIGS, *words)]
        done = subprocess.run(
            arguments,
            env=environment() | self.cluster.variables() | variables,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        number = done.stdout.split()[2].rstrip(",")
        if not arrayed:
            return [Job(self.cluster, number, logs / "slurm" / f"{number}.log")]
        tasks = [f"{number}_{task}" for task in range(1, arrayed + 1)]
        return [Job(self.cluster, task, logs / "slurm" / f"{task}.log") for task in tasks]


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Five nodes. Tests that lose one use the first three, all others the last two."""
    root = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
    port = free_ports(6)
    with Cluster(root, nodes=5, port=port, first_job=100 * (port - 30000) + 1) as cluster:
        yield cluster
    shutil.rmtree(root)


@pytest.fixture(scope="session")
def submit(cluster: Cluster) -> Submitter:
    return Submitter(cluster)
