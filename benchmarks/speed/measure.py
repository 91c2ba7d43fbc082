"""Clocks: CPU and wall time of tasks that take turns, peak memory, the arithmetic limit of a core, the machine."""

import ctypes
import gc
import importlib.metadata
import os
import platform
import statistics
import time
from collections.abc import Callable, Hashable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numba import njit

from benchmarks.speed import shim

Key = TypeVar("Key", bound=Hashable)
_LANES, _STEPS = 96, 2_000_000
_TURN = 0.05  # seconds at least, so that a short task runs as in a loop of its own


class _Seconds(NamedTuple):
    cpu: float
    wall: float
    shim: float


@dataclass(frozen=True)
class Rounds:
    """How often a task is repeated.

    Attributes:
        least: rounds in any case.
        most: rounds for fast tasks.
        seconds: time that all rounds together may take, between those limits.
    """

    least: int
    most: int
    seconds: float

    def fit(self, one_round: float) -> int:
        """Number of rounds for a duration.

        Args:
            one_round: seconds.

        Returns:
            The number of rounds.
        """
        return max(self.least, min(self.most, int(self.seconds / one_round)))


@dataclass(frozen=True)
class Timing:
    """Of one call, medians over the rounds.

    Attributes:
        cpu_ms: time of all threads of the process.
        wall_ms: time that passed.
        shim_ms: part of cpu_ms that went into `shim`.
        rounds: how many there were.
    """

    cpu_ms: float
    wall_ms: float
    shim_ms: float
    rounds: int

    @property
    def without_shim(self) -> float:
        """CPU milliseconds if the shim took no time."""
        return self.cpu_ms - self.shim_ms


def take_turns(tasks: Mapping[Key, Callable[[], object]], rounds: Rounds) -> dict[Key, Timing]:
    """Time tasks that alternate, so that whatever slows the machine down slows all of them.

    Args:
        tasks: each is called once to warm up, and then has one turn in each round.
        rounds: how often.

    Returns:
        The time of a call of each.
    """
    one_round = sum(max(_turn(task).wall, _TURN) for task in tasks.values())
    repeats = rounds.fit(one_round)
    samples: dict[Key, list[_Seconds]] = {key: [] for key in tasks}
    gc.collect()
    gc.disable()  # a collection takes as long as a short task, and empties the caches of the interpreter
    for _ in range(repeats):
        for key, task in tasks.items():
            samples[key].append(_turn(task))
    gc.enable()
    gc.collect()
    return {key: _medians(rows) for key, rows in samples.items()}


def _medians(samples: list[_Seconds]) -> Timing:
    cpu, wall, shim_part = (1e3 * statistics.median(column) for column in zip(*samples, strict=True))
    return Timing(cpu, wall, shim_part, len(samples))


def _turn(task: Callable[[], object]) -> _Seconds:
    """Seconds of a call: the mean of those that fit into a turn, without the first, which finds the caches of another
    task; of that one call where a turn has no room for two.
    """
    marks = [_now()]
    while len(marks) < 2 or marks[-1].wall - marks[0].wall < _TURN:
        task()
        marks.append(_now())
    start = marks[0] if len(marks) == 2 else marks[1]
    calls = max(len(marks) - 2, 1)
    return _Seconds(*((after - before) / calls for before, after in zip(start, marks[-1], strict=True)))


def _now() -> _Seconds:
    return _Seconds(time.process_time(), time.perf_counter(), shim.clock.seconds)


def peak_memory(task: Callable[[], object]) -> float | None:
    """Memory that a call adds at its peak to what the process holds.

    What a renderer keeps between its calls is in neither number.

    Args:
        task: what to call; warmed up.

    Returns:
        Megabytes, or None where the system does not let a process reset its peak.
    """
    gc.collect()
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)  # else memory freed by earlier calls is used again and does not show
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return None
    before = _status("VmRSS")
    task()
    return (_status("VmHWM") - before) / 1024


def _status(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return float(next(line for line in lines if line.startswith(f"{name}:")).split()[1])


def peak_gflops() -> float:
    """Multiply-adds in single precision that one core does at best, two operations each.

    Returns:
        GFLOP/s.
    """
    times = []
    _multiply_add(np.float32(0.9), np.float32(0.1), 1)
    for _ in range(7):
        started = time.process_time()
        _multiply_add(np.float32(0.9), np.float32(0.1), _STEPS)
        times.append(time.process_time() - started)
    return 2 * _LANES * _STEPS / min(times) / 1e9


def parallel_gain(threads: int) -> float:
    """What the machine gives at best: arithmetic in registers, as much in each thread.

    Args:
        threads: number of threads.

    Returns:
        How many times as much is done in the same time as with one.
    """

    def multiply_add(_: int) -> None:
        _multiply_add(np.float32(0.9), np.float32(0.1), _STEPS)

    def work(pool: ThreadPoolExecutor, count: int) -> None:
        list(pool.map(multiply_add, range(count)))

    with ThreadPoolExecutor(threads) as pool:
        timings = take_turns({count: partial(work, pool, count) for count in (1, threads)}, Rounds(9, 9, 0))
    return threads * timings[1].wall_ms / timings[threads].wall_ms


@njit(fastmath={"contract"}, cache=True, nogil=True)
def _multiply_add(factor: Any, summand: Any, steps: int) -> Any:
    """Independent chains, few enough to stay in registers and enough to hide the latency."""
    chains = np.ones(_LANES, np.float32)
    for _ in range(steps):
        for lane in range(_LANES):
            chains[lane] = chains[lane] * factor + summand
    return chains[0]


def machine() -> dict[str, str]:
    """What the numbers were measured on.

    Returns:
        Processor, cores, versions and load of the machine.
    """
    models = [line for line in _cpuinfo() if line.startswith("model name")]
    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("torch", "numba", "gsplat")]
    return {
        "processor": models[0].partition(":")[2].strip() if models else platform.processor(),
        "cores": str(os.cpu_count()),
        "versions": ", ".join([f"Python {platform.python_version()}", *versions]),
        "load": f"{os.getloadavg()[0]:.2f} at the start",
    }


def _cpuinfo() -> list[str]:
    file = Path("/proc/cpuinfo")
    return file.read_text().splitlines() if file.exists() else []
