"""The disk of the run directory: room, what kind it is, and whether saving can rely on it."""

import fcntl
import os
import shutil
import tempfile
import time
from pathlib import Path

from gsforge.cli.checks.finding import Finding
from gsforge.cli.checks.wanted import Wanted
from gsforge.core.files import atomic_file, sync_folder

_NETWORK = (
    "nfs",
    "lustre",
    "beegfs",
    "gpfs",
    "ceph",
    "fuse",
    "cifs",
    "smb",
    "9p",
    "gluster",
    "panfs",
    "weka",
    "virtio",
)
_FLEETING = ("tmpfs", "ramfs", "overlay")
_LITTLE, _ENOUGH = 1e9, 20e9  # bytes free
_WRITTEN = 64 << 20
_SLOW = 100e6  # bytes per second


def free_space(wanted: Wanted) -> Finding:
    """Whether checkpoints have room.

    Args:
        wanted: names the run directory.

    Returns:
        The finding.
    """
    folder = existing(wanted.run_dir)
    usage = shutil.disk_usage(folder)
    found = f"{usage.free / 1e9:,.1f} GB of {usage.total / 1e9:,.1f} GB free in {folder}"
    if usage.free >= _ENOUGH:
        return Finding("disk space", "ok", found)
    fix = "make room, or take another run_dir; `gsforge plan` tells the size of weights and optimiser"
    return Finding("disk space", "problem" if usage.free < _LITTLE else "warning", found, fix)


def filesystem(wanted: Wanted, mounts: Path = Path("/proc/mounts")) -> Finding:
    """Whether the run directory outlives the job, and whether all machines see it.

    Args:
        wanted: names the run directory and the number of machines.
        mounts: the kernel's list of mounted filesystems.

    Returns:
        The finding.
    """
    folder = existing(wanted.run_dir)
    kind, point = _mounted(folder.resolve(), mounts.read_text(encoding="utf-8"))
    found = f"{kind} at {point}"
    if kind.startswith(_FLEETING):
        return Finding("filesystem", "warning", f"{found}: gone when the machine or container ends", _shared_fix())
    if wanted.nodes > 1 and not kind.startswith(_NETWORK):
        found = f"{found}: of this machine alone, and {wanted.nodes} need it"
        return Finding("filesystem", "problem", found, _shared_fix())
    return Finding("filesystem", "ok", f"{found}, {'shared' if kind.startswith(_NETWORK) else 'of this machine'}")


def saving(wanted: Wanted) -> list[Finding]:
    """Whether a file can be written, flushed, renamed over another, linked and locked; and how fast.

    Args:
        wanted: names the run directory.

    Returns:
        Writing and its rate, and locks.
    """
    folder = existing(wanted.run_dir)
    try:
        with tempfile.TemporaryDirectory(prefix=".gsforge-doctor-", dir=folder) as scratch:
            return [_written(Path(scratch)), _locked(Path(scratch))]
    except OSError as error:
        fix = "take a run_dir that you may write to and that has room"
        return [Finding("saving", "problem", f"cannot write to {folder}: {error.strerror or error}", fix)]


def existing(folder: Path) -> Path:
    """The folder, or the nearest above it that exists.

    Args:
        folder: any path.

    Returns:
        An existing folder.
    """
    folder = folder.absolute()
    return next(path for path in (folder, *folder.parents) if path.is_dir())


def _written(scratch: Path) -> Finding:
    path, begun = scratch / "file", time.perf_counter()
    path.write_bytes(b"old")
    block = os.urandom(1 << 20)  # which no filesystem makes smaller
    with atomic_file(path) as stream:
        for _ in range(_WRITTEN >> 20):
            stream.write(block)
    rate = _WRITTEN / (time.perf_counter() - begun)
    if path.stat().st_size != _WRITTEN or [entry.name for entry in scratch.iterdir()] != ["file"]:
        fix = "take a run_dir on another filesystem: checkpoints rely on renaming"
        return Finding("saving", "problem", "a file renamed over another did not replace it", fix)
    (scratch / "link").symlink_to("file")
    sync_folder(scratch)
    found = f"written, flushed, renamed and linked; {rate / 1e6:,.0f} MB/s"
    if rate < _SLOW:
        fix = "save less often (checkpoint.every_n_train_steps), or on a faster disk"
        return Finding("saving", "warning", found, fix)
    return Finding("saving", "ok", found)


def _locked(scratch: Path) -> Finding:
    with (scratch / "lock").open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            fix = "mount it with locks (flock), or put caches (TORCH_EXTENSIONS_DIR, NUMBA_CACHE_DIR) on another disk"
            return Finding("file locks", "warning", f"refused: {error.strerror}", fix)
    return Finding("file locks", "ok", "work")


def _mounted(folder: Path, mounts: str) -> tuple[str, str]:
    """Kind and place of the filesystem with the longest matching path; the last of several at one place counts."""
    found = ("unknown", "/")
    for line in mounts.splitlines():
        _, point, kind = line.split()[:3]
        point = point.replace("\\040", " ")
        if folder.is_relative_to(point) and len(point) >= len(found[1]):
            found = (kind, point)
    return found


def _shared_fix() -> str:
    return "take a run_dir on a filesystem that all machines share and that stays"
