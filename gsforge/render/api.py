"""The one entry to rendering: `rasterize`, whatever draws."""

from typing import Literal

import torch
from torch import Tensor

from gsforge.core.cameras import Cameras
from gsforge.core.gaussians import Gaussians
from gsforge.render.types import RenderOutput, RenderSettings

Backend = Literal["auto", "reference", "cuda"]


def rasterize(
    gaussians: Gaussians,
    cameras: Cameras,
    *,
    backgrounds: Tensor | None = None,
    features: Tensor | None = None,
    settings: RenderSettings | None = None,
    backend: Backend = "auto",
) -> RenderOutput:
    """Draw Gaussians from several cameras by front-to-back alpha compositing (3D Gaussian Splatting, gsplat 1.5.3).

    Differentiable to every attribute of the Gaussians, to `features`, `backgrounds` and the extrinsics; with the
    reference also to the intrinsics. Autocast is switched off inside: half precision would move Gaussians by pixels.

    Args:
        gaussians: batch shape [...]; see `Gaussians.stack` for scenes of different size.
        cameras: batch shape [...], the same as the Gaussians'.
        backgrounds: [..., C, 3] colour behind everything; black by default.
        features: [..., N, F] extra channels composited with the weights of the colour.
        settings: constants of the image formation.
        backend: `auto` takes gsplat on CUDA tensors and the reference elsewhere.

    Returns:
        The rendered images.

    Raises:
        ValueError: if shapes, devices or dtypes do not fit together; says which argument.
        RuntimeError: if the `cuda` backend is asked for and cannot run.
    """
    settings = settings or RenderSettings()
    _check(gaussians, cameras, backgrounds, features)
    if backgrounds is None:
        backgrounds = gaussians.means.new_zeros(*cameras.batch_shape, cameras.count, 3)
    if backend == "auto":
        backend = "cuda" if gaussians.means.is_cuda else "reference"
    if backend not in ("cuda", "reference"):
        raise ValueError(f"backend: expected auto, reference or cuda, got {backend!r}")
    with torch.autocast(gaussians.means.device.type, enabled=False):
        if backend == "cuda":
            from gsforge.render.cuda import rasterize_cuda

            return rasterize_cuda(gaussians, cameras, backgrounds, features, settings)
        from gsforge.render.reference import rasterize_reference

        return rasterize_reference(gaussians, cameras, backgrounds, features, settings)


def _check(gaussians: Gaussians, cameras: Cameras, backgrounds: Tensor | None, features: Tensor | None) -> None:
    batch, count, views = gaussians.batch_shape, gaussians.count, cameras.count
    sh_terms = gaussians.sh.shape[-2] if gaussians.sh.dim() >= 2 else 0
    expected: list[tuple[str, Tensor | None, tuple[int, ...]]] = [
        ("gaussians.means", gaussians.means, (count, 3)),
        ("gaussians.quats", gaussians.quats, (count, 4)),
        ("gaussians.scales", gaussians.scales, (count, 3)),
        ("gaussians.opacities", gaussians.opacities, (count,)),
        ("gaussians.sh", gaussians.sh, (count, sh_terms, 3)),
        ("cameras.world_to_camera", cameras.world_to_camera, (views, 4, 4)),
        ("cameras.intrinsics", cameras.intrinsics, (views, 3, 3)),
        ("backgrounds", backgrounds, (views, 3)),
        ("features", features, (count, features.shape[-1] if features is not None else 0)),
    ]
    for name, tensor, shape in expected:
        if tensor is None:
            continue
        if tuple(tensor.shape) != (*batch, *shape):
            raise ValueError(f"{name}: expected shape {[*batch, *shape]}, got {list(tensor.shape)}")
        if tensor.device != gaussians.means.device or tensor.dtype != gaussians.means.dtype:
            raise ValueError(
                f"{name}: expected {gaussians.means.dtype} on {gaussians.means.device} as gaussians.means, "
                f"got {tensor.dtype} on {tensor.device}; move it with .to()"
            )
    if sh_terms not in (1, 4, 9, 16, 25):
        raise ValueError(f"gaussians.sh: expected 1, 4, 9, 16 or 25 coefficients (degree 0 to 4), got {sh_terms}")
    if not torch.is_floating_point(gaussians.means):
        raise ValueError(f"gaussians.means: expected floating point, got {gaussians.means.dtype}")
