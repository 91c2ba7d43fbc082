"""Rendering of 3D Gaussians: one `rasterize`, several backends."""

from gsforge.render.api import rasterize
from gsforge.render.types import Contribution, RenderOutput, RenderSettings

__all__ = ["Contribution", "RenderOutput", "RenderSettings", "rasterize"]
