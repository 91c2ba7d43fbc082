"""Every command of the README runs, in its order, with fewer objects and steps."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import trimesh
from PIL import Image, ImageDraw

from gsforge.cli import main

ROOT = Path(__file__).resolve().parents[2]
# Appended to a command, so that the README can show real sizes and the test takes a minute.
SMALLER = {
    "data toy": "--count 2 --points 2048 --workers 0",
    "data prepare": "--points 2048 --workers 0",
    "fit": "--trainer.max_steps=2 --trainer.val_check_interval=2 --data.batch_size=2 --data.num_workers=0",
    "test": "--data.num_workers=0",
    "report": "--angles 2 --size 64",
}
PLACES = ("pip install", "source .venv/bin/activate", "tensorboard")


def commands() -> list[str]:
    """Lines of the README's shell blocks."""
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line and not line.startswith("#")]


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with the configurations, somebody's meshes and a picture."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "meshes").mkdir()
    for name, mesh in (("box", trimesh.creation.box()), ("ball", trimesh.creation.icosphere())):
        mesh.visual.vertex_colors = [200, 80, 40, 255]
        mesh.export(tmp_path / "meshes" / f"{name}.glb")
    photo = Image.new("RGBA", (48, 48))
    ImageDraw.Draw(photo).ellipse((10, 8, 38, 40), fill=(200, 80, 40, 255))
    photo.save(tmp_path / "photo.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_gsforge_commands_run_in_order(workplace: Path) -> None:
    lines = [line for line in commands() if line.startswith("gsforge ")]
    assert len(lines) > 10
    for line in lines:
        smaller = next((options for start, options in SMALLER.items() if line.startswith(f"gsforge {start}")), "")
        arguments = [*shlex.split(line)[1:], *shlex.split(smaller)]
        assert main(arguments) == 0, " ".join(arguments)
    files = ("heldout.png", "object.ply", "object.spz", "runs/deg_vae_toy_stage3/report.html", "data/mine/index.json")
    files += ("runs/deg_flow_toy/test/metrics.json", "generated/photo.ply", "generated/report.html")
    for made in files:
        assert (workplace / made).stat().st_size > 0, made


def test_make_targets_exist() -> None:
    targets = [line.split()[1] for line in commands() if line.startswith("make ")]
    assert {"demo", "test"} <= set(targets)
    for target in targets:
        done = subprocess.run(["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_modules_run() -> None:
    modules = [shlex.split(line)[2] for line in commands() if line.startswith("python -m ")]
    assert modules
    for module in modules:
        done = subprocess.run([sys.executable, "-m", module], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_every_command_is_of_a_tested_kind() -> None:
    known = ("gsforge ", "make ", "python -m ", *PLACES)
    assert [line for line in commands() if not line.startswith(known)] == []


def test_ci_runs_the_test_command() -> None:
    assert (ROOT / ".ci" / "run").read_text().splitlines()[-1] == "make test"


@pytest.mark.slow
def test_the_demo_tells_its_story(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    command = [sys.executable, "-m", "benchmarks.demo", "--quick", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    story = ["Stage 1", "Stage 2", "Ctrl-C", "continuing", "Stage 3", "latents", "chamfer", "one picture", "psnr"]
    for part in story:
        assert part in done.stdout + done.stderr, part
    for made in ("report.html", "reconstruction.html", "object.ply", "heldout.png", "generated/picture.ply"):
        assert (out / made).stat().st_size > 0
