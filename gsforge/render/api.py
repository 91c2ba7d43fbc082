"""The one entry to rendering: `rasterize`, whatever draws."""

from collections.abc import Callable
from dataclasses import replace
from typing import Literal, cast, get_args

import torch
from torch import Tensor

from gsforge.core.cameras import Cameras
from gsforge.core.gaussians import Gaussians
from gsforge.render.checks import check_shapes, check_values
from gsforge.render.normals import gaussian_normals
from gsforge.render.types import Contribution, RenderInputs, RenderOutput, RenderSettings

Backend = Literal["auto", "reference", "cpu", "cuda"]


def rasterize(
    gaussians: Gaussians,
    cameras: Cameras,
    *,
    backgrounds: Tensor | None = None,
    colors: Tensor | None = None,
    features: Tensor | None = None,
    normals: bool = False,
    contribution: Contribution | None = None,
    settings: RenderSettings | None = None,
    backend: Backend = "auto",
) -> RenderOutput:
    """Draw Gaussians from several cameras by front-to-back alpha compositing (3D Gaussian Splatting, gsplat 1.5.3).

    Differentiable to every attribute of the Gaussians, to `colors`, `features`, `backgrounds` and the extrinsics; on
    CPUs also to the intrinsics. Autocast is switched off inside: in half precision, Gaussians would move by
    pixels.

    Args:
        gaussians: batch shape [...]; see `Gaussians.stack` for scenes of different size.
        cameras: batch shape [...], the same as the Gaussians'.
        backgrounds: [..., C, 3] colour behind everything; black by default.
        colors: [..., N, 3], or [..., C, N, 3] for each view its own: used as they are, without clamping, instead of
            the spherical harmonics.
        features: [..., N, F], or [..., C, N, F] for each view its own: extra channels composited with the weights of
            the colour.
        normals: whether to composite the normals of the Gaussians, the axes of their smallest scales.
        contribution: asks for the loss against target images and for the share of each Gaussian in it.
        settings: constants of the image formation.
        backend: `auto` takes gsplat on CUDA tensors and our own kernels on CPUs; `reference` specifies both.

    Returns:
        The rendered images; `features`, `normals` and `loss` only where asked for.

    Raises:
        ValueError: if shapes, devices or dtypes do not fit together, or if values cannot be drawn (not finite, scales
            below zero, opacities outside [0, 1], quaternions not of length 1, cameras that are none); says which
            argument, and where in it.
        RuntimeError: if the `cuda` backend is asked for and cannot run.
    """
    check_shapes(gaussians, cameras, backgrounds, colors, features, contribution)
    if backgrounds is None:
        backgrounds = gaussians.means.new_zeros(*cameras.batch_shape, cameras.count, 3)
    inputs = RenderInputs(gaussians, cameras, backgrounds, colors, features, contribution, settings or RenderSettings())
    name = _backend(backend, gaussians.means.device)
    with torch.autocast(gaussians.means.device.type, enabled=False):
        # Here the read of a value would break a compiled graph; the operator of `cpu` then checks by itself.
        if not torch.compiler.is_compiling():
            check_values(inputs)
        draw = _import(name)
        return _draw_with_normals(draw, inputs) if normals else draw(inputs)


def _backend(name: Backend, device: torch.device) -> Backend:
    if name not in get_args(Backend):
        raise ValueError(f"backend: expected {', '.join(get_args(Backend))}, got {name!r}")
    if name == "auto":
        return "cuda" if device.type == "cuda" else "cpu"
    return name


def _import(name: Backend) -> Callable[[RenderInputs], RenderOutput]:
    """The function that draws; imported when needed, because Numba and gsplat take seconds."""
    if name == "cuda":
        from gsforge.render.cuda import rasterize_cuda

        return rasterize_cuda
    if name == "cpu":
        from gsforge.render.cpu import rasterize_cpu

        return rasterize_cpu
    from gsforge.render.reference import rasterize_reference

    return rasterize_reference


def _draw_with_normals(draw: Callable[[RenderInputs], RenderOutput], inputs: RenderInputs) -> RenderOutput:
    """Normals are features, which differ between the views; the backends know nothing more of them."""
    channels = gaussian_normals(inputs.gaussians, inputs.cameras)
    if inputs.features is not None:
        channels = torch.cat([inputs.per_view(inputs.features), channels], dim=-1)
    drawn = draw(replace(inputs, features=channels))
    features, normals = cast(Tensor, drawn.features).tensor_split([channels.shape[-1] - 3], dim=-3)
    return replace(drawn, features=None if inputs.features is None else features, normals=normals)
