"""Losses far above the usual are noticed, in a resumed run as in one that was never stopped."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import Snapshots

from gsforge.training.spikes import LossWindow, SpikeConfig

WATCH = ["--guard.spikes.window", "4", "--trainer.callbacks+=tiny.Snapshots"]


def spiking(*steps: int) -> list[str]:
    options = {"class_path": "unruly.UnrulyModel", "init_args": {"fault": "spike", "steps": steps}}
    return [*WATCH, "--model", json.dumps(options)]


def entries(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "bad_steps.jsonl").read_text().splitlines()]


def test_noise_is_usual_and_a_jump_is_not() -> None:
    window, noise = LossWindow(SpikeConfig()), random.Random(0)
    for step in range(2000):  # heavy-tailed noise about a loss that falls
        assert window.add(2.0**-step + noise.lognormvariate(0, 0.8)) is None
    spike = window.add(200.0)
    assert spike is not None
    assert spike.limit < 200 > spike.usual
    assert window.add(-500.0) is None, "a loss may fall as it likes"
    assert window.in_a_row == 0


def test_a_lasting_rise_becomes_the_usual() -> None:
    window, noise = LossWindow(SpikeConfig()), random.Random(0)
    for _ in range(150):
        window.add(noise.uniform(0.9, 1.1))
    found = [window.add(noise.uniform(90, 110)) is not None for _ in range(100)]
    assert all(found[:45])
    assert not any(found[60:])


def test_a_loss_that_does_not_vary_may_rise_a_little() -> None:
    window = LossWindow(SpikeConfig(threshold=20, window=4))
    assert [window.add(loss) is not None for loss in (1, 1, 1, 1, 1.1, 1, 1, 1, 1, 1.3)] == [False] * 9 + [True]
    still = LossWindow(SpikeConfig(window=4))
    assert not any(still.add(loss) for loss in (0, 0, 0, 0, 1))
    off = LossWindow(SpikeConfig(threshold=None, window=4))
    assert not any(off.add(loss) for loss in (1, 1, 1, 1, 1e9))


@pytest.mark.parametrize("wrong", [{"threshold": 0}, {"window": 1}, {"window": 10, "stop_after": 6}, {"stop_after": 0}])
def test_numbers_that_cannot_work_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"guard\.spikes"):
        SpikeConfig(**wrong)


def test_a_spike_is_recorded_and_changes_weights(gsforge: Any, run_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert gsforge("fit", *spiking(6)) == 0
    (entry,) = entries(run_dir)
    assert (entry["step"], entry["reason"], entry["skipped"]) == (6, "spike", False)
    assert entry["keys"] == ["train_4", "train_5"]
    assert entry["mean_loss"] > entry["limit"] > entry["usual_loss"] > 0
    assert "step 6: its loss is" in caplog.text
    assert not torch.equal(Snapshots.taken[6]["net.0.weight"], Snapshots.taken[5]["net.0.weight"])


def test_a_spike_can_be_skipped(gsforge: Any, run_dir: Path) -> None:
    assert gsforge("fit", *spiking(6), "--guard.spikes.skip", "true") == 0
    assert entries(run_dir)[0]["skipped"] is True
    torch.testing.assert_close(Snapshots.taken[6], Snapshots.taken[5], rtol=0, atol=0)
    assert not torch.equal(Snapshots.taken[7]["net.0.weight"], Snapshots.taken[6]["net.0.weight"])


def test_spikes_in_a_row_end_the_run(gsforge: Any, run_dir: Path, capfd: pytest.CaptureFixture) -> None:
    stop = ["--guard.spikes.stop_after", "2", "--checkpoint.every_n_train_steps", "1", "--checkpoint.keep_last", "9"]
    assert gsforge("fit", *spiking(5, 6), *stop) == 1
    message = capfd.readouterr().err
    assert "the training diverged: 2 steps in a row, up to step 6" in message
    assert f"--init_from {run_dir}/checkpoints/step-00000005.ckpt" in message.replace("\n", "")
    assert [entry["step"] for entry in entries(run_dir)] == [5, 6]


def test_a_resumed_run_judges_alike(gsforge: Any, run_dir: Path, tmp_path: Path) -> None:
    every = ["--checkpoint.every_n_train_steps", "3"]
    assert gsforge("fit", *spiking(4, 8), *every, folder=tmp_path / "whole") == 0
    assert gsforge("fit", *spiking(4, 8), *every, "--trainer.max_steps", "6") == 0
    assert gsforge("fit", *spiking(4, 8), *every) == 0
    assert entries(run_dir) == entries(tmp_path / "whole")
    assert [entry["step"] for entry in entries(run_dir)] == [4, 8]
