import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import trimesh
from PIL import Image

from datamodules.commands import main
from datamodules.index import read_index

SMALL = ["--views", "3", "--size", "16", "--points", "64", "--supersampling", "1"]


def test_check_and_show_a_toy_set(toy_objects, tmp_path, capsys):
    assert main(["check", str(toy_objects)]) == 0
    assert "8 objects in 2 shards, 0 problems" in capsys.readouterr().out
    sheet = tmp_path / "new" / "sheet.png"
    assert main(["show", str(toy_objects), "--out", str(sheet), "--objects", "3", "--views", "2", "--size", "40"]) == 0
    with Image.open(sheet) as image:
        assert image.size == (3 * (80 + 6) + 6, 14 + 3 * 40 + 12)
        pixels = np.asarray(image)
    tops = pixels[20:60, 6:86], pixels[60:100, 6:86], pixels[100:140, 6:86]
    assert all((part < 250).any() and (part == 255).all(-1).any() for part in tops)


def test_check_reports_damage(toy_objects, tmp_path, capsys):
    shutil.copytree(toy_objects, tmp_path / "set")
    with (tmp_path / "set" / "shard-000000.tar").open("r+b") as stream:
        stream.seek(2000)
        stream.write(b"damage")
    assert main(["check", str(tmp_path / "set")]) == 1
    assert "sha256 is" in capsys.readouterr().out


def test_prepare_a_folder_with_a_broken_mesh(tmp_path, capsys):
    trimesh.creation.icosphere(2).export(tmp_path / "ball.ply")
    trimesh.creation.box().export(tmp_path / "box.obj")
    (tmp_path / "broken.glb").write_bytes(b"no mesh")
    out = tmp_path / "set"
    assert main(["prepare", "objects", "--meshes", str(tmp_path), "--out", str(out), "--workers", "0", *SMALL]) == 0
    shown = capsys.readouterr().out
    assert "left out broken.glb: cannot be parsed" in shown
    assert "1 sources could not be used" in shown.replace("\n", " ")
    assert [sample.key for shard in read_index(str(out)).shards for sample in shard.samples] == ["ball", "box"]
    assert '"broken.glb"' in (out / "failures.jsonl").read_text()
    assert main(["check", str(out)]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["check", "{tmp}/nothing"], "no {tmp}/nothing/index.json"),
        (["show", "{tmp}", "--out", "{tmp}/a.png"], "no {tmp}/index.json"),
        (["prepare", "objects", "--meshes", "{tmp}/nothing", "--out", "{tmp}/o"], "is not a folder"),
        (["prepare", "objects", "--meshes", "{tmp}", "--out", "{tmp}/o"], "no mesh file"),
        (["toy", "objects", "--out", "{tmp}/o", "--count", "0"], "at least 1 object"),
        (["toy", "objects", "--out", "{tmp}/o", "--radius", "0.1"], "cameras inside the object"),
        (["toy", "objects", "--out", "{tmp}/o", "--shard-size", "0"], "--shard-size must be at least 1"),
        (["toy", "objects", "--out", "{tmp}/o", "--condition-views", "-1"], "condition views: expected 0 to 1000"),
        (["toy", "objects", "--out", "/proc/nothing/o", "--count", "1"], "/proc/nothing"),
        (["encode", "{tmp}", "--data", "{tmp}", "--out", "{tmp}/o"], "{tmp} holds no config.yaml"),
    ],
)
def test_expected_errors_are_one_clear_message(tmp_path, capsys, arguments, message):
    code = main([argument.format(tmp=tmp_path) for argument in arguments])
    error = capsys.readouterr().err
    assert code == 1
    assert error.startswith("gsforge data: ")
    assert message.format(tmp=tmp_path) in error
    assert "Traceback" not in error


def test_a_rank_outside_the_world_is_refused(tmp_path, capsys):
    trimesh.creation.box().export(tmp_path / "box.obj")
    assert (
        main(
            [
                "prepare",
                "objects",
                "--meshes",
                str(tmp_path),
                "--out",
                str(tmp_path / "o"),
                "--rank",
                "2",
                "--world",
                "2",
            ]
        )
        == 1
    )
    assert "rank must be from 0 to world - 1" in capsys.readouterr().err


def test_sets_of_another_kind_are_neither_checked_nor_shown(write_numbers, tmp_path, capsys):
    folder = str(write_numbers([1]))
    assert main(["check", folder]) == 1
    assert "is a set of numbers; this gsforge checks sets of objects, latents" in capsys.readouterr().err
    assert main(["show", folder, "--out", str(tmp_path / "a.png")]) == 1
    assert "is a set of numbers; this gsforge shows sets of objects, latents" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [[], ["toy"], ["encode", "run"], ["toy", "objects"], ["prepare", "scenes"], ["check", "a", "--x"]]
)
def test_wrong_usage_exits_with_2(arguments):
    with pytest.raises(SystemExit) as exit_info:
        main(arguments)
    assert exit_info.value.code == 2


@pytest.mark.parametrize("arguments", [[], ["prepare", "objects"], ["toy", "objects"], ["encode"], ["check"], ["show"]])
def test_help_is_fast_and_heavy_libraries_stay_out(arguments):
    code = (
        "import sys\nfrom datamodules.commands import main\n"
        f"try:\n    main({[*arguments, '--help']!r})\nexcept SystemExit as end:\n    assert end.code == 0\n"
        "print(sorted({'torch', 'lightning', 'webdataset', 'trimesh', 'numpy'} & set(sys.modules)))"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.startswith("usage: gsforge data")
    assert output.endswith("[]\n")


def test_ctrl_c_leaves_a_set_that_continues(tmp_path):
    out = tmp_path / "set"
    options = ["toy", "objects", "--out", str(out), "--count", "40", "--shard-size", "4", *SMALL, "--size", "64"]
    # A shell without job control starts what it runs in the background deaf to Ctrl-C, and children inherit that.
    listen = "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)"
    code = f"{listen}\nimport sys\nfrom datamodules.commands import main\nsys.exit(main({options!r}))"
    process = subprocess.Popen(
        [sys.executable, "-c", code], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    deadline = time.monotonic() + 120
    while not (out / "shard-000001.tar").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "finished shards are kept. Run the same command again" in error.replace("\n", " ")
    assert "Traceback" not in error
    assert not (out / "index.json").exists()
    assert not list(out.glob(".*.tmp"))
    kept = (out / "shard-000000.tar").stat().st_mtime_ns
    assert main(options) == 0
    assert (out / "shard-000000.tar").stat().st_mtime_ns == kept
    assert read_index(str(out)).samples == 40
    whole = tmp_path / "whole"
    assert main([str(whole) if word == str(out) else word for word in options]) == 0
    for path in whole.glob("shard-*.tar"):
        assert path.read_bytes() == (out / path.name).read_bytes()
