"""Set encoder of the DeG VAE: surface points with image features to latent tokens."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from gsforge.core.random import SampleRandom, normal_like
from gsforge.methods.deg.config import NetworkConfig
from gsforge.nn.attention import CrossAttention, SelfAttention, feed_forward, initialise
from gsforge.nn.embeddings import PointEmbedding, PointSinusoids
from gsforge.nn.recompute import run_block

_EPS = 1e-6  # of the norms inside blocks

PointFeatures = tuple[Tensor, Tensor]
"""Points [B, S, 3] in [0, 1] and their features [B, S, channels]."""


class ReadLayer(nn.Module):
    """Pre-norm residual cross-attention to a feature set."""

    def __init__(self, width: int, heads: int) -> None:
        """Build the layer.

        Args:
            width: channels of the tokens and of the feature set.
            heads: number of attention heads; must divide `width`.
        """
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=_EPS)
        self.attention = CrossAttention(width, heads, width)

    def forward(self, x_BMD: Tensor, context_BSD: Tensor) -> Tensor:
        """Refine tokens by a context.

        Args:
            x_BMD: [B, M, D] tokens.
            context_BSD: [B, S, D] feature set.

        Returns:
            [B, M, D].
        """
        return x_BMD + self.attention(self.norm(x_BMD), context_BSD)

    def silence(self) -> None:
        """Make the layer the identity, so that adding it does not disturb what was learned before."""
        nn.init.zeros_(self.attention.to_out.weight)
        nn.init.zeros_(self.attention.to_out.bias)


class EncoderBlock(nn.Module):
    """Self-attention, cross-attention to one or two feature sets, feed-forward; all pre-norm residual."""

    def __init__(self, width: int, heads: int) -> None:
        """Build the block without the appearance attention, which the encoder holds.

        Args:
            width: channels of the tokens and of the feature set.
            heads: number of attention heads; must divide `width`.
        """
        super().__init__()
        self.self_norm = nn.LayerNorm(width, eps=_EPS, elementwise_affine=False)
        self.self_attention = SelfAttention(width, heads)
        self.semantic = ReadLayer(width, heads)
        self.perceptron_norm = nn.LayerNorm(width, eps=_EPS, elementwise_affine=False)
        self.perceptron = feed_forward(width)

    def forward(
        self, x_BMD: Tensor, semantic_BSD: Tensor, appearance: ReadLayer | None, appearance_BSD: Tensor | None
    ) -> Tensor:
        """Refine tokens by the feature sets.

        Args:
            x_BMD: [B, M, D] tokens.
            semantic_BSD: [B, S, D] first feature set.
            appearance: attention to the second set, where the model has it.
            appearance_BSD: [B, S2, D] second feature set.

        Returns:
            [B, M, D].
        """
        x_BMD = x_BMD + self.self_attention(self.self_norm(x_BMD))
        x_BMD = self.semantic(x_BMD, semantic_BSD)
        if appearance is not None and appearance_BSD is not None:
            x_BMD = appearance(x_BMD, appearance_BSD)
        return x_BMD + self.perceptron(self.perceptron_norm(x_BMD))

    @torch.no_grad()
    def quieten(self, factor: float) -> None:
        """Scale what the residual branches add, so that a token stays close to the embedding of its query.

        Args:
            factor: multiplies weights and biases of each branch's last layer, in place.
        """
        for branch in (self.self_attention.to_out, self.semantic.attention.to_out, self.perceptron[-1]):
            for tensor in branch.parameters():
                tensor.mul_(factor)


class FeatureSet(nn.Module):
    """Tokens of a set of points with features: Linear(feature) + sinusoids of the point."""

    def __init__(self, config: NetworkConfig, channels: int) -> None:
        """Map `channels` features to the width of the network.

        Args:
            config: sizes of the network.
            channels: channels of a point's features.
        """
        super().__init__()
        self.features = nn.Linear(channels, config.width)
        self.points = PointSinusoids(config.width, config.embedding_octaves)

    def forward(self, points: Tensor, features: Tensor) -> Tensor:
        """Combine points and their features.

        Args:
            points: [B, S, 3] in [0, 1].
            features: [B, S, channels].

        Returns:
            [B, S, width].
        """
        return self.features(features) + self.points(points)


class SetEncoder(nn.Module):
    """DeG-VAE encoder: M farthest-point queries read the feature sets and become a Gaussian posterior over M tokens.

    The second (appearance) feature set has its own, independently sampled points; it joins in the appearance stage.
    """

    def __init__(self, config: NetworkConfig, semantic_channels: int, appearance_channels: int | None) -> None:
        """Build the encoder.

        Args:
            config: sizes.
            semantic_channels: channels of the first feature set.
            appearance_channels: channels of the second feature set; None leaves its branch out.
        """
        super().__init__()
        width = config.width
        self.checkpointing = config.checkpoint_blocks
        self.query_embedding = PointEmbedding(width, config.embedding_octaves)
        self.semantic_set = FeatureSet(config, semantic_channels)
        blocks = [EncoderBlock(width, config.heads) for _ in range(config.encoder_blocks)]
        self.blocks = nn.ModuleList(blocks)
        # Apart from the blocks, so that a structure checkpoint lacks exactly what starts with "appearance".
        self.appearance_set = None if appearance_channels is None else FeatureSet(config, appearance_channels)
        readers = [] if self.appearance_set is None else [ReadLayer(width, config.heads) for _ in blocks]
        self.appearance_layers = nn.ModuleList(readers)
        self.final_norm = nn.LayerNorm(width, elementwise_affine=False)
        self.to_mean = nn.Linear(width, config.latent_channels)
        self.to_log_variance = nn.Linear(width, config.latent_channels)
        self.apply(initialise)
        for layer in readers:
            layer.silence()
        nn.init.zeros_(self.to_log_variance.weight)
        nn.init.constant_(self.to_log_variance.bias, config.initial_log_variance)
        if config.position_init:
            for block in blocks:
                block.quieten(0.1)
            self._start_from_positions()

    @property
    def units(self) -> Iterable[nn.Module]:
        """The blocks: what is sharded one by one."""
        return self.blocks

    @torch.no_grad()
    def _start_from_positions(self, samples: int = 4096) -> None:
        """Let the untrained latent tell where its token is: whitened principal components of the query embedding."""
        embedded = self.final_norm(self.query_embedding(torch.rand(samples, 3)))
        center = embedded.mean(0)
        _, spreads, directions = torch.linalg.svd(embedded - center, full_matrices=False)
        channels = self.to_mean.out_features
        weight = directions[:channels] / spreads[:channels, None] * samples**0.5
        self.to_mean.weight.copy_(weight)
        self.to_mean.bias.copy_(-weight @ center)

    def forward(
        self,
        queries: Tensor,
        semantic: PointFeatures,
        appearance: PointFeatures | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Encode.

        Args:
            queries: [B, M, 3] points in [0, 1], one for each latent token; the farthest points of the first set.
            semantic: points [B, S, 3] in [0, 1] and features [B, S, semantic_channels].
            appearance: points [B, S2, 3] and features [B, S2, appearance_channels], where the branch exists.

        Returns:
            mean, log_variance: [B, M, latent_channels]; token i belongs to query i.
        """
        x_BMD = self.query_embedding(queries)
        semantic_BSD = self.semantic_set(*semantic)
        if self.appearance_set is None or appearance is None:
            for block in self.blocks:
                x_BMD = run_block(block, x_BMD, semantic_BSD, None, None, recompute=self.checkpointing)
        else:
            appearance_BSD = self.appearance_set(*appearance)
            for block, layer in zip(self.blocks, self.appearance_layers, strict=True):
                inputs = (x_BMD, semantic_BSD, layer, appearance_BSD)
                x_BMD = run_block(block, *inputs, recompute=self.checkpointing)
        x_BMD = self.final_norm(x_BMD)
        # Back from the precision of autocast: the latent decides positions, which bfloat16 would blur.
        return self.to_mean(x_BMD).to(queries.dtype), self.to_log_variance(x_BMD).to(queries.dtype)


def sample_posterior(mean: Tensor, log_variance: Tensor, random: SampleRandom | None = None) -> Tensor:
    """Draw z ~ N(mean, exp(log_variance)) with the reparametrisation trick.

    Args:
        mean: [B, M, C].
        log_variance: [B, M, C].
        random: streams of the objects; None for the global generators.

    Returns:
        [B, M, C], differentiable to both.
    """
    return mean + (0.5 * log_variance).exp() * normal_like(mean, random)
