"""Images as sequences of frozen features: the conditions of diffusion transformers.

Two kinds of tokens of one image are added up by a model, so the token extractors given to it must agree in number: a
grid of patches in rows, and in front of it as many special tokens as the vision transformer has.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import layer_norm, pad, pixel_unshuffle

from gsforge.core.frozen import FrozenModule
from gsforge.nn.features import DiffusersVAEFeatures, FeatureExtractor, TimmFeatures


class TokenExtractor(FrozenModule):
    """Base of the extractors: frozen, without gradients, and absent from checkpoints.

    Attributes:
        channels: number of channels of a token.
    """

    channels: int

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Extract tokens.

        Args:
            images: [B, 3, S, S] sRGB in [0, 1], composited on black.

        Returns:
            [B, tokens, channels] in the precision of the images, whatever that of autocast.

        Raises:
            ValueError: if the images have another shape.
        """
        if images.dim() != 4 or images.shape[1] != 3 or images.shape[2] != images.shape[3]:
            raise ValueError(f"images: expected shape [B, 3, S, S], got {list(images.shape)}")
        return self._extract(images).to(images.dtype)

    def _extract(self, images: Tensor) -> Tensor:
        raise TypeError(f"{type(self).__name__} is an interface: construct one of its sub-classes")


class PatchTokens(TokenExtractor):
    """The pixels of a feature map, and where each lies: for features that know no positions, as filter banks.

    Args:
        features: gives the map.
        octaves: frequencies of the sines and cosines of each coordinate, 2^0 pi to 2^(octaves - 1) pi.
    """

    def __init__(self, features: FeatureExtractor, octaves: int = 4) -> None:
        super().__init__()
        self.features, self.octaves = features, octaves
        self.channels = features.channels + 4 * octaves

    def _extract(self, images: Tensor) -> Tensor:
        maps = self.features(images)
        axes = [(torch.arange(size, device=maps.device) + 0.5) / size for size in maps.shape[-2:]]
        places = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
        angles = (places[..., None] * 2 ** torch.arange(self.octaves, device=maps.device) * math.pi).flatten(-2)
        waves = torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(0, 1).expand(len(maps), -1, -1)
        return torch.cat([maps.flatten(2).mT, waves.to(maps)], dim=-1)


class TimmTokens(TokenExtractor):
    """All tokens of a timm vision transformer (DINOv3 in DeG) after its final norm, each normalised once more.

    Args:
        network: the model, its image size and weights.
    """

    def __init__(self, network: TimmFeatures) -> None:
        super().__init__()
        self.features, self.channels = network, network.channels

    def _extract(self, images: Tensor) -> Tensor:
        tokens = self.features.tokens(images)
        return layer_norm(tokens, tokens.shape[-1:])


class VAETokens(TokenExtractor):
    """2x2 patches of a sample of a VAE's latent (FLUX.2 in DeG), with zeros in the place of special tokens.

    Args:
        network: the VAE and its image size.
        special_tokens: of the vision transformer whose tokens these are added to; DINOv3 has 5.
    """

    def __init__(self, network: DiffusersVAEFeatures, special_tokens: int = 5) -> None:
        super().__init__()
        self.features, self.special_tokens = network, special_tokens
        self.channels = 4 * network.channels

    def _extract(self, images: Tensor) -> Tensor:
        patches = pixel_unshuffle(self.features.latent(images, sample=True), 2)
        return pad(patches.flatten(2).mT, (0, 0, self.special_tokens, 0))
