"""SparseUNet: the backbone that Pointcept calls SpUNet-v1m1, with the names and shapes of its checkpoints."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from gsforge.nn.sparse import InverseConv, PointwiseConv, StridedConv, SubmanifoldConv, VoxelGrid

CHANNELS = (32, 64, 128, 256, 256, 128, 96, 96)
LAYERS = (2, 3, 4, 6, 2, 2, 2, 2)


def _norm(channels: int) -> nn.BatchNorm1d:
    return nn.BatchNorm1d(channels, eps=1e-3, momentum=0.01)


class _Unit(nn.ModuleList):
    """A convolution and its normalisation."""

    def __init__(self, convolution: nn.Module, channels: int) -> None:
        super().__init__([convolution, _norm(channels)])

    def forward(self, features: Tensor, grid: VoxelGrid) -> Tensor:
        convolution, norm = self
        return norm(convolution(features, grid))


class ResidualBlock(nn.Module):
    """Two submanifold convolutions beside a shortcut."""

    def __init__(self, channels: int, out_channels: int) -> None:
        """Build the block.

        Args:
            channels: of the input.
            out_channels: of the output; where they differ, the shortcut is a pointwise convolution.
        """
        super().__init__()
        self.proj = None if channels == out_channels else _Unit(PointwiseConv(channels, out_channels), out_channels)
        self.conv1, self.bn1 = SubmanifoldConv(channels, out_channels, 3), _norm(out_channels)
        self.conv2, self.bn2 = SubmanifoldConv(out_channels, out_channels, 3), _norm(out_channels)

    def forward(self, features: Tensor, grid: VoxelGrid) -> Tensor:
        """Refine features.

        Args:
            features: [N, channels].
            grid: their voxels.

        Returns:
            [N, out_channels].
        """
        shortcut = features if self.proj is None else self.proj(features, grid)
        features = relu(self.bn1(self.conv1(features, grid)))
        return relu(self.bn2(self.conv2(features, grid)) + shortcut)


class _Blocks(nn.ModuleDict):
    """Residual blocks named block0, block1, ..."""

    def __init__(self, channels: int, out_channels: int, count: int) -> None:
        sizes = [channels] + [out_channels] * (count - 1)
        super().__init__({f"block{i}": ResidualBlock(size, out_channels) for i, size in enumerate(sizes)})

    def forward(self, features: Tensor, grid: VoxelGrid) -> Tensor:
        for block in self.values():
            features = block(features, grid)
        return features


class SparseUNet(nn.Module):
    """Features of voxels from all scales around them. Defaults: the published size, 39,155,904 parameters."""

    def __init__(
        self,
        in_channels: int = 6,
        num_classes: int = 0,
        base_channels: int = 32,
        channels: Sequence[int] = CHANNELS,
        layers: Sequence[int] = LAYERS,
    ) -> None:
        """Build the network.

        Args:
            in_channels: of a voxel's features.
            num_classes: outputs of a last pointwise convolution; 0 leaves it out.
            base_channels: of the stem.
            channels: of the encoder's stages, then of the decoder's, from the coarsest to the finest; an even number.
            layers: residual blocks of each.

        Raises:
            ValueError: if `channels` and `layers` do not fit together.
        """
        super().__init__()
        if len(channels) != len(layers) or len(channels) % 2 or not channels or min(layers) < 1:
            raise ValueError(
                "channels and layers: expected as many numbers in both, an even number, and at least one block in each "
                f"stage, got {list(channels)} and {list(layers)}"
            )
        stages = len(channels) // 2
        self.out_channels = num_classes or channels[-1]
        fine = [base_channels, *channels[: stages - 1]]
        decoded = list(channels[: stages - 1 : -1])  # from the finest to the coarsest
        below = [*decoded[1:], channels[stages - 1]]
        self.conv_input = _Unit(SubmanifoldConv(in_channels, base_channels, 5), base_channels)
        self.down, self.enc, self.up, self.dec = (nn.ModuleList() for _ in range(4))
        for stage in range(stages):
            width, wide = channels[stage], decoded[stage]
            self.down.append(_Unit(StridedConv(fine[stage], width), width))
            self.enc.append(_Blocks(width, width, layers[stage]))
            self.up.append(_Unit(InverseConv(below[stage], wide), wide))
            self.dec.append(_Blocks(wide + fine[stage], wide, layers[-1 - stage]))
        self.final = PointwiseConv(channels[-1], num_classes, bias=True) if num_classes else None

    def forward(self, features: Tensor, grid: VoxelGrid) -> Tensor:
        """Compute the features of voxels.

        Args:
            features: [N, in_channels].
            grid: their voxels.

        Returns:
            [N, out_channels], in the order of the voxels.
        """
        grids, skips = [grid], [relu(self.conv_input(features, grid))]
        for down, blocks in zip(self.down, self.enc, strict=True):
            features = relu(down(skips[-1], grids[-1]))
            grids.append(grids[-1].coarser()[0])
            skips.append(blocks(features, grids[-1]))
        features = skips.pop()
        for up, blocks, fine in zip(reversed(self.up), reversed(self.dec), reversed(grids[:-1]), strict=True):
            features = torch.cat([relu(up(features, fine)), skips.pop()], dim=1)
            features = blocks(features, fine)
        return features if self.final is None else self.final(features, grid)
