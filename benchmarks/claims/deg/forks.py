"""DeG VAEs of a few ten thousand parameters on busy objects: one start, from which the refinement stage is forked."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from benchmarks.claims.deg.busy_objects import Shown, draw_batch, load_objects
from benchmarks.claims.deg.variants import SteppedVAE
from gsforge.core.gaussians import Gaussians
from gsforge.methods.deg.config import ContributionConfig, LossWeights, NetworkConfig, SamplingConfig, Stage
from gsforge.methods.deg.encoder import sample_posterior
from gsforge.methods.deg.module import DeGVAE
from gsforge.methods.deg.views import Batch, views_of
from gsforge.metrics.image import psnr
from gsforge.nn.features import FilterBankFeatures

# Those of configs/deg/vae_toy.yaml, smaller; more octaves, since the checkerboard has to be told from its place.
_NETWORK: dict[str, Any] = {
    "heads": 4, "latent_channels": 16, "encoder_blocks": 1, "density_blocks": 2, "decoder_blocks": 2,
    "embedding_octaves": 4.0, "octree_depth": 5, "gaussians_per_anchor": 4, "position_init": True, "initial_gate": 1.0,
    "initial_log_variance": -5.0, "expansion": 0.06, "initial_scale": 0.02, "initial_opacity": 0.3,
}  # fmt: skip
_BETAS, _LARGEST_GRADIENT = (0.9, 0.95), 1.0
_ENCODER_SHARE = 0.1  # of the rate


@dataclass(frozen=True)
class Plan:
    """Sizes.

    Attributes:
        shown: the objects.
        width: of the networks.
        context_points: of each feature set.
        tokens: latent tokens M.
        anchors: budget P of the appearance stage.
        draws: of one object in a step, each with a latent and anchors of its own.
        rendered: views of a step, besides those that feed the encoder.
        steps: of each stage.
        rates: largest learning rate of each stage; the encoder's is a tenth.
        measured: draws that the quality is measured on.
    """

    shown: Shown
    width: int
    context_points: int
    tokens: int
    anchors: int
    draws: int
    rendered: int
    steps: dict[Stage, int]
    rates: dict[Stage, float] = field(
        default_factory=lambda: {"structure": 3e-3, "appearance": 3e-3, "refinement": 1e-3}
    )
    measured: int = 4


_STEPS: dict[Stage, int] = {"structure": 150, "appearance": 250, "refinement": 200}
FULL = Plan(
    Shown(objects=2, size=64, views=24, held_out=8, feature_views=4, points=2048),
    width=64, context_points=512, tokens=48, anchors=256, draws=2, rendered=4, steps=_STEPS,
)  # fmt: skip
SETTING = (
    "Two objects, half of one colour and half a checkerboard, on thin rods, at 64 px. One small VAE after "
    f"{_STEPS['structure']} steps of structure and {_STEPS['appearance']} of appearance with {FULL.anchors} anchors; "
    f"from there {_STEPS['refinement']} steps"
)
"""What claims about forks say of them."""
QUICK = Plan(
    Shown(objects=1, size=16, views=4, held_out=2, feature_views=2, points=64),
    width=16, context_points=24, tokens=4, anchors=16, draws=2, rendered=2, steps=dict.fromkeys(_STEPS, 2), measured=1,
)  # fmt: skip


@dataclass(frozen=True)
class Arm:
    """A way to refine.

    Attributes:
        fewest: smallest budget P of a step.
        most: largest budget.
        weight: of the loss that reaches the density.
        contribution: how it does.
        module: what is trained.
    """

    fewest: int
    most: int
    weight: float = 1.0
    contribution: ContributionConfig = field(default_factory=ContributionConfig)
    module: type[SteppedVAE] = SteppedVAE


@dataclass(frozen=True)
class Start:
    """What all arms of a seed have in common.

    Attributes:
        plan: sizes.
        seed: of everything.
        training: see `load_objects`.
        held_out: see `load_objects`.
        weights: after the last stage that was trained.
    """

    plan: Plan
    seed: int
    training: Batch
    held_out: Batch
    weights: dict[str, Tensor]


def common_start(plan: Plan, seed: int) -> Start:
    """Make the objects, and train the first two stages.

    Args:
        plan: sizes.
        seed: of the objects, the weights and every step.

    Returns:
        What is forked.
    """
    return give_appearance(give_structure(plan, seed))


def give_structure(plan: Plan, seed: int) -> Start:
    """Make the objects, and train the first stage.

    Args:
        plan: sizes.
        seed: of the objects, the weights and every step.

    Returns:
        With the weights after the structure stage.
    """
    start = Start(plan, seed, *load_objects(plan.shown, seed), weights={})
    return replace(start, weights=_train_stage(start, "structure", Arm(plan.anchors, plan.anchors)).state_dict())


def give_appearance(start: Start, module: type[SteppedVAE] = SteppedVAE) -> Start:
    """Train the second stage.

    Args:
        start: after the first.
        module: what is trained.

    Returns:
        What is forked.
    """
    arm = Arm(start.plan.anchors, start.plan.anchors, module=module)
    return replace(start, weights=_train_stage(start, "appearance", arm).state_dict())


def refine(start: Start, arm: Arm) -> DeGVAE:
    """Train the last stage; objects, views, and their order are the same for all arms.

    Args:
        start: that is forked, and stays as it is.
        arm: how.

    Returns:
        The trained module.
    """
    return _train_stage(start, "refinement", arm)


def train(module: SteppedVAE, plan: Plan, training: Batch, seed: int) -> None:
    """Train a stage by its own training step, optimizer and schedule.

    Args:
        module: of any stage.
        plan: sizes.
        training: see `load_objects`.
        seed: of the draws of every step.
    """
    configured = cast(dict[str, Any], module.configure_optimizers())
    optimizer, schedule = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    generator = torch.Generator().manual_seed(seed)
    views = plan.shown.feature_views + plan.rendered
    for step in range(plan.steps[module.stage]):
        module.step = step
        batch = draw_batch(training, plan.draws, views, 2 * plan.context_points, generator)
        torch.manual_seed(1000 * seed + step)  # one arm's draws never shift those of its later steps
        optimizer.zero_grad()
        module.training_step(batch, step).backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), _LARGEST_GRADIENT)
        optimizer.step()
        schedule.step()


@torch.no_grad()
def quality(start: Start, module: DeGVAE, budgets: Sequence[int]) -> dict[int, float]:
    """How well the held-out views of the objects are drawn over black.

    Args:
        start: with the views.
        module: with a decoder.
        budgets: numbers of anchors P.

    Returns:
        PSNR in dB by budget, mean over draws, objects and views.
    """
    views = views_of(start.held_out, slice(start.plan.shown.feature_views, None))
    found: dict[int, list[float]] = {budget: [] for budget in budgets}
    for draw in range(start.plan.measured):
        torch.manual_seed(draw)
        z_BMZ = sample_posterior(*module.encode(start.held_out, start.plan.tokens))
        for budget in budgets:
            gaussians: Gaussians = module.decode(z_BMZ, budget)[1].gaussians
            found[budget].append(psnr(module.draw(gaussians, views).clamp(0, 1), views.target).mean().item())
    return {budget: sum(values) / len(values) for budget, values in found.items()}


def _train_stage(start: Start, stage: Stage, arm: Arm) -> SteppedVAE:
    module = _build(start.plan, stage, arm, start.seed, start.weights)
    train(module, start.plan, start.training, start.seed)
    return module


def _build(plan: Plan, stage: Stage, arm: Arm, seed: int, weights: dict[str, Tensor]) -> SteppedVAE:
    rate, steps = plan.rates[stage], plan.steps[stage]
    first = stage == "structure"
    torch.manual_seed(seed)
    module = arm.module(
        FilterBankFeatures(scales=[2.0], stride=4),
        None if first else FilterBankFeatures(scales=[1.0], stride=2),
        stage,
        NetworkConfig(width=plan.width, **_NETWORK),
        SamplingConfig(
            context_points=plan.context_points, target_points=plan.context_points // 2, tokens=[plan.tokens],
            anchors=arm.most, fewest_anchors=arm.fewest, feature_views=plan.shown.feature_views, check_visibility=True,
        ),
        LossWeights(structure=1.0 if first else 0.03, kl=1e-5, lpips=0.0, contribution=arm.weight),
        arm.contribution,
        optimizer=partial(torch.optim.AdamW, lr=rate, betas=_BETAS, weight_decay=0.0),
        lr_scheduler=partial(
            torch.optim.lr_scheduler.OneCycleLR, max_lr=[_ENCODER_SHARE * rate, rate], total_steps=steps + 1,
            pct_start=0.1, div_factor=100, final_div_factor=1, cycle_momentum=False,
        ),
        seed=seed,
    )  # fmt: skip
    if weights:
        module.load_state_dict(module.state_dict() | weights)
    return module
