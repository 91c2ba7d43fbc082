"""Limits of the machine: cores, shared memory, open files, threads."""

import os
import resource
import shutil
from pathlib import Path

from gsforge.cli.checks.finding import Finding
from gsforge.cli.checks.wanted import Wanted

_OPEN_FILES = 4096
_WORKER_BYTES = 256e6  # of batches that wait for a process of a loader, a few of some tens of MB


def cores(wanted: Wanted) -> Finding:
    """Whether there are as many cores as processes that compute.

    Args:
        wanted: numbers of processes and of their loaders' workers.

    Returns:
        The finding.
    """
    count = _own_cores()
    busy = wanted.devices * (1 + wanted.workers)
    found = f"{count} of {os.cpu_count()} cores are ours"
    if busy > count:
        fix = "ask for more (--cpus-per-task), or lower data.init_args.num_workers"
        return Finding("cores", "warning", f"{found}, {busy} processes of training and loading want one each", fix)
    return Finding("cores", "ok", found)


def shared_memory(wanted: Wanted, folder: Path = Path("/dev/shm")) -> Finding:
    """Whether batches of the loaders' processes find room.

    Args:
        wanted: numbers of processes and of their loaders' workers.
        folder: where shared memory lives.

    Returns:
        The finding.
    """
    workers = wanted.devices * wanted.workers
    if not folder.is_dir():
        fix = "mount it, or set data.init_args.num_workers to 0"
        return Finding("shared memory", "problem" if workers else "warning", f"there is no {folder}", fix)
    usage = shutil.disk_usage(folder)
    found = f"{usage.free / 1e9:,.2f} GB of {usage.total / 1e9:,.2f} GB free in {folder}"
    if usage.free < workers * _WORKER_BYTES:
        fix = "give the container more (--shm-size=16g, or --ipc=host), or lower data.init_args.num_workers"
        needed = f"{workers} workers may need {workers * _WORKER_BYTES / 1e9:,.1f} GB"
        return Finding("shared memory", "warning", f"{found}, {needed}", fix)
    return Finding("shared memory", "ok", found)


def open_files() -> Finding:
    """Whether loaders can keep their files and pipes open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    found = f"at most {soft:,} (could be {hard:,})"
    if soft != resource.RLIM_INFINITY and soft < _OPEN_FILES:
        return Finding("open files", "warning", found, f"ulimit -n {min(hard, 65536)} before the start")
    return Finding("open files", "ok", found)


def threads(wanted: Wanted) -> Finding:
    """Whether the processes of a machine share its cores.

    Args:
        wanted: number of processes.

    Returns:
        The finding.
    """
    name, text, count = "OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS"), _own_cores()
    if text is None:
        return Finding(name, "ok", "not set: Lightning sets it where it starts several processes")
    if not text.isdigit() or int(text) < 1:
        return Finding(name, "problem", f"{text!r} is no number of threads", f"export {name}=1")
    if int(text) * wanted.devices > count:
        most = max(1, count // wanted.devices)
        found = f"{text}, for {wanted.devices} processes on {count} cores"
        return Finding(name, "warning", found, f"export {name}={most}")
    return Finding(name, "ok", text)


def _own_cores() -> int:
    """Cores that this process may use; a cluster gives a job a part of them."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
