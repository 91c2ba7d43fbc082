"""Rendering of 3D Gaussians: one `rasterize`, several backends."""

from gsforge.render.api import rasterize
from gsforge.render.types import RenderOutput, RenderSettings

__all__ = ["RenderOutput", "RenderSettings", "rasterize"]
