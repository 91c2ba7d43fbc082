"""What is left of a bad step: enough to compute it again."""

import json
import math
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny import TinyPoints
from torch.utils.data import default_collate
from unruly import UnrulyModel

from gsforge.training import checkpoint_io
from gsforge.training.bundles import BundleInfo, load_bundle, save_bundle
from gsforge.training.checkpoint_io import write_file
from gsforge.training.checkpoints import load_weights
from gsforge.training.step_rng import StepRng


def spoiled(fault: str, steps: list[int], micro_batch: int = 0) -> list[str]:
    """Options of a run whose model spoils some steps."""
    options = {"fault": fault, "steps": steps, "micro_batch": micro_batch}
    return ["--model", json.dumps({"class_path": "unruly.UnrulyModel", "init_args": options})]


def entries(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "bad_steps.jsonl").read_text().splitlines()]


def computed_again(run_dir: Path, path: Path, fault: str) -> float:
    """Loss of the batch of a bundle, as its module would be told to compute it."""
    batch, info = load_bundle(path)
    model = UnrulyModel(fault, [info.step])
    assert info.checkpoint is not None
    model.load_state_dict(load_weights(run_dir / "checkpoints" / info.checkpoint))
    assert info.seed_key is not None
    seed, step, micro_batch, rank = info.seed_key
    of_step = SimpleNamespace(accumulate_grad_batches=micro_batch + 1, global_step=step, global_rank=rank)
    StepRng(seed).on_train_batch_start(of_step, model, batch, micro_batch)  # type: ignore[arg-type]
    model.steps = [model.global_step]
    UnrulyModel.seen.clear()
    return float(model.training_step(batch, info.micro_batch).detach())


@pytest.mark.filterwarnings("ignore:You are trying to `self.log")
@pytest.mark.parametrize("accumulated", [1, 2])
def test_a_bundle_gives_the_same_loss_again(
    gsforge: Any, run_dir: Path, accumulated: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_slowly(checkpoint: dict[str, Any], path: Path) -> None:
        time.sleep(0.5 if path.stem == "step-00000003" else 0)
        write_file(checkpoint, path)

    monkeypatch.setattr(checkpoint_io, "write_file", write_slowly)
    UnrulyModel.seen.clear()
    options = ["--checkpoint.every_n_train_steps", "1", "--trainer.accumulate_grad_batches", str(accumulated)]
    options += ["--checkpoint.keep_last", "20", "--trainer.callbacks+=unruly.Nested"]
    assert gsforge("fit", *options, *spoiled("loss", [3, 6], accumulated - 1)) == 0
    before = list(UnrulyModel.seen)
    files = sorted((run_dir / "bad_steps").iterdir())
    suffix = "-batch-1" if accumulated > 1 else ""
    assert [file.name for file in files] == [f"step-0000000{step}-rank-0{suffix}.safetensors" for step in (3, 6)]
    for file, loss in zip(files, before, strict=True):
        assert math.isnan(computed_again(run_dir, file, "loss"))
        assert UnrulyModel.seen == [loss], "the same number before it was spoiled"
    batch, info = load_bundle(files[0])
    number = (4 * accumulated - 1) % 4
    expected = default_collate([TinyPoints(8, "train")[2 * number + index] for index in range(2)])
    assert batch["key"] == info.keys == expected["key"]
    assert torch.equal(batch["points"], expected["points"])
    assert torch.equal(batch["more"]["transposed"], expected["points"].bfloat16().transpose(1, 2))
    assert batch["more"]["deep"] == {"count": 3}
    assert (info.step, info.micro_batch, info.rank, info.loss) == (3, accumulated - 1, 0, "nan")
    assert info.seed_key == [7, 3, accumulated - 1, 0]
    assert info.checkpoint == "step-00000003.ckpt"


def test_a_bad_gradient_names_its_parameters_and_leaves_all_batches(gsforge: Any, run_dir: Path) -> None:
    options = ["--trainer.accumulate_grad_batches", "2", "--guard.bundles", "1"]
    assert gsforge("fit", *options, *spoiled("gradient", [2, 4])) == 0
    assert [entry["step"] for entry in entries(run_dir)] == [2, 4]
    for entry in entries(run_dir):
        assert entry["reason"] == "not finite"
        assert entry["parameters"] == ["net.3.weight"]
        assert math.isfinite(float(entry["loss"]))
        assert not math.isfinite(float(entry["gradient_norm"]))
        assert len(entry["keys"]) == 4
    files = sorted((run_dir / "bad_steps").iterdir())
    assert [file.name for file in files] == [f"step-00000002-rank-0-batch-{number}.safetensors" for number in (0, 1)]
    keys = [key for file in files for key in load_bundle(file)[1].keys]
    assert keys == entries(run_dir)[0]["keys"]
    assert load_bundle(files[0])[1].parameters == ["net.3.weight"]


def test_a_batch_too_large_is_not_written(gsforge: Any, run_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert gsforge("fit", *spoiled("loss", [2]), "--guard.bundle_megabytes", "0.0001") == 0
    assert not (run_dir / "bad_steps").exists()
    assert "larger than guard.bundle_megabytes" in caplog.text
    assert len(entries(run_dir)) == 1


def test_bundles_are_counted_over_attempts(gsforge: Any, run_dir: Path) -> None:
    bad = [*spoiled("loss", [1, 2, 4, 6, 8]), "--guard.bundles", "2", "--checkpoint.every_n_train_steps", "3"]
    assert gsforge("fit", *bad, "--trainer.max_steps", "3") == 0
    assert gsforge("fit", *bad) == 0
    assert len(list((run_dir / "bad_steps").iterdir())) == 2
    assert [entry["step"] for entry in entries(run_dir)] == [1, 2, 4, 6, 8]


def test_a_full_disk_ends_no_run(gsforge: Any, run_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    run_dir.mkdir()
    (run_dir / "bad_steps").write_text("in the way")
    (run_dir / "bad_steps.jsonl").mkdir()
    assert gsforge("fit", *spoiled("loss", [2])) == 0
    assert caplog.text.count("was not written") == caplog.text.count("could not write to") == 1


def test_other_files_are_refused(tmp_path: Path) -> None:
    info = BundleInfo(1, 0, 0, None, "nan", [], [], None)
    save_bundle(tmp_path / "whole", {"a": torch.ones(9)}, info)
    assert load_bundle(tmp_path / "whole")[1] == info
    (tmp_path / "torn").write_bytes((tmp_path / "whole").read_bytes()[:-8])
    with pytest.raises(ValueError, match="torn is damaged or no bundle"):
        load_bundle(tmp_path / "torn")
    with pytest.raises(FileNotFoundError, match="give a file in the folder bad_steps"):
        load_bundle(tmp_path / "absent")
