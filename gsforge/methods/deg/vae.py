"""The networks of the DeG VAE, and what they compute whatever the stage of training."""

from collections.abc import Sequence
from pathlib import Path

import torch
from lightning import LightningModule
from torch import Tensor
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

from gsforge.core.gaussians import Gaussians
from gsforge.core.random import SampleRandom
from gsforge.core.sampling import farthest_points
from gsforge.core.vecseq import order_tokens, sobol_anchors
from gsforge.methods.deg.config import NetworkConfig, SamplingConfig, Stage
from gsforge.methods.deg.decoder import AttributeDecoder, Expansion
from gsforge.methods.deg.density import DensitySamples, OctreeDensity
from gsforge.methods.deg.encoder import PointFeatures, SetEncoder
from gsforge.methods.deg.latents import quarter_turned
from gsforge.methods.deg.released import (
    DECODER,
    DENSITY,
    ENCODER,
    RELEASED_DECODER,
    RELEASED_ENCODER,
    load_released,
    to_released,
)
from gsforge.methods.deg.views import Batch, Views, cameras_of
from gsforge.nn.features import FeatureExtractor, project_features
from gsforge.render import RenderSettings, rasterize


class GaussianVAE(LightningModule):
    """Objects to latents, latents to Gaussians; `DeGVAE` trains it."""

    new_in_stage = ("encoder.appearance", "decoder.")

    def __init__(
        self,
        semantic_features: FeatureExtractor,
        appearance_features: FeatureExtractor | None,
        stage: Stage,
        network: NetworkConfig,
        sampling: SamplingConfig,
        render: RenderSettings,
    ) -> None:
        """Build the networks of the stage.

        Args:
            semantic_features: frozen extractor of the first feature set.
            appearance_features: frozen extractor of the second feature set; the structure stage does without.
            stage: `structure`, `appearance` or `refinement`.
            network: sizes of the networks.
            sampling: numbers of points, tokens, anchors and views.
            render: image formation.

        Raises:
            ValueError: for a combination of settings that cannot work.
        """
        super().__init__()
        self.stage, self.network, self.sampling, self.render = stage, network, sampling, render
        self.budget: int | None = None
        self._check(appearance_features)
        self.semantic_features = semantic_features
        self.appearance_features = None if stage == "structure" else appearance_features
        self.encoder = SetEncoder(
            network,
            semantic_features.channels,
            self.appearance_features.channels if self.appearance_features is not None else None,
        )
        self.density = OctreeDensity(network)
        self.decoder = None if stage == "structure" else AttributeDecoder(network)

    def configure_model(self) -> None:
        """Shard the networks over the ranks where the strategy does (FSDP2); Lightning may call it twice."""
        if self.device_mesh is None or isinstance(self.density, FSDPModule):
            return
        networks: list[SetEncoder | OctreeDensity | AttributeDecoder] = [self.encoder, self.density]
        if self.decoder is not None:
            networks.append(self.decoder)
        for network in networks:
            for unit in (*network.units, network):
                fully_shard(unit, mesh=self.device_mesh["data_parallel"])
        for method in ("structural_loss", "sample"):
            register_fsdp_forward_method(self.density, method)

    def _check(self, appearance_features: FeatureExtractor | None) -> None:
        sampling = self.sampling
        if max(sampling.tokens) > sampling.context_points:
            raise ValueError(
                f"sampling.tokens: {max(sampling.tokens)} query points cannot be chosen from "
                f"sampling.context_points {sampling.context_points}; lower one or raise the other"
            )
        if sampling.target_points > sampling.context_points:
            raise ValueError(
                f"sampling.target_points {sampling.target_points} is a subset of sampling.context_points "
                f"{sampling.context_points} and cannot be larger"
            )
        if self.stage == "structure":
            return
        if (fewest := sampling.fewest_anchors or sampling.anchors) < 2:
            raise ValueError(f"sampling.anchors: the sphere loss compares anchors, so 2 or more, got {fewest}")
        if appearance_features is None:
            raise ValueError(f"stage {self.stage!r} needs appearance_features, the extractor of the second feature set")

    def encode(self, batch: Batch, tokens: int) -> tuple[Tensor, Tensor]:
        """Posterior of the latent of every object.

        Args:
            batch: points [B, 2 S, 3] in the world, of which each feature set takes half, and the views that feed it.
            tokens: number M of latent tokens.

        Returns:
            mean, log_variance: [B, M, latent_channels].
        """
        sets = self.feature_sets(batch)
        return self.encoder(farthest_points(sets[0][0], tokens), *sets)

    def feature_sets(self, batch: Batch) -> list[PointFeatures]:
        """What the encoder reads of the objects.

        Args:
            batch: as for `encode`.

        Returns:
            Points [B, S, 3] in [0, 1] and their features [B, S, channels], of the one or two kinds that the stage has.
        """
        count = self.sampling.context_points
        extractors = [self.semantic_features, self.appearance_features]
        return [
            self._feature_set(batch, slice(number * count, (number + 1) * count), extractor)
            for number, extractor in enumerate(extractors)
            if extractor is not None
        ]

    @torch.no_grad()
    def ordered_latents(
        self, batch: Batch, tokens: Sequence[int], quarter_turns: Sequence[int]
    ) -> dict[tuple[int, int], tuple[Tensor, Tensor]]:
        """Posteriors of turned objects, their tokens in the order of the anchors (VecSeq): what the flow model learns.

        Args:
            batch: as for training.
            tokens: numbers M of latent tokens.
            quarter_turns: numbers of quarter turns of the objects about the vertical axis, from x to y.

        Returns:
            (M, turns) -> mean and log-variance, each [B, M, latent_channels].
        """
        sets = self.feature_sets(batch)
        queries, found = farthest_points(sets[0][0], max(tokens)), {}
        for turns in quarter_turns:
            turned = [(quarter_turned(points, turns), features) for points, features in sets]
            for count in tokens:
                places = quarter_turned(queries[:, :count], turns)  # the farthest points of a smaller number come first
                posterior = self.encoder(places, *turned)
                # The auction's scores must not be rounded.
                with torch.autocast(self.device.type, enabled=False):
                    order = order_tokens(places, sobol_anchors(count).to(places.device))[..., None]
                found[count, turns] = tuple(part.gather(1, order.expand_as(part)) for part in posterior)
        return found

    def released_files(self) -> dict[str, dict[str, Tensor]]:
        """The weights in the layout of the released TripoSplat.

        Returns:
            File name -> name -> tensor, of the encoder, and where the stage has one of the decoder.
        """
        files = {RELEASED_ENCODER: to_released(self.encoder, ENCODER)}
        if self.decoder is not None:
            files[RELEASED_DECODER] = to_released(self.density, DENSITY) | to_released(self.decoder, DECODER)
        return files

    def load_released_files(self, folder: Path) -> None:
        """Load the weights of the released TripoSplat.

        Args:
            folder: with the files that `released_files` names.

        Raises:
            FileNotFoundError: if one is not there.
            ValueError: if one is damaged, or `network` has other sizes.
        """
        load_released([(self.encoder, ENCODER)], folder / RELEASED_ENCODER)
        if self.decoder is not None:
            load_released([(self.density, DENSITY), (self.decoder, DECODER)], folder / RELEASED_DECODER)

    def decode(
        self, z_BMZ: Tensor, anchors: int, random: SampleRandom | None = None
    ) -> tuple[DensitySamples, Expansion]:
        """Draw anchors from the density and decode them.

        Args:
            z_BMZ: [B, M, latent_channels].
            anchors: budget P; P K Gaussians come out.
            random: streams of the objects; None for the global generators.

        Returns:
            The anchors, whose log-probabilities carry a gradient in the refinement stage, and their Gaussians.

        Raises:
            RuntimeError: in the structure stage, which has no decoder.
        """
        if self.decoder is None:
            raise RuntimeError("stage 'structure' has no attribute decoder: decode with an 'appearance' checkpoint")
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.stage == "refinement"):
            drawn = self.density.sample(z_BMZ, anchors, random)
        return drawn, self.decoder(drawn.points, z_BMZ)

    def _feature_set(self, batch: Batch, part: slice, extractor: FeatureExtractor) -> PointFeatures:
        views = slice(0, self.sampling.feature_views)
        points = batch["points"][:, part]
        images = batch["images"][:, views] * batch["alphas"][:, views]
        maps = extractor(images.flatten(0, 1)).unflatten(0, images.shape[:2])
        depths = batch["depths"][:, views] if self.sampling.check_visibility else None
        return points + 0.5, project_features(maps, cameras_of(batch, views), points, depths)

    def set_budget(self, gaussians: int) -> None:
        """Decode to another number of Gaussians than `sampling.anchors` gives, from the next evaluation on.

        Args:
            gaussians: about how many; each anchor has K.

        Raises:
            ValueError: for less than one anchor.
        """
        self.anchors_for(gaussians)
        self.budget = gaussians

    def anchors_for(self, gaussians: int | None) -> int:
        """Anchors that give about so many Gaussians.

        Args:
            gaussians: how many; None for those of `sampling.anchors`.

        Returns:
            Number of anchors P.

        Raises:
            ValueError: for less than one anchor.
        """
        per_anchor = self.network.gaussians_per_anchor
        if gaussians is None:
            return self.sampling.anchors
        if gaussians < per_anchor:
            raise ValueError(f"a budget of {gaussians} Gaussians is less than the {per_anchor} of one anchor")
        return round(gaussians / per_anchor)

    def draw(self, gaussians: Gaussians, views: Views) -> Tensor:
        """Render.

        Args:
            gaussians: batch shape [B].
            views: V for each object.

        Returns:
            [B, V, 3, H, W], not clamped.
        """
        return rasterize(gaussians, views.cameras, backgrounds=views.backgrounds, settings=self.render).rgb
