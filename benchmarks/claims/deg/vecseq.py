"""Whether tokens of a set are learned better by a flow model when they are ordered by assignment to Sobol anchors.

A lower loss alone says little of the model: where an index tells more of a token, even the best loss is lower. So what
is sampled is judged as well, as a set, for which the order does not count.

python -m benchmarks.claims.deg.vecseq [--quick] [--seeds N] [--out DIR]
"""

import itertools
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import get_args

import torch

from benchmarks.claims.claim import Claim, command_line
from benchmarks.claims.deg.superquadrics import ORDERS, Examples, draw_examples, draw_tokens, positional_variance
from benchmarks.claims.deg.token_flow import TIMES, Positions, Training, flow_losses, sample, train
from benchmarks.claims.plot import Line, Panel
from benchmarks.claims.rules import Numbers, Rule, every_below, mean_below

VECSEQ, *OTHER_ORDERS = ORDERS
JUDGED_STEPS = 20  # of the sampler
FLOOR, CHANCE = "another draw of the same shape", "the next shape"
_NOISE_OF_LOSSES, _NOISE_OF_SAMPLES = 10_000, 20_000  # added to the seed; the same for all arms


@dataclass(frozen=True)
class Arm:
    """One model.

    Attributes:
        order: of the tokens.
        positions: whether the model is told which token is which.
    """

    order: str
    positions: Positions

    def __str__(self) -> str:
        return f"{self.order}, {'with' if self.positions == 'anchors' else 'without'} positions"


ARMS = tuple(Arm(order, positions) for positions in get_args(Positions) for order in ORDERS)
OURS, OTHERS = ARMS[0], tuple(arm for arm in ARMS if arm.order != VECSEQ)


@dataclass(frozen=True)
class Plan:
    """Sizes.

    Attributes:
        trained: shapes to learn from.
        held_out: shapes to measure on.
        tokens: M.
        training: of every model.
        sampled: with these numbers of steps.
    """

    trained: int
    held_out: int
    tokens: int
    training: Training
    sampled: tuple[int, ...]


FULL = Plan(4096, 256, 32, Training(steps=2000), sampled=(5, 10, JUDGED_STEPS, 40))
QUICK = Plan(64, 16, 8, Training(steps=3, batch=8), sampled=(5, JUDGED_STEPS))


def measure(seed: int, quick: bool) -> dict[str, float]:
    """Draw shapes, and train and measure one model for each arm.

    Args:
        seed: of everything that is drawn.
        quick: few shapes and steps.

    Returns:
        The numbers.
    """
    plan = QUICK if quick else FULL
    torch.manual_seed(seed)
    drawn = draw_examples(plan.trained + plan.held_out, plan.tokens)
    known, held_out = drawn.part(slice(plan.trained)), drawn.part(slice(plan.trained, None))
    numbers = _variances(drawn, plan.tokens)
    true = held_out.sets[ARMS[0].order]
    again = held_out.normalised(draw_tokens(held_out.shapes, plan.tokens))
    for name, others in ((FLOOR, again), (CHANCE, true.roll(1, 0))):
        numbers[_chamfer(name)] = held_out.chamfer(others, true)
        numbers[_chamfer_of_tokens(name)] = held_out.chamfer_of_tokens(others, true)
    for arm in ARMS:
        numbers |= _trained(arm, known, held_out, plan, seed)
    for kind, other in itertools.product((_mean_loss, _judged_chamfer, _chamfer_of_tokens), OTHERS):
        numbers[_difference(kind, other)] = numbers[kind(OURS)] - numbers[kind(other)]
    return numbers


def _variances(drawn: Examples, tokens: int) -> dict[str, float]:
    numbers = {}
    for order, sets in drawn.sets.items():
        found = positional_variance(drawn.places(sets))
        numbers[_variance(order)] = found.mean().item()
        numbers |= {_variance(order, index): found[index - 1].item() for index in _shown_indices(tokens)}
    for other in OTHER_ORDERS:
        numbers[_variance_ratio(other)] = numbers[_variance(VECSEQ)] / numbers[_variance(other)]
    return numbers


def _trained(arm: Arm, known: Examples, held_out: Examples, plan: Plan, seed: int) -> dict[str, float]:
    network = train(known.sets[arm.order], known.shapes, arm.positions, plan.training, seed)
    true = held_out.sets[arm.order]
    losses = flow_losses(network, true, held_out.shapes, seed + _NOISE_OF_LOSSES)
    numbers = {_loss(arm, time): loss for time, loss in losses.items()}
    numbers[_mean_loss(arm)] = fmean(losses.values())
    for steps in plan.sampled:
        generated = sample(network, plan.tokens, held_out.shapes, steps, seed + _NOISE_OF_SAMPLES)
        numbers[_chamfer(arm, steps)] = held_out.chamfer(generated, true)
        if steps == JUDGED_STEPS:
            numbers[_shuffled(arm)] = held_out.chamfer(generated.roll(1, 0), true)
            numbers[_chamfer_of_tokens(arm)] = held_out.chamfer_of_tokens(generated, true)
    return numbers


def draw(numbers: Numbers, quick: bool) -> list[Panel]:
    """Where tokens lie by their index, the loss by time, and the samples by steps of the sampler.

    Args:
        numbers: from `measure`.
        quick: as for `measure`.

    Returns:
        Three panels.
    """
    plan = QUICK if quick else FULL
    indices = _shown_indices(plan.tokens)

    def line(title: str, name: Callable[[float], str], across: Sequence[float]) -> Line:
        return Line(title, tuple((x, numbers[name(x)]) for x in across))

    variances = tuple(line(order, partial(_variance, order), indices) for order in ORDERS)
    losses = tuple(line(str(arm), partial(_loss, arm), TIMES) for arm in ARMS)
    samples = tuple(line(str(arm), partial(_chamfer, arm), plan.sampled) for arm in ARMS)
    floor = (numbers[_chamfer(FLOOR)].mean,)
    return [
        Panel("Where the token of an index lies", "index", "variance over objects, share", variances),
        Panel("Flow loss of held-out shapes", "time", "mean squared error", losses),
        Panel("Places of samples against the true ones", "steps of the sampler", "Chamfer", samples, floor),
    ]


def _shown_indices(tokens: int) -> list[int]:
    return [2**power for power in range(tokens.bit_length())]


def _variance(order: str, index: float | None = None) -> str:
    return f"positional variance, {order}" + ("" if index is None else f": index {index}")


def _variance_ratio(other: str) -> str:
    return f"positional variance, {VECSEQ} over {other}"


def _loss(arm: Arm, time: float) -> str:
    return f"{arm}: flow loss, t = {time}"


def _mean_loss(arm: Arm) -> str:
    return f"{arm}: flow loss, mean of times"


def _chamfer(arm: Arm | str, steps: float | None = None) -> str:
    return f"{arm}: Chamfer" + ("" if steps is None else f", {steps} steps")


def _chamfer_of_tokens(arm: Arm | str) -> str:
    return f"{arm}: Chamfer of places and colours, normalised"


def _judged_chamfer(arm: Arm) -> str:
    return _chamfer(arm, JUDGED_STEPS)


def _shuffled(arm: Arm) -> str:
    return f"{arm}: Chamfer, pairs shuffled"


def _difference(kind: Callable[[Arm], str], other: Arm) -> str:
    return f"{kind(OURS)}, minus {other}"


CLAIM = Claim(
    paper="deg",
    name="vecseq",
    sentence="Tokens of a set that are ordered by an optimal assignment to scrambled Sobol anchors are easier for a "
    "flow model than the same tokens in the order of farthest-point sampling or in random order.",
    source="DeG (arXiv 2605.16355), VecSeq and its ablation against unordered tokens",
    compared="32 surface points with their colours, chosen by farthest-point sampling on random superquadrics, as "
    "tokens; 4096 shapes to learn from and 256 held out. The flow transformer of DeG, of width 48 with two blocks, "
    "given the numbers of the shape as its one image token: the same initial weights, batches, times and noise for all "
    "arms. Each order with positions (sinusoids of the Sobol anchor of the index, whatever the order) and without; "
    "without them the model cannot tell tokens apart, so that these three arms differ by chance alone. Loss of the "
    "velocity, mean of five times. Chamfer distance between the set generated for a held-out shape and its true one, "
    "mean over shapes, with 20 steps of Euler: of the places, and of places and colours, each with deviation 1; beside "
    "it that to the next shape (pairs shuffled), and of another draw of the same shape.",
    rules=(
        Rule(
            "variance over objects of the place of a token of the same index, Sobol-OT over the other orders",
            tuple(map(_variance_ratio, OTHER_ORDERS)),
            every_below(0.5),
        ),
        Rule(
            "held-out flow loss, Sobol-OT with positions minus the other orders with and without",
            tuple(_difference(_mean_loss, other) for other in OTHERS),
            mean_below(0),
        ),
        Rule(
            "Chamfer of the places of samples, Sobol-OT with positions minus the other orders with and without",
            tuple(_difference(_judged_chamfer, other) for other in OTHERS),
            mean_below(0),
        ),
        Rule(
            "Chamfer of their places and colours, Sobol-OT with positions minus the other orders with and without",
            tuple(_difference(_chamfer_of_tokens, other) for other in OTHERS),
            mean_below(0),
        ),
    ),
    measure=measure,
    draw=draw,
    seeds=3,
)


if __name__ == "__main__":
    sys.exit(command_line(CLAIM))
