"""The network between ranks: a small collective operation, timed."""

import os
import socket
import time
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import distributed, multiprocessing

from gsforge.cli.checks.finding import Finding

_BYTES = 16 << 20
_REPEATS, _SMALL_REPEATS = 5, 50
_SLOW = 1e9  # bytes per second between machines; a gradient of a GB would take longer than a step
_INTERFACE = "name the network card: export GLOO_SOCKET_IFNAME=... NCCL_SOCKET_IFNAME=... (ip -br addr lists them)"


def launched() -> bool:
    """Whether srun or torchrun has started this process as one of several.

    Returns:
        True if so.
    """
    ranks = os.environ.get("WORLD_SIZE") if "RANK" in os.environ else os.environ.get("SLURM_NTASKS")
    return int(ranks or 1) > 1 and ("RANK" in os.environ or "SLURM_PROCID" in os.environ)


def between_ranks(timeout: float = 20.0) -> Finding:
    """Time a sum over all ranks that srun or torchrun has started; all of them must call it.

    Args:
        timeout: seconds to wait for the others.

    Returns:
        Rate and latency, or why the ranks do not meet.
    """
    rank, ranks, local, address = _launched_as()
    backend = "nccl" if torch.cuda.is_available() and distributed.is_nccl_available() else "gloo"
    device = torch.device("cuda", local % torch.cuda.device_count()) if backend == "nccl" else torch.device("cpu")
    try:
        found = _measure(backend, f"tcp://{address}", rank, ranks, device, timeout)
    except (RuntimeError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        fix = f"start all {ranks} tasks at once, open ports between the machines, and {_INTERFACE}"
        return Finding("network", "problem", f"{ranks} ranks do not meet at {address} by {backend}: {reason}", fix)
    return _judged(f"{backend} over {ranks} ranks", *found)


def loopback(timeout: float = 20.0) -> Finding:
    """Time a sum over two processes of this machine.

    Args:
        timeout: seconds to wait for them.

    Returns:
        Rate and latency, or why they do not meet.
    """
    with TemporaryDirectory() as folder:
        try:
            multiprocessing.spawn(_one_of_two, (folder, timeout), nprocs=2)
        except (multiprocessing.ProcessRaisedException, multiprocessing.ProcessExitedException) as error:
            reason = str(error).strip().splitlines()[-1][:200]
            fix = f"check that {socket.gethostname()} is in /etc/hosts, or {_INTERFACE}"
            return Finding("network", "problem", f"two processes of this machine do not meet by gloo: {reason}", fix)
        rate, latency = (float(text) for text in (Path(folder) / "found").read_text(encoding="utf-8").split())
    found = f"gloo over two processes of this machine: {_speed(rate, latency)}"
    return Finding("network", "ok", f"{found}; start it with srun or torchrun to try the network")


def _one_of_two(rank: int, folder: str, timeout: float) -> None:
    torch.set_num_threads(1)
    found = _measure("gloo", f"file://{folder}/meeting", rank, 2, torch.device("cpu"), timeout)
    if rank == 0:
        (Path(folder) / "found").write_text(f"{found[0]} {found[1]}", encoding="utf-8")


def _measure(
    backend: str, meeting: str, rank: int, ranks: int, device: torch.device, timeout: float
) -> tuple[float, float]:
    """Bytes per second and seconds of latency of a sum over all ranks."""
    distributed.init_process_group(
        backend, init_method=meeting, rank=rank, world_size=ranks, timeout=timedelta(seconds=timeout)
    )
    try:
        large = torch.ones(_BYTES // 4, device=device)
        seconds = _seconds_of_sum(large, _REPEATS)
        latency = _seconds_of_sum(torch.ones(1, device=device), _SMALL_REPEATS)
    finally:
        distributed.destroy_process_group()
    # What each rank sends, as a ring does it.
    return 2 * (ranks - 1) / ranks * _BYTES / seconds, latency


def _seconds_of_sum(tensor: torch.Tensor, repeats: int) -> float:
    """Mean time; connections are made before."""
    distributed.all_reduce(tensor)
    tensor.sum().item()  # waits for the GPU
    begun = time.perf_counter()
    for _ in range(repeats):
        distributed.all_reduce(tensor)
    tensor.sum().item()
    return (time.perf_counter() - begun) / repeats


def _judged(name: str, rate: float, latency: float) -> Finding:
    found = f"{name}: {_speed(rate, latency)}"
    if rate < _SLOW:
        return Finding("network", "warning", f"{found}, slow for gradients", _INTERFACE)
    return Finding("network", "ok", found)


def _speed(rate: float, latency: float) -> str:
    return f"{rate / 1e9:.2f} GB/s, {latency * 1e6:,.0f} us"


def _launched_as() -> tuple[int, int, int, str]:
    """Rank, number of ranks, rank on this machine, and where they meet."""
    if "RANK" in os.environ:
        address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), int(os.environ.get("LOCAL_RANK", 0)), address
    from lightning.fabric.plugins.environments import SLURMEnvironment

    slurm = SLURMEnvironment(auto_requeue=False)
    return slurm.global_rank(), slurm.world_size(), slurm.local_rank(), f"{slurm.main_address}:{slurm.main_port}"
