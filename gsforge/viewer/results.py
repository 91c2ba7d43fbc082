"""Reads the result of `gsforge test` and says how it compares with the baseline."""

import json
import math
from dataclasses import dataclass
from typing import Any

from gsforge.core.reconstruction import AT, BASELINE
from gsforge.training.run_directory import RunDirectory
from gsforge.viewer.text import metric_label, number

_HIGHER_IS_BETTER = ("psnr", "ssim", "iou", "accuracy", "precision", "recall", "f_score", "clip")
_LOWER_IS_BETTER = ("lpips", "fd_", "kd_", "chamfer", "loss", "l1", "mse", "rmse", "error", "fid", "kid")


@dataclass(frozen=True)
class MetricRow:
    """One metric of the test, for the table.

    Attributes:
        name: of the metric.
        value: mean over the objects.
        baseline: mean of the baseline, or None.
        direction: 1 where more is better, -1 where less is, 0 where unknown.
        objects: value of each object that has one.
    """

    name: str
    value: float
    baseline: float | None
    direction: int
    objects: dict[str, float]

    @property
    def tone(self) -> str:
        """`good` or `bad` beside the baseline; empty where that cannot be said."""
        if self.baseline is None or not self.direction or self.value == self.baseline:
            return ""
        return "good" if (self.value - self.baseline) * self.direction > 0 else "bad"

    @property
    def label(self) -> str:
        """Name as people write it."""
        return metric_label(self.name)

    @property
    def unit(self) -> str:
        """Unit of the metric; empty for a pure number."""
        return "dB" if self.name.startswith("psnr") else ""

    @property
    def compared(self) -> str:
        """Difference to the baseline in words; errors relative to the baseline's."""
        if self.baseline is None:
            return "no baseline"
        verdict = {"good": " better", "bad": " worse"}.get(self.tone, "")
        if self.unit:
            return f"{self.value - self.baseline:+.2f} {self.unit}{verdict}".replace("-", "−")
        if self.direction < 0 and self.baseline > 0:
            return f"{100 * (self.value / self.baseline - 1):+.0f} %{verdict}".replace("-", "−")
        return number(self.value - self.baseline, sign=True) + verdict

    @property
    def dots(self) -> list[tuple[float, str, float]]:
        """(place in percent, object, value) of each object, on the scale of `baseline_place`."""
        finite = {key: value for key, value in self.objects.items() if math.isfinite(value)}
        return [(self._place(value), key, value) for key, value in finite.items()]

    @property
    def baseline_place(self) -> float | None:
        """Place of the baseline in percent, or None."""
        return None if self.baseline is None or not math.isfinite(self.baseline) else self._place(self.baseline)

    def _place(self, value: float) -> float:
        shown = [*self.objects.values(), *([] if self.baseline is None else [self.baseline])]
        finite = [item for item in shown if math.isfinite(item)]
        low, high = min(finite), max(finite)
        return 50.0 if low == high else round(100 * (value - low) / (high - low), 2)


@dataclass(frozen=True)
class BudgetRow:
    """One metric at several numbers of Gaussians, for the table.

    Attributes:
        name: of the metric.
        values: number of Gaussians -> mean over the objects, from few to many.
    """

    name: str
    values: dict[int, float]

    @property
    def label(self) -> str:
        """Name as people write it."""
        return metric_label(self.name)

    @property
    def direction(self) -> int:
        """1 where more is better, -1 where less is, 0 where unknown."""
        return direction(self.name)


@dataclass(frozen=True)
class TestResult:
    """Content of test/metrics.json.

    Attributes:
        step: training step of the checkpoint.
        seconds: duration of the test.
        rows: metrics, those with a baseline first.
        budgets: the metrics that were measured at other numbers of Gaussians.
        unavailable: metric that could not be measured -> the reason.
        keys: names of the objects, best first by the first metric.
        baselines: object -> metric -> value of the baseline.
    """

    step: int
    seconds: float
    rows: list[MetricRow]
    budgets: list[BudgetRow]
    unavailable: dict[str, str]
    keys: list[str]
    baselines: dict[str, dict[str, float]]

    @property
    def verdict(self) -> str:
        """One sentence on all metrics that have a baseline."""
        compared = [row for row in self.rows if row.tone]
        better = sum(row.tone == "good" for row in compared)
        objects = f"{len(self.keys)} held-out object{'s' if len(self.keys) != 1 else ''}"
        if not compared:
            return f"Measured on {objects}; there is no baseline to compare with."
        if better == len(compared):
            return f"Beats the baseline in {'every metric' if better > 1 else 'its metric'} on {objects}."
        return f"Beats the baseline in {better} of {len(compared)} metrics on {objects}."


def read_test(run: RunDirectory) -> TestResult | None:
    """Read the result of `gsforge test`.

    Args:
        run: the run's directory.

    Returns:
        The result; None where there is none yet.

    Raises:
        ValueError: if the file has another content than `gsforge test` writes.
    """
    path = run.test / "metrics.json"
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        objects = {key: _floats(metrics) for key, metrics in content["objects"].items()}
        means = _floats(content["mean"])
        rows, budgets = _metric_rows(means, objects), _budget_rows(means)
        unavailable = {str(name): str(reason) for name, reason in content.get("unavailable", {}).items()}
        step, seconds = int(content["step"]), float(content["seconds"])
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path}: not what `gsforge test` writes ({error!r}); run the test again") from error
    keys = list(objects)
    if rows:
        leading = rows[0]
        keys.sort(key=lambda key: -leading.objects.get(key, -math.inf) * (leading.direction or 1))
    baselines = {
        key: {name.removesuffix(BASELINE): value for name, value in metrics.items() if name.endswith(BASELINE)}
        for key, metrics in objects.items()
    }
    return TestResult(step, seconds, rows, budgets, unavailable, keys, baselines)


def _floats(metrics: dict[str, Any]) -> dict[str, float]:
    return {str(name): float(value) for name, value in metrics.items()}


def _metric_rows(means: dict[str, float], objects: dict[str, dict[str, float]]) -> list[MetricRow]:
    rows = [
        MetricRow(
            name,
            value,
            means.get(name + BASELINE),
            direction(name),
            {key: metrics[name] for key, metrics in objects.items() if name in metrics},
        )
        for name, value in means.items()
        if not name.endswith(BASELINE) and AT not in name
    ]
    return sorted(rows, key=lambda row: (row.baseline is None, *_rank(row.name)))


def _budget_rows(means: dict[str, float]) -> list[BudgetRow]:
    found: dict[str, dict[int, float]] = {}
    for name, value in means.items():
        metric, at, budget = name.rpartition(AT)
        if at:
            found.setdefault(metric, {})[int(budget)] = value
    rows = [BudgetRow(metric, dict(sorted(values.items()))) for metric, values in found.items()]
    return sorted(rows, key=lambda row: _rank(row.name))


def _rank(metric: str) -> tuple[int, str]:
    known = (*_HIGHER_IS_BETTER, *_LOWER_IS_BETTER)
    return known.index(metric) if metric in known else len(known), metric


def direction(metric: str) -> int:
    """Which values of a metric are better.

    Args:
        metric: its name, with or without a prefix such as `val/`.

    Returns:
        1 where more is better, -1 where less is, 0 for a metric that is not known.
    """
    words = metric.rsplit("/", 1)[-1].lower()
    if any(name in words for name in _HIGHER_IS_BETTER):
        return 1
    return -1 if any(name in words for name in _LOWER_IS_BETTER) else 0
