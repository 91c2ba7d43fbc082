"""The renderer on CPUs: Numba kernels over tiles of pixels, exact in both directions and the same for any threads."""

from gsforge.render.cpu.api import rasterize_cpu

__all__ = ["rasterize_cpu"]
