"""The promises that every method keeps, tried with every `configs/*/*toy*.yaml`."""

import csv
import os
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch

from benchmarks.chaos.trials import difference
from benchmarks.processes import start
from gsforge.cli import main
from gsforge.cli.export import export_scene
from gsforge.core.cameras import cameras_around, sphere_hammersley
from gsforge.core.ply import load_ply
from gsforge.render import rasterize
from gsforge.training.errors import ConfigError
from tests.contract.conftest import CONFIGS, STEPS, ToyRun


def losses(run_dir: Path) -> dict[int, float]:
    """Loss by step over all attempts; a step logged twice must have one value."""
    found: dict[int, float] = {}
    for log in sorted(run_dir.glob("logs/csv/attempt_*/metrics.csv")):
        for row in csv.DictReader(log.open()):
            if row.get("train/loss"):
                assert found.setdefault(int(row["step"]), float(row["train/loss"])) == float(row["train/loss"])
    return found


def checkpoint(run_dir: Path) -> dict[str, Any]:
    return torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)


def test_there_are_configurations() -> None:
    assert CONFIGS


def test_the_loss_falls(trained: Path) -> None:
    values = list(losses(trained).values())
    assert len(values) == STEPS
    assert sum(values[-6:]) < 0.97 * sum(values[:6]), values


def kill_at_random(arguments: list[str], run_dir: Path, random: Random) -> None:
    """Start a training, and kill it at a random time some checkpoints later: within a step, or while it saves."""
    last = run_dir / "checkpoints" / "last.ckpt"
    log = run_dir.with_suffix(".log")
    process = start(arguments, log)
    deadline, wanted = time.monotonic() + 300, random.randint(1, 4)
    saves = [(last.stat().st_mtime_ns if last.exists() else 0, time.monotonic())]
    while len(saves) <= wanted:
        assert process.is_alive(), log.read_text()
        assert time.monotonic() < deadline, "no checkpoint in time"
        if last.exists() and (written := last.stat().st_mtime_ns) != saves[-1][0]:
            saves.append((written, time.monotonic()))
        time.sleep(0.01)
    pace = saves[-1][1] - saves[-2][1] if wanted > 1 else 0.2
    time.sleep(random.uniform(0, pace))
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL, "it ended before it was killed"


def test_killed_at_a_random_step_and_resumed_equals_uninterrupted(toy_run: ToyRun, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert main(["fit", *toy_run.options(whole, STEPS)]) == 0
    # Another time in each run of the test; timing alone would make it so.
    kill_at_random(["fit", *toy_run.options(killed, STEPS)], killed, Random())
    before = checkpoint(killed)["global_step"]
    assert before < STEPS, "killed too late to show anything"
    assert main(["fit", *toy_run.options(killed, STEPS)]) == 0
    first, second = checkpoint(whole), checkpoint(killed)
    assert first["global_step"] == second["global_step"] == STEPS
    for part in ("state_dict", "optimizer_states", "lr_schedulers"):
        assert difference(first[part], second[part], part) is None
    # The same losses at the same steps: the same objects, views and random numbers.
    expected, resumed = losses(whole), losses(killed)
    assert resumed == {step: expected[step] for step in resumed}
    assert set(range(before, STEPS)) <= set(resumed)


def test_export_then_load_gives_the_same_render(trained: Path, tmp_path: Path) -> None:
    assert main(["predict", "--config", str(trained / "config.yaml")]) == 0
    files = sorted((trained / "predict").glob("*.ply"))
    if not files:  # a stage without Gaussians says so
        with pytest.raises(ConfigError, match="Gaussians"):
            export_scene(trained, tmp_path / "object.ply")
        return
    export_scene(trained, tmp_path / "object.ply")
    predicted = load_ply(files[0])
    exported = load_ply(tmp_path / "object.ply")
    cameras = cameras_around(sphere_hammersley(4), radius=2.0, fov=0.7, size=32)
    images = rasterize(exported, cameras).rgb
    assert images.amax() > 0.1
    torch.testing.assert_close(images, rasterize(predicted, cameras).rgb, rtol=0, atol=0)


def test_a_checkpoint_of_another_architecture_is_refused(
    toy_run: ToyRun, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    foreign = tmp_path / "foreign.ckpt"
    contents = checkpoint(trained)
    weights = contents["state_dict"]
    name = next(name for name, tensor in weights.items() if tensor.dim() == 2)
    weights[name] = weights[name][:-1]
    torch.save(contents, foreign)
    options = [*toy_run.options(tmp_path / "run", steps=2), f"--init_from={foreign}"]
    assert main(["fit", *options]) != 0
    errors = capsys.readouterr().err
    assert "another architecture" in errors
    assert name in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize("damage", ["truncated", "missing", "other version"])
def test_damaged_data_is_refused(toy_run: ToyRun, tmp_path: Path, capsys: pytest.CaptureFixture, damage: str) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(toy_run.data, broken)
    shard, index = min(broken.glob("*.tar")), broken / "index.json"
    if damage == "truncated":
        os.truncate(shard, shard.stat().st_size // 2)
    elif damage == "missing":
        shard.unlink()
    else:
        index.write_text(
            index.read_text().replace('"schema": 1', '"schema": 999').replace('"schema":1', '"schema":999')
        )
    run = replace(toy_run, data=broken)
    assert main(["fit", *run.options(tmp_path / "run", steps=2)]) != 0
    errors = capsys.readouterr().err
    assert "Traceback" not in errors
    assert str(broken) in errors or shard.name in errors, errors
    assert not (tmp_path / "run" / "checkpoints").exists(), "nothing was trained"


def test_a_mistyped_key_is_named(toy_run: ToyRun, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["fit", *toy_run.options(tmp_path / "run", steps=2), "--trainer.max_stepz=3"]) == 2
    assert "max_steps" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
