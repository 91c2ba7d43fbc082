"""Embeddings: frequencies and layout of the published positional embedding, and of the scalar one."""

import math

import pytest
import torch

from gsforge.nn.embeddings import PointEmbedding, PointSinusoids, ScalarEmbedding


def test_published_frequencies_run_from_1_to_1024() -> None:
    frequencies = PointSinusoids(1024, octaves=10).frequencies
    assert frequencies.shape == (170,)
    torch.testing.assert_close(frequencies[[0, -1]], torch.tensor([1.0, 1024.0]))
    torch.testing.assert_close(frequencies[1:] / frequencies[:-1], torch.full((169,), 2 ** (10 / 169)))


@pytest.mark.parametrize("width", [6, 26, 48])
def test_channels_are_sines_and_cosines_of_each_axis_then_zeros(width: int) -> None:
    sinusoids = PointSinusoids(width, octaves=3).double()
    point = torch.tensor([0.1, 0.7, 0.4], dtype=torch.float64)
    count = width // 6
    expected = []
    for coordinate in point.tolist():
        angles = [coordinate * frequency * math.pi for frequency in sinusoids.frequencies.tolist()]
        expected += [math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles]
    expected += [0.0] * (width - 6 * count)
    torch.testing.assert_close(sinusoids(point), torch.tensor(expected, dtype=torch.float64))


def test_a_point_is_mapped_with_its_sinusoids_added() -> None:
    embedding = PointEmbedding(12, octaves=2)
    points = torch.rand(2, 5, 3, generator=torch.Generator().manual_seed(0))
    inner = points @ embedding.linear.weight.T + embedding.linear.bias + embedding.sinusoids(points)
    torch.testing.assert_close(embedding(points), inner @ embedding.mix.weight.T + embedding.mix.bias)


def test_frequencies_are_no_weights() -> None:
    assert set(PointEmbedding(12, 2).state_dict()) == {"linear.weight", "linear.bias", "mix.weight", "mix.bias"}


def test_scalar_embedding_feeds_cosines_and_sines_of_geometric_periods() -> None:
    embedding = ScalarEmbedding(4, channels=8, max_period=16.0).double()
    value = 3.0
    angles = [value * 16.0 ** -(index / 4) for index in range(4)]
    waves = [math.cos(angle) for angle in angles] + [math.sin(angle) for angle in angles]
    expected = embedding.perceptron(torch.tensor(waves, dtype=torch.float64))
    torch.testing.assert_close(embedding(torch.tensor(value, dtype=torch.float64)), expected)


def test_every_resolution_of_the_octree_has_its_own_embedding() -> None:
    embedding = ScalarEmbedding(8)
    levels = 50 * embedding(2 * math.pi * 2.0 ** torch.arange(1, 9))
    distances = torch.cdist(levels, levels) + torch.eye(8)
    assert levels.shape == (8, 8)
    assert distances.min() > 1e-2
