"""The estimates of what an anchor is worth, side by side on objects.

python -m benchmarks.claims.deg.estimators_objects [--quick] [--seeds N] [--out DIR]
"""

import sys

from benchmarks.claims.claim import Claim, command_line
from benchmarks.claims.deg.forks import FULL, QUICK, SETTING, Arm, common_start, quality, refine
from benchmarks.claims.deg.variants import ReinforceVAE
from benchmarks.claims.plot import Line, Panel
from benchmarks.claims.rules import Numbers, Rule, mean_above
from gsforge.methods.deg.config import ContributionConfig

BUDGETS = (64, 128, 256)
EXACT, WITHOUT, FIRST = "exact", "without background", "first order"
_TRAINED = (BUDGETS[0], BUDGETS[-1])
ARMS = {
    EXACT: Arm(*_TRAINED),
    WITHOUT: Arm(*_TRAINED, contribution=ContributionConfig(background=False)),
    FIRST: Arm(*_TRAINED, contribution=ContributionConfig(estimate="first_order")),
    "REINFORCE": Arm(*_TRAINED, module=ReinforceVAE),
    "none": Arm(*_TRAINED, weight=0.0),
}


def measure(seed: int, quick: bool) -> dict[str, float]:
    """Fork the refinement with every estimate.

    Args:
        seed: of the objects and all draws.
        quick: small sizes.

    Returns:
        PSNR by estimate and budget, and what the exact one gains, mean over budgets.
    """
    start = common_start(QUICK if quick else FULL, seed)
    found = {name: quality(start, refine(start, arm), BUDGETS) for name, arm in ARMS.items()}
    numbers = {_psnr(name, budget): value for name, psnrs in found.items() for budget, value in psnrs.items()}
    means = {name: sum(psnrs.values()) / len(psnrs) for name, psnrs in found.items()}
    return numbers | {_gain(name): means[EXACT] - mean for name, mean in means.items() if name != EXACT}


def draw(numbers: Numbers, quick: bool) -> list[Panel]:
    """Quality by budget.

    Args:
        numbers: from `measure`.
        quick: not used; the budgets are the same.

    Returns:
        One panel.
    """
    lines = [Line(name, tuple((budget, numbers[_psnr(name, budget)]) for budget in BUDGETS)) for name in ARMS]
    return [Panel("Held-out views", "anchors P", "PSNR, dB", tuple(lines))]


def _psnr(estimate: str, budget: int) -> str:
    return f"{estimate}, P = {budget}, dB"


def _gain(estimate: str) -> str:
    return f"exact over {estimate}, mean over budgets, dB"


CLAIM = Claim(
    paper="deg",
    name="estimators_objects",
    sentence="The exact contribution with its background makes a better density than the first order, and than the "
    "contribution without the background.",
    source="DeG (arXiv 2605.16355), render-loss contribution gradient; the release leaves the background out, and has "
    "the first order as an older path",
    compared=f"{SETTING} with P from 64 to 256, each view "
    "over black or white at random, as published, so that the background matters in half of them. Contributions are "
    "clamped, clipped and centred as published; REINFORCE takes the loss of a whole draw less the mean of the two "
    "draws of the object in the batch; none leaves the density to the surface. The same objects, views and budgets. "
    "PSNR of views that were not trained on, over black, 4 draws, mean over P = 64, 128, 256. REINFORCE and none are "
    "not judged.",
    rules=(
        Rule("gain of the exact contribution over the first order, dB", (_gain(FIRST),), mean_above(0)),
        Rule("gain of the exact contribution over that without background, dB", (_gain(WITHOUT),), mean_above(0)),
    ),
    measure=measure,
    draw=draw,
    seeds=3,
)


if __name__ == "__main__":
    sys.exit(command_line(CLAIM))
