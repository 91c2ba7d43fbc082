"""Reads a run directory for the report: curves, configuration and the lists of pictures."""

import csv
import math
import re
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from gsforge.core.reconstruction import GIVEN, RENDER, TRUTH
from gsforge.training.config import config_difference
from gsforge.training.run_directory import RunDirectory

Point = tuple[int, float]


@dataclass(frozen=True)
class Curves:
    """Logged values of all attempts, merged.

    Attributes:
        values: metric name -> (step, value) in order of steps.
        resumes: steps at which a later attempt took over.
    """

    values: dict[str, list[Point]]
    resumes: list[int]

    @property
    def last_step(self) -> int:
        """Largest step with a value; 0 without any."""
        return max((points[-1][0] for points in self.values.values()), default=0)

    @property
    def training_seconds(self) -> float | None:
        """Seconds spent in training steps, from the logged `time/step`; None where it was not logged."""
        points = self.values.get("time/step")
        if not points:
            return None
        starts = [0, *(step for step, _ in points[:-1])]
        return sum(seconds * (step - start) for (step, seconds), start in zip(points, starts, strict=True))


def read_curves(run: RunDirectory) -> Curves:
    """Merge the CSV files of all training attempts; where two overlap, the later attempt counts.

    An attempt that resumed from a checkpoint repeats the steps that the one before had logged after it. Attempts that
    trained nothing (`gsforge validate` and `test` log, too) are left out.

    Args:
        run: the run's directory.

    Returns:
        The curves; empty ones where nothing was logged.

    Raises:
        ValueError: if a file is no CSV log; says which.
    """
    values: dict[str, list[Point]] = {}
    resumes: list[int] = []
    for path in _attempt_files(run):
        attempt = _read_csv(path)
        if not any(name.startswith("train/") for name in attempt):
            continue
        first = min(points[0][0] for points in attempt.values())
        if values:
            resumes.append(first)
        for name in {*values, *attempt}:
            kept = [point for point in values.get(name, []) if point[0] < first]
            values[name] = kept + attempt.get(name, [])
    return Curves({name: points for name, points in sorted(values.items()) if points}, resumes)


def _attempt_files(run: RunDirectory) -> list[Path]:
    numbered = {}
    for path in (run.logs / "csv").glob("attempt_*/metrics.csv"):
        if match := re.fullmatch(r"attempt_(\d+)", path.parent.name):
            numbered[int(match[1])] = path
    return [numbered[number] for number in sorted(numbered)]


def _read_csv(path: Path) -> dict[str, list[Point]]:
    series: dict[str, dict[int, float]] = {}
    with path.open(newline="", encoding="utf-8") as stream:
        for row in csv.DictReader(stream):
            try:
                step = int(float(row.get("step") or ""))
                cells = {name: float(text) for name, text in row.items() if text and name not in ("step", "epoch")}
            except (TypeError, ValueError) as error:
                raise ValueError(f"{path}: expected a CSV log with a column `step` and numbers: {error}") from error
            for name, value in cells.items():
                if math.isfinite(value):
                    series.setdefault(name, {})[step] = value
    return {name: sorted(points.items()) for name, points in series.items()}


@dataclass(frozen=True)
class RunConfiguration:
    """Configuration of a run.

    Attributes:
        text: newest YAML file, as it stands.
        content: the same, parsed.
        changes: attempt -> changed lines against the attempt before, each under its full key.
    """

    text: str
    content: dict[str, Any]
    changes: dict[int, list[str]]

    def get(self, *keys: str) -> Any:
        """Value under nested keys, or None.

        Args:
            *keys: keys from the outermost to the innermost.

        Returns:
            The value; None where one of the keys is missing.
        """
        value: Any = self.content
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        return value


def read_configuration(run: RunDirectory) -> RunConfiguration:
    """Read the configuration files of a run.

    Args:
        run: the run's directory.

    Returns:
        The newest configuration, and how it came about.

    Raises:
        FileNotFoundError: if there is none: then the folder is no run.
        ValueError: if one is not YAML.
    """
    run.config()
    paths = run.configs()
    texts = {number: path.read_text(encoding="utf-8") for number, path in paths.items()}
    contents = [_parsed(paths[number], text) for number, text in texts.items()]
    changes = {after: config_difference(texts[before], texts[after]).splitlines() for before, after in pairwise(texts)}
    return RunConfiguration(texts[max(texts)], contents[-1], changes)


def _parsed(path: Path, text: str) -> dict[str, Any]:
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not a YAML file: {error}") from error
    return content if isinstance(content, dict) else {}


def pictures_of(folder: Path, key: str) -> dict[str, Path]:
    """Find the pictures `<key>.<name>.png` of one object.

    Args:
        folder: folder that is searched; folders below it are not.
        key: name of the object.

    Returns:
        Name of the picture, with spaces -> file; what the model was given first, then ground truth and render.
    """
    prefix = f"{key}."
    found = {
        path.name[len(prefix) : -len(".png")].replace("_", " "): path
        for path in sorted(folder.glob("*.png"))
        if path.name.startswith(prefix) and "." not in path.name[len(prefix) : -len(".png")]
    }
    first = (GIVEN, TRUTH, RENDER)
    return dict(sorted(found.items(), key=lambda item: first.index(item[0]) if item[0] in first else len(first)))


def validation_steps(run: RunDirectory) -> dict[int, Path]:
    """Find the pictures of all validations.

    Args:
        run: the run's directory.

    Returns:
        Step -> folder of its pictures, in order.
    """
    found = {}
    for folder in run.validation.glob("step_*"):
        if (match := re.fullmatch(r"step_(\d+)", folder.name)) and folder.is_dir():
            found[int(match[1])] = folder
    return dict(sorted(found.items()))
