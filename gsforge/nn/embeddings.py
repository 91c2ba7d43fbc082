"""Sinusoidal embeddings of points and of scalars."""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import pad


class PointEmbedding(nn.Module):
    """Linear map of a point plus sines and cosines of its coordinates (DeG, positional embedding "v2").

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
        self.linear = nn.Linear(3, width)
        exponents = torch.linspace(0, octaves, width // 6)
        self.register_buffer("frequencies", math.pi * 2**exponents, persistent=False)

    def sinusoids(self, points: Tensor) -> Tensor:
        """The fixed part: sin and cos of every coordinate times every frequency.

        Args:
            points: [..., 3] coordinates, [0, 1] for objects.

        Returns:
            [..., width].
        """
        angles = points[..., None] * self.frequencies
        waves = torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(-2)
        return pad(waves, (0, self.width - waves.shape[-1]))

    def forward(self, points: Tensor) -> Tensor:
        """Embed points.

        Args:
            points: [..., 3] coordinates, [0, 1] for objects.

        Returns:
            [..., width].
        """
        return self.linear(points) + self.sinusoids(points)


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
        self.register_buffer("frequencies", max_period**-exponents, persistent=False)
        self.perceptron = nn.Sequential(nn.Linear(channels, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, values: Tensor) -> Tensor:
        """Embed scalars.

        Args:
            values: [...], positive.

        Returns:
            [..., width].
        """
        angles = values[..., None] * self.frequencies
        return self.perceptron(torch.cat([angles.cos(), angles.sin()], dim=-1))
