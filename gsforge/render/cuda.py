"""The renderer on NVIDIA GPUs: an adapter to the CUDA kernels of gsplat 1.5.3."""

import importlib
import math
from collections.abc import Callable, Iterator
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from gsforge.core.cameras import Cameras
from gsforge.core.gaussians import Gaussians
from gsforge.render.contribution import contribution_loss
from gsforge.render.pairs import Pairs
from gsforge.render.projection import ALPHA_THRESHOLD
from gsforge.render.reference import rasterize_reference, seen_colors
from gsforge.render.types import RenderInputs, RenderOutput, RenderSettings

_TRANSMITTANCE_STOP = 1e-4  # compiled into gsplat's kernels
# From this many splats (Gaussians times images) on, gsplat lists the Gaussians that each camera sees ("packed") instead
# of keeping tables of all of them: less memory for scenes of which a view shows a part, one more gather where a view
# shows everything. Without influence on the images; where the two cross is for a benchmark on a GPU to say.
_PACKED_FROM = 1 << 25
# Bound of memory of the contributions, about 0.2 KB for each pair.
_PAIRS_AT_ONCE = 1 << 24
# Every pair leaves at most 254/255 of the transmittance.
_MOST_PAIRS_OF_PIXEL = math.ceil(math.log(_TRANSMITTANCE_STOP) / math.log1p(-ALPHA_THRESHOLD))


def rasterize_cuda(inputs: RenderInputs) -> RenderOutput:
    """Draw Gaussians from several cameras; `gsforge.render.rasterize` checks the arguments.

    Colour, features and depth are drawn in one pass: gsplat takes per-view channels, so the colours are evaluated here.
    gsplat has no gradient to the intrinsics; the reference has.

    Args:
        inputs: what to draw, float32 on a CUDA device; the transmittance stop is fixed at 1e-4.

    Returns:
        The images, differentiable to the Gaussians, extrinsics, backgrounds, colours and features.

    Raises:
        RuntimeError: if gsplat, its compiled kernels or a CUDA device is missing, or if dtype or settings are not
            supported by the kernels.
    """
    gaussians, cameras, settings = inputs.gaussians, inputs.cameras, inputs.settings
    _check_supported(gaussians, settings)
    if gaussians.count == 0:
        return rasterize_reference(inputs)  # gsplat divides by N
    gsplat = _load_gsplat()

    colors = seen_colors(inputs)
    channels = colors if inputs.features is None else torch.cat([colors, inputs.per_view(inputs.features)], dim=-1)
    images, alpha, meta = gsplat.rasterization(
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
        # The contributions need the tables of all Gaussians.
        packed=inputs.contribution is None and channels.shape[:-1].numel() >= _PACKED_FROM,
        render_mode="RGB+D",
        rasterize_mode=settings.mode,
    )
    images, alpha = images.movedim(-1, -3), alpha.movedim(-1, -3)
    # Composited here, because gsplat 1.5.3 refuses backgrounds when packed.
    rgb = images[..., :3, :, :] + (1 - alpha) * inputs.backgrounds[..., None, None]
    return RenderOutput(
        rgb=rgb,
        alpha=alpha,
        depth=images[..., -1:, :, :],
        features=None if inputs.features is None else images[..., 3:-1, :, :],
        loss=None if inputs.contribution is None else _loss(inputs, rgb, colors, meta, gsplat),
    )


def _loss(inputs: RenderInputs, rgb: Tensor, colors: Tensor, meta: dict[str, Any], gsplat: ModuleType) -> Tensor:
    columns = [*meta["means2d"].unbind(-1), *meta["conics"].unbind(-1), meta["opacities"]]
    return contribution_loss(
        inputs,
        rgb,
        colors.flatten(0, -2).T,
        torch.stack([column.detach().flatten() for column in columns]),
        partial(list_pairs, gsplat.rasterize_to_indices_in_range, inputs.cameras, meta["tile_size"]),
        meta["isect_offsets"],
        meta["flatten_ids"],
    )


def list_pairs(
    to_indices: Callable[..., tuple[Tensor, Tensor, Tensor]],
    cameras: Cameras,
    tile_size: int,
    table: Tensor,
    offsets: Tensor,
    splats: Tensor,
) -> Iterator[Pairs]:
    """List the pairs that gsplat has drawn, a group of tiles at a time.

    Args:
        to_indices: `gsplat.rasterize_to_indices_in_range`.
        cameras: give the image size.
        tile_size: side of a tile in pixels.
        table: [6, splats] x, y, conic (xx, xy, yy), opacity.
        offsets: [..., C, rows, columns] int32, where the list of each tile begins in `splats`.
        splats: [K] int32, the splats that touch each tile, tile after tile, front to back.

    Yields:
        Pairs of whole pixels, each pixel once.
    """
    offsets = offsets.flatten(0, -3)
    by_image = table.unflatten(1, (len(offsets), -1))
    means2d, conics = by_image[:2].movedim(0, -1).contiguous(), by_image[2:5].movedim(0, -1).contiguous()
    untouched = table.new_ones(len(offsets), cameras.height, cameras.width)
    for first, end in _groups(offsets, len(splats), tile_size):
        # Tiles before and behind the group become empty.
        of_group = offsets.clamp(first, end) - first
        gaussian, pixel, image = to_indices(
            0, 1 << 30, untouched, means2d, conics, by_image[5], cameras.width, cameras.height, tile_size,
            of_group, splats[first:end],
        )  # fmt: skip
        yield Pairs(image * by_image.shape[2] + gaussian, image * (cameras.height * cameras.width) + pixel)


def _groups(offsets: Tensor, end: int, tile_size: int) -> list[tuple[int, int]]:
    """Cut the list of splats between tiles, into parts of about `_PAIRS_AT_ONCE` pairs at most, or one tile."""
    starts = offsets.flatten().cpu().long()
    lengths = torch.diff(starts, append=torch.tensor([end]))
    pairs = lengths.clamp_max(_MOST_PAIRS_OF_PIXEL) * tile_size**2
    group = (pairs.cumsum(0) - pairs) // _PAIRS_AT_ONCE
    cuts = starts[torch.diff(group, prepend=torch.tensor([-1])) > 0].tolist()
    return [(first, last) for first, last in zip(cuts, [*cuts[1:], end], strict=True) if last > first]


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


def _load_gsplat() -> ModuleType:
    """gsplat, if its kernels are there: without them and without a compiler gsplat still imports."""
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
    return gsplat
