"""Convolutions on the occupied voxels of a grid: submanifold, strided, inverse and pointwise.

The conventions are those of spconv, so that weights are interchangeable: a weight is [out, kx, ky, kz, in], a
convolution is a cross-correlation, and a strided one has kernel and stride 2.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_MOST_CELLS = 2**62


@dataclass(frozen=True)
class Pairs:
    """Which voxels meet at which place of the kernel. Within a place, no source and no target comes twice.

    Attributes:
        sources: [P] numbers of input voxels, those of the first place of the kernel first.
        targets: [P] numbers of output voxels.
        sizes: pairs of each place of the kernel, in its order (x slowest).
        outputs: number of output voxels.
    """

    sources: Tensor
    targets: Tensor
    sizes: tuple[int, ...]
    outputs: int

    def reversed(self, outputs: int) -> "Pairs":
        """The same pairs from outputs to inputs.

        Args:
            outputs: number of voxels that were inputs.

        Returns:
            Pairs with the same places of the kernel.
        """
        return Pairs(self.targets, self.sources, self.sizes, outputs)

    def by_place(self) -> Iterable[tuple[int, Tensor, Tensor]]:
        """The pairs of each place of the kernel.

        Yields:
            Place, sources, targets; places without pairs are left out.
        """
        parts = zip(self.sources.split(self.sizes), self.targets.split(self.sizes), strict=True)
        for place, (sources, targets) in enumerate(parts):
            if len(sources):
                yield place, sources, targets


class VoxelGrid:
    """Occupied voxels of some scenes at one resolution. Pairs are found once and kept.

    Args:
        coordinates: [N, 4] int64: scene, x, y, z, none negative and no row twice. Features go by this order.

    Raises:
        ValueError: if they are not.
    """

    def __init__(self, coordinates: Tensor) -> None:
        if coordinates.ndim != 2 or coordinates.shape[1] != 4 or coordinates.dtype != torch.int64:
            raise ValueError(
                f"coordinates: expected int64 [N, 4] (scene, x, y, z), got {coordinates.dtype} "
                f"{list(coordinates.shape)}"
            )
        if not len(coordinates):
            raise ValueError("coordinates: a grid without voxels cannot be convolved; leave empty scenes out")
        if int(coordinates.min()) < 0:
            raise ValueError("coordinates: expected none below 0; subtract the least of each scene")
        self.coordinates = coordinates
        self._neighbours: dict[int, Pairs] = {}
        self._coarse: tuple[VoxelGrid, Pairs] | None = None
        keys = (coordinates * self._strides(0)).sum(1).sort().values
        if bool((keys[1:] == keys[:-1]).any()):
            raise ValueError("coordinates: a voxel comes more than once; keep one point of each voxel")

    def __len__(self) -> int:
        """Number of voxels."""
        return len(self.coordinates)

    def _strides(self, margin: int) -> Tensor:
        """[4] what a step along each axis adds to the key of a voxel, `margin` cells around the grid told apart too."""
        scenes, *extents = (int(greatest) + 1 for greatest in self.coordinates.amax(0))
        extents = [extent + 2 * margin for extent in extents]
        if scenes * math.prod(extents) > _MOST_CELLS:
            raise ValueError(f"coordinates: {scenes} scenes of {extents} cells are too many to tell apart")
        _, y, z = extents
        return self.coordinates.new_tensor([math.prod(extents), y * z, z, 1])

    def neighbours(self, kernel: int) -> Pairs:
        """Pairs of a submanifold convolution: the voxel at p + o - kernel // 2 is seen by p at the place o.

        Args:
            kernel: odd side of the kernel.

        Returns:
            The pairs, in order of their targets within each place.
        """
        if kernel not in self._neighbours:
            self._neighbours[kernel] = self._find_neighbours(kernel)
        return self._neighbours[kernel]

    def _find_neighbours(self, kernel: int) -> Pairs:
        reach = kernel // 2
        strides = self._strides(reach)
        own = (self.coordinates * strides).sum(1)
        keys, order = own.sort()
        everything = torch.arange(len(self), device=own.device)
        forward, steps = [], list(product(range(-reach, reach + 1), repeat=3))
        for step in steps[len(steps) // 2 + 1 :]:
            wanted = own + (own.new_tensor([0, *step]) * strides).sum()
            place = torch.searchsorted(keys, wanted).clamp_max(len(keys) - 1)
            found = keys[place] == wanted
            forward.append((order[place[found]], everything[found]))
        # What p sees at o sees p at -o.
        backward = [_by_target(targets, sources) for sources, targets in reversed(forward)]
        pairs = [*backward, (everything, everything), *forward]
        sources, targets = zip(*pairs, strict=True)
        return Pairs(torch.cat(sources), torch.cat(targets), tuple(map(len, sources)), len(self))

    def coarser(self) -> tuple["VoxelGrid", Pairs]:
        """The grid of half the resolution, and the pairs of a strided convolution with kernel 2.

        Returns:
            The voxels that hold one of these, and pairs from these to them: each voxel has one coarse voxel, and its
            place is its coordinates modulo 2.
        """
        if self._coarse is None:
            parents = self.coordinates.clone()
            parents[:, 1:] //= 2
            voxels, targets = parents.unique(dim=0, return_inverse=True)
            odd = self.coordinates[:, 1:] % 2
            place = odd[:, 0] * 4 + odd[:, 1] * 2 + odd[:, 2]
            sources = (place * len(voxels) + targets).argsort()
            sizes = tuple(torch.bincount(place, minlength=8).tolist())
            self._coarse = VoxelGrid(voxels), Pairs(sources, targets[sources], sizes, len(voxels))
        return self._coarse


def _by_target(sources: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    order = targets.argsort()
    return sources[order], targets[order]


class _Convolve(torch.autograd.Function):
    """out_t = sum over pairs (s, t) at place o of x_s W_o; keeps the inputs alone, not what was gathered of them."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: Tensor, pairs: Pairs) -> Tensor:
        ctx.save_for_backward(features, weight)
        ctx.pairs = pairs
        return _gather_multiply_add(features, weight, pairs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        features, weight = ctx.saved_tensors
        gradient, pairs = gradients[0].to(features.dtype), ctx.pairs
        to_features = to_weight = None
        if ctx.needs_input_grad[0]:
            back = pairs.reversed(len(features))
            to_features = _gather_multiply_add(gradient, weight.transpose(1, 2), back)
        if ctx.needs_input_grad[1]:
            to_weight = torch.zeros_like(weight)
            for place, sources, targets in pairs.by_place():
                to_weight[place] = features[sources].mT @ gradient[targets]
        return to_features, to_weight, None


def _gather_multiply_add(features: Tensor, weight: Tensor, pairs: Pairs) -> Tensor:
    wide = torch.promote_types(features.dtype, torch.float32)  # sums of many places do not fit in bfloat16
    out = torch.zeros(pairs.outputs, weight.shape[2], dtype=wide, device=features.device)
    for place, sources, targets in pairs.by_place():
        out.index_add_(0, targets, (features[sources] @ weight[place]).to(wide))
    return out.to(features.dtype)


def convolve(features: Tensor, weight: Tensor, pairs: Pairs) -> Tensor:
    """Sparse convolution over pairs; the same bits again on the same device.

    Args:
        features: [N, in] of the input voxels.
        weight: [places, in, out].
        pairs: which voxels meet at which place.

    Returns:
        [pairs.outputs, out], in the type of the features, or that of autocast.
    """
    kind = features.device.type
    if torch.is_autocast_enabled(kind):
        features, weight = (tensor.to(torch.get_autocast_dtype(kind)) for tensor in (features, weight))
    with torch.autocast(kind, enabled=False):
        return _Convolve.apply(features, weight, pairs)


class _Convolution(nn.Module):
    """A weight in the layout of spconv, [out, k, k, k, in]."""

    def __init__(self, channels: int, out_channels: int, kernel: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_channels, kernel, kernel, kernel, channels))
        bound = 1 / math.sqrt(channels * kernel**3)
        nn.init.uniform_(self.weight, -bound, bound)

    @property
    def places(self) -> Tensor:
        """[k^3, in, out] weights of each place of the kernel."""
        return self.weight.flatten(1, 3).permute(1, 2, 0)


class SubmanifoldConv(_Convolution):
    """Convolution whose output voxels are its input voxels."""

    def __init__(self, channels: int, out_channels: int, kernel: int) -> None:
        """Build the convolution without a bias.

        Args:
            channels: of the input.
            out_channels: of the output.
            kernel: odd side of the kernel, 3 or more; `PointwiseConv` is the one of side 1.

        Raises:
            ValueError: for another side.
        """
        if kernel < 3 or kernel % 2 == 0:
            raise ValueError(f"kernel: expected an odd side of 3 or more, got {kernel}")
        super().__init__(channels, out_channels, kernel)
        self.kernel = kernel
        nn.init.trunc_normal_(self.weight, std=0.02)

    def forward(self, features: Tensor, grid: VoxelGrid) -> Tensor:
        """Convolve.

        Args:
            features: [N, channels].
            grid: their voxels.

        Returns:
            [N, out_channels].
        """
        return convolve(features, self.places, grid.neighbours(self.kernel))


class PointwiseConv(_Convolution):
    """A linear layer for each voxel. Its weight [out, 1, 1, 1, in] is read as if it were [in, out], as spconv does."""

    def __init__(self, channels: int, out_channels: int, bias: bool = False) -> None:
        """Build the layer.

        Args:
            channels: of the input.
            out_channels: of the output.
            bias: whether it has one.
        """
        super().__init__(channels, out_channels, 1)
        nn.init.trunc_normal_(self.weight, std=0.02)
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None

    def forward(self, features: Tensor, grid: VoxelGrid) -> Tensor:
        """Map the channels.

        Args:
            features: [N, channels].
            grid: their voxels, which do not matter.

        Returns:
            [N, out_channels].
        """
        weight = self.weight.view(features.shape[1], -1)
        return nn.functional.linear(features, weight.mT, self.bias)


class _Halving(_Convolution):
    """A convolution between a grid and the coarser one."""

    def __init__(self, channels: int, out_channels: int) -> None:
        """Build the convolution without a bias.

        Args:
            channels: of the input.
            out_channels: of the output.
        """
        super().__init__(channels, out_channels, 2)


class StridedConv(_Halving):
    """Convolution with kernel and stride 2, to the coarser grid."""

    def forward(self, features: Tensor, grid: VoxelGrid) -> Tensor:
        """Convolve.

        Args:
            features: [N, channels].
            grid: their voxels.

        Returns:
            [M, out_channels] of the M voxels of `grid.coarser()`.
        """
        return convolve(features, self.places, grid.coarser()[1])


class InverseConv(_Halving):
    """Back from the coarser grid to the voxels that it was made of, with the same pairs."""

    def forward(self, features: Tensor, grid: VoxelGrid) -> Tensor:
        """Convolve.

        Args:
            features: [M, channels] of the voxels of `grid.coarser()`.
            grid: the fine voxels.

        Returns:
            [N, out_channels] of the fine voxels.
        """
        return convolve(features, self.places, grid.coarser()[1].reversed(len(grid)))
