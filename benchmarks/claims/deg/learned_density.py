"""Whether a density that learns from the rendering loss draws better than that of the surface, and when.

python -m benchmarks.claims.deg.learned_density [--quick] [--seeds N] [--out DIR]
"""

import sys
from dataclasses import dataclass

from benchmarks.claims.claim import Claim, command_line
from benchmarks.claims.deg.forks import FULL, QUICK, SETTING, Arm, give_appearance, give_structure, quality, refine
from benchmarks.claims.deg.variants import LocalVAE, SteppedVAE
from benchmarks.claims.plot import Line, Panel
from benchmarks.claims.rules import Numbers, Rule, mean_above

BUDGETS, JUDGED = (64, 128, 256, 512, 1024), (64, 128)
WEIGHTS = {"learned": 1.0, "surface": 0.0}


@dataclass(frozen=True)
class Case:
    """Under which the densities are compared.

    Attributes:
        most: largest budget P of a step of the refinement; the smallest is that of `BUDGETS`.
        module: what is trained.
    """

    most: int
    module: type[SteppedVAE]


PUBLISHED = "adaptive"
CASES = {
    PUBLISHED: Case(BUDGETS[-1], SteppedVAE),
    "adaptive, few": Case(JUDGED[-1], SteppedVAE),
    "local": Case(BUDGETS[-1], LocalVAE),
}


def measure(seed: int, quick: bool) -> dict[str, float]:
    """Fork the refinement with and without the rendering loss, in all cases.

    Args:
        seed: of the objects and all draws.
        quick: small sizes.

    Returns:
        PSNR by case, density and budget, and the gains.
    """
    structure = give_structure(QUICK if quick else FULL, seed)
    starts = {module: give_appearance(structure, module) for module in (SteppedVAE, LocalVAE)}
    numbers: dict[str, float] = {}
    for name, case in CASES.items():
        found = {}
        for density, weight in WEIGHTS.items():
            refined = refine(starts[case.module], Arm(BUDGETS[0], case.most, weight=weight, module=case.module))
            found[density] = quality(starts[case.module], refined, BUDGETS)
            numbers |= {_psnr(name, density, budget): value for budget, value in found[density].items()}
        numbers |= {_gain(name, budget): found["learned"][budget] - found["surface"][budget] for budget in BUDGETS}
    return numbers


def draw(numbers: Numbers, quick: bool) -> list[Panel]:
    """Quality and gain by budget.

    Args:
        numbers: from `measure`.
        quick: not used; the budgets are the same.

    Returns:
        Two panels.
    """
    psnrs = [
        Line(f"{case}: {density}", tuple((budget, numbers[_psnr(case, density, budget)]) for budget in BUDGETS))
        for case in CASES
        for density in WEIGHTS
    ]
    gains = [Line(case, tuple((budget, numbers[_gain(case, budget)]) for budget in BUDGETS)) for case in CASES]
    return [
        Panel("Held-out views", "anchors P", "PSNR, dB", tuple(psnrs)),
        Panel("Learned density over the surface's", "anchors P", "gain, dB", tuple(gains), (0.0,)),
    ]


def _psnr(case: str, density: str, budget: int) -> str:
    return f"{case}, P = {budget}: {density}, dB"


def _gain(case: str, budget: int) -> str:
    return f"{case}, P = {budget}: gain, dB"


CLAIM = Claim(
    paper="deg",
    name="learned_density",
    sentence="A density that learns from the rendering loss draws objects with smooth and busy parts better, from few "
    "anchors, than the density of the surface alone.",
    source="DeG (arXiv 2605.16355), render-loss contribution gradient and comparison of densities",
    compared=f"{SETTING} with P from 64 to 1024, with the "
    "contribution loss of weight 1 or 0 and the same objects, views and budgets. PSNR of views that were not trained "
    "on, over black, 4 draws. The published decoder, whose anchors attend to each other (adaptive), is judged. "
    "Shown are the same refined with P from 64 to 128 (few), and a decoder without that attention, from an appearance "
    "stage of its own (local).",
    rules=(
        Rule(
            "gain of the learned density with the adaptive decoder, smallest budgets, dB",
            tuple(_gain(PUBLISHED, budget) for budget in JUDGED),
            mean_above(0),
        ),
    ),
    measure=measure,
    draw=draw,
    seeds=3,
)


if __name__ == "__main__":
    sys.exit(command_line(CLAIM))
