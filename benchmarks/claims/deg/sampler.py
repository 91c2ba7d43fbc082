"""Systematic sampling down the octree is unbiased, exact in its budget, steadier than independent draws.

    python -m benchmarks.claims.deg.sampler [--quick] [--seeds N] [--out DIR]

And the structural loss is the divergence of the density from the histogram of the leaves.
"""

import sys
from dataclasses import dataclass

import torch

from benchmarks.claims.claim import Claim, command_line
from benchmarks.claims.deg.draws import (
    BUDGET,
    FARTHEST,
    LOG_Q,
    UNBIASED,
    child_probabilities,
    divergence_error,
    draw_errors,
    random_density,
    split_errors,
    variance_ratio,
)
from benchmarks.claims.plot import Line, Panel
from benchmarks.claims.rules import Numbers, Rule, every_above, every_below, mean_below

DEPTH, PUBLISHED_DEPTH = 3, 8  # all leaves of the first can be listed
BUDGETS = (16, 64, 256)
P_VALUE = 1e-3  # with five seeds and four tests a correct sampler fails in one run of fifty


@dataclass(frozen=True)
class Plan:
    """Sizes.

    Attributes:
        draws: sets of points for each budget.
        splits: cells whose points are split again and again.
        points: of the cloud whose histogram is compared with the density.
    """

    draws: int
    splits: int
    points: int


FULL = Plan(draws=10_000, splits=200, points=8192)
QUICK = Plan(draws=1000, splits=40, points=300)


def measure(seed: int, quick: bool) -> dict[str, float]:
    """One density with random weights.

    Args:
        seed: of weights, latents and draws.
        quick: few draws.

    Returns:
        The numbers.
    """
    plan = QUICK if quick else FULL
    torch.manual_seed(seed)
    with torch.no_grad():
        density, z = random_density(DEPTH)
        tree = child_probabilities(density, z)
        found = split_errors(tree, max(BUDGETS), plan.splits, plan.draws)
        numbers = {_split(what): value for what, value in found.items()}
        for budget in BUDGETS:
            found = draw_errors(density, z, tree, budget, plan.draws)
            numbers |= {_drawn(what, budget): value for what, value in found.items()}
        for depth in (DEPTH, PUBLISHED_DEPTH):
            numbers[_divergence(depth)] = divergence_error(depth, plan.points)
    return numbers


def draw(numbers: Numbers, quick: bool) -> list[Panel]:
    """Variance over that of independent draws.

    Args:
        numbers: from `measure`.
        quick: as for `measure`; makes no difference.

    Returns:
        One panel.
    """
    lines = [
        Line(
            f"cells of level {level}",
            tuple((budget, numbers[_drawn(variance_ratio(level), budget)]) for budget in BUDGETS),
        )
        for level in range(1, DEPTH + 1)
    ]
    return [Panel("Variance over that of independent draws", "budget P", "ratio", tuple(lines), (0.0, 1.0))]


def _drawn(what: str, budget: int) -> str:
    return f"P = {budget}: {what}"


def _split(what: str) -> str:
    return f"split: {what}"


def _divergence(depth: int) -> str:
    return f"relative error of the loss, {depth} levels"


CLAIM = Claim(
    paper="deg",
    name="sampler",
    sentence="Systematic sampling down the octree draws every leaf as often as its probability says, keeps the budget "
    "exactly, deviates by less than one point at every split and less than independent draws over all; and the "
    "structural loss is the divergence of the density from the histogram of the leaves.",
    source="DeG (arXiv 2605.16355), systematic sampling and structural loss of the octree density",
    compared="Densities with random weights. 10 000 sets of points for each of three budgets against the "
    "probabilities of all cells of three levels, and against the variance P q (1 - q) of independent draws; 10 000 "
    "splits of 200 cells; the loss of 8192 points against the sum over their leaves, with 3 and 8 levels. p-values are "
    "those of the worst of all cells, times their number. 1e-5 is left to the rounding of probabilities in float32.",
    rules=(
        Rule(
            "p-value of E N = P q in the cells of all levels, and of E N_k = n pi_k at splits",
            (
                *(_drawn(UNBIASED, budget) for budget in BUDGETS),
                _split(UNBIASED),
            ),
            every_above(P_VALUE),
        ),
        Rule("error of the budget at splits, points", (_split(BUDGET),), every_below(0.5)),
        Rule(
            "difference between the log-probability of a point and that of its leaf",
            tuple(_drawn(LOG_Q, budget) for budget in BUDGETS),
            every_below(1e-4),
        ),
        Rule(
            "|N_k - n pi_k| at every split",
            (
                *(_drawn(FARTHEST, budget) for budget in BUDGETS),
                _split(FARTHEST),
            ),
            every_below(1 + 1e-5),
        ),
        Rule(
            "variance of the counts over that of independent draws, at every level and budget",
            tuple(_drawn(variance_ratio(level), budget) for level in range(1, DEPTH + 1) for budget in BUDGETS),
            mean_below(1.0),
        ),
        Rule(
            "relative difference of the structural loss from the divergence at the leaves",
            tuple(map(_divergence, (DEPTH, PUBLISHED_DEPTH))),
            every_below(1e-5),
        ),
    ),
    measure=measure,
    draw=draw,
)


if __name__ == "__main__":
    sys.exit(command_line(CLAIM))
