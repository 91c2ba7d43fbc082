"""Rendering of 3D Gaussians: one `rasterize`, several backends."""

from gsforge.render.api import RenderOutput, RenderSettings, rasterize

__all__ = ["RenderOutput", "RenderSettings", "rasterize"]
