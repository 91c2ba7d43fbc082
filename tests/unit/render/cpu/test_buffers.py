"""Memory that the kernels use again."""

import gc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from gsforge.render.cpu import buffers

SHAPE = (300, 100)


def address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


@pytest.fixture(autouse=True)
def nothing_waits() -> None:
    gc.collect()
    buffers._waiting.clear()


def test_memory_comes_back_when_nothing_refers_to_it() -> None:
    array = buffers.empty(SHAPE, np.float32)
    where = address(array)
    assert array.shape == SHAPE
    assert array.dtype == np.float32
    assert array.flags.c_contiguous
    assert array.flags.writeable
    del array
    assert address(buffers.empty((SHAPE[0] - 1, SHAPE[1]), np.int32)) == where


@pytest.mark.parametrize("refer", [lambda a: a[3:], lambda a: a.reshape(-1).view(np.int32)[7:], torch.from_numpy])
def test_views_and_tensors_keep_their_memory(refer: Callable[[np.ndarray], object]) -> None:
    array = buffers.empty(SHAPE, np.float32)
    array[:] = 7
    where, kept = address(array), refer(array)
    del array
    other = buffers.empty(SHAPE, np.float32)
    other[:] = 0
    assert address(other) != where
    part = torch.as_tensor(kept).view(torch.float32)[1:].clone()
    assert (part == 7).all()
    del kept
    assert address(buffers.empty(SHAPE, np.float32)) == where


def test_memory_that_waits_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buffers, "_KEPT", 1 << 20)
    arrays = [buffers.empty((1 << 18,), np.uint8) for _ in range(10)] + [buffers.empty((1 << 21,), np.uint8)]
    arrays.clear()
    assert 0 < sum(size * len(blocks) for size, blocks in buffers._waiting.items()) <= 1 << 20


def test_arrays_of_about_the_same_length_share_their_memory() -> None:
    array = buffers.empty((100_000,), np.uint8)
    where = address(array)
    del array
    assert address(buffers.empty((120_000,), np.uint8)) == where


def test_threads_never_share_memory() -> None:
    def work(number: int) -> bool:
        for _ in range(200):
            array = buffers.empty(SHAPE, np.int64)
            array[:] = number
            if not (array == number).all():
                return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(16)))
