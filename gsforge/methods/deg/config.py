"""Sizes and loss weights of the DeG VAE; the defaults are the published ones."""

from dataclasses import dataclass, field
from typing import Literal

from gsforge.render.types import Estimate, PixelLoss

Stage = Literal["structure", "appearance", "refinement"]


@dataclass
class NetworkConfig:
    """Sizes of the three networks (DeG-VAE; about 620 M parameters with the defaults).

    Attributes:
        width: channels of every transformer.
        heads: attention heads; divides `width`.
        latent_channels: channels of a latent token.
        encoder_blocks: transformer blocks of the set encoder.
        density_blocks: cross-attention blocks of the octree density.
        decoder_blocks: transformer blocks of the attribute decoder.
        embedding_octaves: log2 of the ratio of the highest to the lowest frequency in the embeddings of points; few
            are smooth, which a small network learns from faster.
        octree_depth: levels L of the density; leaves have side 2^-L.
        gaussians_per_anchor: K Gaussians that expand around each density sample.
        initial_gate: gates of the density's blocks before training. Published: 0 (AdaLN-zero), which costs short runs
            their first steps.
        initial_log_variance: of the latent posterior before training. Published: 0, as wide as the prior, which hides
            the latent of a short run in noise.
        position_init: start the latent as the leading principal components of the query positions, with small residual
            branches in the encoder. Published: False, a random projection, which a short run spends its steps on
            untangling.
        expansion: initial half-size of the cloud of K Gaussians before the 0.75 tanh, object units.
        initial_scale: initial standard deviation of a Gaussian, object units.
        minimum_scale: lower bound of the standard deviation (3D mip filter), object units.
        initial_opacity: initial opacity.
        checkpoint_blocks: keep the input of each block alone and compute it again in the backward pass.
    """

    width: int = 1024
    heads: int = 16
    latent_channels: int = 16
    encoder_blocks: int = 16
    density_blocks: int = 4
    decoder_blocks: int = 16
    embedding_octaves: float = 10.0
    octree_depth: int = 8
    gaussians_per_anchor: int = 32
    initial_gate: float = 0.0
    initial_log_variance: float = 0.0
    position_init: bool = False
    expansion: float = 0.05
    initial_scale: float = 0.004
    minimum_scale: float = 9e-4
    initial_opacity: float = 0.1
    checkpoint_blocks: bool = False

    def __post_init__(self) -> None:
        """Refuse sizes that cannot be built."""
        if self.width % self.heads:
            raise ValueError(f"network.heads: {self.heads} does not divide network.width {self.width}")
        if not 1 <= self.octree_depth <= 20:
            raise ValueError(f"network.octree_depth: expected 1 to 20 (codes are 64-bit), got {self.octree_depth}")
        if min(self.latent_channels, self.encoder_blocks, self.density_blocks, self.decoder_blocks) < 1:
            raise ValueError("network: latent_channels and the numbers of blocks must be at least 1")
        if self.gaussians_per_anchor < 1 or self.expansion <= 0 or not 0 < self.initial_opacity < 1:
            raise ValueError(
                "network: expected gaussians_per_anchor >= 1, expansion > 0 and 0 < initial_opacity < 1, got "
                f"{self.gaussians_per_anchor}, {self.expansion} and {self.initial_opacity}"
            )
        if not 0 <= self.minimum_scale < self.initial_scale:
            raise ValueError(
                f"network.initial_scale {self.initial_scale} must exceed network.minimum_scale {self.minimum_scale}"
            )


@dataclass
class SamplingConfig:
    """How many points, tokens, anchors and views a training step uses.

    Attributes:
        context_points: points of each of the two feature sets; the sets are disjoint samples of the surface.
        target_points: random subset of the first set whose octree histogram the density learns, redrawn each step.
        tokens: latent token counts M; one is drawn for each step, the same on all ranks.
        anchors: density samples P that are decoded to P K Gaussians.
        fewest_anchors: where given, P is drawn for each step from `fewest_anchors` to `anchors`, the same on all ranks;
            evaluation takes `anchors`.
        feature_views: the first views of a sample feed the encoder; the rest are rendered and compared.
        check_visibility: average a point's features over the views that see it, by the depth maps. The release averages
            over all views.
    """

    context_points: int = 16384
    target_points: int = 8192
    tokens: list[int] = field(default_factory=lambda: [1024])
    anchors: int = 2048
    fewest_anchors: int | None = None
    feature_views: int = 4
    check_visibility: bool = False

    def __post_init__(self) -> None:
        """Refuse numbers that leave nothing to compute."""
        counts = (self.context_points, self.target_points, self.anchors, self.feature_views, *self.tokens)
        if not self.tokens or min(counts) < 1:
            raise ValueError(
                "sampling: expected context_points, target_points, anchors and feature_views of at least 1, and one or "
                f"more tokens of at least 1, got {counts[:4]} and {self.tokens}"
            )
        if self.fewest_anchors is not None and not 1 <= self.fewest_anchors <= self.anchors:
            raise ValueError(
                f"sampling.fewest_anchors: expected 1 to sampling.anchors {self.anchors}, got {self.fewest_anchors}"
            )


@dataclass
class ContributionConfig:
    """How the rendering loss reaches the density in the refinement stage; the defaults are the published estimator.

    The gradient of an anchor's log-probability is what its Gaussians change in the loss of all views, each taken away
    alone, summed. `only_helpful`, `clipped_share` and `centered` then change it, in this order, within an object.

    Attributes:
        loss: of a pixel, over its colours.
        estimate: `exact` draws the pixel without the Gaussian; `first_order` is opacity * dL/dopacity, which fades as
            training converges.
        background: whether the background shows where a Gaussian is taken away. Released: False, which is exact on
            black alone.
        only_helpful: let an anchor that raises the loss count as if it changed nothing.
        clipped_share: share of the anchors, those with the largest amounts, clipped to the largest of the rest.
        centered: subtract the mean over the anchors.
    """

    loss: PixelLoss = "l1"
    estimate: Estimate = "exact"
    background: bool = True
    only_helpful: bool = True
    clipped_share: float = 0.1
    centered: bool = True

    def __post_init__(self) -> None:
        """Refuse a share that is none."""
        if not 0 <= self.clipped_share < 1:
            raise ValueError(f"contribution.clipped_share: expected 0 <= share < 1, got {self.clipped_share}")


@dataclass
class EvaluationConfig:
    """What `gsforge test` measures besides.

    Attributes:
        budgets: numbers of Gaussians that each object is decoded to as well, for the quality by budget.
        removed_anchors: anchors that are taken away whole, one at a time, to see how well the sum over their Gaussians
            stands for that; for the refinement stage. 0 leaves it out.
    """

    budgets: list[int] = field(default_factory=list)
    removed_anchors: int = 0

    def __post_init__(self) -> None:
        """Refuse numbers below those that mean something."""
        if min([1, *self.budgets]) < 1 or self.removed_anchors < 0:
            raise ValueError(
                "evaluation: expected budgets of at least 1 and removed_anchors of at least 0, got "
                f"{self.budgets} and {self.removed_anchors}"
            )


@dataclass
class LossWeights:
    """Weights of the loss terms; the defaults are those of the appearance stage (structure: structure 1, kl 0.01).

    Attributes:
        structure: octree cross-entropy minus the entropy of the target.
        kl: divergence of the latent posterior from a standard normal.
        l1: mean absolute error of colour.
        ssim: 1 - SSIM.
        lpips: LPIPS-VGG; needs the module's `vgg_weights`.
        volume: mean product of the three scales.
        opacity: 1 - mean opacity.
        sphere: centred and non-overlapping local expansions.
        contribution: error of the pixels, summed over colours, whose gradient goes to the density; the refinement stage
            alone has it (published: 1).
    """

    structure: float = 0.001
    kl: float = 1e-4
    l1: float = 1.0
    ssim: float = 0.2
    lpips: float = 0.2
    volume: float = 1.0
    opacity: float = 0.001
    sphere: float = 100.0
    contribution: float = 1.0
