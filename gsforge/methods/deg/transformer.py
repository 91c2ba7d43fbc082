"""The flow-matching transformer of DeG: latent tokens, image tokens and a camera token in one sequence."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.nn.functional import silu

from gsforge.core.object_camera import CAMERA_NUMBERS
from gsforge.methods.deg.flow_config import FlowNetworkConfig
from gsforge.nn.attention import SelfAttention, feed_forward, initialise, modulate
from gsforge.nn.embeddings import AnchorSinusoids, ScalarEmbedding
from gsforge.nn.recompute import run_block


class Prediction(NamedTuple):
    """Velocities.

    Attributes:
        latent: [B, M, latent_channels].
        camera: [B, 5], or None without a camera token.
    """

    latent: Tensor
    camera: Tensor | None


class LearnedRotary(nn.Module):
    """Angles of a rotary embedding whose positions are read from the tokens themselves ("RePo").

    Each head of each token gets a position in space, and each axis a third of the head's pairs of channels, with
    learned frequencies.

    Source:
        The model that was released with DeG (arXiv 2605.16355); the paper has no such layer.
    """

    def __init__(self, width: int, heads: int) -> None:
        """Build the layer; all positions are 0 until it is trained.

        Args:
            width: channels of a token.
            heads: number of attention heads.
        """
        super().__init__()
        pairs = width // heads // 2
        shares = (pairs // 3, pairs // 3, pairs - 2 * (pairs // 3))
        self.heads = heads
        self.frequencies = nn.ParameterList(nn.Parameter(torch.linspace(1, 16, share)) for share in shares)
        self.norm = nn.LayerNorm(width)
        self.gate = nn.Linear(width, width // 8, bias=False)
        self.content = nn.Linear(width, width // 8, bias=False)
        self.to_positions = nn.Linear(width // 8, 3 * heads, bias=False)

    def forward(self, h_BLD: Tensor) -> Tensor:
        """Find the angles.

        Args:
            h_BLD: [B, L, D] tokens.

        Returns:
            [B, L, heads, D / heads / 2] radians, float32 or better.
        """
        normed = self.norm(h_BLD)
        positions = self.to_positions(silu(self.gate(normed)) * self.content(normed))
        dtype = torch.promote_types(positions.dtype, torch.float32)
        positions_BLHX = positions.unflatten(-1, (self.heads, 3)).to(dtype)
        angles = [
            _damped_product(positions_BLHX[..., axis, None], frequencies)
            for axis, frequencies in enumerate(self.frequencies)
        ]
        return torch.cat(angles, dim=-1) * math.pi


def _damped_product(position: Tensor, frequencies: Tensor) -> Tensor:
    """The product, of which the position's gradient is tanh(frequencies): high ones do not shake it."""
    bounded = torch.tanh(frequencies)
    return position * bounded + position.detach() * (frequencies - bounded)


class ModulatedBlock(nn.Module):
    """AdaLN block over a sequence; the modulation of all blocks is one, each block adds a table of its own."""

    def __init__(self, width: int, heads: int, rotary: bool) -> None:
        """Build the block.

        Args:
            width: channels of a token.
            heads: number of attention heads; must divide `width`.
            rotary: whether queries and keys are turned by learned positions.
        """
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.rotary = LearnedRotary(width, heads) if rotary else None
        self.attention = SelfAttention(width, heads)
        self.perceptron = feed_forward(width)
        self.table = nn.Parameter(torch.zeros(1, 6 * width))

    def forward(self, h_BLD: Tensor, modulation_BE: Tensor) -> Tensor:
        """Refine tokens.

        Args:
            h_BLD: [B, L, D].
            modulation_BE: [B, 6 D] shift, scale and gate of the attention, then of the feed-forward.

        Returns:
            [B, L, D].
        """
        parts = (modulation_BE + self.table)[:, None].chunk(6, dim=-1)
        shift1, scale1, gate1, shift2, scale2, gate2 = parts
        angles = None if self.rotary is None else self.rotary(h_BLD)
        h_BLD = h_BLD + gate1 * self.attention(modulate(self.norm(h_BLD), shift1, scale1), angles)
        return h_BLD + gate2 * self.perceptron(modulate(self.norm(h_BLD), shift2, scale2))


class ContextBlock(nn.Module):
    """Pre-norm block over the image tokens, which know nothing of the time."""

    def __init__(self, width: int, heads: int, rotary: bool) -> None:
        """Build the block.

        Args:
            width: channels of a token.
            heads: number of attention heads; must divide `width`.
            rotary: whether queries and keys are turned by learned positions.
        """
        super().__init__()
        self.attention_norm = nn.LayerNorm(width, eps=1e-6)
        self.perceptron_norm = nn.LayerNorm(width, eps=1e-6)
        self.rotary = LearnedRotary(width, heads) if rotary else None
        self.attention = SelfAttention(width, heads)
        self.perceptron = feed_forward(width)

    def forward(self, h_BSD: Tensor) -> Tensor:
        """Refine tokens.

        Args:
            h_BSD: [B, S, D].

        Returns:
            [B, S, D].
        """
        angles = None if self.rotary is None else self.rotary(h_BSD)
        h_BSD = h_BSD + self.attention(self.attention_norm(h_BSD), angles)
        return h_BSD + self.perceptron(self.perceptron_norm(h_BSD))


class FlowTransformer(nn.Module):
    """Predicts the velocity of latent tokens and of a camera, given an image.

    Latent tokens are told apart by the anchor in space that each was assigned to.
    """

    def __init__(self, config: FlowNetworkConfig, semantic_channels: int, appearance_channels: int) -> None:
        """Build the transformer; untrained, it predicts zero.

        Args:
            config: sizes.
            semantic_channels: channels of the first kind of image tokens.
            appearance_channels: channels of the second kind.
        """
        super().__init__()
        width, heads, rotary = config.width, config.heads, config.positions == "anchors+rotary"
        self.checkpointing = config.checkpoint_blocks
        self.latent_in = nn.Linear(config.latent_channels, width)
        self.anchor_embedding = AnchorSinusoids(width) if config.positions != "none" else None
        self.time_embedding = ScalarEmbedding(width, max_period=10000.0)
        self.to_modulation = nn.Linear(width, 6 * width)
        self.semantic_in = nn.Linear(semantic_channels, width)
        self.appearance_in = nn.Linear(appearance_channels, width)
        self.latent_blocks = nn.ModuleList(ModulatedBlock(width, heads, rotary) for _ in range(config.refiner_blocks))
        self.image_blocks = nn.ModuleList(ContextBlock(width, heads, rotary) for _ in range(config.refiner_blocks))
        self.blocks = nn.ModuleList(ModulatedBlock(width, heads, rotary) for _ in range(config.blocks))
        self.final_norm = nn.LayerNorm(width, elementwise_affine=False)
        self.final_table = nn.Parameter(torch.zeros(1, 2, width))
        self.latent_out = nn.Linear(width, config.latent_channels)
        self.camera_in = self.camera_out = None
        if config.camera_token:
            self.camera_in = nn.Sequential(
                nn.Linear(CAMERA_NUMBERS, width), nn.GELU(approximate="tanh"), nn.Linear(width, width)
            )
            self.camera_out = nn.Linear(width, CAMERA_NUMBERS)
        self._initialise()
        if config.compile_blocks:
            for unit in self.units:
                unit.compile(dynamic=False)

    def _initialise(self) -> None:
        self.apply(initialise)
        self.time_embedding.initialise()
        positions = [module.to_positions for module in self.modules() if isinstance(module, LearnedRotary)]
        silent = (self.to_modulation, self.appearance_in, self.latent_out, self.camera_out, *positions)
        for layer in silent:
            if layer is not None:
                nn.init.zeros_(layer.weight)

    @property
    def units(self) -> Iterator[nn.Module]:
        """The blocks: what is compiled, recomputed and sharded one by one."""
        yield from (*self.latent_blocks, *self.image_blocks, *self.blocks)

    def shard(self, mesh: DeviceMesh) -> None:
        """Divide the weights among ranks (FSDP2): each block gathers its own when it runs. Once for each network.

        Args:
            mesh: one dimension, the ranks.
        """
        for unit in self.units:
            fully_shard(unit, mesh=mesh)
        fully_shard(self, mesh=mesh)

    def forward(
        self,
        latent: Tensor,
        camera: Tensor | None,
        times: Tensor,
        anchors: Tensor,
        semantic: Tensor,
        appearance: Tensor,
    ) -> Prediction:
        """Predict velocities.

        Args:
            latent: [B, M, latent_channels] noisy latent tokens.
            camera: [B, 5] noisy camera; ignored without a camera token.
            times: [B] in [0, 1].
            anchors: [M, 3] places of the tokens in [0, 1].
            semantic: [B, S, semantic_channels] image tokens of the first kind.
            appearance: [B, S, appearance_channels] of the second.

        Returns:
            The velocities of latent and camera.
        """
        time_BD = self.time_embedding(1000 * times)
        modulation_BE = self.to_modulation(silu(time_BD))
        h_BMD = self.latent_in(latent)
        if self.anchor_embedding is not None:
            h_BMD = h_BMD + self.anchor_embedding(anchors)
        c_BSD = self.semantic_in(semantic) + self.appearance_in(appearance)
        for block in self.latent_blocks:
            h_BMD = run_block(block, h_BMD, modulation_BE, recompute=self.checkpointing)
        for block in self.image_blocks:
            c_BSD = run_block(block, c_BSD, recompute=self.checkpointing)
        sequence = [h_BMD, c_BSD]
        if self.camera_in is not None and camera is not None:
            sequence.append(self.camera_in(camera)[:, None])
        h_BLD = torch.cat(sequence, dim=1)
        for block in self.blocks:
            h_BLD = run_block(block, h_BLD, modulation_BE, recompute=self.checkpointing)
        shift, scale = (self.final_table + time_BD[:, None]).chunk(2, dim=1)
        out_BMD = modulate(self.final_norm(h_BLD[:, : latent.shape[1]]), shift, scale)
        if self.camera_out is None:
            return Prediction(self.latent_out(out_BMD), None)
        out_BD = modulate(self.final_norm(h_BLD[:, -1:]), shift, scale)[:, 0]
        return Prediction(self.latent_out(out_BMD), self.camera_out(out_BD))
