import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import Snapshots

BAD = ["--trainer.callbacks+=tiny.Snapshots", "--model.init_args.bad_keys"]


def test_a_bad_step_changes_nothing_and_names_its_samples(gsforge: Any, run_dir: Path) -> None:
    assert gsforge("fit", *BAD, "[train_4]") == 0
    entries = [json.loads(line) for line in (run_dir / "bad_steps.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in entries] == [2, 6]  # samples 4 and 5 are the third batch of four
    assert all(entry["keys"] == ["train_4", "train_5"] and entry["loss"] == "nan" for entry in entries)
    torch.testing.assert_close(Snapshots.taken[2], Snapshots.taken[1], rtol=0, atol=0)
    assert not torch.equal(Snapshots.taken[3]["net.0.weight"], Snapshots.taken[2]["net.0.weight"])
    assert all(value.isfinite().all() for value in Snapshots.taken[-1].values())


def test_bad_steps_in_a_row_end_the_run(gsforge: Any, run_dir: Path, capfd: pytest.CaptureFixture) -> None:
    assert gsforge("fit", *BAD, "[train_0, train_2, train_4]", "--guard.stop_after", "3") == 1
    assert "3 training steps in a row, up to step 2" in capfd.readouterr().err
    assert len((run_dir / "bad_steps.jsonl").read_text().splitlines()) == 3


def test_good_steps_between_reset_the_count(gsforge: Any) -> None:
    assert gsforge("fit", *BAD, "[train_0, train_4]", "--guard.stop_after", "2") == 0


def test_a_run_longer_than_its_schedule_is_refused_before_the_first_step(
    gsforge: Any, run_dir: Path, capfd: pytest.CaptureFixture
) -> None:
    schedule = "{class_path: torch.optim.lr_scheduler.OneCycleLR, init_args: {max_lr: 0.01, total_steps: 3}}"
    assert gsforge("fit", "--lr_scheduler", schedule, "--trainer.max_steps", "4") == 2
    assert "trainer.max_steps is 4, but OneCycleLR ends after its total_steps 3" in capfd.readouterr().err
    assert not list(run_dir.glob("checkpoints/*"))
    assert gsforge("fit", "--lr_scheduler", schedule, "--trainer.max_steps", "3") == 0
