"""The half of a trained VAE that turns latents into Gaussians, frozen: for the flow model."""

from pathlib import Path

import torch
from torch import Tensor

from gsforge.core.frozen import FrozenModule
from gsforge.core.gaussians import Gaussians
from gsforge.core.weights import load_weights
from gsforge.methods.deg.config import NetworkConfig
from gsforge.methods.deg.decoder import AttributeDecoder
from gsforge.methods.deg.density import OctreeDensity
from gsforge.methods.deg.released import DECODER, DENSITY, RELEASED_DECODER, load_released


class LatentDecoder(FrozenModule):
    """Octree density and attribute decoder with the weights of a trained VAE."""

    def __init__(self, folder: Path) -> None:
        """Load the weights.

        Args:
            folder: weights that `gsforge export RUN --weights FOLDER` wrote of a VAE, or the released
                `triposplat_vae_decoder_fp16.safetensors`.

        Raises:
            FileNotFoundError: if the folder holds neither.
            ValueError: if the weights are damaged, or of a model without a decoder.
        """
        super().__init__()
        released = folder / RELEASED_DECODER
        if released.is_file():
            self._build(NetworkConfig())
            load_released([(self.density, DENSITY), (self.decoder, DECODER)], released)
        else:
            self._load_own(folder)
        self.requires_grad_(False)
        self.train(False)

    def _build(self, config: NetworkConfig) -> None:
        self.config = config
        self.density, self.decoder = OctreeDensity(config), AttributeDecoder(config)

    def _load_own(self, folder: Path) -> None:
        tensors, card = load_weights(folder)
        try:
            self._build(NetworkConfig(**card["options"]["network"]))
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"{folder}: expected the weights of a DeG VAE, its card has no network: {error}"
            ) from error
        for name in ("density", "decoder"):
            own = {
                key.removeprefix(f"{name}."): tensor for key, tensor in tensors.items() if key.startswith(f"{name}.")
            }
            if not own:
                raise ValueError(f"{folder} has no {name}: export a run of the appearance or the refinement stage")
            torch.nn.Module.load_state_dict(getattr(self, name), own)

    @torch.no_grad()
    def forward(self, z_BMZ: Tensor, anchors: int) -> Gaussians:
        """Decode.

        Args:
            z_BMZ: [B, M, latent_channels].
            anchors: density samples P.

        Returns:
            P K Gaussians for each object.
        """
        return self.decoder(self.density.sample(z_BMZ, anchors).points, z_BMZ).gaussians
