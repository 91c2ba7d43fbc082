"""DeG flow training: from an image to the latent of an object, and with the VAE to its Gaussians."""

from typing import Any, ClassVar

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.nn.functional import mse_loss

from gsforge.core.flow import interpolate, logit_normal_times, velocity
from gsforge.core.gaussians import Gaussians
from gsforge.core.object_camera import CAMERA_NUMBERS, pinholes
from gsforge.core.random import SampleRandom, normal_like, random_of, uniform_like
from gsforge.core.reconstruction import BASELINE, GIVEN, RENDER, TRUTH, Reconstruction
from gsforge.methods.deg.evaluation import log_metrics
from gsforge.methods.deg.flow_config import FlowNetworkConfig, FlowSamplingConfig, FlowTrainingConfig
from gsforge.methods.deg.generator import Conditions, ObjectGenerator
from gsforge.methods.deg.transformer import FlowTransformer
from gsforge.methods.deg.views import Batch
from gsforge.metrics.generation import GenerationMetricsConfig, build_generation_metrics
from gsforge.metrics.image import image_metrics
from gsforge.nn.tokens import TokenExtractor
from gsforge.render import RenderSettings, rasterize

_TIME_BINS = (0.1, 0.3, 0.5, 0.7, 0.9)


class DeGFlow(ObjectGenerator):
    """Flow-matching transformer over ordered latents (DeG / TripoSplat, arXiv 2605.16355).

    It learns the velocity from noise to the latent of an object, and to the camera that an image of it was taken with,
    given that image. Objects are turned by quarters, so that the camera is always near the front.
    """

    def __init__(
        self,
        semantic_tokens: TokenExtractor,
        appearance_tokens: TokenExtractor,
        vae: str | None = None,
        network: FlowNetworkConfig = FlowNetworkConfig(),  # noqa: B008 (jsonargparse shows and overrides its fields)
        training: FlowTrainingConfig = FlowTrainingConfig(),  # noqa: B008
        sampling: FlowSamplingConfig = FlowSamplingConfig(),  # noqa: B008
        metrics: GenerationMetricsConfig = GenerationMetricsConfig(),  # noqa: B008
        render: RenderSettings = RenderSettings(mode="antialiased", eps2d=0.1),  # noqa: B008
        optimizer: OptimizerCallable = torch.optim.AdamW,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        """Build the transformer.

        Args:
            semantic_tokens: frozen extractor of the first kind of image tokens (DINOv3 in the paper).
            appearance_tokens: frozen extractor of the second kind (FLUX.2 VAE latents in the paper).
            vae: folder with the weights of the VAE, see `LatentDecoder`; without it latents are all that comes out.
            network: sizes.
            training: what a step draws and weighs.
            sampling: how objects are generated.
            metrics: networks of the metrics of a test.
            render: image formation of the VAE.
            optimizer: made from the parameters.
            lr_scheduler: made from the optimizer and stepped once each step.

        Raises:
            ValueError: if the VAE's latents have other channels.
            FileNotFoundError: if the VAE's weights are not there.
        """
        super().__init__(semantic_tokens, appearance_tokens, vae, network, training, sampling, render)
        self.optimizer, self.lr_scheduler = optimizer, lr_scheduler
        self.metrics_config = metrics
        self.set_metrics: dict[str, float] = {}
        self.unavailable_metrics: dict[str, str] = {}

    # --- training

    def on_fit_start(self) -> None:
        """Measure the latents, where they are to be normalised; a run that goes on knows them.

        Raises:
            ValueError: if the data cannot tell.
        """
        if not self.training_config.normalize_latents or self.latents_measured:
            return
        data: Any = getattr(self.trainer, "datamodule", None)
        if not hasattr(data, "latent_statistics"):
            raise ValueError(
                "training.normalize_latents: expected data that can tell `latent_statistics`, as "
                f"datamodules.latents.LatentsDataModule, got {type(data).__name__}"
            )
        mean, deviation = data.latent_statistics()
        self.latent_mean.copy_(mean)
        self.latent_deviation.copy_(deviation)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """One step.

        Args:
            batch: latent [B, M, C], camera [B, 5] and image [B, 3, S, S] over black, of B objects.
            batch_idx: not used; the step's number seeds its draws.

        Returns:
            Scalar: mean squared error of the latent's velocity, and of the camera's times its weight.
        """
        self._check_batch(batch)
        size = len(batch["latent"])
        random, each = random_of(batch, self.device), torch.empty(size, device=self.device)
        conditions = self._hidden(self.conditions(batch["image"]), uniform_like(each, random))
        times = logit_normal_times(normal_like(each, random), self.training_config.time_mean)
        terms = self._errors(batch, times, conditions, random)
        total = terms["latent"] + self.training_config.camera_weight * terms["camera"]
        self.log_dict({f"train/loss_{name}": value.detach() for name, value in terms.items()}, batch_size=size)
        self.log("train/loss", total.detach(), prog_bar=True, batch_size=size)
        return total

    def _errors(
        self, batch: Batch, times: Tensor, conditions: Conditions, random: SampleRandom | None
    ) -> dict[str, Tensor]:
        latent, camera = self._normalized(batch["latent"]), batch["camera"]
        noise, camera_noise = normal_like(latent, random), normal_like(camera, random)
        noisy = interpolate(latent, noise, times), interpolate(camera, camera_noise, times)
        predicted = self.predict_velocity(noisy, times, conditions)
        errors = {"latent": mse_loss(predicted.latent.to(latent.dtype), velocity(latent, noise))}
        errors["camera"] = errors["latent"].new_zeros(())
        if predicted.camera is not None:
            errors["camera"] = mse_loss(predicted.camera.to(camera.dtype), velocity(camera, camera_noise))
        return errors

    def _normalized(self, latent: Tensor) -> Tensor:
        return (latent - self.latent_mean) / self.latent_deviation

    def _hidden(self, conditions: Conditions, draws: Tensor) -> Conditions:
        """Zero conditions where the draw is below `condition_dropout`: zeros stand for no image."""
        shown = (draws >= self.training_config.condition_dropout).to(conditions[0])[:, None, None]
        return conditions[0] * shown, conditions[1] * shown

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Optimizer and step-wise schedule from the configuration."""
        optimizer = self.optimizer(self.network.parameters())
        if self.lr_scheduler is None:
            return optimizer
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": self.lr_scheduler(optimizer), "interval": "step"},
        }

    # --- what a step costs, for throughput and for `gsforge plan`

    _image_tokens: int | None = None

    def step_work(self, batch: Batch) -> dict[str, float]:
        """The work of a training step.

        Args:
            batch: as for training.

        Returns:
            tokens: of the joint sequences. flops: of the transformer's matrix products, forward and backward; frozen
            extractors, and blocks that are computed again, do not count.
        """
        if self._image_tokens is None:
            with torch.no_grad():
                self._image_tokens = self.semantic_tokens(batch["image"][:1]).shape[1]
        objects, tokens = batch["latent"].shape[:2]
        length = tokens + self._image_tokens + (self.network.camera_in is not None)
        products = _products(self.network, tokens, self._image_tokens, length)
        return {"tokens": objects * length, "flops": 6.0 * objects * products}

    example_options: ClassVar[dict[str, Any]] = {"vae": None}
    example_leaves_out: ClassVar[str] = "the VAE, which only validation asks"

    def example_step(self, size: int) -> Tensor:
        """A training step on objects that need no contents.

        Args:
            size: number of objects.

        Returns:
            The loss.
        """
        tokens, side = self.training_config.tokens, self.training_config.image_size
        batch = {
            "latent": torch.zeros(size, tokens, self.network.latent_out.out_features, device=self.device),
            "camera": torch.zeros(size, CAMERA_NUMBERS, device=self.device),
            "image": torch.zeros(size, 3, side, side, device=self.device),
        }
        return self.training_step(batch, 0)

    # --- evaluation

    def predict_step(self, batch: Batch, batch_idx: int) -> Reconstruction:
        """Generate objects from their images.

        Args:
            batch: as for training, and where there is a VAE the true objects: `views` [B, V, 3, S, S] over black, from
                `view_cameras` [B, V, 5].
            batch_idx: seeds the draws.

        Returns:
            Pictures, metrics, and Gaussians where there is a VAE.
        """
        self._check_batch(batch)
        # Random numbers of evaluation depend on the batch alone, never on how far training has come.
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []), torch.no_grad():
            torch.manual_seed(batch_idx)
            metrics = self._velocity_metrics(batch)
            images = {GIVEN: batch["image"][:, None]}
            sampled = self.sample(batch["image"])
            gaussians = None
            if self.vae is not None:
                gaussians = self.decode(sampled.latent)
                self._compare(batch, gaussians, images, metrics)
            if sampled.camera is not None:
                metrics["camera_error"] = (sampled.camera - batch["camera"]).norm(dim=-1)
            return Reconstruction(list(batch["key"]), gaussians, images, metrics)

    def on_test_start(self) -> None:
        """Load the networks of the metrics."""
        self.generation_metrics, self.unavailable_metrics = build_generation_metrics(self.metrics_config)
        self.generation_metrics.to(self.device)

    def on_test_epoch_end(self) -> None:
        """Measure the set as a whole."""
        self.set_metrics = self.generation_metrics.compute()

    def validation_step(self, batch: Batch, batch_idx: int) -> Any:
        """Generate and log the metrics; the `Reconstruction` goes to the callbacks."""
        return log_metrics(self, batch, self.predict_step(batch, batch_idx), "val")

    def test_step(self, batch: Batch, batch_idx: int) -> Any:
        """As in validation, and what networks say of the pictures, beside those of the true objects."""
        result = self.predict_step(batch, batch_idx)
        if RENDER in result.images:
            pictures = result.images[RENDER], result.images[TRUTH], batch["image"]
            result.metrics.update(self.generation_metrics.update(*pictures, counted=batch["position"] >= 0))
        return log_metrics(self, batch, result, "test")

    def _velocity_metrics(self, batch: Batch) -> dict[str, Tensor]:
        """Error of the latent's velocity at a few times, and its mean: what training lowers, without its noise."""
        latent, conditions = self._normalized(batch["latent"]), self.conditions(batch["image"])
        noise, camera_noise = torch.randn_like(latent), torch.randn_like(batch["camera"])
        errors = {}
        for time in _TIME_BINS:
            times = torch.full((len(latent),), time, device=self.device)
            noisy = interpolate(latent, noise, times), interpolate(batch["camera"], camera_noise, times)
            predicted = self.predict_velocity(noisy, times, conditions).latent
            errors[f"velocity_error_t{round(100 * time)}"] = (predicted - velocity(latent, noise)).square().mean((1, 2))
        return {"velocity_error": torch.stack(list(errors.values())).mean(0)} | errors

    def _compare(
        self, batch: Batch, gaussians: Gaussians, images: dict[str, Tensor], metrics: dict[str, Tensor]
    ) -> None:
        """Hold what was generated to views of the true objects.

        Beside it: what the VAE makes of the true latents, and, as baseline, what was generated for another object.
        """
        views, cameras = batch["views"], batch["view_cameras"]
        images[TRUTH] = views
        images[RENDER] = self._drawn(gaussians, cameras)
        images["true latent"] = self._drawn(self.decode(batch["latent"]), cameras)
        metrics |= _quality(images[RENDER], views, "")
        metrics |= _quality(images["true latent"], views, "_true_latent")
        if len(views) > 1:
            others = gaussians.map(lambda tensor: tensor.roll(1, 0))
            metrics |= _quality(self._drawn(others, cameras), views, BASELINE)

    def _drawn(self, gaussians: Gaussians, cameras: Tensor) -> Tensor:
        """[B, V, 3, S, S] objects seen from cameras [B, V, 5]."""
        size = self.training_config.image_size
        views = pinholes(cameras.flatten(0, 1), size).map(lambda tensor: tensor.unflatten(0, cameras.shape[:2]))
        return rasterize(gaussians, views, settings=self.render).rgb.clamp(0, 1)

    def _check_batch(self, batch: Batch) -> None:
        tokens, channels = batch["latent"].shape[1:]
        expected = self.training_config.tokens, self.network.latent_out.out_features
        if (tokens, channels) != expected:
            raise ValueError(
                f"latent: expected [B, {expected[0]}, {expected[1]}] (training.tokens, network.latent_channels), got "
                f"{list(batch['latent'].shape)}; set data.tokens and these alike"
            )
        side = self.training_config.image_size
        if batch["image"].shape[-2:] != (side, side):
            raise ValueError(
                f"image: expected {side} x {side} px (training.image_size), got {list(batch['image'].shape)}; set "
                "data.condition_size and this alike"
            )


def _quality(images: Tensor, targets: Tensor, suffix: str) -> dict[str, Tensor]:
    values = image_metrics(images, targets)
    return {name + suffix: values[name] for name in values if not name.endswith(BASELINE)}


def _products(network: FlowTransformer, latent: int, image: int, length: int) -> int:
    """Multiplications of the transformer for one object: of matrices with tokens, and of tokens with each other."""
    stacks = ((network.latent_blocks, latent), (network.image_blocks, image), (network.blocks, length))
    inside = sum(_matrices(blocks) for blocks, _ in stacks)
    total = sum(_matrices(blocks) * tokens for blocks, tokens in stacks)
    total += sum(2 * len(blocks) * network.latent_in.out_features * tokens**2 for blocks, tokens in stacks)
    at_image = _matrices(network.semantic_in) + _matrices(network.appearance_in)
    at_latent = _matrices(network.latent_in) + _matrices(network.latent_out)
    once = _matrices(network) - inside - at_image - at_latent  # the time, its modulation, and the camera
    return total + at_image * image + at_latent * latent + once


def _matrices(module: torch.nn.Module) -> int:
    return sum(part.weight.numel() for part in module.modules() if isinstance(part, torch.nn.Linear))
