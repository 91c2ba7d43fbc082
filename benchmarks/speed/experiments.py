"""What is measured on a scene: all contenders, the cost of a contribution, the scaling over threads."""

import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import get_args

import torch
from torch import Tensor

from benchmarks.speed.measure import Rounds, parallel_gain, peak_memory, take_turns
from benchmarks.speed.peers import ATTRIBUTES, Contender, Render, check, count_pairs, own, step
from benchmarks.speed.results import CellResult, ContributionResult, ScalingResult
from benchmarks.speed.scenes import Cell, Scene, make_scene
from gsforge.render import Contribution, rasterize
from gsforge.render.api import Backend
from gsforge.render.types import PixelLoss


def compare(contenders: Sequence[Contender], rounds: Rounds, cell: Cell) -> CellResult:
    """Hold the peers to our image and gradients, then time all contenders.

    Args:
        contenders: ours first.
        rounds: how often each is timed.
        cell: what they draw.

    Returns:
        Times, memory, and how far the peers are from ours.
    """
    scene = make_scene(cell)
    agreement = {peer.name: check(peer, contenders[0], scene) for peer in contenders[1:]}
    tasks: dict[tuple[str, str], Callable[[], object]] = {}
    for work, task in (("forward", _forward), ("step", step)):
        tasks |= {(work, contender.name): partial(task, contender.render, scene) for contender in contenders}
    timings = take_turns(tasks, rounds)
    return CellResult(
        cell=cell,
        pairs=count_pairs(scene),
        forward={contender.name: timings["forward", contender.name] for contender in contenders},
        step={contender.name: timings["step", contender.name] for contender in contenders},
        memory_mb={contender.name: peak_memory(tasks["step", contender.name]) for contender in contenders},
        agreement=agreement,
    )


@torch.no_grad()
def _forward(render: Render, scene: Scene) -> Tensor:
    return render(scene.gaussians, scene.cameras)


def contribution(backend: Backend, rounds: Rounds, cell: Cell) -> ContributionResult:
    """Time a step that also asks what every Gaussian contributes to the loss, against one that does not.

    Args:
        backend: of our renderer.
        rounds: how often each is timed.
        cell: what is drawn.

    Returns:
        Times with each loss and without.
    """
    scene = make_scene(cell)
    tokens = torch.zeros(cell.count, requires_grad=True)
    leaves = [getattr(scene.gaussians, name) for name in ATTRIBUTES]

    def step_with(loss: PixelLoss) -> list[Tensor]:
        wanted = Contribution(scene.target[None], tokens, loss=loss)
        drawn = rasterize(scene.gaussians, scene.cameras, contribution=wanted, backend=backend)
        total = (drawn.rgb[0] - scene.target).square().sum() + drawn.loss.sum()  # type: ignore[union-attr]
        return list(torch.autograd.grad(total, [*leaves, tokens]))

    tasks: dict[str, Callable[[], object]] = {"none": partial(step, own(backend).render, scene)}
    tasks |= {loss: partial(step_with, loss) for loss in get_args(PixelLoss)}
    return ContributionResult(cell, take_turns(tasks, rounds))


def scaling(ours: Contender, rounds: Rounds, cell: Cell) -> ScalingResult:
    """Time the same step with 1, 2, 4, ... threads, up to all cores.

    Args:
        ours: the renderer.
        rounds: how often each number of threads is timed.
        cell: what is drawn.

    Returns:
        Times with each number of threads.
    """
    scene = make_scene(cell)
    cores = os.cpu_count() or 1
    counts = sorted({*(1 << power for power in range(cores.bit_length())), cores})

    def step_with(threads: int) -> None:
        torch.set_num_threads(threads)
        step(ours.render, scene)

    before = torch.get_num_threads()
    timings = take_turns({threads: partial(step_with, threads) for threads in counts}, rounds)
    torch.set_num_threads(before)
    return ScalingResult(cell, timings, parallel_gain(counts[-1]))
