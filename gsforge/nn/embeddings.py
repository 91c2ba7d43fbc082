"""Sinusoidal embeddings of points and of scalars."""

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import pad


class PointSinusoids(nn.Module):
    """Sines and cosines of the coordinates of a point (DeG, positional embedding "v2").

    Each axis gets width // 6 frequencies, geometrically spaced from pi to 2^octaves pi; the other channels are zero.
    """

    frequencies: Tensor

    def __init__(self, width: int, octaves: float) -> None:
        """Build the embedding.

        Args:
            width: channels of the embedding, >= 6.
            octaves: log2 of the ratio of the highest frequency to the lowest.
        """
        super().__init__()
        self.width = width
        self.register_buffer("frequencies", 2 ** torch.linspace(0, octaves, width // 6), persistent=False)

    def forward(self, points: Tensor) -> Tensor:
        """Embed points.

        Args:
            points: [..., 3] coordinates, [0, 1] for objects.

        Returns:
            [..., width]: sines and cosines of x, of y, of z, then zeros.
        """
        # In this order: pi times the frequency first would round otherwise, and turn angles of 3000 by 2e-4.
        angles = points[..., None] * self.frequencies * math.pi
        waves = torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(-2)
        return pad(waves, (0, self.width - waves.shape[-1]))


class AnchorSinusoids(nn.Module):
    """Sines and cosines of the coordinates of the anchors of latent tokens (DeG, positional embedding "v1").

    The width // 6 frequencies of an axis are 2^0 ... 2^15 and then a finer ladder over the same range, times 2 pi.
    """

    frequencies: Tensor

    def __init__(self, width: int) -> None:
        """Build the embedding.

        Args:
            width: channels of the embedding, >= 6.
        """
        super().__init__()
        self.width = width
        count, octaves = width // 6, 16
        fine = max(count - octaves, 0)
        exponents = torch.cat([torch.arange(octaves).float(), octaves * torch.arange(fine) / max(fine, 1)])[:count]
        self.register_buffer("frequencies", 2**exponents, persistent=False)

    def forward(self, points: Tensor) -> Tensor:
        """Embed anchors.

        Args:
            points: [..., 3] coordinates in [0, 1], float32.

        Returns:
            [..., width]: sines and cosines of x, of y, of z, then zeros.
        """
        # Angles reach 4e5, where float32 is coarse: the order of the products is that of the released model.
        angles = points[..., None] * self.frequencies * 2 * math.pi
        waves = torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(-2)
        return pad(waves, (0, self.width - waves.shape[-1]))


class PointEmbedding(nn.Module):
    """A linear map of the sum of a linear map of a point and its sinusoids: the tokens that stand for points."""

    def __init__(self, width: int, octaves: float) -> None:
        """Build the embedding.

        Args:
            width: channels of the embedding, >= 6.
            octaves: log2 of the ratio of the highest frequency to the lowest.
        """
        super().__init__()
        self.linear = nn.Linear(3, width)
        self.sinusoids = PointSinusoids(width, octaves)
        self.mix = nn.Linear(width, width)

    def forward(self, points: Tensor) -> Tensor:
        """Embed points.

        Args:
            points: [..., 3] coordinates, [0, 1] for objects.

        Returns:
            [..., width].
        """
        return self.mix(self.linear(points) + self.sinusoids(points))


class ScalarEmbedding(nn.Module):
    """Sinusoids of a positive scalar, then a two-layer perceptron (the timestep embedding of diffusion models)."""

    frequencies: Tensor

    def __init__(self, width: int, channels: int = 256, max_period: float = 1024.0) -> None:
        """Build the embedding.

        Args:
            width: channels of the output.
            channels: sinusoids, half sines and half cosines.
            max_period: longest period of the sinusoids.
        """
        super().__init__()
        exponents = torch.arange(channels // 2) / (channels // 2)
        self.register_buffer("frequencies", (-math.log(max_period) * exponents).exp(), persistent=False)
        self.perceptron = nn.Sequential(nn.Linear(channels, width), nn.SiLU(), nn.Linear(width, width))
        self.initialise()

    def initialise(self) -> None:
        """Normal weights of deviation 0.02, as diffusion transformers start; again after the model was initialised."""
        for layer in (self.perceptron[0], self.perceptron[2]):
            nn.init.normal_(cast(nn.Linear, layer).weight, std=0.02)

    def forward(self, values: Tensor) -> Tensor:
        """Embed scalars.

        Args:
            values: [...], positive.

        Returns:
            [..., width].
        """
        angles = values[..., None] * self.frequencies
        return self.perceptron(torch.cat([angles.cos(), angles.sin()], dim=-1))
