"""A pool of threads for kernels that release the interpreter lock.

Not Numba's own `parallel=True`: its OpenMP layer kills forked children, which DataLoader workers and launched ranks
are, and its other layer aborts when two Python threads call at once.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import torch

_PIECES = 4  # for each thread, so that a thread with easy pieces takes more of them


def run(kernel: Callable[..., None], count: int, grain: int, *arguments: object) -> None:
    """Call `kernel(first, end, *arguments)` on ranges that make up 0..count-1, on `torch.get_num_threads()` threads.

    Args:
        kernel: releases the interpreter lock, and gives the same result whatever the ranges.
        count: number of items.
        grain: items that are worth a call from another thread.
        arguments: passed on.
    """
    threads = min(torch.get_num_threads(), -(-count // grain))
    if threads <= 1:
        if count > 0:
            kernel(0, count, *arguments)
        return
    number = min(threads * _PIECES, -(-count // grain))
    pieces = iter([(count * piece // number, count * (piece + 1) // number) for piece in range(number)])

    def work() -> None:
        for first, end in pieces:  # whoever is ready takes the next
            kernel(first, end, *arguments)

    others = [_pool(os.getpid()).submit(work) for _ in range(threads - 1)]
    try:
        work()
    finally:
        for other in others:
            if not other.cancel():
                other.result()


def share(count: int) -> int:
    """The grain that makes one piece for each thread.

    Args:
        count: number of items.

    Returns:
        Items of a piece.
    """
    return max(-(-count // torch.get_num_threads()), 1)


@cache
def _pool(process: int) -> ThreadPoolExecutor:
    """The pool of a process: threads do not survive a fork, so a child makes its own."""
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix=f"gsforge-{process}")
