"""Adaptive gradient clipping: against a plain computation, through a resume, and beside the guard."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tiny import Snapshots

from gsforge.training.clipping import AdaptiveGradientClipping

CLIPPED = (
    "--trainer.callbacks+={class_path: gsforge.training.clipping.AdaptiveGradientClipping, "
    "init_args: {most: 0.05, percentile: 50, window: 3}}"
)


def clipped_norms(callback: AdaptiveGradientClipping, norms: list[float]) -> list[float]:
    """Norms after clipping of gradients that have the given norms."""
    weight = torch.nn.Parameter(torch.zeros(2))
    optimizer, module = torch.optim.SGD([weight]), SimpleNamespace(log=lambda name, value: None)
    after = []
    for norm in norms:
        weight.grad = torch.tensor([0.6, 0.8]) * norm
        callback.on_before_optimizer_step(SimpleNamespace(), module, optimizer)  # type: ignore[arg-type]
        after.append(float(weight.grad.norm()))
    return after


def test_gradients_are_clipped_at_the_percentile_of_the_last_norms_and_at_most_at_the_limit() -> None:
    norms = (0.1 + 2 * np.random.default_rng(0).random(40)).tolist()
    expected = []
    for step, norm in enumerate(norms):
        usual = np.percentile(norms[step - 8 : step], 90) if step >= 8 else np.inf
        expected.append(min(norm, 1.5, usual))
    assert len({round(min(1.5, value), 6) for value in expected}) > 10
    np.testing.assert_allclose(clipped_norms(AdaptiveGradientClipping(1.5, 90, 8), norms), expected, rtol=1e-5)


def test_a_norm_that_is_not_finite_is_not_remembered() -> None:
    callback = AdaptiveGradientClipping(1.0, 100, 2)
    after = clipped_norms(callback, [0.2, 0.4, float("inf"), 0.9, 0.9])
    assert after[:2] == pytest.approx([0.2, 0.4])
    assert after[3:] == pytest.approx([0.4, 0.9], rel=1e-5)


def test_what_has_been_seen_goes_through_a_checkpoint() -> None:
    norms = [0.3, 0.5, 0.1, 0.9, 0.2, 0.8]
    whole = clipped_norms(AdaptiveGradientClipping(2.0, 60, 3), norms)
    first, second = AdaptiveGradientClipping(2.0, 60, 3), AdaptiveGradientClipping(2.0, 60, 3)
    parts = clipped_norms(first, norms[:4])
    second.load_state_dict(first.state_dict())
    assert parts + clipped_norms(second, norms[4:]) == whole
    with pytest.raises(ValueError, match="remembers 3 norms; set window to that, got 5"):
        AdaptiveGradientClipping(window=5).load_state_dict(first.state_dict())


@pytest.mark.parametrize("options", [{"most": 0.0}, {"percentile": 0.0}, {"percentile": 101.0}, {"window": 0}])
def test_limits_that_make_no_sense_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected most > 0, 0 < percentile <= 100 and window >= 1"):
        AdaptiveGradientClipping(**options)


def test_a_run_with_bad_steps_continues_to_the_same_weights(gsforge: Any, run_dir: Path) -> None:
    options = [CLIPPED, "--trainer.callbacks+=tiny.Snapshots", "--model.init_args.bad_keys", "[train_4]"]
    assert gsforge("fit", *options) == 0
    whole = Snapshots.taken[-1]
    other = run_dir.with_name("other")
    killed = "--trainer.callbacks+={class_path: tiny.At, init_args: {step: 5, action: SIGTERM}}"
    assert gsforge("fit", *options, killed, folder=other) == 75
    assert gsforge("fit", *options, folder=other) == 0
    torch.testing.assert_close(Snapshots.taken[-1], whole, rtol=0, atol=0)
    unclipped = run_dir.with_name("unclipped")
    assert gsforge("fit", *options[1:], folder=unclipped) == 0
    assert not torch.equal(Snapshots.taken[-1]["net.0.weight"], whole["net.0.weight"])
