"""An error that comes again at the same step is told from one that may not."""

import json
from pathlib import Path
from typing import Any

import pytest

DIE = "--trainer.callbacks+={class_path: tiny.At, init_args: {step: %d, action: die}}"


def test_the_same_error_at_the_same_step_ends_the_attempts(
    gsforge: Any, run_dir: Path, capfd: pytest.CaptureFixture
) -> None:
    for step in (6, 5):  # another step is another error
        with pytest.raises(RuntimeError, match="killed"):
            gsforge("fit", DIE % step)
    assert gsforge("fit", DIE % 5) == 70
    errors = capfd.readouterr().err
    assert "RuntimeError: killed" in errors
    assert "at the same step 5" in errors
    records = [json.loads(line) for line in (run_dir / "failures.jsonl").read_text().splitlines()]
    assert [(record["attempt"], record["step"]) for record in records] == [(1, 6), (2, 5), (3, 5)]
    assert gsforge("fit") == 0


def test_a_stop_is_no_failure(gsforge: Any, run_dir: Path) -> None:
    stop = "--trainer.callbacks+={class_path: tiny.At, init_args: {step: 4, action: SIGTERM}}"
    assert [gsforge("fit", stop), gsforge("fit", stop)] == [75, 0]
    assert not (run_dir / "failures.jsonl").exists()
