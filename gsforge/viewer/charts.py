"""Turns logged values into charts for the page."""

import math
from dataclasses import asdict, dataclass
from typing import Any

from gsforge.core.reconstruction import BASELINE
from gsforge.viewer.run_data import Curves, Point
from gsforge.viewer.text import metric_label

_MAX_POINTS = 500


@dataclass(frozen=True)
class Series:
    """One line of a chart.

    Attributes:
        name: in the legend.
        kind: `training`, `validation` or `baseline`; decides how it is drawn.
        points: (step, value).
    """

    name: str
    kind: str
    points: list[Point]


@dataclass(frozen=True)
class Chart:
    """One chart.

    Attributes:
        title: what is plotted.
        series: its lines.
        large: whether it takes the whole width.
    """

    title: str
    series: list[Series]
    large: bool = False

    def to_json(self) -> dict[str, Any]:
        """The chart as plain values, for the page's script.

        Returns:
            `title`, `series` and `large`, where each series is a dictionary as well.
        """
        return asdict(self)


@dataclass(frozen=True)
class ChartGroup:
    """Charts under one heading.

    Attributes:
        title: the heading.
        charts: in the order shown.
        open: whether they are shown at first.
    """

    title: str
    charts: list[Chart]
    open: bool


def chart_groups(curves: Curves) -> list[ChartGroup]:
    """Sort the metrics into charts: a validation metric with its baseline, a loss in training and validation.

    Args:
        curves: merged values of a run.

    Returns:
        Groups that have at least one chart.
    """
    losses: dict[str, list[Series]] = {}
    quality: dict[str, list[Series]] = {}
    other: dict[str, list[Series]] = {}
    trained = {name.removeprefix("train/") for name in curves.values if name.startswith("train/")}
    for name, points in curves.values.items():
        prefix, _, quantity = name.partition("/")
        if prefix == "train":
            losses.setdefault(quantity, []).append(Series("training", "training", thinned(points)))
        elif prefix != "val":
            other[name.replace("/", " · ")] = [Series(name, "training", thinned(points))]
        elif quantity.endswith(BASELINE):
            quality.setdefault(quantity.removesuffix(BASELINE), []).append(
                Series("baseline", "baseline", thinned(points))
            )
        else:
            # A loss term and a validation metric may share a name and yet differ: 1 - SSIM and SSIM.
            shared = quantity in trained and f"{name}{BASELINE}" not in curves.values
            charts = losses if shared else quality
            charts.setdefault(quantity, []).append(Series("validation", "validation", thinned(points)))
    groups = [
        ChartGroup("Loss", _charts(losses), True),
        ChartGroup("Quality on the validation set", _charts(quality), True),
        ChartGroup("Speed, memory, learning rate", _charts(other), False),
    ]
    return [group for group in groups if group.charts]


def _charts(measured: dict[str, list[Series]]) -> list[Chart]:
    ordered = sorted(measured, key=lambda name: name != "loss")
    return [Chart(metric_label(name), measured[name], large=name == "loss") for name in ordered]


def thinned(points: list[Point], most: int = _MAX_POINTS) -> list[Point]:
    """Average neighbouring points until there are few enough to draw; the last point stays as it is.

    Args:
        points: in order of steps.
        most: number of points to keep.

    Returns:
        At most one point more, each at the last step of those that it stands for.
    """
    size = math.ceil(len(points) / most)
    if size < 2:
        return points
    buckets = [points[start : start + size] for start in range(0, len(points) - 1, size)]
    means = [(bucket[-1][0], sum(value for _, value in bucket) / len(bucket)) for bucket in buckets]
    return [*(point for point in means if point[0] < points[-1][0]), points[-1]]
