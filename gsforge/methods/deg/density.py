"""Learned octree density of the DeG VAE: teacher-forced likelihood and systematic sampling."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from gsforge.core.octree import (
    capacity,
    cell_centers,
    cell_corners,
    child_histogram,
    compact,
    systematic_split,
)
from gsforge.core.random import SampleRandom, uniform_like
from gsforge.methods.deg.config import NetworkConfig
from gsforge.nn.attention import CrossAttention, feed_forward, initialise, modulate
from gsforge.nn.embeddings import PointEmbedding, ScalarEmbedding
from gsforge.nn.recompute import run_block

_GATES = [2, 5]  # rows of the modulation that scale the two residual branches


@dataclass(frozen=True)
class DensitySamples:
    """Points drawn from the density.

    Attributes:
        points: [B, P, 3] in [0, 1].
        log_probability: [B, P] log of the probability of the point's leaf; add 3 L log 2 for the density.
    """

    points: Tensor
    log_probability: Tensor


class DensityBlock(nn.Module):
    """AdaLN-zero block that only looks at the latent: modulated cross-attention, modulated feed-forward."""

    def __init__(self, width: int, heads: int, context_width: int) -> None:
        """Build the block.

        Args:
            width: channels of the cell queries.
            heads: number of attention heads; must divide `width`.
            context_width: channels of the latent tokens that are attended to.
        """
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.attention = CrossAttention(width, heads, context_width)
        self.perceptron = feed_forward(width)

    def forward(self, h_BCD: Tensor, z_BMZ: Tensor, modulation_6D: Tensor) -> Tensor:
        """Refine cell queries by the latent.

        Args:
            h_BCD: [B, C, D] cells.
            z_BMZ: [B, M, Z] latent tokens.
            modulation_6D: [6, D] shift, scale and gate of the attention, then of the feed-forward.

        Returns:
            [B, C, D].
        """
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation_6D.unbind(0)
        h_BCD = h_BCD + gate1 * self.attention(modulate(self.norm(h_BCD), shift1, scale1), z_BMZ)
        return h_BCD + gate2 * self.perceptron(modulate(self.norm(h_BCD), shift2, scale2))


class OctreeDensity(nn.Module):
    """q(x | Z) = prod_l q(child_l | parent_{l-1}, Z), one network for all levels, uniform inside a leaf.

    Cells of a level do not attend to each other. The resolution of the children is an input.
    """

    def __init__(self, config: NetworkConfig) -> None:
        """Build the density; the children are equally likely until it is trained.

        Args:
            config: sizes of the network, depth of the octree and initial value of the gates.
        """
        super().__init__()
        width = config.width
        self.depth, self.checkpointing = config.octree_depth, config.checkpoint_blocks
        self.cell_embedding = PointEmbedding(width, config.embedding_octaves)
        self.resolution_embedding = ScalarEmbedding(width)
        self.to_modulation = nn.Linear(width, 6 * width)
        self.blocks = nn.ModuleList(
            DensityBlock(width, config.heads, config.latent_channels) for _ in range(config.density_blocks)
        )
        self.final_norm = nn.LayerNorm(width, elementwise_affine=False)
        self.head = nn.Linear(width, 8)
        self.apply(initialise)
        self.resolution_embedding.initialise()
        for zero in (self.to_modulation, self.head):
            nn.init.zeros_(zero.weight)
            nn.init.zeros_(zero.bias)
        with torch.no_grad():
            self.to_modulation.bias.view(6, width)[_GATES] = config.initial_gate

    @property
    def units(self) -> Iterable[nn.Module]:
        """Nothing: its blocks run once for each level of the octree, so all weights are gathered at once."""
        return ()

    def child_log_probabilities(self, codes: Tensor, level: int, z_BMZ: Tensor) -> Tensor:
        """Log-probabilities of the eight children of cells.

        Args:
            codes: [B, C] codes of cells of `level`.
            level: level of the parents.
            z_BMZ: [B, M, latent_channels].

        Returns:
            [B, C, 8], float32 whatever the autocast precision.
        """
        # Filled on the device: copying a number there would wait for it, at every level.
        resolution = torch.full((), 2 * math.pi * 2 ** (level + 1), device=codes.device)
        modulation_6D = self.to_modulation(silu(self.resolution_embedding(resolution))).unflatten(-1, (6, -1))
        h_BCD = self.cell_embedding(cell_centers(codes, level).to(z_BMZ.dtype))
        for block in self.blocks:
            h_BCD = run_block(block, h_BCD, z_BMZ, modulation_6D, recompute=self.checkpointing)
        return self.head(self.final_norm(h_BCD)).float().log_softmax(-1)

    def structural_loss(self, points: Tensor, z_BMZ: Tensor) -> Tensor:
        """KL divergence of q from the leaf histogram of the points, summed over the levels.

        L = sum_l sum_v sum_k n_vk / N (log(n_vk / n_v) - log pi_l(k | v)), n_vk the points in child k of cell v. With
        far fewer points than leaves its minimum over all objects is not zero: the finite-sample floor.

        Args:
            points: [B, N, 3] in [0, 1].
            z_BMZ: [B, M, latent_channels].

        Returns:
            [B] nats.

        Source:
            DeG (arXiv 2605.16355), structural loss.
        """
        divergence = torch.zeros(points.shape[0], device=points.device)
        for level in range(self.depth):
            parents, children = child_histogram(points, level)
            log_pi = self.child_log_probabilities(parents.codes, level, z_BMZ)
            share = children / points.shape[1]
            # Where a child is empty its share is 0 and the clamped logarithm is finite: the term vanishes.
            empirical = (children.clamp_min(1) / parents.counts.clamp_min(1)[..., None]).log()
            divergence = divergence + (share * (empirical - log_pi)).sum((1, 2))
        return divergence

    def sample(self, z_BMZ: Tensor, count: int, random: SampleRandom | None = None) -> DensitySamples:
        """Draw exactly `count` points by systematic sampling down the tree.

        Positions carry no gradient; the log-probabilities do, to the network and to `z`.

        Args:
            z_BMZ: [B, M, latent_channels].
            count: budget P.
            random: streams of the objects; None for the global generators.

        Returns:
            P points for each object.
        """
        batch, device = z_BMZ.shape[0], z_BMZ.device
        codes = torch.zeros(batch, 1, dtype=torch.long, device=device)
        counts = torch.full((batch, 1), count, device=device)
        log_q = torch.zeros(batch, 1, device=device)
        for level in range(self.depth):
            log_pi = self.child_log_probabilities(codes, level, z_BMZ)
            uniforms = uniform_like(counts.double(), random)
            split = systematic_split(counts, log_pi.detach().exp(), uniforms)
            child_codes = codes[..., None] * 8 + torch.arange(8, device=device)
            codes, counts, log_q = compact(
                child_codes.flatten(1),
                split.flatten(1),
                capacity(level + 1, count),
                (log_q[..., None] + log_pi).flatten(1),
            )
        # Leaf of the i-th point: the first whose cumulative count exceeds i.
        ranks = torch.arange(count, device=device).expand(batch, count).contiguous()
        leaf = torch.searchsorted(counts.cumsum(-1), ranks, right=True)
        corners = cell_corners(codes.gather(1, leaf), self.depth)
        points = (corners + uniform_like(torch.empty_like(corners, dtype=torch.float32), random)) / 2**self.depth
        # In float32 the sum may round up to the corner of the next leaf.
        ends = (corners + 1) / 2**self.depth
        points = torch.minimum(points, ends.nextafter(torch.zeros_like(ends)))
        return DensitySamples(points, log_q.gather(1, leaf))
