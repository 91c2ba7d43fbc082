"""What a run writes: pictures, metrics, .ply files, logs, configurations."""

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from gsforge.cli import main
from gsforge.core.ply import load_ply
from gsforge.core.weights import load_weights
from gsforge.training.config import config_difference
from gsforge.training.errors import ConfigError
from gsforge.training.media import file_name, picture_strip
from gsforge.training.run_directory import RunDirectory


@pytest.fixture
def trained(gsforge: Any, run_dir: Path) -> Path:
    assert gsforge("fit") == 0
    return run_dir


def test_validation_pictures(trained: Path) -> None:
    files = {path.name for path in (trained / "validation" / "step_4").iterdir()}
    names = ("ground_truth.png", "render.png", "density.png", "turntable.gif")
    assert files == {f"val_{n}.{name}" for n in range(4) for name in names}
    with Image.open(trained / "validation" / "step_4" / "val_0.turntable.gif") as turning:
        assert (turning.n_frames, turning.size) == (16, (128, 128))
    assert Image.open(trained / "validation" / "step_8" / "val_0.render.png").size == (10, 6)
    events = EventAccumulator(str(trained / "logs" / "tensorboard"), size_guidance={"images": 0}).Reload()
    assert [event.step for event in events.Images("validation/val_0/ground truth and render")] == [4, 8]
    assert events.Images("validation/val_0/density")
    shown = events.Images("validation/val_0/turntable")[1].encoded_image_string
    assert shown == (trained / "validation" / "step_8" / "val_0.turntable.gif").read_bytes()


def test_logged_values(trained: Path) -> None:
    with (trained / "logs" / "csv" / "attempt_1" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {"train/loss", "val/loss", "time/step", "time/data_wait", "memory/peak_rss_gb"} <= rows[0].keys()
    (timed,) = (row for row in rows if row["time/step"])
    assert 0 <= float(timed["time/data_wait"]) < float(timed["time/step"])
    assert 0.01 < float(timed["memory/peak_rss_gb"]) < 100


def test_a_second_attempt_keeps_the_first_ones_logs(gsforge: Any, trained: Path) -> None:
    first = (trained / "logs" / "csv" / "attempt_1" / "metrics.csv").read_text()
    gsforge("fit", "--trainer.max_steps", "20")
    assert (trained / "logs" / "csv" / "attempt_1" / "metrics.csv").read_text() == first
    assert (trained / "logs" / "csv" / "attempt_2" / "metrics.csv").exists()


def test_metrics_and_ply_of_the_test_set(gsforge: Any, trained: Path, capfd: pytest.CaptureFixture) -> None:
    assert gsforge("test") == 0
    summary = json.loads((trained / "test" / "metrics.json").read_text())
    assert summary["step"] == 10
    assert summary["checkpoint"].endswith("step-00000010.ckpt")
    assert sorted(summary["objects"]) == [f"test_{n}" for n in range(8)]
    values = [metrics["psnr"] for metrics in summary["objects"].values()]
    assert summary["mean"]["psnr"] == pytest.approx(sum(values) / 8)
    assert summary["mean"]["psnr_baseline"] > summary["mean"]["psnr"]
    assert load_ply(trained / "test" / "test_3.ply").count == 5
    assert (trained / "test" / "test_3.ground_truth.png").exists()
    table = capfd.readouterr().out
    assert "mean over 8 objects" in table
    assert f"{summary['mean']['psnr_baseline']:.4f}" in table


def test_predict_writes_what_export_writes(gsforge: Any, trained: Path, tmp_path: Path) -> None:
    from gsforge.cli import main

    assert gsforge("predict") == 0
    ply = tmp_path / "out" / "object.ply"
    assert main(["export", str(trained), "--out", str(ply), "--key", "test_5"]) == 0
    assert ply.read_bytes() == (trained / "predict" / "test_5.ply").read_bytes()
    points = torch.rand(5, 3, generator=torch.Generator().manual_seed(5)) - 0.5
    torch.testing.assert_close(load_ply(ply).means, points)
    assert main(["export", str(trained), "--out", str(ply), "--up", "y"]) == 0
    means = load_ply(ply).means
    points = torch.rand(5, 3, generator=torch.Generator().manual_seed(0)) - 0.5
    torch.testing.assert_close(means, torch.stack([points[:, 0], points[:, 2], -points[:, 1]], dim=1))


def test_the_suffix_says_the_format(trained: Path, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    from gsforge.cli import main

    def export(name: str, *options: str) -> int:
        return main(["export", str(trained), "--out", str(tmp_path / name), *options])

    assert export("object.splat") == 0
    rows = np.fromfile(tmp_path / "object.splat", "<f4").reshape(5, 8)
    points = torch.rand(5, 3, generator=torch.Generator().manual_seed(0)) - 0.5
    torch.testing.assert_close(torch.from_numpy(rows[:, :3].copy()).sort(0).values, points.sort(0).values)
    assert export("object.SPZ") == 0
    assert gzip.decompress((tmp_path / "object.SPZ").read_bytes()).startswith(b"NGSP")
    capfd.readouterr()
    assert export("object.obj") == 2
    assert "ends in .ply, .splat or .spz, got '.obj'" in capfd.readouterr().err
    assert export("z.spz", "--up", "z") == 2
    assert "a .spz file has y up" in capfd.readouterr().err
    assert {file.name for file in tmp_path.iterdir()} >= {"object.splat", "object.SPZ"}
    assert not list(tmp_path.glob("*.obj")) + list(tmp_path.glob("z.*"))


def test_export_says_what_is_missing(trained: Path, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    from gsforge.cli import main

    assert main(["export", str(trained), "--out", str(tmp_path / "a.ply"), "--key", "tset_3"]) == 2
    assert "closest: ['test_3'" in capfd.readouterr().err
    assert main(["export", str(tmp_path / "no_run"), "--out", str(tmp_path / "a.ply")]) == 1
    assert "no run directory" in capfd.readouterr().err


def test_export_takes_the_sets_that_are_there(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    import tiny

    from gsforge.cli import main

    absent = {"predict", "test"}

    def setup(self: Any, stage: str) -> None:
        if stage in absent:
            raise ConfigError("no test set was given")

    monkeypatch.setattr(tiny.TinyData, "setup", setup)
    ply = tmp_path / "a.ply"
    assert main(["export", str(trained), "--out", str(ply)]) == 0
    assert "of val_0" in capfd.readouterr().out
    absent.add("validate")
    assert main(["export", str(trained), "--out", str(ply)]) == 2
    assert "none of the run's sets can be read: no test set was given" in capfd.readouterr().err


def test_evaluation_without_a_checkpoint_says_what_to_run(gsforge: Any, capfd: pytest.CaptureFixture) -> None:
    assert gsforge("test") == 1
    assert "train first with `gsforge fit`" in capfd.readouterr().err


def test_a_given_checkpoint_does_not_change_the_configuration(gsforge: Any, trained: Path) -> None:
    (step,) = (trained / "checkpoints").glob("step-*.ckpt")
    assert gsforge("test", "--ckpt_path", str(step)) == 0
    assert json.loads((trained / "test" / "metrics.json").read_text())["checkpoint"] == str(step)


def test_configurations_are_kept(gsforge: Any, trained: Path, capfd: pytest.CaptureFixture) -> None:
    assert [path.name for path in RunDirectory(trained).configs().values()] == ["config.yaml"]
    capfd.readouterr()
    gsforge("fit", "--trainer.max_steps", "12", "--optimizer.init_args.lr", "0.5")
    shown = capfd.readouterr().err
    assert "-trainer.max_steps: 10" in shown
    assert "+trainer.max_steps: 12" in shown
    assert "from the checkpoint" in shown
    assert RunDirectory(trained).config().name == "config.2.yaml"
    from gsforge.cli import main

    assert main(["test", "--config", str(RunDirectory(trained).config())]) == 0


def test_difference_names_the_full_key() -> None:
    old, new = "a: {b: 1, c: [1, 2]}\nd: [{e: 1}]", "a: {b: 2, c: [1, 2]}\nd: [{e: 1}, {e: 2}]"
    assert config_difference(old, new).splitlines() == ["-a.b: 1", "+a.b: 2", "+d.1.e: 2"]
    assert config_difference(old, old) == ""


def test_pictures_stand_side_by_side() -> None:
    views = torch.rand(3, 3, 4, 5) * 2
    strip = picture_strip(views)
    assert strip.shape == (3, 4, 15)
    torch.testing.assert_close(strip[:, :, 5:10], views[1].clamp(0, 1))


@pytest.mark.parametrize("key", ["../a", "a/b", ".hidden", "", "a\0"])
def test_keys_that_leave_the_folder_are_refused(key: str) -> None:
    with pytest.raises(ValueError, match="cannot be a file name"):
        file_name(key)


def test_weights_are_exported_with_a_card(gsforge: Any, run_dir: Path, tmp_path: Path) -> None:
    assert gsforge("fit", "--model.init_args.width", "6") == 0
    folder = tmp_path / "weights"
    assert main(["export", str(run_dir), "--weights", str(folder)]) == 0
    tensors, card = load_weights(folder)
    checkpoint = torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)
    assert tensors.keys() == checkpoint["state_dict"].keys()
    assert all(torch.equal(tensors[name], checkpoint["state_dict"][name]) for name in tensors)
    assert card["class"] == "tiny.TinyModel"
    assert card["options"]["width"] == 6
    assert card["step"] == checkpoint["global_step"]
    assert card["parameters"] == sum(tensor.numel() for tensor in tensors.values())


def test_methods_without_a_released_layout_say_so(
    gsforge: Any, run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert gsforge("fit", "--trainer.max_steps", "1") == 0
    assert main(["export", str(run_dir), "--weights", str(tmp_path / "w"), "--layout", "released"]) == 2
    assert "TinyModel has no released layout" in capsys.readouterr().err
    assert not (tmp_path / "w").exists()
