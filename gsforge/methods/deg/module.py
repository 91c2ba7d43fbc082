"""DeG VAE training, in three stages: structure, appearance through the renderer, and a density that learns from it."""

from random import Random
from typing import Any, ClassVar

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from gsforge.core.gaussians import Gaussians
from gsforge.core.random import SampleRandom, random_of, uniform_like
from gsforge.core.reconstruction import AT, BASELINE, RENDER, TRUTH, Reconstruction
from gsforge.losses.image import PerceptualLoss, l1, ssim
from gsforge.methods.deg.config import (
    ContributionConfig,
    EvaluationConfig,
    LossWeights,
    NetworkConfig,
    SamplingConfig,
    Stage,
)
from gsforge.methods.deg.contribution import contribution_tokens, removal_metrics, render_with_contribution
from gsforge.methods.deg.encoder import sample_posterior
from gsforge.methods.deg.evaluation import density_picture, log_metrics, structure_metrics
from gsforge.methods.deg.losses import kl_divergence, sphere_loss, transparency, volume
from gsforge.methods.deg.vae import GaussianVAE
from gsforge.methods.deg.views import Batch, Views, views_of
from gsforge.metrics.image import image_metrics
from gsforge.nn.features import FeatureExtractor
from gsforge.render import RenderSettings


class DeGVAE(GaussianVAE):
    """Gaussian VAE with a learned density (DeG / TripoSplat, arXiv 2605.16355).

    Stage `structure` trains the encoder and the octree density on surface points. Stage `appearance` adds the second
    feature set and the attribute decoder and trains everything through the renderer; it starts from a structure
    checkpoint (`init_from`). In stage `refinement`, from an appearance checkpoint, the density also learns to put
    Gaussians where they lower the rendering loss.
    """

    def __init__(
        self,
        semantic_features: FeatureExtractor,
        appearance_features: FeatureExtractor | None = None,
        stage: Stage = "structure",
        network: NetworkConfig = NetworkConfig(),  # noqa: B008 (jsonargparse shows and overrides its fields)
        sampling: SamplingConfig = SamplingConfig(),  # noqa: B008
        loss: LossWeights = LossWeights(),  # noqa: B008
        contribution: ContributionConfig = ContributionConfig(),  # noqa: B008
        evaluation: EvaluationConfig = EvaluationConfig(),  # noqa: B008
        render: RenderSettings = RenderSettings(mode="antialiased", eps2d=0.1),  # noqa: B008
        vgg_weights: str | None = None,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        lr_scheduler: LRSchedulerCallable | None = None,
        seed: int = 0,
    ) -> None:
        """Build the networks of the stage.

        Args:
            semantic_features: frozen extractor of the first feature set (DINOv3 in the paper).
            appearance_features: frozen extractor of the second feature set (FLUX.2 VAE latents in the paper); the
                structure stage does without.
            stage: `structure`, `appearance` or `refinement`.
            network: sizes of the networks.
            sampling: numbers of points, tokens, anchors and views in a step.
            loss: weights of the loss terms.
            contribution: how the rendering loss reaches the density; for the refinement stage.
            evaluation: what a test measures besides.
            render: image formation; the paper's is antialiased with a 0.1 px^2 kernel.
            vgg_weights: local file with the VGG-16 weights of LPIPS; read if `loss.lpips` > 0, except in
                the structure stage.
            optimizer: made from the parameters.
            lr_scheduler: made from the optimizer and stepped once each step.
            seed: of the draws that all ranks share (numbers of tokens and anchors).

        Raises:
            ValueError: for a combination of settings that cannot train.
        """
        super().__init__(semantic_features, appearance_features, stage, network, sampling, render)
        self.loss, self.contribution, self.evaluation = loss, contribution, evaluation
        self.optimizer, self.lr_scheduler, self.seed = optimizer, lr_scheduler, seed
        self.perceptual = PerceptualLoss(vgg_weights) if self.decoder is not None and loss.lpips > 0 else None

    # --- training

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """One step of the stage.

        Args:
            batch: points [B, Ps, 3], and images, alphas, depths and cameras of V views, of B objects in the world.
            batch_idx: not used; the step's number seeds its draws.

        Returns:
            Scalar, the loss terms times their weights.
        """
        self._check_batch(batch)
        mean, log_variance = self.encode(batch, self._tokens_of_step())
        random = random_of(batch, self.device)
        z_BMZ = sample_posterior(mean, log_variance, random)
        candidates = batch["points"][:, : self.sampling.context_points]
        chosen = uniform_like(candidates[..., :1], random).topk(self.sampling.target_points, dim=1).indices
        targets = candidates.gather(1, chosen.expand(-1, -1, 3))
        terms = {
            "structure": self.density.structural_loss(targets + 0.5, z_BMZ).mean(),
            "kl": kl_divergence(mean, log_variance),
        }
        if self.decoder is not None:
            terms |= self._appearance_terms(batch, z_BMZ, random)
        total = torch.stack([getattr(self.loss, name) * value for name, value in terms.items()]).sum()
        size = len(batch["points"])
        self.log_dict({f"train/loss_{name}": value.detach() for name, value in terms.items()}, batch_size=size)
        self.log("train/loss", total.detach(), prog_bar=True, batch_size=size)
        return total

    def _appearance_terms(self, batch: Batch, z_BMZ: Tensor, random: SampleRandom | None) -> dict[str, Tensor]:
        drawn, (gaussians, offsets) = self.decode(z_BMZ, self._anchors_of_step(), random)
        views = views_of(batch, self._held_back, random_backgrounds=True)
        terms = {
            "volume": volume(gaussians),
            "opacity": transparency(gaussians),
            "sphere": sphere_loss(drawn.points, offsets),
        }
        if self.stage == "refinement":
            tokens = contribution_tokens(drawn.log_probability, self.network.gaussians_per_anchor, self.contribution)
            rendered, loss = render_with_contribution(gaussians, views, tokens, self.contribution, self.render)
            terms["contribution"] = loss.mean()
        else:
            rendered = self.draw(gaussians, views)
        return terms | self._image_terms(rendered.flatten(0, 1), views.target.flatten(0, 1))

    def _image_terms(self, rendered: Tensor, target: Tensor) -> dict[str, Tensor]:
        terms = {"l1": l1(rendered, target), "ssim": 1 - ssim(rendered, target).mean()}
        if self.perceptual is not None:
            terms["lpips"] = self.perceptual(rendered, target).mean()
        return terms

    # Both are pure functions of (seed, step), so that all ranks and attempts agree.

    def _tokens_of_step(self) -> int:
        return Random(f"{self.seed}/{self.global_step}").choice(self.sampling.tokens)

    def _anchors_of_step(self) -> int:
        most, fewest = self.sampling.anchors, self.sampling.fewest_anchors
        return most if fewest is None else Random(f"{self.seed}/{self.global_step}/P").randint(fewest, most)

    @property
    def _held_back(self) -> slice:
        """Views that the encoder does not see."""
        return slice(self.sampling.feature_views, None)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Optimizer and step-wise schedule from the configuration.

        There are two groups of parameters, the encoder and the rest, so that a schedule can give each its own rate:
        `max_lr: [0.0003, 0.003]`. A latent that moves slowly is easier to read.
        """
        encoder = list(self.encoder.parameters())
        networks = [self.density] if self.decoder is None else [self.density, self.decoder]
        rest = [parameter for network in networks for parameter in network.parameters()]
        optimizer = self.optimizer([{"params": encoder}, {"params": rest}])
        if self.lr_scheduler is None:
            return optimizer
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": self.lr_scheduler(optimizer), "interval": "step"},
        }

    # --- what a step costs, for throughput and for `gsforge plan`

    def step_work(self, batch: Batch) -> dict[str, float]:
        """The work of a training step.

        Args:
            batch: as for training.

        Returns:
            points: on surfaces. tokens: of the latents, whose number changes from step to step.
        """
        objects, points = batch["points"].shape[:2]
        return {"points": objects * points, "tokens": objects * self._tokens_of_step()}

    example_options: ClassVar[dict[str, Any]] = {"loss.lpips": 0.0}  # its network has weights to read
    example_leaves_out: ClassVar[str] = "rendering, and the losses between images"

    def example_step(self, size: int) -> Tensor:
        """The networks' part of a training step with the most tokens and anchors, on objects that need no contents.

        Args:
            size: number of objects.

        Returns:
            Scalar whose gradient reaches all that the step trains.
        """
        sets = self.feature_sets(self._example_batch(size))
        points = sets[0][0]
        # The first points in place of the farthest, whose search is thousands of small operations.
        mean, log_variance = self.encoder(points[:, : max(self.sampling.tokens)], *sets)
        z_BMZ = sample_posterior(mean, log_variance)
        structure = self.density.structural_loss(points[:, : self.sampling.target_points], z_BMZ).mean()
        terms = [structure, kl_divergence(mean, log_variance)]
        if self.decoder is not None:
            drawn, (gaussians, offsets) = self.decode(z_BMZ, self.sampling.anchors)
            terms += [volume(gaussians), transparency(gaussians), sphere_loss(drawn.points, offsets)]
            terms += [values.mean() for values in (gaussians.quats, gaussians.sh, drawn.log_probability)]
        return torch.stack(terms).sum()

    def _example_batch(self, size: int) -> Batch:
        extractors = (self.semantic_features, self.appearance_features)
        side = max(getattr(extractor, "image_size", 64) for extractor in extractors)
        views = (size, self.sampling.feature_views)
        return {
            "points": torch.zeros(size, 2 * self.sampling.context_points, 3, device=self.device),
            "images": torch.zeros(*views, 3, side, side, device=self.device),
            "alphas": torch.ones(*views, 1, side, side, device=self.device),
            "depths": torch.ones(*views, 1, side, side, device=self.device),
            "world_to_camera": torch.eye(4, device=self.device).expand(*views, 4, 4),
            "intrinsics": torch.eye(3, device=self.device).expand(*views, 3, 3),
        }

    # --- evaluation

    def predict_step(self, batch: Batch, batch_idx: int) -> Reconstruction:
        """Reconstruct objects: Gaussians and their renders beside the ground truth of views the encoder did not see.

        Args:
            batch: as for training.
            batch_idx: seeds the draws.

        Returns:
            Pictures of the views held back, metrics, and Gaussians where the stage has them.
        """
        return self._reconstruct(batch, batch_idx)

    def validation_step(self, batch: Batch, batch_idx: int) -> Any:
        """Reconstruct and log the metrics; the `Reconstruction` goes to the callbacks."""
        return log_metrics(self, batch, self._reconstruct(batch, batch_idx), "val")

    def test_step(self, batch: Batch, batch_idx: int) -> Any:
        """As in validation, and what `evaluation` asks for."""
        return log_metrics(self, batch, self._reconstruct(batch, batch_idx, thorough=True), "test")

    def _reconstruct(self, batch: Batch, batch_idx: int, thorough: bool = False) -> Reconstruction:
        self._check_batch(batch)
        # Random numbers of evaluation depend on the batch alone, never on how far training has come.
        # This device alone: by default every GPU of the machine would be initialised by every rank.
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []), torch.no_grad():
            torch.manual_seed(batch_idx)
            # Posterior samples, not means: the networks never saw a mean during training.
            z_BMZ = sample_posterior(*self.encode(batch, max(self.sampling.tokens)))
            views = views_of(batch, self._held_back)
            drawn = self.density.sample(z_BMZ, batch["points"].shape[1])
            metrics = structure_metrics(drawn.points - 0.5, batch["points"])
            images = {TRUTH: views.target}
            gaussians = None
            if self.decoder is not None:
                _, (gaussians, _) = self.decode(z_BMZ, self.anchors_for(self.budget))
                images[RENDER] = self.draw(gaussians, views).clamp(0, 1)
                metrics |= self._quality(images[RENDER], views.target)
                if thorough:
                    self._measure_budgets(z_BMZ, views, images, metrics)
                    metrics |= self._removal_metrics(gaussians, views)
            images["density"] = density_picture(drawn, views.cameras)
            return Reconstruction(list(batch["key"]), gaussians, images, metrics)

    def _measure_budgets(
        self, z_BMZ: Tensor, views: Views, images: dict[str, Tensor], metrics: dict[str, Tensor]
    ) -> None:
        """Add a picture and metrics for each of the budgets."""
        for budget in self.evaluation.budgets:
            _, (gaussians, _) = self.decode(z_BMZ, self.anchors_for(budget))
            rendered = self.draw(gaussians, views).clamp(0, 1)
            images[f"{budget} Gaussians"] = rendered
            quality = self._quality(rendered, views.target)
            metrics |= {f"{name}{AT}{budget}": value for name, value in quality.items() if BASELINE not in name}

    def _removal_metrics(self, gaussians: Gaussians, views: Views) -> dict[str, Tensor]:
        if self.stage != "refinement" or not self.evaluation.removed_anchors:
            return {}
        per_anchor = self.network.gaussians_per_anchor
        removed = torch.randperm(gaussians.count // per_anchor)[: self.evaluation.removed_anchors]
        return removal_metrics(gaussians, views, removed, per_anchor, self.contribution, self.render)

    def _quality(self, rendered: Tensor, target: Tensor) -> dict[str, Tensor]:
        metrics = image_metrics(rendered, target)
        if self.perceptual is not None:
            with torch.autocast(self.device.type, enabled=False):
                metrics["lpips"] = self.perceptual(rendered, target).mean(1)
        return metrics

    def _check_batch(self, batch: Batch) -> None:
        points, views = batch["points"].shape[1], batch["images"].shape[1]
        if points < 2 * self.sampling.context_points:
            raise ValueError(
                f"two feature sets of sampling.context_points {self.sampling.context_points} need data.points >= "
                f"{2 * self.sampling.context_points}, got {points}"
            )
        if views <= self.sampling.feature_views:
            raise ValueError(
                f"sampling.feature_views {self.sampling.feature_views} feed the encoder and at least one more view is "
                f"compared, but a sample has {views} views; raise data.views"
            )
