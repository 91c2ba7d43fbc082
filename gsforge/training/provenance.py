"""Where, when and with which code an attempt ran."""

import os
import platform
import shlex
import socket
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import torch

import gsforge


def provenance() -> dict[str, str | bool]:
    """What a reader of a run needs to run it again.

    Returns:
        Time, host, command and versions; `commit` and `changed`, whether files differ from it, where gsforge runs from
        a clone; `slurm_job` in a job.
    """
    found: dict[str, str | bool] = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "host": socket.gethostname(),
        "command": shlex.join(sys.argv),
        "gsforge": version("gsforge"),
        "torch": str(torch.__version__),
        "python": platform.python_version(),
    }
    root = Path(gsforge.__file__).resolve().parents[1]
    commit = _git(root, "rev-parse", "HEAD") if (root / ".git").exists() else None
    if commit is not None:
        found["commit"] = commit
        if (changes := _git(root, "status", "--porcelain")) is not None:
            found["changed"] = bool(changes)
    if job := os.environ.get("SLURM_JOB_ID"):
        found["slurm_job"] = job
    return found


def _git(root: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", root, *words], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
