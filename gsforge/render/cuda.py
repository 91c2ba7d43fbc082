"""The renderer on NVIDIA GPUs: an adapter to the CUDA kernels of gsplat 1.5.3."""

import importlib
from collections.abc import Callable

import torch
from torch import Tensor

from gsforge.core.cameras import Cameras
from gsforge.core.gaussians import Gaussians
from gsforge.core.sh import sh_to_rgb
from gsforge.render.reference import rasterize_reference
from gsforge.render.types import RenderOutput, RenderSettings

_TRANSMITTANCE_STOP = 1e-4  # compiled into gsplat's kernels


def rasterize_cuda(
    gaussians: Gaussians, cameras: Cameras, backgrounds: Tensor, features: Tensor | None, settings: RenderSettings
) -> RenderOutput:
    """Draw Gaussians from several cameras; `gsforge.render.rasterize` checks the arguments.

    Colour, features and depth are drawn in one pass: gsplat takes per-view channels, so the colours are evaluated here.
    gsplat has no gradient to the intrinsics; the reference has.

    Args:
        gaussians: batch shape [...], float32 on a CUDA device.
        cameras: batch shape [...].
        backgrounds: [..., C, 3] colours.
        features: [..., N, F] extra channels, or None.
        settings: constants of the image formation; the transmittance stop is fixed at 1e-4.

    Returns:
        The images, differentiable to the Gaussians, extrinsics, backgrounds and features.

    Raises:
        RuntimeError: if gsplat, its compiled kernels or a CUDA device is missing, or if dtype or settings are not
            supported by the kernels.
    """
    _check_supported(gaussians, settings)
    if gaussians.count == 0:
        return rasterize_reference(gaussians, cameras, backgrounds, features, settings)  # gsplat divides by N
    rasterization = _load_gsplat()

    directions = gaussians.means[..., None, :, :] - cameras.centers[..., None, :]
    channels = sh_to_rgb(gaussians.sh[..., None, :, :, :], directions)  # [..., C, N, 3]
    extra = 0
    if features is not None:
        extra = features.shape[-1]
        channels = torch.cat([channels, features[..., None, :, :].expand(*channels.shape[:-1], extra)], dim=-1)
    images, alpha, _ = rasterization(
        means=gaussians.means,
        quats=gaussians.quats,
        scales=gaussians.scales,
        opacities=gaussians.opacities,
        colors=channels,
        viewmats=cameras.world_to_camera,
        Ks=cameras.intrinsics,
        width=cameras.width,
        height=cameras.height,
        near_plane=settings.near,
        far_plane=settings.far,
        radius_clip=settings.radius_clip,
        eps2d=settings.eps2d,
        packed=False,
        # Zeros behind the features; for the depth channel, which comes last, gsplat appends the zero itself.
        backgrounds=torch.nn.functional.pad(backgrounds, (0, extra)),
        render_mode="RGB+D",
        rasterize_mode=settings.mode,
    )
    images = images.movedim(-1, -3)
    return RenderOutput(
        rgb=images[..., :3, :, :],
        alpha=alpha.movedim(-1, -3),
        depth=images[..., -1:, :, :],
        features=None if features is None else images[..., 3:-1, :, :],
    )


def _check_supported(gaussians: Gaussians, settings: RenderSettings) -> None:
    means = gaussians.means
    if not means.is_cuda:
        raise RuntimeError(
            f"the cuda backend draws tensors on a CUDA device, got {means.device}: move Gaussians and cameras with "
            f".to('cuda'), or use backend='reference'"
        )
    if means.dtype != torch.float32:
        raise RuntimeError(f"the cuda backend computes in float32, got {means.dtype}: cast with .to(torch.float32)")
    if settings.transmittance_stop != _TRANSMITTANCE_STOP:
        raise RuntimeError(
            f"gsplat stops at a transmittance of {_TRANSMITTANCE_STOP}, got transmittance_stop="
            f"{settings.transmittance_stop}: use backend='reference' for other values"
        )


def _load_gsplat() -> Callable[..., tuple[Tensor, Tensor, dict[str, object]]]:
    """`gsplat.rasterization`, if its kernels are there: without them and without a compiler gsplat still imports."""
    try:
        gsplat = importlib.import_module("gsplat")
        kernels = importlib.import_module("gsplat.cuda._backend")._C
    except ImportError as error:
        raise RuntimeError(f"the cuda backend needs gsplat ({error}): pip install 'gsforge[cuda]'") from error
    if kernels is None:
        raise RuntimeError(
            "gsplat is installed without its CUDA kernels and found no CUDA toolkit to compile them: install a "
            "prebuilt gsplat wheel for this torch and CUDA version, or a CUDA toolkit with nvcc"
        )
    return gsplat.rasterization
