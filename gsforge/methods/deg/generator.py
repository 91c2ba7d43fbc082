"""From an image to the Gaussians of its object: the networks of the DeG flow model and their sampler."""

from pathlib import Path

import torch
from lightning import LightningModule
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from gsforge.core.flow import State, guided, integrate, sampling_times
from gsforge.core.gaussians import Gaussians
from gsforge.core.object_camera import CAMERA_NUMBERS, pinholes
from gsforge.core.object_crop import crop_to_object, crops_to_objects
from gsforge.core.vecseq import sobol_anchors
from gsforge.methods.deg.flow_config import FlowNetworkConfig, FlowSamplingConfig, FlowTrainingConfig
from gsforge.methods.deg.latent_decoder import LatentDecoder
from gsforge.methods.deg.released import RELEASED_TRANSFORMER, TRANSFORMER, load_released, to_released
from gsforge.methods.deg.transformer import FlowTransformer, Prediction
from gsforge.nn.tokens import TokenExtractor
from gsforge.render import RenderSettings, rasterize

Conditions = tuple[Tensor, Tensor]

_FRONT = (1.0, 0.0, 0.35, 0.5, 0.7)  # a camera, where none is predicted
_FAINT = 0.05  # alpha below which a pixel does not count as the object


class ObjectGenerator(LightningModule):
    """Images to latents, latents to Gaussians; `DeGFlow` trains it."""

    anchors: Tensor
    latent_mean: Tensor
    latent_deviation: Tensor

    def __init__(
        self,
        semantic_tokens: TokenExtractor,
        appearance_tokens: TokenExtractor,
        vae: str | None,
        network: FlowNetworkConfig,
        training: FlowTrainingConfig,
        sampling: FlowSamplingConfig,
        render: RenderSettings,
    ) -> None:
        """Build the transformer and load the decoder.

        Args:
            semantic_tokens: frozen extractor of the first kind of image tokens.
            appearance_tokens: frozen extractor of the second kind.
            vae: folder with the weights of the VAE, see `LatentDecoder`; without it latents are all that comes out.
            network: sizes.
            training: numbers of tokens and pixels.
            sampling: how objects are generated.
            render: image formation of the VAE.

        Raises:
            ValueError: if the VAE's latents have other channels.
            FileNotFoundError: if the VAE's weights are not there.
        """
        super().__init__()
        self.training_config, self.sampling, self.render = training, sampling, render
        self.budget: int | None = None
        self.semantic_tokens, self.appearance_tokens = semantic_tokens, appearance_tokens
        self.network = FlowTransformer(network, semantic_tokens.channels, appearance_tokens.channels)
        self.register_buffer("anchors", sobol_anchors(training.tokens), persistent=False)
        self.register_buffer("latent_mean", torch.zeros(network.latent_channels))
        self.register_buffer("latent_deviation", torch.ones(network.latent_channels))
        self.vae = LatentDecoder(Path(vae)) if vae is not None else None
        if self.vae is not None and self.vae.config.latent_channels != network.latent_channels:
            raise ValueError(
                f"network.latent_channels is {network.latent_channels}, but the VAE in {vae} has "
                f"{self.vae.config.latent_channels}"
            )

    @property
    def latents_measured(self) -> bool:
        """Whether the transformer was trained on normalised latents, whose scale is then known."""
        return bool((self.latent_deviation != 1).any())

    def configure_model(self) -> None:
        """Shard the transformer over the ranks where the strategy does (FSDP2); Lightning may call it twice."""
        if self.device_mesh is not None and not isinstance(self.network, FSDPModule):
            self.network.shard(self.device_mesh["data_parallel"])

    def predict_velocity(self, state: State, times: Tensor, conditions: Conditions) -> Prediction:
        """Ask the transformer.

        Args:
            state: noisy latents [B, M, latent_channels] and cameras [B, 5].
            times: [B] in [0, 1].
            conditions: tokens of the images; zeros stand for no image.

        Returns:
            The velocities.
        """
        latent, camera = state
        return self.network(latent, camera, times, self.anchors, *conditions)

    def conditions(self, images: Tensor) -> Conditions:
        """Both kinds of tokens of images.

        Args:
            images: [B, 3, S, S] objects over black.

        Returns:
            [B, T, semantic channels] and [B, T, appearance channels].

        Raises:
            ValueError: if they differ in number.
        """
        semantic, appearance = self.semantic_tokens(images), self.appearance_tokens(images)
        if semantic.shape[1] != appearance.shape[1]:
            raise ValueError(
                f"semantic_tokens give {semantic.shape[1]} tokens of an image and appearance_tokens "
                f"{appearance.shape[1]}: choose sizes that give as many"
            )
        return semantic, appearance

    @torch.no_grad()
    def sample(self, images: Tensor) -> Prediction:
        """Generate latents, and the cameras of the images.

        Args:
            images: [B, 3, S, S] objects over black.

        Returns:
            latent [B, M, latent_channels] and camera [B, 5], or None without a camera token.
        """
        size = len(images)
        conditions = self.conditions(images)
        nothing = torch.zeros_like(conditions[0]), torch.zeros_like(conditions[1])
        tokens, channels = self.training_config.tokens, self.network.latent_out.out_features
        noise = torch.randn(size, tokens, channels, device=images.device)
        camera = torch.randn(size, CAMERA_NUMBERS, device=images.device)

        def predict(state: State, time: float) -> State:
            times = torch.full((size,), time, device=images.device)
            with_image = self._filled(self.predict_velocity(state, times, conditions))
            if self.sampling.guidance == 1:
                return with_image
            without = self._filled(self.predict_velocity(state, times, nothing))
            return tuple(guided(c, u, self.sampling.guidance) for c, u in zip(with_image, without, strict=True))

        times = sampling_times(self.sampling.steps, self.sampling.shift).tolist()
        latent, camera = integrate(predict, (noise, camera), times, self.sampling.solver)
        latent = latent * self.latent_deviation + self.latent_mean
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

    def _seen(self, gaussians: Gaussians, camera: Tensor, size: int) -> Tensor:
        """[B, 3, S, S] objects from the cameras [B, 5] of their images, cut out as the images are."""
        cameras = pinholes(camera, 2 * size).map(lambda matrix: matrix[:, None])
        drawn = rasterize(gaussians, cameras, settings=self.render)
        alpha = drawn.alpha[:, 0]
        # Straight colour; the faintest of what is drawn is no part of the object.
        straight = drawn.rgb[:, 0] / alpha.clamp_min(1e-3)
        return crops_to_objects(torch.cat([straight.clamp(0, 1), torch.where(alpha > _FAINT, alpha, 0)], 1), size)

    def released_files(self) -> dict[str, dict[str, Tensor]]:
        """The weights in the layout of the released TripoSplat.

        Returns:
            File name -> name -> tensor.

        Raises:
            ValueError: for a model of normalised latents, which that layout cannot tell.
        """
        if self.latents_measured:
            raise ValueError(
                "the released layout has no place for the scale of normalised latents; export in the default layout, "
                "or train with training.normalize_latents false"
            )
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
