"""The report of a small run: what is on the page, what is merged, what is escaped, what is refused."""

import csv
import html.parser
import json
import math
import re
from pathlib import Path

import pytest
import torch
from torchvision.transforms.functional import to_pil_image

from gsforge.core.gaussians import Gaussians
from gsforge.core.ply import save_ply
from gsforge.render import RenderSettings
from gsforge.training.errors import CheckpointError
from gsforge.training.media import write_strips
from gsforge.training.run_directory import RunDirectory
from gsforge.viewer.charts import chart_groups, thinned
from gsforge.viewer.pictures import render_settings, render_turntable
from gsforge.viewer.report import ReportOptions, build_report, main
from gsforge.viewer.results import read_test
from gsforge.viewer.run_data import Curves, pictures_of, read_configuration, read_curves
from gsforge.viewer.text import metric_label, number

CONFIG = """\
seed_everything: 0
trainer: {max_steps: 100}
model:
  class_path: gsforge.methods.deg.module.DeGVAE
  init_args:
    stage: appearance
    render: {mode: antialiased, eps2d: 0.1}
    note: "</pre><script>alert(1)</script>"
data:
  init_args: {train: data/toy/train}
"""


def write_log(run: Path, attempt: int, rows: list[dict[str, float]]) -> None:
    path = run / "logs" / "csv" / f"attempt_{attempt}" / "metrics.csv"
    path.parent.mkdir(parents=True)
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, sorted({name for row in rows for name in row}))
        writer.writeheader()
        writer.writerows(rows)


def write_object(folder: Path, key: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, shade in (("ground_truth", 0.8), ("render", 0.5), ("density", 0.2)):
        to_pil_image(torch.full((3, 16, 48), shade)).save(folder / f"{key}.{name}.png")
    count = 30
    generator = torch.Generator().manual_seed(0)
    scene = Gaussians(
        means=torch.rand(count, 3, generator=generator) - 0.5,
        quats=torch.tensor([1.0, 0, 0, 0]).expand(count, 4),
        scales=torch.full((count, 3), 0.05),
        opacities=torch.full((count,), 0.9),
        sh=torch.full((count, 1, 3), 1.0),
    )
    save_ply(folder / f"{key}.ply", scene)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    run = tmp_path / "my <b>run"
    run.mkdir()
    (run / "config.yaml").write_text(CONFIG)
    (run / "config.2.yaml").write_text(CONFIG.replace("max_steps: 100", "max_steps: 200"))
    write_log(run, 1, [{"step": s, "epoch": 0, "train/loss": 1.0, "time/step": 0.5} for s in range(10, 60, 10)])
    late = [{"step": s, "epoch": 0, "train/loss": 0.5, "time/step": 2.0} for s in range(40, 90, 10)]
    write_log(run, 2, [*late, {"step": 80, "epoch": 0, "val/psnr": 20.0, "val/psnr_baseline": 12.0}])
    write_log(run, 3, [{"step": 0, "epoch": 0, "test/psnr": 99.0}])
    for key in ("chair", "lamp"):
        write_object(run / "test", key)
        write_object(run / "validation" / "step_40", key)
        write_object(run / "validation" / "step_80", key)
    objects = {
        "chair": {"psnr": 18.0, "psnr_baseline": 12.0, "chamfer": 0.02, "chamfer_baseline": 0.01},
        "lamp": {"psnr": 22.0, "psnr_baseline": 14.0, "chamfer": 0.04, "chamfer_baseline": 0.03},
    }
    mean = {"psnr": 20.0, "psnr_baseline": 13.0, "chamfer": 0.03, "chamfer_baseline": 0.02}
    content = {"checkpoint": "step-00000080.ckpt", "step": 80, "objects": objects, "mean": mean, "seconds": 3.0}
    (run / "test" / "metrics.json").write_text(json.dumps(content))
    (run / "checkpoints").mkdir()
    torch.save(
        {"global_step": 80, "state_dict": {"w": torch.zeros(30, 50)}}, run / "checkpoints" / "step-00000080.ckpt"
    )
    return run


class Page(html.parser.HTMLParser):
    """Collects what a browser would load and the elements that matter."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.scripts = 0
        self.classes: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attributes}
        self.scripts += tag == "script"
        self.classes += given.get("class", "").split()
        self.loads += [value for name, value in given.items() if name in ("src", "href", "srcset", "data", "poster")]


OPTIONS = ReportOptions(angles=3, size=16)


def test_page_loads_nothing_and_shows_everything(run: Path) -> None:
    text = build_report(run, OPTIONS)
    page = Page(text)
    assert all(target.startswith(("data:image/webp;base64,", "#")) for target in page.loads)
    assert all(target.startswith("data:") for target in re.findall(r"url\(([^)]*)\)", text))
    assert not re.search(r"@import|fetch\(|XMLHttpRequest|import\(", text)
    assert set(re.findall(r"https?://[^\s\"']+", text)) == {"http://www.w3.org/2000/svg"}  # a name, never loaded
    assert page.classes.count("turntable") == 3  # the hero and two objects
    assert page.classes.count("reel") == 6  # two objects, three strips
    assert page.classes.count("chart") == 3  # loss, validation PSNR, time
    for expected in (
        "DeGVAE",
        "appearance stage",
        "+7.00 dB better",
        "+50 % worse",
        "1.5 K",
        "ground truth",
        "Changed in",
    ):
        assert expected in text, expected
    assert text.index("lamp</h3>") < text.index("chair</h3>")  # the better one first


def test_everything_from_files_is_escaped(run: Path) -> None:
    text = build_report(run, OPTIONS)
    assert "my &lt;b&gt;run" in text
    assert "<b>run" not in text
    assert "alert(1)</script>" not in text
    assert Page(text).scripts == 2


def test_script_data_cannot_end_the_script(run: Path) -> None:
    write_log(run, 4, [{"step": 90, "train/</script><script>x": 1.0}])
    text = build_report(run, OPTIONS)
    assert Page(text).scripts == 2
    embedded = re.search(r'id="data">(.*?)</script>', text)
    assert embedded is not None
    titles = [chart["title"] for chart in json.loads(embedded[1])["charts"]]
    assert "</script><script>x" in titles


def test_attempts_are_merged_where_they_overlap(run: Path) -> None:
    curves = read_curves(RunDirectory(run))
    assert curves.values["train/loss"] == [(10, 1.0), (20, 1.0), (30, 1.0), *((s, 0.5) for s in range(40, 90, 10))]
    assert curves.resumes == [40]
    assert "test/psnr" not in curves.values  # an attempt that only tested
    assert curves.training_seconds == 30 * 0.5 + 50 * 2.0
    assert curves.last_step == 80


def test_a_metric_that_shares_its_name_with_a_loss_term_has_its_own_chart() -> None:
    points = [(1, 0.5)]
    names = ("train/ssim", "val/ssim", "val/ssim_baseline", "train/loss", "val/loss", "lr-AdamW")
    groups = chart_groups(Curves(dict.fromkeys(names, points), []))
    drawn = {g.title: {c.title: [s.kind for s in c.series] for c in g.charts} for g in groups}
    assert drawn["Loss"] == {"loss": ["training", "validation"], "SSIM": ["training"]}
    assert drawn["Quality on the validation set"] == {"SSIM": ["validation", "baseline"]}
    assert list(drawn["Speed, memory, learning rate"]) == ["lr-AdamW"]


def test_long_curves_are_averaged_and_keep_their_end() -> None:
    points = [(step, float(step)) for step in range(10_001)]
    short = thinned(points, most=100)
    assert len(short) <= 102
    assert short[-1] == (10_000, 10_000.0)
    assert short[0][1] == pytest.approx(sum(range(short[0][0] + 1)) / (short[0][0] + 1))
    assert thinned(points[:5]) == points[:5]


def test_a_run_without_test_says_so(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(CONFIG)
    text = build_report(tmp_path)
    assert "Not tested yet" in text
    assert "No curves" in text
    assert "No validation pictures yet" in text
    assert "turntable" not in Page(text).classes


def test_structure_stage_has_no_gaussians_but_pictures(run: Path) -> None:
    for path in (run / "test").glob("*.ply"):
        path.unlink()
    page = Page(build_report(run, OPTIONS))
    assert "turntable" not in page.classes
    assert page.classes.count("reel") == 6


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"holds no config\.yaml"):
        main([str(tmp_path)])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("test/metrics.json", '{"step": 3}', r"metrics\.json: not what `gsforge test` writes"),
        ("logs/csv/attempt_1/metrics.csv", "step,train/loss\nx,1\n", r"metrics\.csv: expected a CSV log"),
        ("config.2.yaml", "a: [", r"config\.2\.yaml: not a YAML file"),
        ("checkpoints/step-00000080.ckpt", "half a file", "all checkpoints in"),
        ("test/chair.render.png", "no picture", r"chair\.render\.png is not a picture"),
    ],
)
def test_damaged_files_are_named(run: Path, file: str, content: str, message: str) -> None:
    (run / file).write_text(content)
    with pytest.raises((ValueError, CheckpointError), match=message):
        build_report(run, OPTIONS)


def test_main_writes_where_it_is_told(run: Path, tmp_path: Path) -> None:
    assert main([str(run), "--angles", "0", "--objects", "1", "--out", str(tmp_path / "page.html")]) == 0
    page = Page((tmp_path / "page.html").read_text())
    assert page.classes.count("object") == 1
    assert "turntable" not in page.classes
    with pytest.raises(ValueError, match="--size must be 16 to 1024"):
        main([str(run), "--size", "4"])


def test_changes_of_the_configuration_name_the_full_key(run: Path) -> None:
    changes = read_configuration(RunDirectory(run)).changes
    assert changes == {2: ["-trainer.max_steps: 100", "+trainer.max_steps: 200"]}


def test_a_report_needs_no_git(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert "torch" in build_report(run, ReportOptions(angles=0))


def test_a_key_cannot_reach_out_of_the_folder(run: Path) -> None:
    write_object(run, "secret")
    content = json.loads((run / "test" / "metrics.json").read_text())
    content["objects"]["../secret"] = {"psnr": 1.0}
    (run / "test" / "metrics.json").write_text(json.dumps(content))
    page = Page(build_report(run, OPTIONS))
    assert page.classes.count("object") == 3
    assert page.classes.count("turntable") == 3
    assert page.classes.count("reel") == 6


def test_results_say_better_and_worse(run: Path) -> None:
    result = read_test(RunDirectory(run))
    assert result is not None
    assert [(row.name, row.tone) for row in result.rows] == [("psnr", "good"), ("chamfer", "bad")]
    assert result.keys == ["lamp", "chair"]
    assert result.verdict == "Beats the baseline in 1 of 2 metrics on 2 held-out objects."
    places = {key: place for place, key, _ in result.rows[0].dots}
    assert places == {"chair": 55.56, "lamp": 100.0}  # of 13 (baseline) to 22
    assert result.rows[0].baseline_place == 0.0


def test_quality_by_number_of_gaussians_is_a_table_of_its_own(run: Path) -> None:
    path = run / "test" / "metrics.json"
    content = json.loads(path.read_text())
    content["mean"] |= {"psnr@4096": 25.0, "psnr@512": 21.0, "lpips@512": 0.3, "lpips@4096": 0.2}
    path.write_text(json.dumps(content))
    content["unavailable"] = {"fd_dinov2": "no <weights> at /nowhere"}
    path.write_text(json.dumps(content))
    result = read_test(RunDirectory(run))
    assert result is not None
    assert [row.name for row in result.rows] == ["psnr", "chamfer"]
    assert [(row.name, row.values) for row in result.budgets] == [
        ("psnr", {512: 21.0, 4096: 25.0}),
        ("lpips", {512: 0.3, 4096: 0.2}),
    ]
    text = build_report(run, ReportOptions(angles=0))
    assert "fd_dinov2: not available. no &lt;weights&gt; at /nowhere" in text
    assert re.search(r"By number of Gaussians.*512</th>.*4,096</th>.*PSNR.*21.00.*25.00.*LPIPS", text, re.DOTALL)


def test_turntable_turns_and_uses_the_settings_of_the_run(run: Path) -> None:
    configured = read_configuration(RunDirectory(run)).get("model", "init_args", "render")
    settings = render_settings(configured)
    assert settings == RenderSettings(mode="antialiased", eps2d=0.1)
    assert render_settings(None) == RenderSettings()
    turned = render_turntable(run / "test" / "chair.ply", 7, 16, settings)
    assert (turned.columns, turned.rows, turned.frames, turned.gaussians) == (6, 2, 7, 30)


def test_pictures_are_those_of_the_key_alone(run: Path) -> None:
    write_object(run / "test", "chair-2")
    assert list(pictures_of(run / "test", "chair")) == ["ground truth", "render", "density"]


def test_what_the_model_was_given_comes_first_and_no_larger(run: Path) -> None:
    write_strips(run / "test", "chair", {"input image": torch.rand(3, 16, 16)})
    assert next(iter(pictures_of(run / "test", "chair"))) == "input image"
    page = build_report(run, ReportOptions(angles=0))
    assert "the model saw the input image alone" in page
    widths = re.findall(r'max-width: (\d+)\.0%"><img src="[^"]*" width="(\d+)" height="(\d+)"', page)
    assert {(int(most), int(width) // int(height)) for most, width, height in widths} >= {(25, 1)}


def test_numbers_and_names() -> None:
    assert [number(value) for value in (None, math.inf, 27.125, 0.91234, 0.00001, -3.25, 0.0)] == [
        "–",
        "∞",
        "27.12",
        "0.9123",
        "1.00e−05",
        "−3.250",
        "0.0000",
    ]
    assert number(335_000_000, unit=True) == "335 M"
    assert number(1.5, sign=True) == "+1.500"
    assert metric_label("psnr_fine") == "PSNR fine"
