"""Quality grows with the budget of one checkpoint, if it was trained with many budgets.

python -m benchmarks.claims.deg.budgets [--quick] [--seeds N] [--out DIR]
"""

import itertools
import sys

from benchmarks.claims.claim import Claim, command_line
from benchmarks.claims.deg.forks import FULL, QUICK, SETTING, Arm, common_start, quality, refine
from benchmarks.claims.plot import Line, Panel
from benchmarks.claims.rules import Numbers, Rule, mean_above, mean_below

BUDGETS = (64, 128, 256, 512, 1024)
TOLERANCE = 0.05  # dB
VARIABLE = "variable P"
ARMS = {
    VARIABLE: Arm(BUDGETS[0], BUDGETS[-1]),
    "P = 64": Arm(64, 64),
    "P = 256": Arm(256, 256),
    "P = 1024": Arm(1024, 1024),
}
# Where an arm with one budget is farthest off it; 256 lies between, and is shown.
FARTHEST = {"P = 64": 1024, "P = 1024": 64}


def measure(seed: int, quick: bool) -> dict[str, float]:
    """Fork the refinement with many budgets, and with one.

    Args:
        seed: of the objects and all draws.
        quick: small sizes.

    Returns:
        PSNR by arm and budget, the steps of the arm with many, and what the others lack.
    """
    start = common_start(QUICK if quick else FULL, seed)
    found = {name: quality(start, refine(start, arm), BUDGETS) for name, arm in ARMS.items()}
    numbers = {_psnr(name, budget): value for name, psnrs in found.items() for budget, value in psnrs.items()}
    variable = found.pop(VARIABLE)
    numbers |= {_step(less, more): variable[more] - variable[less] for less, more in itertools.pairwise(BUDGETS)}
    return numbers | {
        _difference(name, budget): psnrs[budget] - variable[budget]
        for name, psnrs in found.items()
        for budget in BUDGETS
    }


def draw(numbers: Numbers, quick: bool) -> list[Panel]:
    """Quality by budget, and what arms with one budget lack.

    Args:
        numbers: from `measure`.
        quick: not used; the budgets are the same.

    Returns:
        Two panels.
    """
    psnrs = [Line(name, tuple((budget, numbers[_psnr(name, budget)]) for budget in BUDGETS)) for name in ARMS]
    differences = [
        Line(f"trained with {name}", tuple((budget, numbers[_difference(name, budget)]) for budget in BUDGETS))
        for name in ARMS
        if name != VARIABLE
    ]
    return [
        Panel("Held-out views", "anchors P", "PSNR, dB", tuple(psnrs)),
        Panel("One budget less many", "anchors P", "difference, dB", tuple(differences), (0.0,)),
    ]


def _psnr(arm: str, budget: int) -> str:
    return f"trained with {arm}: {budget} anchors, dB"


def _step(less: int, more: int) -> str:
    return f"from {less} to {more} anchors, dB"


def _difference(arm: str, budget: int) -> str:
    return f"trained with {arm}, less variable: {budget} anchors, dB"


CLAIM = Claim(
    paper="deg",
    name="budgets",
    sentence="One checkpoint decodes to any budget, and more anchors draw better, if it was trained with budgets that "
    "vary; trained with one budget it is worse far off it.",
    source="DeG (arXiv 2605.16355), refinement with a random number of anchors",
    compared=f"{SETTING} with P drawn from 64 to 1024, or "
    "64, 256 or 1024 in every step, with the same objects and views. PSNR of views that were not trained on, over "
    "black, 4 draws. The arm with 256 is nowhere far off and not judged. Steps are equal, not the work they take.",
    rules=(
        Rule(
            "what twice as many anchors gain with variable P, dB",
            tuple(itertools.starmap(_step, itertools.pairwise(BUDGETS))),
            mean_above(-TOLERANCE),
        ),
        Rule(
            "one budget less variable P, farthest off that budget, dB",
            tuple(itertools.starmap(_difference, FARTHEST.items())),
            mean_below(0),
        ),
    ),
    measure=measure,
    draw=draw,
    seeds=3,
)


if __name__ == "__main__":
    sys.exit(command_line(CLAIM))
