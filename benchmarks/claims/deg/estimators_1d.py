"""Which estimate of a sample's worth makes a learned density draw better than a uniform one.

python -m benchmarks.claims.deg.estimators_1d [--quick] [--seeds N] [--out DIR]
"""

import sys
from dataclasses import dataclass

import torch

from benchmarks.claims.claim import Claim, command_line
from benchmarks.claims.deg.estimators import ESTIMATORS, Training, train
from benchmarks.claims.deg.line import CELLS, Local, Refitted, line_image
from benchmarks.claims.plot import Line, Panel
from benchmarks.claims.rules import Numbers, Rule, mean_above

STRIPES = 16  # as many as a uniform density puts samples on them with P = 32
OTHER_STRIPES = (8, 32)
BUDGETS, JUDGED = (16, 32, 64), (32, 64)
GAIN = 3.0  # dB
DECODERS = ("local", "refitted")


@dataclass(frozen=True)
class Plan:
    """Sizes.

    Attributes:
        training: of every density.
        other_stripes: numbers of stripes that are shown as well, with the published estimator alone.
    """

    training: Training
    other_stripes: tuple[int, ...]


FULL = Plan(Training(steps=400), OTHER_STRIPES)
QUICK = Plan(Training(steps=3, measured=4), ())


def measure(seed: int, quick: bool) -> dict[str, float]:
    """Train all densities.

    Args:
        seed: of everything that is drawn.
        quick: a few steps, and one number of stripes.

    Returns:
        PSNR by decoder, budget and estimator, and what the published estimator gains over the uniform density.
    """
    plan = QUICK if quick else FULL
    torch.manual_seed(seed)
    numbers: dict[str, float] = {}
    for budget in BUDGETS:
        for name in DECODERS:
            quality = _train(name, STRIPES, budget, tuple(ESTIMATORS), plan.training)
            numbers |= {_psnr(name, budget, estimator): value for estimator, value in quality.items()}
            numbers[_gain(name, STRIPES, budget)] = quality["published"] - quality["uniform"]
        for stripes in plan.other_stripes:
            quality = _train("local", stripes, budget, ("uniform", "published"), plan.training)
            numbers[_gain("local", stripes, budget)] = quality["published"] - quality["uniform"]
    return numbers


def _train(
    decoder: str, stripes: int, budget: int, estimators: tuple[str, ...], training: Training
) -> dict[str, float]:  # fmt: skip
    target = line_image(stripes)
    # Local Gaussians start as wide as they are apart.
    chosen = Local(len(estimators), CELLS / budget / 2) if decoder == "local" else Refitted(target)
    return train(chosen, target, budget, estimators, training)


def draw(numbers: Numbers, quick: bool) -> list[Panel]:
    """Quality by budget with each decoder, and the gain by the number of stripes.

    Args:
        numbers: from `measure`.
        quick: as for `measure`.

    Returns:
        Three panels.
    """
    panels = []
    for name in DECODERS:
        lines = [
            Line(estimator, tuple((budget, numbers[_psnr(name, budget, estimator)]) for budget in BUDGETS))
            for estimator in ESTIMATORS
        ]
        panels.append(Panel(f"Attributes {name}", "samples P", "PSNR, dB", tuple(lines)))
    gains = [
        Line(f"{stripes} stripes", tuple((budget, numbers[_gain("local", stripes, budget)]) for budget in BUDGETS))
        for stripes in sorted((STRIPES, *(QUICK if quick else FULL).other_stripes))
    ]
    title = "Published over uniform, attributes local"
    return [*panels, Panel(title, "samples P", "gain, dB", tuple(gains), (GAIN,))]


def _psnr(decoder: str, budget: int, estimator: str) -> str:
    return f"{decoder}, P = {budget}: {estimator}, dB"


def _gain(decoder: str, stripes: int, budget: int) -> str:
    return f"{decoder}, P = {budget}, {stripes} stripes: published over uniform, dB"


CLAIM = Claim(
    paper="deg",
    name="estimators_1d",
    sentence="The published estimate of an anchor's contribution makes a learned density draw better than the same "
    "number of anchors spread uniformly over the object, if attributes depend on the place alone.",
    source="DeG (arXiv 2605.16355), density gradient: clamped, clipped and centred leave-one-out differences",
    compared="A line of which half is flat and half has 16 stripes, drawn by P Gaussians that are sampled from a "
    "density of 128 cells. Five arms from the same uniform start: none (uniform), REINFORCE with the mean of the "
    "batch, exact leave-one-out, published, first order. Attributes are learned for each cell (local), or sizes and "
    "colours are fitted to the neighbours again (refitted, not judged). PSNR of what is drawn; other numbers of "
    "stripes are shown and not judged.",
    rules=(
        Rule(
            "gain of the published estimator over uniform with local attributes, dB",
            tuple(_gain("local", STRIPES, budget) for budget in JUDGED),
            mean_above(GAIN),
        ),
    ),
    measure=measure,
    draw=draw,
)


if __name__ == "__main__":
    sys.exit(command_line(CLAIM))
