"""Lines with confidence intervals as a small SVG: text that differs little between runs, and that browsers draw."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from benchmarks.claims.statistics import Interval

_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")  # told apart by most eyes
_WIDTH, _HEIGHT = 300, 220  # of the axes, px
_LEFT, _TOP, _RIGHT, _BELOW, _ROW = 62, 34, 24, 54, 18
_INSET = 12  # px between the frame and the first and last column


@dataclass(frozen=True)
class Line:
    """One line of a panel.

    Attributes:
        name: in the legend.
        points: (x, number); the interval is drawn as a whisker.
    """

    name: str
    points: tuple[tuple[float, Interval], ...]


@dataclass(frozen=True)
class Panel:
    """One pair of axes.

    Attributes:
        title: above it.
        x: label of the horizontal axis, which is logarithmic.
        y: label of the vertical axis.
        lines: what is drawn, 7 at most.
        bounds: heights of dashed lines, where a rule changes its mind.
    """

    title: str
    x: str
    y: str
    lines: tuple[Line, ...]
    bounds: tuple[float, ...] = ()


def to_svg(panels: Sequence[Panel]) -> str:
    """Draw panels side by side.

    Args:
        panels: from left to right.

    Returns:
        A document on white.

    Raises:
        ValueError: if a panel has more lines than there are colours.
    """
    if crowded := [panel.title for panel in panels if len(panel.lines) > len(_COLORS)]:
        raise ValueError(f"expected at most {len(_COLORS)} lines in a panel, got more in {crowded}; split it")
    each = _LEFT + _WIDTH + _RIGHT
    rows = max(len(panel.lines) for panel in panels)
    size = {"width": str(each * len(panels)), "height": str(_TOP + _HEIGHT + _BELOW + rows * _ROW)}
    box = f"0 0 {size['width']} {size['height']}"
    style = {"font-family": "sans-serif", "font-size": "12"}
    root = Element("svg", {"xmlns": "http://www.w3.org/2000/svg", "viewBox": box, **size, **style})
    SubElement(root, "rect", {**size, "fill": "white"})
    for number, panel in enumerate(panels):
        _draw(SubElement(root, "g", transform=f"translate({each * number + _LEFT} {_TOP})"), panel)
    indent(root)
    return tostring(root, encoding="unicode") + "\n"


def ticks(low: float, high: float) -> list[float]:
    """Round numbers that enclose a range, in steps of 1, 2 or 5 times a power of ten.

    Args:
        low: lower end.
        high: upper end.

    Returns:
        From at or below `low` to at or above `high`, three to eight of them.
    """
    rough = (high - low or abs(high) or 1.0) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, max(last, first + 1) + 1)]


@dataclass(frozen=True)
class _Scale:
    """Where numbers are on the axes, px from their upper left corner."""

    columns: list[float]
    marks: list[float]

    def across(self, x: float) -> float:
        span = math.log(self.columns[-1] / self.columns[0]) or 1.0
        return _INSET + (_WIDTH - 2 * _INSET) * math.log(x / self.columns[0]) / span

    def down(self, y: float) -> float:
        return _HEIGHT * (1 - (y - self.marks[0]) / (self.marks[-1] - self.marks[0]))


def _draw(group: Element, panel: Panel) -> None:
    points = [point for line in panel.lines for point in line.points]
    heights = [end for _, number in points for end in (number.low, number.high)] + list(panel.bounds)
    scale = _Scale(sorted({x for x, _ in points}), ticks(min(heights), max(heights)))
    _draw_axes(group, panel, scale)
    for row, (line, color) in enumerate(zip(panel.lines, _COLORS, strict=False)):
        _draw_line(group, line, scale, color)
        legend = _HEIGHT + _BELOW + row * _ROW
        _dot(group, 6, legend - 4, color)
        _text(group, 16, legend, line.name)


def _draw_axes(group: Element, panel: Panel, scale: _Scale) -> None:
    for mark in scale.marks:
        _segment(group, (0, scale.down(mark)), (_WIDTH, scale.down(mark)), "#dddddd")
        _text(group, -6, scale.down(mark) + 4, f"{mark:.6g}", "end")
    for bound in panel.bounds:
        _segment(group, (0, scale.down(bound)), (_WIDTH, scale.down(bound)), "#555555", dashed=True)
    for x in scale.columns:
        _segment(group, (scale.across(x), _HEIGHT), (scale.across(x), _HEIGHT + 4), "#555555")
        _text(group, scale.across(x), _HEIGHT + 17, f"{x:g}", "middle")
    _text(group, _WIDTH / 2, -14, panel.title, "middle", bold=True)
    _text(group, _WIDTH / 2, _HEIGHT + 34, panel.x, "middle")
    turned = SubElement(group, "g", transform=f"translate({14 - _LEFT} {_HEIGHT / 2:g}) rotate(-90)")
    _text(turned, 0, 0, panel.y, "middle")


def _draw_line(group: Element, line: Line, scale: _Scale, color: str) -> None:
    places = [(scale.across(x), scale.down(number.mean)) for x, number in line.points]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    SubElement(group, "polyline", {"points": path, "fill": "none", "stroke": color, "stroke-width": "1.5"})
    for (x, y), (_, number) in zip(places, line.points, strict=True):
        _segment(group, (x, scale.down(number.low)), (x, scale.down(number.high)), color, wide=True)
        _dot(group, x, y, color)


def _segment(
    group: Element, start: tuple[float, float], end: tuple[float, float], color: str, *, dashed: bool = False,
    wide: bool = False,
) -> None:  # fmt: skip
    names = zip(("x1", "y1", "x2", "y2"), (*start, *end), strict=True)
    line = SubElement(group, "line", {name: f"{value:.1f}" for name, value in names} | {"stroke": color})
    if dashed:
        line.set("stroke-dasharray", "4 3")
    if wide:
        line.set("stroke-width", "2")


def _dot(group: Element, x: float, y: float, color: str) -> None:
    SubElement(group, "circle", {"cx": f"{x:.1f}", "cy": f"{y:.1f}", "r": "3.5", "fill": color})


def _text(group: Element, x: float, y: float, words: str, anchor: str = "start", *, bold: bool = False) -> None:
    text = SubElement(group, "text", {"x": f"{x:.1f}", "y": f"{y:.1f}", "text-anchor": anchor})
    text.text = words
    if bold:
        text.set("font-weight", "bold")
