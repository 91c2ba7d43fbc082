"""Numbers over seeds: means with confidence intervals, rank correlation, tests of means that should be known."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

CONFIDENCE = 0.95
FEWEST_CHANGES = 100  # draws of a half times variance: as many times does a rare event happen


@dataclass(frozen=True)
class Interval:
    """A number over seeds: its mean, with the 95 % confidence interval of Student's t.

    Attributes:
        mean: over the seeds.
        low: lower end of the interval.
        high: upper end.
        values: one for each seed.
    """

    mean: float
    low: float
    high: float
    values: list[float]

    def __str__(self) -> str:
        return f"{self.mean:.3g} [{self.low:.3g}, {self.high:.3g}]"


def mean_interval(values: Sequence[float]) -> Interval:
    """Mean and 95 % confidence interval, by Student's t, of numbers that are independent.

    Args:
        values: one for each seed, two or more.

    Returns:
        The interval; of no width where all values are the same.

    Raises:
        ValueError: for fewer than two values, or if one is not finite.
    """
    if len(values) < 2 or not np.isfinite(values).all():
        raise ValueError(f"expected two or more finite numbers, one for each seed, got {list(values)}")
    mean, error = float(np.mean(values)), float(stats.sem(values))
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)) * error
    return Interval(mean, mean - half, mean + half, list(map(float, values)))


def spearman(first: ArrayLike, second: ArrayLike) -> float:
    """Rank correlation.

    Args:
        first: [N].
        second: [N].

    Returns:
        Spearman's coefficient.
    """
    return float(stats.spearmanr(np.asarray(first), np.asarray(second)).statistic)


def smallest_p_value(draws: NDArray[np.float64], expected: NDArray[np.float64]) -> float:
    """Whether many means are what they should be: the p-value of the one farthest off, corrected for their number.

    Each is tested by its own z. The error of the mean of one half of the draws is estimated from the other half, so
    that rare events do not make their own mean look sure; the z of the halves are averaged. Numbers that hardly ever
    vary are left out, because their means are not normal. Bonferroni's correction holds however they depend on each
    other.

    Args:
        draws: [N, K] independent draws of K numbers.
        expected: [K] their means.

    Returns:
        In [0, 1]; small where a mean is not as expected.

    Raises:
        ValueError: if all numbers hardly ever vary.
    """
    halves = np.array_split(draws, 2)
    variances = [half.var(0, ddof=1) for half in halves]
    tested = len(draws) / 2 * np.minimum(*variances) >= FEWEST_CHANGES
    if not tested.any():
        raise ValueError(f"expected a number with draws * variance of at least {2 * FEWEST_CHANGES}; take more draws")
    z = [
        (half.mean(0) - expected)[tested] / np.sqrt(variance[tested] / len(half))
        for half, variance in zip(halves, reversed(variances), strict=True)
    ]
    farthest = np.abs(sum(z) / np.sqrt(2)).max()
    return float(min(1.0, 2 * tested.sum() * stats.norm.sf(farthest)))
