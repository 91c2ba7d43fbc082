"""The benchmark of the rasteriser: what it prints and writes, and that it refuses a peer which draws something else."""

import itertools
import json
import re
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from benchmarks.speed import captured, measure, rasterize, shim
from benchmarks.speed.peers import Contender, check, count_pairs, from_folder, gsplat_torch, own
from benchmarks.speed.scenes import Cell, make_scene
from gsforge.core.cameras import Cameras
from gsforge.core.gaussians import Gaussians
from gsforge.core.ply import save_ply

pytest.importorskip("gsplat", reason="gsplat is not installed: pip install 'gsforge[cuda]'")
TINY = Cell(200, 24, 1)
PEER = """
from gsforge.render import rasterize

NAME = "the-reference"

def render(gaussians, cameras):
    return rasterize(gaussians, cameras, backend="reference").rgb[0]
"""


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def test_a_tiny_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "peer.py").write_text(PEER)
    plan = rasterize.Plan((TINY, Cell(200, 32, 0)), (TINY,), measure.Rounds(2, 3, 0.1))
    out = tmp_path / "results"
    results = rasterize.run(plan, [gsplat_torch(), from_folder(tmp_path)], 1, out)

    last = capsys.readouterr().out.splitlines()[-1]
    assert re.fullmatch(r"ratio gsplat-torch forward\+backward \d+\.\d\d", last)
    assert float(last.split()[-1]) == pytest.approx(results.ratio("gsplat-torch"), abs=0.006)
    page = (out / "rasterize.md").read_text()
    assert "the-reference" in page
    assert "200 32² SH0" in page
    record = json.loads((out / "rasterize.json").read_text())
    assert len(record["cells"]) == 2
    for cell in record["cells"]:
        assert list(cell["step"]) == ["gsforge", "gsplat-torch", "the-reference"]
        for name, timing in cell["step"].items():
            assert timing["cpu_ms"] > cell["forward"][name]["cpu_ms"] * 0.5 > 0
            assert (timing["shim_ms"] > 0) == (name == "gsplat-torch")
    assert set(record["contribution"][0]["step"]) == {"none", "l1", "l2"}
    assert "1" in record["scaling"][0]["step"]
    assert record["peak_gflops"] > 1


@pytest.mark.parametrize("cell", [TINY, Cell(3000, 40, 3)], ids=str)
def test_gsplat_with_its_shim_agrees_with_the_reference(cell: Cell) -> None:
    agreement = check(gsplat_torch(), own("reference"), make_scene(cell))
    assert agreement.image_mean < 1e-6
    assert max(agreement.gradients.values()) < 2e-5


def test_pairs_stop_where_a_pixel_is_opaque() -> None:
    """Two hundred opaque Gaussians behind each other: a dozen are drawn, in order of depth."""
    count = 200
    middle = torch.full((count, 2), 8.5)
    depths = torch.arange(count).flip(0).float()
    splats, pixels = shim.find_pairs(
        middle, torch.full((count, 2), 3), torch.tensor([[1.0, 0.0, 1.0]]).expand(count, 3), torch.full((count,), 0.5),
        depths, 20, 20,
    )  # fmt: skip
    in_the_middle = splats[pixels == 8 * 20 + 8]
    # 0.5^13 = 1.2e-4 is left after 13, and the next would bring it to 6e-5, below the stop.
    assert in_the_middle.tolist() == list(range(count - 1, count - 14, -1))
    assert (pixels.diff() >= 0).all()


def test_a_peer_that_draws_something_else_is_refused() -> None:
    def brighter(gaussians: Gaussians, cameras: Cameras) -> Tensor:
        return 1.01 * own("reference").render(gaussians, cameras)

    def without_gradient_to_opacity(gaussians: Gaussians, cameras: Cameras) -> Tensor:
        opacities = gaussians.opacities.detach() + 0 * gaussians.opacities
        changed = Gaussians(gaussians.means, gaussians.quats, gaussians.scales, opacities, gaussians.sh)
        return own("reference").render(changed, cameras)

    scene = make_scene(TINY)
    with pytest.raises(SystemExit, match=r"brighter draws something else than gsforge.* mean of the image"):
        check(Contender("brighter", brighter), own("reference"), scene)
    with pytest.raises(SystemExit, match=r"gradient to the opacities differs by 1"):
        check(Contender("detached", without_gradient_to_opacity), own("reference"), scene)


def test_a_folder_without_a_peer_says_what_it_looked_for(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"looked for .*peer\.py and found none"):
        from_folder(tmp_path)
    (tmp_path / "peer.py").write_text("NAME = 'unfinished'\n")
    with pytest.raises(SystemExit, match=r"lacks \['render'\]"):
        from_folder(tmp_path)


@pytest.mark.parametrize("threads", ["0", "-1", "two"])
def test_threads_must_be_a_number(
    threads: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["rasterize", "--threads", threads])
    with pytest.raises(SystemExit):
        rasterize.main()
    assert f"expected a number of threads >= 1, got {threads}" in capsys.readouterr().err


def test_tasks_take_turns() -> None:
    calls: list[str] = []
    tasks = {name: (lambda name=name: calls.append(name)) for name in ("own", "peer")}
    timings = measure.take_turns(tasks, measure.Rounds(least=3, most=3, seconds=1))
    assert [name for name, _ in itertools.groupby(calls)] == ["own", "peer"] * 4  # one round to warm up
    assert timings["own"].rounds == 3


def test_the_first_call_of_a_turn_counts_only_if_alone() -> None:
    calls: list[str] = []

    def task(name: str, seconds_after_another: float) -> None:
        time.sleep(seconds_after_another if calls[-1:] != [name] else 1e-3)
        calls.append(name)

    tasks = {"short": partial(task, "short", 0.02), "long": partial(task, "long", 0.06)}
    timings = measure.take_turns(tasks, measure.Rounds(least=3, most=3, seconds=1))
    assert timings["short"].wall_ms < 15
    assert timings["long"].wall_ms > 55


def test_peak_memory_sees_what_is_freed_again() -> None:
    added = measure.peak_memory(lambda: torch.ones(64 << 18).sum())
    if added is None:
        pytest.skip("this system does not let a process reset its peak")
    assert 60 < added < 100


def test_scenes_have_the_promised_size_in_pixels() -> None:
    for size in (64, 128):
        scene = make_scene(Cell(2000, size, 0))
        pixels, depth = scene.cameras.project(scene.gaussians.means)
        sigma = scene.gaussians.scales * scene.cameras.intrinsics[0, 0, 0] / depth[0][:, None]
        assert 0.29 < sigma[:, :2].min() < sigma[:, :2].max() < 3.01
        assert ((pixels > 0) & (pixels < size)).all()
        assert 30 < count_pairs(scene) / 2000 < 50


def test_captured_scenes_are_drawn_by_every_backend(tmp_path: Path) -> None:
    scene = make_scene(TINY).gaussians.map(Tensor.detach)
    path = tmp_path / "torus.ply"
    save_ply(path, scene)
    result = captured.compare_backends(path, tmp_path, size=48)
    assert result.gaussians == TINY.count
    assert result.differences["cpu"].mean < 1e-6
    with Image.open(tmp_path / result.picture) as sheet:
        pixels = np.asarray(sheet)
    assert pixels.shape[1] == 48 * (1 + 2 * len(result.differences))
    assert pixels[16:, :48].min() < 128, "the reference drew nothing"
