"""Memory that is used again: the first touch of fresh pages costs as much as a pass over the Gaussians.

An array lies in a block that comes back here when nothing refers to it any more: no array, view or tensor.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

_SMALLEST = 1 << 16  # bytes; the allocator itself keeps the pages of smaller arrays
_KEPT = 1 << 29  # bytes that wait at most
_ALIGNMENT = 64

_waiting: dict[int, list[tuple[NDArray[np.uint8], int]]] = {}  # memory and aligned address, by size


class _Block:
    """Owns memory for as long as an array lies in it."""

    def __init__(self, size: int) -> None:
        self._size = size
        try:
            self._memory, self._address = _waiting[size].pop()
        except LookupError:
            self._memory = np.empty(size + _ALIGNMENT, np.uint8)
            self._address = self._memory.ctypes.data + -self._memory.ctypes.data % _ALIGNMENT
        self.__array_interface__ = {"shape": (size,), "typestr": "|u1", "data": (self._address, False), "version": 3}

    def __del__(self) -> None:
        if sum(size * len(blocks) for size, blocks in list(_waiting.items())) + self._size > _KEPT:
            _waiting.clear()
        if self._size <= _KEPT:
            _waiting.setdefault(self._size, []).append((self._memory, self._address))


def empty(shape: Sequence[int], dtype: DTypeLike) -> NDArray[Any]:
    """An array whose content is whatever was there.

    Args:
        shape: its shape.
        dtype: its type.

    Returns:
        The array, contiguous.
    """
    kind = np.dtype(dtype)
    size = math.prod(shape) * kind.itemsize
    if size < _SMALLEST:
        return np.empty(shape, kind)
    # Powers of two, so that arrays of about the same length share blocks; pages that nothing touches cost nothing.
    return np.asarray(_Block(1 << (size - 1).bit_length()))[:size].view(kind).reshape(shape)
