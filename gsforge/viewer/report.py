"""`gsforge report RUN`: one self-contained HTML page about a run, to look at and to send."""

import argparse
import logging
import platform
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from gsforge.core.files import write_text
from gsforge.core.reconstruction import GIVEN, TRUTH
from gsforge.training.checkpoint_files import read_checkpoint
from gsforge.training.run_directory import RunDirectory
from gsforge.viewer.charts import chart_groups
from gsforge.viewer.pictures import (
    Turntable,
    first_view,
    open_strip,
    render_settings,
    render_turntable,
    webp_uri,
)
from gsforge.viewer.results import TestResult, read_test
from gsforge.viewer.run_data import (
    Curves,
    RunConfiguration,
    pictures_of,
    read_configuration,
    read_curves,
    validation_steps,
)
from gsforge.viewer.text import number

_log = logging.getLogger(__name__)

_STRIP_HEIGHT = 256
_CARD_METRICS = 6  # beside an object; the table has them all
_PROGRESS_STEPS, _PROGRESS_OBJECTS, _PROGRESS_SIZE = 7, 4, 160


@dataclass(frozen=True)
class ReportOptions:
    """What bounds the size of a report.

    Attributes:
        objects: largest number of test objects shown; more are chosen evenly from the best to the worst.
        angles: frames of a turntable; 0 draws none.
        size: side of a turntable frame in pixels.
    """

    objects: int = 12
    angles: int = 24
    size: int = 288


def build_report(folder: Path, options: ReportOptions | None = None) -> str:
    """Make the page.

    Args:
        folder: a run directory; what it lacks (no test yet, no logs) is said on the page.
        options: bounds of the size.

    Returns:
        HTML that loads nothing from elsewhere.

    Raises:
        FileNotFoundError: if the folder is not a run directory.
        ValueError: if a file in it is damaged.
        CheckpointError: if its last checkpoint is.
    """
    options = options or ReportOptions()
    run = RunDirectory(folder)
    configuration, curves, test = read_configuration(run), read_curves(run), read_test(run)
    groups = chart_groups(curves)
    objects = _objects(run, configuration, test, options)
    return page_template("report.html.j2").render(
        folder=str(run.path),
        name=run.path.resolve().name,
        method=(configuration.get("model", "class_path") or "model").rsplit(".", 1)[-1],
        stage=configuration.get("model", "init_args", "stage"),
        facts=_facts(configuration, run),
        tiles=_tiles(curves, run),
        test=test,
        objects=objects,
        spinning=any(card["turntable"] for card in objects),
        given=any(strip["name"] == GIVEN for card in objects for strip in card["strips"]),
        groups=groups,
        chart_data=[chart.to_json() for group in groups for chart in group.charts],
        resumes=curves.resumes,
        progress=_progress(run),
        changes=configuration.changes,
        config_lines=[_key_and_rest(line) for line in configuration.text.splitlines()],
        versions=_versions(),
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )


def page_template(name: str) -> Template:
    """Read the template of a page.

    Args:
        name: of the file in `templates`.

    Returns:
        The template; what it is given is escaped, what it lacks is an error.
    """
    environment = Environment(
        loader=PackageLoader("gsforge.viewer"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters["number"] = number
    return environment.get_template(name)


def _facts(configuration: RunConfiguration, run: RunDirectory) -> list[tuple[str, str]]:
    model, data = ("model", "init_args"), configuration.get("data", "init_args") or {}
    found = {
        "trained on": data.get("train"),
        "tested on": data.get("test"),
        "optimiser": str(configuration.get(*model, "optimizer", "class_path") or "").rsplit(".", 1)[-1],
        "learning rate": configuration.get(*model, "optimizer", "init_args", "lr"),
        "batch": data.get("batch_size"),
        "precision": configuration.get("trainer", "precision"),
        "started from": configuration.get("init_from"),
        "seed": configuration.get("seed_everything"),
    }
    return [(name, str(value)) for name, value in found.items() if value not in (None, "")]


def _tiles(curves: Curves, run: RunDirectory) -> list[tuple[str, str]]:
    path, seconds = run.last_checkpoint(), curves.training_seconds
    checkpoint = read_checkpoint(path, contents=False) if path else {}
    step = checkpoint.get("global_step", curves.last_step)
    parameters = sum(tensor.numel() for tensor in checkpoint.get("state_dict", {}).values())
    tiles = {
        "steps": f"{step:,}" if step else None,
        "training time": str(timedelta(seconds=round(seconds))) if seconds is not None else None,
        "parameters": number(parameters, unit=True) if parameters else None,
    }
    return [(label, value) for label, value in tiles.items() if value]


def _objects(
    run: RunDirectory, configuration: RunConfiguration, test: TestResult | None, options: ReportOptions
) -> list[dict[str, Any]]:
    if test is None:
        return []
    settings = render_settings(configuration.get("model", "init_args", "render"))
    available = {path.name: path for path in run.test.glob("*.ply")}
    cards = []
    for index, key in enumerate(_spread(test.keys, options.objects)):
        path = available.get(f"{key}.ply")
        turned: Turntable | None = None
        if path is not None and options.angles:
            _log.info("drawing %s", path.name)
            turned = render_turntable(path, options.angles, options.size, settings)
        strips = [
            {"name": name, "uri": webp_uri(image), "width": image.width, "height": image.height}
            for name, image in (
                (name, open_strip(file, _STRIP_HEIGHT)) for name, file in pictures_of(run.test, key).items()
            )
        ]
        metrics = [
            replace(row, value=row.objects[key], baseline=test.baselines[key].get(row.name))
            for row in test.rows[:_CARD_METRICS]
            if key in row.objects
        ]
        cards.append({"index": index, "key": key, "turntable": turned, "strips": strips, "metrics": metrics})
    return cards


def _key_and_rest(line: str) -> tuple[str, str]:
    """Split a line of YAML after its key, so that the page can colour it."""
    match = re.match(r"[\s-]*[\w.]+:", line)
    return (match[0], line[match.end() :]) if match else ("", line)


def _spread(items: Sequence[Any], count: int) -> list[Any]:
    """`count` items, evenly spaced from the first to the last; all of them where there are fewer."""
    if len(items) <= count or count < 2:
        return list(items[:count])
    return [items[round(index * (len(items) - 1) / (count - 1))] for index in range(count)]


def _progress(run: RunDirectory) -> dict[str, Any]:
    """Pictures of the same validation objects at several steps, beside the truth."""
    folders = validation_steps(run)
    steps = _spread(list(folders), _PROGRESS_STEPS)
    rows = []
    for key in _validation_keys(folders[steps[-1]])[:_PROGRESS_OBJECTS] if steps else []:
        pictures = {step: pictures_of(folders[step], key) for step in steps}
        names = [name for name in pictures[steps[-1]] if name not in (GIVEN, TRUTH)]
        if not names:
            continue
        cells = [{"step": step, "uri": _thumbnail(pictures[step].get(names[0]))} for step in steps]
        truth = _thumbnail(pictures[steps[-1]].get(TRUTH))
        rows.append({"key": key, "shown": names[0], "cells": cells, "truth": truth})
    return {"steps": steps, "rows": rows}


def _validation_keys(folder: Path) -> list[str]:
    names = (path.name.removesuffix(".png").rpartition(".")[0] for path in folder.glob("*.png"))
    return sorted({name for name in names if name})


def _thumbnail(path: Path | None) -> str | None:
    if path is None:
        return None
    view = first_view(open_strip(path, 4096))
    if view.width > _PROGRESS_SIZE:
        view.thumbnail((_PROGRESS_SIZE, _PROGRESS_SIZE))
    return webp_uri(view)


def _versions() -> list[tuple[str, str]]:
    found = [("gsforge", version("gsforge")), ("python", platform.python_version()), ("torch", torch.__version__)]
    git = shutil.which("git")
    if git is None:
        return found
    result = subprocess.run(
        [git, "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"],
        capture_output=True,
        text=True,
        check=False,
    )
    return [*found, ("git", result.stdout.strip())] if result.returncode == 0 else found


def main(argv: Sequence[str]) -> int:
    """Write the report of a run.

    Args:
        argv: arguments after `gsforge report`.

    Returns:
        Exit code 0.

    Raises:
        FileNotFoundError: if the folder is not a run directory.
        ValueError: if a file in it is damaged, or an option is out of range.
        CheckpointError: if its last checkpoint is damaged.
    """
    parser = argparse.ArgumentParser(prog="gsforge report", description="Write one HTML page about a run.")
    parser.add_argument("run", type=Path, help="run directory that `gsforge fit` wrote")
    parser.add_argument("--out", type=Path, help="file to write; RUN/report.html by default")
    defaults = ReportOptions()
    parser.add_argument("--objects", type=int, default=defaults.objects, help="most objects shown (%(default)s)")
    parser.add_argument("--angles", type=int, default=defaults.angles, help="turntable frames, 0: none (%(default)s)")
    parser.add_argument("--size", type=int, default=defaults.size, help="side of a frame, pixels (%(default)s)")
    arguments = parser.parse_args(argv)
    if arguments.objects < 0 or arguments.angles < 0 or not 16 <= arguments.size <= 1024:
        raise ValueError("--objects and --angles must not be negative, and --size must be 16 to 1024")
    logging.getLogger("gsforge").setLevel(logging.INFO)
    options = ReportOptions(arguments.objects, arguments.angles, arguments.size)
    page = build_report(arguments.run, options)
    path = arguments.out or arguments.run / "report.html"
    write_text(path, page)
    _log.info("written: %s (%.1f MB)", path, len(page) / 1e6)
    return 0
