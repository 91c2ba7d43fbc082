"""Compiling the kernels before the first image, and saying so."""

import logging
from functools import cache
from threading import Timer

import numpy as np

from gsforge.render.cpu.arrays import ImageGradients, Scene
from gsforge.render.cpu.differentiate import L1
from gsforge.render.cpu.geometry import CAMERA_COLUMNS, FX, FY, TRANSLATION
from gsforge.render.cpu.passes import backward, forward
from gsforge.render.types import RenderSettings

_PATIENCE = 2.0  # seconds; loading compiled kernels from the cache takes less

_log = logging.getLogger(__name__)


@cache
def warm_up(dtype: str) -> None:
    """Draw one Gaussian in one pixel and go back, once in each process: compiles all kernels or loads them.

    Args:
        dtype: `float32` or `float64`.
    """
    message = "compiling the renderer for this machine, once: about half a minute; later processes load it"
    notice = Timer(_PATIENCE, _log.warning, (message,))
    notice.daemon = True
    notice.start()
    try:
        _draw_one_pixel(np.dtype(dtype))
    finally:
        notice.cancel()


def _draw_one_pixel(dtype: np.dtype) -> None:
    def ones(*shape: int) -> np.ndarray:
        return np.ones(shape, dtype)

    cameras = np.zeros((1, CAMERA_COLUMNS))
    cameras[0, [0, 4, 8, TRANSLATION + 2, FX, FY]] = 1
    scene = Scene(
        ones(1, 1, 3) * 0, ones(1, 1, 4) / 2, ones(1, 1, 3), ones(1, 1) / 2, ones(1, 1, 1, 3), ones(0, 1, 3),
        ones(1, 1, 1), cameras, ones(1, 3), 1, 1, RenderSettings(),
    )  # fmt: skip
    images, splats = forward(scene)
    v = ImageGradients(images.rgb, images.alpha, images.depth, images.features, images.alpha, images.rgb, L1)
    backward(scene, splats, images.rests, images.lasts, v)
