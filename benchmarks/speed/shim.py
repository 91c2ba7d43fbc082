"""What gsplat's torch code needs and does not have on a CPU: a finder of pairs, and two functions of nerfacc.

gsplat finds the pairs (Gaussian, pixel it is drawn in) with a CUDA kernel, and the tiles that a Gaussian touches with
a loop in Python. Both are one compiled function here. Of nerfacc gsplat takes the transmittance along a ray, again a
CUDA kernel. The time spent in this module is counted, so that results can be given without it.
"""

import time
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray
from torch import Tensor

from gsforge.core.cameras import Cameras
from gsforge.core.gaussians import Gaussians

_TILE = 16
_ALPHA_THRESHOLD = np.float32(1 / 255)
_MAX_ALPHA = np.float32(0.999)
_TRANSMITTANCE_STOP = np.float32(1e-4)


class Clock:
    """CPU time spent between `with clock:`.

    Attributes:
        seconds: the sum so far.
    """

    def __init__(self) -> None:
        self.seconds, self._started = 0.0, 0.0

    def __enter__(self) -> None:
        self._started = time.process_time()

    def __exit__(self, *_: object) -> None:
        self.seconds += time.process_time() - self._started


clock = Clock()


@torch.no_grad()
def exact_depths(gaussians: Gaussians, cameras: Cameras) -> Tensor:
    """Depths to sort by. In float64, for among 200 000 Gaussians rounding to float32 swaps some that overlap.

    Args:
        gaussians: without batch dimension.
        cameras: one view.

    Returns:
        [N] depths, float64.
    """
    with clock:
        return cameras.map(Tensor.double).project(gaussians.means.double())[1][0]


@torch.no_grad()
def find_pairs(
    means2d: Tensor, radii: Tensor, conics: Tensor, opacities: Tensor, depths: Tensor, width: int, height: int
) -> tuple[Tensor, Tensor]:
    """All pairs of a Gaussian and a pixel that it is drawn in.

    Args:
        means2d: [N, 2] pixels.
        radii: [N, 2] pixels; nothing is drawn where one is 0.
        conics: [N, 3] inverse covariances (xx, xy, yy).
        opacities: [N].
        depths: [N], of any type.
        width: of the image, pixels.
        height: of the image, pixels.

    Returns:
        Gaussian and pixel of each pair, int64, sorted by pixel and front to back within a pixel.
    """
    with clock:
        order = depths.argsort(stable=True).numpy()
        boxes = _tile_boxes(means2d, radii, width, height)
        offsets, members = _bin(order, boxes, -(-width // _TILE), -(-height // _TILE))
        table = torch.cat([means2d, conics, opacities[:, None]], dim=1).numpy()
        splats, pixels = _scan(table, offsets, members, width, height)
        return torch.from_numpy(splats), torch.from_numpy(pixels)


def _tile_boxes(means2d: Tensor, radii: Tensor, width: int, height: int) -> NDArray[np.int32]:
    """[N, 4] tiles touched: first x, first y, end x, end y; empty for what is not drawn."""
    tiles = torch.tensor([-(-width // _TILE), -(-height // _TILE)])
    first = ((means2d - radii) / _TILE).floor().clamp_min(0).minimum(tiles)
    end = ((means2d + radii) / _TILE).ceil().clamp_min(0).minimum(tiles)
    end = torch.where((radii > 0).all(dim=-1, keepdim=True), end, first)
    return torch.cat([first, end], dim=1).int().numpy()


@njit(cache=True)
def _bin(order: Any, boxes: Any, tiles_x: int, tiles_y: int) -> Any:
    """Offsets [tiles + 1] and members of the list of each tile, front to back."""
    offsets = np.zeros(tiles_x * tiles_y + 1, np.int64)
    for box in boxes:
        for y in range(box[1], box[3]):
            for x in range(box[0], box[2]):
                offsets[y * tiles_x + x + 1] += 1
    offsets = np.cumsum(offsets)
    members = np.empty(offsets[-1], np.int64)
    place = offsets[:-1].copy()
    for splat in order:
        for y in range(boxes[splat, 1], boxes[splat, 3]):
            for x in range(boxes[splat, 0], boxes[splat, 2]):
                members[place[y * tiles_x + x]] = splat
                place[y * tiles_x + x] += 1
    return offsets, members


@njit(cache=True)
def _scan(table: Any, offsets: Any, members: Any, width: int, height: int) -> Any:
    """Go through the pixels in order, and in each through the list of its tile until it is opaque."""
    tiles_x = (width + _TILE - 1) // _TILE
    splats = np.empty(max(len(table) * 16, 1024), np.int64)
    pixels = np.empty(len(splats), np.int64)
    used = 0
    levels = np.log(table[:, 5] / _ALPHA_THRESHOLD) + np.float32(1e-3)  # above it no exponential is needed
    for y in range(height):
        for x in range(width):
            tile = (y // _TILE) * tiles_x + x // _TILE
            if used + offsets[tile + 1] - offsets[tile] > len(splats):
                splats = np.append(splats, np.empty(len(splats), np.int64))
                pixels = np.append(pixels, np.empty(len(pixels), np.int64))
            transmittance = np.float32(1)
            for member in range(offsets[tile], offsets[tile + 1]):
                splat = members[member]
                dx = np.float32(x + 0.5) - table[splat, 0]
                dy = np.float32(y + 0.5) - table[splat, 1]
                sigma = np.float32(0.5) * (table[splat, 2] * dx * dx + table[splat, 4] * dy * dy)
                sigma += table[splat, 3] * dx * dy
                if sigma < 0 or sigma > levels[splat]:
                    continue
                alpha = min(_MAX_ALPHA, table[splat, 5] * np.exp(-sigma))
                if alpha < _ALPHA_THRESHOLD:
                    continue
                transmittance *= np.float32(1) - alpha
                if transmittance <= _TRANSMITTANCE_STOP:
                    break
                splats[used], pixels[used] = splat, y * width + x
                used += 1
    return splats[:used].copy(), pixels[:used].copy()


class _Transmittance(torch.autograd.Function):
    """Product of 1 - alpha over the pairs before this one in the same ray."""

    @staticmethod
    def forward(ctx: Any, alphas: Tensor, rays: Tensor) -> Tensor:
        with clock:
            result = torch.from_numpy(_transmittance(alphas.detach().numpy(), rays.numpy()))
        ctx.save_for_backward(alphas, rays, result)
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        alphas, rays, result = ctx.saved_tensors
        with clock:
            gradient = _transmittance_gradient(
                alphas.detach().numpy(), rays.numpy(), (gradients[0] * result).detach().numpy()
            )
            return torch.from_numpy(gradient), None


@njit(cache=True)
def _transmittance(alphas: Any, rays: Any) -> Any:
    result = np.empty_like(alphas)
    product, ray = 1.0, -1
    for pair in range(len(alphas)):
        if rays[pair] != ray:
            product, ray = 1.0, rays[pair]
        result[pair] = product
        product *= 1.0 - alphas[pair]
    return result


@njit(cache=True)
def _transmittance_gradient(alphas: Any, rays: Any, weighted: Any) -> Any:
    """dT_j / dalpha_i = -T_j / (1 - alpha_i) for i before j in one ray; `weighted` is T_j times its gradient."""
    gradient = np.empty_like(alphas)
    behind, ray = 0.0, -1
    for pair in range(len(alphas) - 1, -1, -1):
        if rays[pair] != ray:
            behind, ray = 0.0, rays[pair]
        gradient[pair] = -behind / (1.0 - alphas[pair])
        behind += weighted[pair]
    return gradient


def _render_weight_from_alpha(alphas: Tensor, *, ray_indices: Tensor, n_rays: int) -> tuple[Tensor, Tensor]:
    transmittance = _Transmittance.apply(alphas, ray_indices)
    return alphas * transmittance, transmittance


def _accumulate_along_rays(weights: Tensor, values: Tensor | None, *, ray_indices: Tensor, n_rays: int) -> Tensor:
    source = weights[:, None] if values is None else weights[:, None] * values
    return source.new_zeros(n_rays, source.shape[1]).index_add(0, ray_indices, source)


def nerfacc() -> ModuleType:
    """A module with what gsplat imports from nerfacc.

    Returns:
        The module; it is not installed anywhere.
    """
    module = ModuleType("nerfacc", "Stands in for nerfacc, which needs CUDA.")
    vars(module).update(
        render_weight_from_alpha=_render_weight_from_alpha, accumulate_along_rays=_accumulate_along_rays
    )
    return module
