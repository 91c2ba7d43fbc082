"""Attribute decoder of the DeG VAE: density samples to Gaussians by local expansion."""

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, softplus

from gsforge.core.gaussians import Gaussians
from gsforge.core.sampling import hammersley
from gsforge.methods.deg.config import NetworkConfig
from gsforge.nn.attention import CrossAttention, SelfAttention, feed_forward, initialise
from gsforge.nn.embeddings import PointEmbedding
from gsforge.nn.recompute import run_block

CHANNELS = {"offset": 3, "color": 3, "scale": 3, "rotation": 4, "opacity": 1, "spread": 1}


def inverse_softplus(value: float) -> float:
    """Solve softplus(x) = value.

    Args:
        value: > 0.

    Returns:
        x.
    """
    return value + math.log(-math.expm1(-value))


class Expansion(NamedTuple):
    """Gaussians around their anchors.

    Attributes:
        gaussians: batch shape [B], N = P K, the K of an anchor side by side, world coordinates.
        offsets: [B, P, K, 3] centres relative to the anchor.
    """

    gaussians: Gaussians
    offsets: Tensor


class DecoderBlock(nn.Module):
    """Self-attention of the anchors, cross-attention to the latent, feed-forward; all pre-norm residual."""

    def __init__(self, width: int, heads: int, context_width: int) -> None:
        """Build the block.

        Args:
            width: channels of the anchor tokens.
            heads: number of attention heads; must divide `width`.
            context_width: channels of the latent tokens that are attended to.
        """
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.latent_norm = nn.LayerNorm(width, eps=1e-6)
        self.self_attention = SelfAttention(width, heads)
        self.latent_attention = CrossAttention(width, heads, context_width)
        self.perceptron = feed_forward(width)

    def forward(self, h_BPD: Tensor, z_BMZ: Tensor) -> Tensor:
        """Refine anchors by the latent.

        Args:
            h_BPD: [B, P, D] anchors.
            z_BMZ: [B, M, Z] latent tokens.

        Returns:
            [B, P, D].
        """
        h_BPD = h_BPD + self.self_attention(self.norm(h_BPD))
        h_BPD = h_BPD + self.latent_attention(self.latent_norm(h_BPD), z_BMZ)
        return h_BPD + self.perceptron(self.norm(h_BPD))


class AttributeDecoder(nn.Module):
    """Decode each anchor to K Gaussians; anchors attend to each other, so attributes adapt to how many there are."""

    hammersley_logits: Tensor
    identity: Tensor

    def __init__(self, config: NetworkConfig) -> None:
        """Build the decoder; untrained, it returns K small grey Gaussians spread around each anchor.

        Args:
            config: sizes of the network.
        """
        super().__init__()
        self.config, self.checkpointing = config, config.checkpoint_blocks
        width, self.per_anchor = config.width, config.gaussians_per_anchor
        self.anchor_embedding = PointEmbedding(width, config.embedding_octaves)
        self.blocks = nn.ModuleList(
            DecoderBlock(width, config.heads, config.latent_channels) for _ in range(config.decoder_blocks)
        )
        self.final_norm = nn.LayerNorm(width, elementwise_affine=False)
        self.head = nn.Linear(width, self.per_anchor * sum(CHANNELS.values()))
        self.apply(initialise)
        nn.init.zeros_(self.head.weight)
        # t_k in (-2/3, 2/3)^3; its atanh is what the network's zero output stands for.
        spread = (2 * hammersley(self.per_anchor, 3) - 1) / 1.5
        self.register_buffer("hammersley_logits", spread.atanh().float(), persistent=False)
        self.register_buffer("identity", torch.tensor([1.0, 0.0, 0.0, 0.0]), persistent=False)

    @property
    def units(self) -> Iterable[nn.Module]:
        """The blocks: what is sharded one by one."""
        return self.blocks

    def forward(self, anchors: Tensor, z_BMZ: Tensor) -> Expansion:
        """Decode anchors.

        Args:
            anchors: [B, P, 3] in [0, 1].
            z_BMZ: [B, M, latent_channels].

        Returns:
            P K Gaussians for each object, SH degree 0, and their offsets.
        """
        h_BPD = self.anchor_embedding(anchors)
        for block in self.blocks:
            h_BPD = run_block(block, h_BPD, z_BMZ, recompute=self.checkpointing)
        return self.expand(anchors, self.head(self.final_norm(h_BPD)).float())

    def expand(self, anchors: Tensor, raw: Tensor) -> Expansion:
        """Turn raw outputs into Gaussians (local expansion).

        delta_k = 0.75 tanh(raw + atanh t_k) softplus(raw + softplus^-1(expansion)), scale = sqrt(softplus(raw +
        softplus^-1(initial_scale))^2 + minimum_scale^2), opacity = sigmoid(raw + logit(initial_opacity)),
        rotation = normalise(0.1 raw + (1, 0, 0, 0)), colour coefficient = raw.

        Args:
            anchors: [B, P, 3] in [0, 1].
            raw: [B, P, 15 K] outputs of the head: the offsets of all K, then their colours, and so on.

        Returns:
            The Gaussians in world coordinates (anchor - 0.5) and the offsets delta.

        Source:
            DeG (arXiv 2605.16355), local expansion; the constants are those of the release.
        """
        config = self.config
        parts = raw.split([self.per_anchor * channels for channels in CHANNELS.values()], dim=-1)
        offset, color, scale, rotation, opacity, spread = (part.unflatten(-1, (self.per_anchor, -1)) for part in parts)
        radius = softplus(spread + inverse_softplus(config.expansion))
        offsets = 0.75 * torch.tanh(offset + self.hammersley_logits) * radius
        scales = softplus(scale + inverse_softplus(config.initial_scale))
        gaussians = Gaussians(
            means=(anchors[:, :, None] - 0.5 + offsets).flatten(1, 2),
            quats=normalize(0.1 * rotation + self.identity, dim=-1).flatten(1, 2),
            scales=(scales.square() + config.minimum_scale**2).sqrt().flatten(1, 2),
            opacities=torch.sigmoid(
                opacity.squeeze(-1) + math.log(config.initial_opacity / (1 - config.initial_opacity))
            ).flatten(1),
            sh=color.flatten(1, 2)[..., None, :],
        )
        return Expansion(gaussians, offsets)
