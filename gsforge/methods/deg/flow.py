"""DeG flow training: from an image to the latent of an object, and with the VAE to its Gaussians."""

import math
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.nn.functional import mse_loss

from gsforge.core.cameras import cameras_around, turntable
from gsforge.core.flow import guided, integrate, interpolate, logit_normal_times, sampling_times, velocity
from gsforge.core.gaussians import Gaussians
from gsforge.core.object_camera import CAMERA_NUMBERS, pinholes
from gsforge.core.object_crop import crop_to_object, crops_to_objects
from gsforge.core.reconstruction import BASELINE, Reconstruction
from gsforge.core.vecseq import sobol_anchors
from gsforge.methods.deg.evaluation import log_metrics
from gsforge.methods.deg.flow_config import FlowNetworkConfig, FlowSamplingConfig, FlowTrainingConfig
from gsforge.methods.deg.latent_decoder import LatentDecoder
from gsforge.methods.deg.released import RELEASED_TRANSFORMER, TRANSFORMER, load_released, to_released
from gsforge.methods.deg.transformer import FlowTransformer, Prediction
from gsforge.methods.deg.views import Batch
from gsforge.metrics.generation import GenerationMetricsConfig, build_generation_metrics
from gsforge.metrics.image import image_metrics
from gsforge.nn.tokens import TokenExtractor
from gsforge.render import RenderSettings, rasterize

Conditions = tuple[Tensor, Tensor]

_TIME_BINS = (0.1, 0.3, 0.5, 0.7, 0.9)
_VIEWS, _RADIUS, _FOV = 4, 2.0, math.radians(40)  # pictures of a generated object from all around
_FRONT = (1.0, 0.0, 0.35, 0.5, 0.7)  # a camera, where none is predicted
_FAINT = 0.05  # alpha below which a pixel does not count as the object


class DeGFlow(LightningModule):
    """Flow-matching transformer over ordered latents (DeG / TripoSplat, arXiv 2605.16355).

    It learns the velocity from noise to the latent of an object, and to the camera that an image of it was taken with,
    given that image. Objects are turned by quarters, so that the camera is always near the front.
    """

    anchors: Tensor

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
        super().__init__()
        self.training_config, self.sampling, self.render = training, sampling, render
        self.optimizer, self.lr_scheduler = optimizer, lr_scheduler
        self.budget: int | None = None
        self.metrics_config = metrics
        self.set_metrics: dict[str, float] = {}
        self.unavailable_metrics: dict[str, str] = {}
        self.semantic_tokens, self.appearance_tokens = semantic_tokens, appearance_tokens
        self.network = FlowTransformer(network, semantic_tokens.channels, appearance_tokens.channels)
        self.register_buffer("anchors", sobol_anchors(training.tokens), persistent=False)
        self.vae = LatentDecoder(Path(vae)) if vae is not None else None
        if self.vae is not None and self.vae.config.latent_channels != network.latent_channels:
            raise ValueError(
                f"network.latent_channels is {network.latent_channels}, but the VAE in {vae} has "
                f"{self.vae.config.latent_channels}"
            )

    # --- training

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
        conditions = self._hidden(self._conditions(batch["image"]), torch.rand(size, device=self.device))
        times = logit_normal_times(size, self.training_config.time_mean, self.device)
        terms = self._errors(batch, times, conditions)
        total = terms["latent"] + self.training_config.camera_weight * terms["camera"]
        self.log_dict({f"train/loss_{name}": value.detach() for name, value in terms.items()}, batch_size=size)
        self.log("train/loss", total.detach(), prog_bar=True, batch_size=size)
        return total

    def _errors(self, batch: Batch, times: Tensor, conditions: Conditions) -> dict[str, Tensor]:
        latent, camera = batch["latent"], batch["camera"]
        noise, camera_noise = torch.randn_like(latent), torch.randn_like(camera)
        noisy = interpolate(latent, noise, times), interpolate(camera, camera_noise, times)
        predicted = self._predict(noisy, times, conditions)
        errors = {"latent": mse_loss(predicted.latent.to(latent.dtype), velocity(latent, noise))}
        errors["camera"] = errors["latent"].new_zeros(())
        if predicted.camera is not None:
            errors["camera"] = mse_loss(predicted.camera.to(camera.dtype), velocity(camera, camera_noise))
        return errors

    def _predict(self, state: tuple[Tensor, ...], times: Tensor, conditions: Conditions) -> Prediction:
        latent, camera = state
        return self.network(latent, camera, times, self.anchors, *conditions)

    def _conditions(self, images: Tensor) -> Conditions:
        semantic, appearance = self.semantic_tokens(images), self.appearance_tokens(images)
        if semantic.shape[1] != appearance.shape[1]:
            raise ValueError(
                f"semantic_tokens give {semantic.shape[1]} tokens of an image and appearance_tokens "
                f"{appearance.shape[1]}: choose sizes that give as many"
            )
        return semantic, appearance

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

    # --- weights

    def released_files(self) -> dict[str, dict[str, Tensor]]:
        """The weights in the layout of the released TripoSplat.

        Returns:
            File name -> name -> tensor.
        """
        return {RELEASED_TRANSFORMER: to_released(self.network, TRANSFORMER)}

    def load_released_files(self, folder: Path) -> None:
        """Load the weights of the released TripoSplat.

        Args:
            folder: with the file that `released_files` names.

        Raises:
            FileNotFoundError: if it is not there.
            ValueError: if it is damaged, or `network` has other sizes.
        """
        load_released([(self.network, TRANSFORMER)], folder / RELEASED_TRANSFORMER)

    # --- generation

    @torch.no_grad()
    def sample(self, images: Tensor) -> Prediction:
        """Generate latents, and the cameras of the images.

        Args:
            images: [B, 3, S, S] objects over black.

        Returns:
            latent [B, M, latent_channels] and camera [B, 5], or None without a camera token.
        """
        size = len(images)
        conditions = self._conditions(images)
        nothing = torch.zeros_like(conditions[0]), torch.zeros_like(conditions[1])
        tokens, channels = self.training_config.tokens, self.network.latent_out.out_features
        noise = torch.randn(size, tokens, channels, device=images.device)
        camera = torch.randn(size, CAMERA_NUMBERS, device=images.device)

        def predict(state: tuple[Tensor, ...], time: float) -> tuple[Tensor, ...]:
            times = torch.full((size,), time, device=images.device)
            with_image = self._filled(self._predict(state, times, conditions))
            if self.sampling.guidance == 1:
                return with_image
            without = self._filled(self._predict(state, times, nothing))
            return tuple(guided(c, u, self.sampling.guidance) for c, u in zip(with_image, without, strict=True))

        times = sampling_times(self.sampling.steps, self.sampling.shift).tolist()
        latent, camera = integrate(predict, (noise, camera), times, self.sampling.solver)
        return Prediction(latent, camera if self.network.camera_out is not None else None)

    @staticmethod
    def _filled(predicted: Prediction) -> tuple[Tensor, Tensor]:
        """Velocities in float32; that of a camera which is not predicted is zero."""
        latent = predicted.latent.float()
        camera = latent.new_zeros(len(latent), CAMERA_NUMBERS) if predicted.camera is None else predicted.camera.float()
        return latent, camera

    def set_budget(self, gaussians: int) -> None:
        """Decode to another number of Gaussians than `sampling.anchors` gives, from now on.

        Args:
            gaussians: about how many; each anchor has K.

        Raises:
            ValueError: for less than one anchor.
        """
        per_anchor = self.vae.config.gaussians_per_anchor if self.vae is not None else 1
        if gaussians < per_anchor:
            raise ValueError(f"a budget of {gaussians} Gaussians is less than the {per_anchor} of one anchor")
        self.budget = gaussians

    def decode(self, latent: Tensor) -> Gaussians:
        """Turn latents into Gaussians.

        Args:
            latent: [B, M, latent_channels].

        Returns:
            Gaussians of batch shape [B].

        Raises:
            ValueError: without a VAE.
        """
        if self.vae is None:
            raise ValueError(
                "vae: Gaussians need the weights of the VAE; `gsforge export RUN --weights FOLDER` writes them"
            )
        anchors = self.sampling.anchors
        if self.budget is not None:
            anchors = round(self.budget / self.vae.config.gaussians_per_anchor)
        return self.vae(latent, anchors)

    @torch.no_grad()
    def generate(self, picture: Tensor) -> tuple[Gaussians, Tensor]:
        """Generate the object that a picture shows.

        Args:
            picture: [4, H, W] straight sRGB and alpha in [0, 1], of one object.

        Returns:
            gaussians: one scene; turned such that the picture is taken from near the x axis.
            seen: [2, 3, S, S] the picture as the model saw it, and the object seen from there, or from the front where
                the model knows no cameras.

        Raises:
            ValueError: without a VAE.
        """
        image = crop_to_object(picture, self.training_config.image_size)[None]
        sampled = self.sample(image)
        gaussians = self.decode(sampled.latent)
        camera = sampled.camera if sampled.camera is not None else image.new_tensor([_FRONT])
        return gaussians[0], torch.cat([image, self._seen(gaussians, camera, image.shape[-1])])

    # --- evaluation

    def predict_step(self, batch: Batch, batch_idx: int) -> Reconstruction:
        """Generate objects from their images.

        Args:
            batch: as for training.
            batch_idx: seeds the draws.

        Returns:
            Pictures, metrics, and Gaussians where there is a VAE.
        """
        self._check_batch(batch)
        # Random numbers of evaluation depend on the batch alone, never on how far training has come.
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []), torch.no_grad():
            torch.manual_seed(batch_idx)
            metrics = self._velocity_metrics(batch)
            images = {"image": batch["image"][:, None]}
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
        """As in validation, and what networks say of the pictures, beside those of the true latents."""
        result = self.predict_step(batch, batch_idx)
        if "generated" in result.images:
            pictures = result.images["generated"], result.images["true latent"], batch["image"]
            result.metrics.update(self.generation_metrics.update(*pictures, counted=batch["position"] >= 0))
        return log_metrics(self, batch, result, "test")

    def _velocity_metrics(self, batch: Batch) -> dict[str, Tensor]:
        """Error of the latent's velocity at a few times, and its mean: what training lowers, without its noise."""
        latent, conditions = batch["latent"], self._conditions(batch["image"])
        noise, camera_noise = torch.randn_like(latent), torch.randn_like(batch["camera"])
        errors = {}
        for time in _TIME_BINS:
            times = torch.full((len(latent),), time, device=self.device)
            noisy = interpolate(latent, noise, times), interpolate(batch["camera"], camera_noise, times)
            predicted = self._predict(noisy, times, conditions).latent
            errors[f"velocity_error_t{round(100 * time)}"] = (predicted - velocity(latent, noise)).square().mean((1, 2))
        return {"velocity_error": torch.stack(list(errors.values())).mean(0)} | errors

    def _compare(
        self, batch: Batch, gaussians: Gaussians, images: dict[str, Tensor], metrics: dict[str, Tensor]
    ) -> None:
        """Draw what was generated and what the true latents give; hold the former, seen as in the image, to it."""
        image = batch["image"]
        camera, size = batch["camera"], image.shape[-1]
        true_gaussians = self.decode(batch["latent"])
        generated, true = (self._seen(one, camera, size) for one in (gaussians, true_gaussians))
        images["generated"] = torch.cat([generated[:, None], self._around(gaussians, size)], 1)
        images["true latent"] = torch.cat([true[:, None], self._around(true_gaussians, size)], 1)
        for suffix, target in (("", image), (BASELINE, image.roll(1, 0))):  # the baseline is another object's image
            quality = image_metrics(generated[:, None], target[:, None])
            metrics |= {name + suffix: value for name, value in quality.items() if BASELINE not in name}

    def _seen(self, gaussians: Gaussians, camera: Tensor, size: int) -> Tensor:
        """[B, 3, S, S] objects from the cameras [B, 5] of their images, cut out as the images are."""
        cameras = pinholes(camera, 2 * size).map(lambda matrix: matrix[:, None])
        drawn = rasterize(gaussians, cameras, settings=self.render)
        alpha = drawn.alpha[:, 0]
        # Straight colour; the faintest of what is drawn is no part of the object.
        straight = drawn.rgb[:, 0] / alpha.clamp_min(1e-3)
        return crops_to_objects(torch.cat([straight.clamp(0, 1), torch.where(alpha > _FAINT, alpha, 0)], 1), size)

    def _around(self, gaussians: Gaussians, size: int) -> Tensor:
        """[B, V, 3, S, S] pictures from all around."""
        cameras = cameras_around(turntable(_VIEWS).to(self.device), _RADIUS, _FOV, size)
        cameras = cameras.map(lambda matrix: matrix.expand(*gaussians.batch_shape, *matrix.shape))
        return rasterize(gaussians, cameras, settings=self.render).rgb.clamp(0, 1)

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
