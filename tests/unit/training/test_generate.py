"""`gsforge predict --image`: what it refuses, and what it writes."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from gsforge.cli import main
from gsforge.cli.generate import read_cutout
from gsforge.core.ply import load_ply


@pytest.fixture
def cutout(tmp_path: Path) -> Path:
    picture = Image.new("RGBA", (20, 16), (0, 0, 0, 0))
    picture.paste((255, 128, 0, 255), (4, 2, 14, 12))
    picture.save(tmp_path / "cup.png")
    return tmp_path / "cup.png"


def test_pictures_keep_their_straight_colour_and_alpha(cutout: Path) -> None:
    pixels = read_cutout(cutout)
    assert pixels.shape == (4, 16, 20)
    assert pixels[:, 5, 6].tolist() == pytest.approx([1, 128 / 255, 0, 1])
    assert pixels[3, 0, 0] == 0


@pytest.mark.parametrize("damage", ["no alpha", "opaque", "empty", "torn", "text", "missing"])
def test_pictures_that_say_nothing_of_an_object_are_refused(
    damage: str, cutout: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    if damage == "no alpha":
        Image.new("RGB", (8, 8), "red").save(cutout)
    elif damage == "opaque":
        Image.new("RGBA", (8, 8), (255, 0, 0, 255)).save(cutout)
    elif damage == "empty":
        Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save(cutout)
    elif damage == "torn":
        cutout.write_bytes(cutout.read_bytes()[:-30])
    elif damage == "text":
        cutout.write_text("no picture")
    else:
        cutout.unlink()
    assert main(["predict", "--image", str(cutout), "--ckpt", "nowhere", "--out", str(tmp_path / "out")]) in (1, 2)
    errors = capsys.readouterr().err
    assert "Traceback" not in errors
    expected = {
        "no alpha": "has no alpha channel", "opaque": "is opaque everywhere", "empty": "there is no object",
        "torn": "is not a complete picture", "text": "is not a complete picture", "missing": "there is no file",
    }  # fmt: skip
    assert expected[damage] in errors
    assert not (tmp_path / "out").exists()


def test_objects_are_written_with_their_turning_pictures_and_a_page(
    gsforge: Any, run_dir: Path, cutout: Path, tmp_path: Path
) -> None:
    assert gsforge("fit", "--trainer.max_steps", "1") == 0
    other = cutout.with_name("jug.png")
    other.write_bytes(cutout.read_bytes())
    out = tmp_path / "out"
    arguments = ["predict", "--image", str(cutout), str(other), "--ckpt", str(run_dir), "--out", str(out)]
    assert main(arguments) == 0
    assert sorted(path.name for path in out.iterdir()) == ["cup.ply", "cup.webp", "jug.ply", "jug.webp", "report.html"]
    # The first pixels of the picture are the places of this model's Gaussians.
    torch.testing.assert_close(load_ply(out / "cup.ply").means, read_cutout(cutout)[:3, 4:6, 4:6].flatten(1).T - 0.5)
    with Image.open(out / "cup.webp") as turning:
        assert turning.is_animated
        assert turning.n_frames > 10
    page = (out / "report.html").read_text()
    assert page.count('class="turntable') == 2
    assert 'src="data:image/webp' in page
    assert set(re.findall(r"https?://[^\s\"']+", page)) == {"http://www.w3.org/2000/svg"}  # a name, never loaded


def test_a_model_that_cannot_generate_says_so(
    gsforge: Any, run_dir: Path, cutout: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert gsforge("fit", "--trainer.max_steps", "1", "--model.class_path", "tiny.TinyModelWithoutPictures") == 0
    assert main(["predict", "--image", str(cutout), "--ckpt", str(run_dir), "--out", str(tmp_path / "out")]) == 2
    assert "TinyModelWithoutPictures, which does not generate objects from images" in capsys.readouterr().err


def test_pictures_of_one_name_are_refused(cutout: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    twin = tmp_path / "other" / "cup.png"
    twin.parent.mkdir()
    twin.write_bytes(cutout.read_bytes())
    assert main(["predict", "--image", str(cutout), str(twin), "--ckpt", "nowhere", "--out", str(tmp_path / "o")]) == 2
    assert "two pictures have the same name" in capsys.readouterr().err
