"""What a run logs of its speed and of its saves."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

UNRULY = ["--model", '{"class_path": "unruly.UnrulyModel", "init_args": {"fault": "loss", "steps": []}}']
ODD = ["--data.init_args.samples", "7"]  # batches of 2, 2, 2 and 1 samples, of 5 points each
PEAK = 1e9


def timed(run_dir: Path) -> list[dict[str, float]]:
    with (run_dir / "logs" / "csv" / "attempt_1" / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["time/step"]]
    return [{name: float(value) for name, value in row.items() if value} for row in rows]


def test_work_is_added_up_over_the_batches_of_an_interval(gsforge: Any, run_dir: Path) -> None:
    options = ["--trainer.log_every_n_steps", "4", "--timing.peak_flops", str(PEAK)]
    assert gsforge("fit", *UNRULY, *ODD, *options, "--trainer.max_steps", "8") == 0
    assert len(timed(run_dir)) == 2
    for row in timed(run_dir):
        seconds = 4 * row["time/step"]
        assert row["time/samples_per_second"] * seconds == pytest.approx(7)
        assert row["time/points_per_second"] * seconds == pytest.approx(35)
        assert row["time/mfu"] * seconds == pytest.approx(4 * 1e6 / PEAK)


def test_nothing_is_guessed(gsforge: Any, run_dir: Path) -> None:
    assert gsforge("fit", *UNRULY) == 0
    assert "time/mfu" not in timed(run_dir)[0]
    assert "time/flops_per_second" not in timed(run_dir)[0]


def test_the_cost_of_the_last_save_is_logged_and_kept(gsforge: Any, run_dir: Path) -> None:
    options = ["--trainer.log_every_n_steps", "1", "--checkpoint.every_n_train_steps", "4"]
    assert gsforge("fit", *options) == 0
    rows = timed(run_dir)
    assert not any("checkpoint/stall" in row for row in rows if row["step"] < 4)
    logged = [row for row in rows if "checkpoint/stall" in row]
    assert len({row["checkpoint/write"] for row in logged}) == 2, "the saves at steps 4 and 8; that of step 10 is later"
    for row in logged:
        assert 0 < row["checkpoint/stall"] < 10 > row["checkpoint/write"] > 0
        assert 0 < row["checkpoint/gigabytes"] < 1e-3
    cost = json.loads((run_dir / "save_cost.json").read_text())
    assert min(cost["stall"], cost["write"], cost["step"]) > 0
    assert cost["write"] not in {row["checkpoint/write"] for row in logged}, "the save of step 10"


@pytest.mark.parametrize("action", ["SIGUSR2", "SIGINT"])
def test_the_save_of_a_stop_is_kept(gsforge: Any, run_dir: Path, action: str) -> None:
    stop = f"--trainer.callbacks+={{class_path: tiny.At, init_args: {{step: 3, action: {action}}}}}"
    assert gsforge("fit", stop, "--trainer.accumulate_grad_batches", "2") in (75, 130)
    cost = json.loads((run_dir / "save_cost.json").read_text())
    assert cost["write"] > 0
