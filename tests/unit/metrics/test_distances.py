"""Distances between sets of features against closed forms, brute force, and torchmetrics."""

import itertools
import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

import gsforge.metrics.distances
from gsforge.metrics.distances import SetDistances, frechet_distance, kernel_distance
from gsforge.metrics.pairs import WrongPairs


def with_moments(samples: int, mean: Tensor, root: Tensor, seed: int) -> Tensor:
    """Features whose own mean and covariance are exactly `mean` and `root @ root.T`."""
    draws = torch.randn(samples, len(mean), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    white, _ = torch.linalg.qr(draws - draws.mean(0))
    return white * math.sqrt(samples - 1) @ root.T + mean


def test_frechet_distance_is_that_of_gaussians() -> None:
    generator = torch.Generator().manual_seed(3)
    mean = torch.randn(2, 6, dtype=torch.float64, generator=generator)
    root = torch.randn(2, 6, 6, dtype=torch.float64, generator=generator)
    x, y = with_moments(40, mean[0], root[0], seed=1), with_moments(25, mean[1], root[1], seed=2)
    a, b = (root @ root.mT).numpy()
    expected = np.square((mean[0] - mean[1]).numpy()).sum() + np.trace(a + b - 2 * sqrtm(a @ b).real)
    assert frechet_distance(x, y).item() == pytest.approx(expected, rel=1e-9)
    # A translation alone, of sets with fewer members than channels: the squared length of the translation.
    assert frechet_distance(x[:4], x[:4] + 2).item() == pytest.approx(6 * 2**2, rel=1e-9)


def test_kernel_distance_is_unbiased_over_all_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(9, 4, dtype=torch.float64, generator=generator)
    y = torch.randn(7, 4, dtype=torch.float64, generator=generator) * 1.5 + 0.3

    def mean(pairs: Iterator[tuple[Tensor, Tensor]]) -> float:
        return float(np.mean([(float(a @ b) / 4 + 1) ** 3 for a, b in pairs]))

    expected = mean(itertools.permutations(x, 2)) + mean(itertools.permutations(y, 2))
    expected -= 2 * mean(itertools.product(x, y))
    for block in (1 << 24, 20):
        monkeypatch.setattr(gsforge.metrics.distances, "_BLOCK", block)
        assert kernel_distance(x, y).item() == pytest.approx(expected, rel=1e-12)


def test_distances_are_those_of_torchmetrics() -> None:
    class Given(nn.Module):
        num_features = 8

        def forward(self, features: Tensor) -> Tensor:
            return features

    generated, real = torch.randn(2, 30, 8, generator=torch.Generator().manual_seed(0))
    ours = SetDistances(8)
    ours.update(generated, real * 1.1)
    frechet, kernel = FrechetInceptionDistance(Given()), KernelInceptionDistance(Given(), subsets=1, subset_size=30)
    for metric in (frechet, kernel):
        metric.update(generated, real=False)
        metric.update(real * 1.1, real=True)
    expected = [frechet.compute().item(), kernel.compute()[0].item()]
    assert [value.item() for value in ours.compute()] == pytest.approx(expected, rel=1e-4)


def test_too_few_images_have_no_distance() -> None:
    distances, pairs = SetDistances(3), WrongPairs(3)
    distances.update(torch.rand(1, 3), torch.rand(5, 3))
    pairs.update(torch.rand(1, 3), torch.rand(1, 3))
    assert all(value.isnan() for value in (*distances.compute(), pairs.compute()))
