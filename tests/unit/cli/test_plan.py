"""`gsforge plan` against a real training, and what it says of configurations that lack something or are wrong."""

import itertools
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from gsforge.cli import main
from gsforge.cli.plan_config import PlannedRun

HERE = Path(__file__).parent
CONFIGS = HERE.parents[2] / "configs"
sys.path.insert(0, str(HERE))  # `class_path: planned.LatentsData`

SIZES = {"width": 96, "heads": 2, "blocks": 3, "refiner_blocks": 1, "latent_channels": 16}
TOKENS = 40


def configuration(folder: Path, trainer: dict[str, Any] | None = None, **changes: Any) -> list[str]:
    """Options of `gsforge fit` for the flow model on made-up data."""
    tokens = {
        "class_path": "gsforge.nn.tokens.PatchTokens",
        "init_args": {"features": {"class_path": "gsforge.nn.features.FilterBankFeatures", "init_args": {"stride": 8}}},
    }
    model = {
        "semantic_tokens": tokens,
        "appearance_tokens": tokens,
        "network": SIZES,
        "training": {"tokens": TOKENS, "image_size": 32},
        "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.001}},
    }
    content = {
        "run_dir": str(folder / "run"),
        "model": {"class_path": "gsforge.methods.deg.flow.DeGFlow", "init_args": model | changes.pop("model", {})},
        "data": {
            "class_path": "planned.LatentsData",
            "init_args": {"tokens": TOKENS, "side": 32, "batch_size": 6} | changes.pop("data", {}),
        },
        "trainer": {"max_steps": 5} | (trainer or {}),
    } | changes
    path = folder / "plan.yaml"
    path.write_text(yaml.safe_dump(content))
    return ["--config", str(path), "--config", str(CONFIGS / "trainer" / "cpu.yaml")]


def plan_of(options: list[str], folder: Path, *more: str) -> dict[str, Any]:
    path = folder / "plan.json"
    assert main(["plan", *options, "--json", str(path), *more]) == 0
    return json.loads(path.read_text())


EMA = {"class_path": "gsforge.training.averaging.EMA", "init_args": {"decay": 0.9}}


def test_a_real_training_takes_the_memory_that_was_planned(tmp_path: Path) -> None:
    model = {
        "network": SIZES | {"width": 512, "heads": 8, "blocks": 4},
        "training": {"tokens": 128, "image_size": 32},
    }
    measured, steps = tmp_path / "measured.json", 2
    peak = {"class_path": "planned.PeakMemory", "init_args": {"path": str(measured), "steps": steps}}
    trainer = {"max_steps": steps, "callbacks": [EMA, peak]}
    options = configuration(tmp_path, trainer, model=model, data={"tokens": 128, "batch_size": 2})
    memory = plan_of(options, tmp_path)["memory"][0]
    # Memory that is freed goes back to the system at once, so that the process is as large as its tensors.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    environment["PYTHONPATH"] = str(HERE)
    command = [sys.executable, "-c", "import sys; from gsforge.cli import main; sys.exit(main(sys.argv[1:]))"]
    done = subprocess.run([*command, "fit", *options], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    # Weights were there before. A few tens of MB are no tensors: code that the first step loads, and Python's objects.
    assert memory["total"] - memory["weights"] == pytest.approx(json.loads(measured.read_text()), rel=0.15)


def test_what_is_told_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer = {"max_steps": 100, "callbacks": EMA, "devices": 2}
    plan = plan_of(configuration(tmp_path, trainer), tmp_path, "--throughput", "20", "--ranks", "2", "3")
    ((part, count),) = plan["parameters"].items()
    assert (part, count["frozen"]) == ("network", 0)
    assert plan["legal_ranks"] == {"1": 6, "2": 3, "3": 2, "6": 1}
    rows = {(row["strategy"], row["ranks"], row["checkpointed"]): row for row in plan["memory"]}
    assert set(rows) == set(itertools.product(("ddp", "sharded"), (2, 3), (False, True)))
    assert {row["samples"] for key, row in rows.items() if key[1] == 3} == {2}
    parts = ("weights", "gradients", "optimizer", "averages", "exchange", "activations")
    for row in rows.values():
        assert row["averages"] == row["gradients"] > 0
        assert row["total"] == sum(row[name] for name in parts)
    kept, again = rows["ddp", 2, False], rows["ddp", 2, True]
    assert again["activations"] < kept["activations"] / 2
    assert kept["exchange"] == kept["gradients"]
    assert rows["sharded", 2, False]["optimizer"] == pytest.approx(kept["optimizer"] / 2, rel=0.02)
    assert plan["data"] == {"samples": 60, "shards": 12, "batches": 10}
    assert plan["duration"] == {"steps": 100, "samples": 600, "samples_per_second": 20.0, "seconds": 30.0}
    assert plan["unknown"] == {}
    shown = capsys.readouterr().out
    assert "12 shards (for each rank: 6.0 on 2, 4.0 on 3)" in shown
    assert "0.5 minutes at 20.0 samples per second" in shown
    assert not (tmp_path / "run").exists()


def test_a_rank_takes_its_share_in_parts_that_it_can_hold(tmp_path: Path) -> None:
    def batches(ranks: int, **changes: Any) -> tuple[int, int]:
        return PlannedRun(configuration(tmp_path, **changes)).batches_of_step(ranks)

    assert batches(2) == (3, 1)
    assert batches(1, data={"rank_batch_size": 4}) == (3, 2)
    assert batches(2, trainer={"accumulate_grad_batches": 5}) == (3, 5)


def test_the_size_of_a_set_of_shards(toy_objects: Path, tmp_path: Path) -> None:
    files = [f"--config={CONFIGS / name}" for name in ("deg/vae_toy.yaml", "trainer/cpu.yaml")]
    sets = [f"--data.{name}={toy_objects}" for name in ("train", "val")]
    for options in ([], ["--data.rank_batch_size=1"]):
        data = plan_of([*files, *sets, "--model", "planned.Plain", *options], tmp_path)["data"]
        assert (data["samples"], data["batches"]) == (8, 4)


def test_the_throughput_of_a_run_that_has_trained(tmp_path: Path) -> None:
    log = tmp_path / "old" / "logs" / "csv" / "attempt_1" / "metrics.csv"
    log.parent.mkdir(parents=True)
    log.write_text("step,train/loss,time/samples_per_second\n9,0.1,2\n19,0.1,4\n29,0.1,30\n")
    options = configuration(tmp_path)
    assert main(["plan", *options, "--from-run", str(tmp_path / "old")]) == 1  # it has no configuration
    (tmp_path / "old" / "config.yaml").write_text("{}")
    assert plan_of(options, tmp_path, "--from-run", str(tmp_path / "old"))["duration"]["seconds"] == 5 * 6 / 4


def test_what_is_not_known_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = configuration(tmp_path, {"max_steps": -1})
    options += ["--model", "planned.Plain", "--data", "datamodules.latents.LatentsDataModule"]
    options += ["--data.train", str(tmp_path / "nowhere"), "--data.val", str(tmp_path / "nowhere")]
    plan = plan_of(options, tmp_path)
    assert plan["parameters"] == {"net": {"trainable": 32, "frozen": 0}, "frozen": {"trainable": 0, "frozen": 18}}
    assert plan["step"] is plan["data"] is plan["duration"] is None
    assert "nowhere" in plan["unknown"]["training set"]
    assert "no `example_step`" in plan["unknown"]["cost of a step"]
    assert plan["memory"][0]["weights"] == 4 * (32 + 18)
    shown = capsys.readouterr().out
    assert "activations" not in shown
    assert "time: not known" in shown


def test_a_step_that_depends_on_contents_is_told(tmp_path: Path) -> None:
    options = [*configuration(tmp_path), "--model", "planned.DataDependent"]
    assert "does not run on tensors without contents" in plan_of(options, tmp_path)["unknown"]["cost of a step"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--ranks", "4"], "cannot be shared out to 4 ranks: expected one of [1, 2, 3, 6]"),
        (["--throughput", "0"], "expected samples per second above 0"),
        (["--model.network.widht", "64"], "did you mean"),
        (["--model.network.width", "7"], "width of at least 48"),
    ],
)
def test_bad_input(options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *configuration(tmp_path), *options]) in (1, 2)
    assert message in " ".join(capsys.readouterr().err.split())


def test_the_published_size_takes_seconds_and_no_memory(tmp_path: Path) -> None:
    options = [f"--config={CONFIGS / name}" for name in ("deg/flow_base.yaml", "trainer/gpu.yaml")]
    before, begun = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    plan = plan_of(options, tmp_path, "--ranks", "32")
    assert time.process_time() - begun < 120
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < 1e9
    assert plan["parameters"]["network"] == {"trainable": 370_526_101, "frozen": 0}
    assert plan["parameters"]["semantic_tokens"]["frozen"] == 840_509_440
    rows = {(row["strategy"], row["checkpointed"]): row for row in plan["memory"]}
    assert rows["ddp", False]["optimizer"] == pytest.approx(8 * 370_526_101, rel=1e-6)
    assert rows["sharded", True]["total"] < rows["ddp", False]["total"] / 5
    assert plan["data"] is None


@pytest.mark.parametrize("name", ["vae_toy", "vae_toy_stage2", "vae_toy_stage3", "flow_toy"])
def test_every_configuration_can_be_planned(name: str, tmp_path: Path) -> None:
    files = [CONFIGS / "deg" / f"{name}.yaml", CONFIGS / "trainer" / "cpu.yaml"]
    plan = plan_of([f"--config={path}" for path in files], tmp_path)
    assert plan["step"]["flops"] > plan["step"]["frozen_flops"] > 0
    assert plan["memory"][0]["activations"] > 0
    assert plan["step"]["left_out"]
