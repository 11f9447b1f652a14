"""The charts of the report page, as geometry that its template draws as SVG.

chart = line_chart({"train": (steps, losses)}, x_label="step")
chart.lines[0].path, chart.y_ticks       # in a box of WIDTH x HEIGHT
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from convoy.core.text import counted, share
from convoy.trainer.evaluation.report.analysis import Reliability, RiskCoverage
from convoy.trainer.evaluation.report.learning_curve import LearningCurve

WIDTH, HEIGHT = 440, 250
LEFT, TOP, RIGHT, BOTTOM = 50, 10, 420, 214  # plotting area
_POINTS = 300  # per line; more are not visible
_COUNTS_HEIGHT = 30  # of the bars that show the number of images per bin
_TONES = 6  # of lines other than `train` and `validation`
_BAR, _MARK = 2, 8  # width of an interval's bar, and of a point
_LEAST_DISTANCE = 44  # between ticks with numbers of images
_CURVE_POINTS = 24
_DASH = 8  # length of a line with a single point, which would be invisible

Tick = tuple[float, str]


@dataclass(frozen=True)
class Line:
    """An SVG path; `tone` is its CSS class, `value` its last value as text."""

    name: str
    path: str
    tone: str
    value: str = ""


@dataclass(frozen=True)
class Bar:
    """A rectangle with a tooltip."""

    x: float
    y: float
    width: float
    height: float
    tone: str
    title: str


@dataclass(frozen=True)
class Chart:
    """A chart in a box of WIDTH x HEIGHT; ticks are positions and labels, areas the SVG paths of their outlines."""

    lines: Sequence[Line]
    x_ticks: Sequence[Tick]
    y_ticks: Sequence[Tick]
    x_label: str
    bars: Sequence[Bar] = ()
    areas: Sequence[str] = ()


def line_chart(
    series: Mapping[str, tuple[np.ndarray, np.ndarray]], *, x_label: str, percent: bool = False
) -> Chart | None:
    """Returns a chart of curves, downsampled; None if no curve has a point.

    Args:
      series: steps [n] and values [n] by name.
      x_label: label of the horizontal axis.
      percent: show values, shares in [0, 1], in percent.
    """
    series = {name: (x, y) for name, (x, y) in series.items() if len(x)}
    if not series:
        return None
    every_y = np.concatenate([y for _, y in series.values()])
    x_axis = _Axis(0, max(x.max() for x, _ in series.values()), LEFT, RIGHT)
    y_axis = _Axis(min(0.0, every_y.min()), 1.0 if percent else every_y.max(), BOTTOM, TOP)
    tones = {"train": "k0", "validation": "k2"}
    lines = [
        Line(name, _path(x_axis, y_axis, *_thinned(x, y)), tones.get(name, f"s{i % _TONES}"), _number(y[-1], percent))
        for i, (name, (x, y)) in enumerate(series.items())
    ]
    return Chart(lines, x_axis.ticks(), y_axis.ticks(percent), x_label)


def reliability_chart(reliability: Reliability) -> Chart:
    """Returns a reliability diagram: accuracy by confidence as bars, the ideal diagonal, and images per bin."""
    x_axis, y_axis = _Axis(0, 1, LEFT, RIGHT), _Axis(0, 1, BOTTOM, TOP)
    edges, most, bars = np.linspace(0, 1, len(reliability.images) + 1), reliability.images.max(), []
    columns = zip(reliability.images, reliability.confidence, reliability.accuracy, edges, edges[1:], strict=False)
    for images, confidence, accuracy, low, high in columns:
        if not images:
            continue
        x, width = x_axis(low) + 1, x_axis(high) - x_axis(low) - 2
        title = f"{counted(images, 'image')}: confidence {share(confidence)}, accuracy {share(accuracy)}"
        bars.append(Bar(x, y_axis(accuracy), width, BOTTOM - y_axis(accuracy), "k0", title))
        height = _COUNTS_HEIGHT * images / most
        bars.append(Bar(x, BOTTOM - height, width, height, "count", title))
    diagonal = Line("perfect calibration", f"M{LEFT},{BOTTOM}L{RIGHT},{TOP}", "ideal")
    return Chart([diagonal], x_axis.ticks(True), y_axis.ticks(True), "confidence", bars)


def coverage_chart(curve: RiskCoverage) -> Chart:
    """Returns a chart of accuracy by coverage."""
    x_axis, y_axis = _Axis(0, 1, LEFT, RIGHT), _Axis(0, 1, BOTTOM, TOP)
    x, y = curve.coverage, curve.accuracy
    if len(x) > _POINTS:
        chosen = np.linspace(0, len(x) - 1, _POINTS).astype(int)
        x, y = x[chosen], y[chosen]
    line = Line("accuracy", _path(x_axis, y_axis, x, y), "k0")
    return Chart([line], x_axis.ticks(True), y_axis.ticks(True), "coverage (share of images answered)")


def learning_curve_chart(curve: LearningCurve) -> Chart:
    """Returns a chart of accuracy by number of training images, logarithmic: points, power law, and extrapolation.

    The points have bars for their intervals and the extrapolation a band, both of 90 %.
    """
    points, law = curve.points, curve.law
    extrapolated = curve.extrapolated() if law else []
    sizes = [*(point.images for point in points), *(images for images, *_ in extrapolated)]
    values = [*(end for point in points for end in point.interval), *(end for *_, band in extrapolated for end in band)]
    margin = 0.05 * (max(values) - min(values))
    x_axis = _Axis(math.log(0.85 * sizes[0]), math.log(1.2 * sizes[-1]), LEFT, RIGHT)
    y_axis = _Axis(max(0.0, min(values) - margin), min(1.0, max(values) + margin), BOTTOM, TOP)
    bars = []
    for point in points:
        low, high = point.interval
        x, y, top = x_axis(math.log(point.images)), y_axis(point.top1), y_axis(high)
        title = f"{point.images:,} training images: top-1 {share(point.top1)} ({share(low)} to {share(high)})"
        bars.append(Bar(x - _BAR / 2, top, _BAR, y_axis(low) - top, "k0", title))
        bars.append(Bar(x - _MARK / 2, y - _MARK / 2, _MARK, _MARK, "k0", title))
    x_ticks: list[Tick] = []
    for size in sizes:
        if not x_ticks or x_axis(math.log(size)) - x_ticks[-1][0] >= _LEAST_DISTANCE:
            x_ticks.append((x_axis(math.log(size)), f"{size:,}"))
    lines, areas = [], []
    if law:
        for first, last, tone in ((sizes[0], curve.last.images, "k0"), (curve.last.images, sizes[-1], "k0 dashed")):
            images = np.geomspace(first, last, _CURVE_POINTS)
            lines.append(Line("", _path(x_axis, y_axis, np.log(images), np.array([*map(law.accuracy, images)])), tone))
        lows, highs = np.array([*map(law.interval, images)]).T
        outline = np.append(images, images[::-1]), np.append(lows, highs[::-1])
        areas.append(_path(x_axis, y_axis, np.log(outline[0]), outline[1]) + "Z")
    return Chart(lines, x_ticks, y_axis.ticks(percent=True), "training images", bars, areas)


class _Axis:
    """A linear map of values from `low` to `high` to positions from `start` to `end`."""

    def __init__(self, low: float, high: float, start: float, end: float):
        self._low, self._high = float(low), float(high) if high > low else float(low) + 1
        self._start, self._end = start, end

    def __call__(self, value: float) -> float:
        return float(self.positions(np.array(value)))

    def positions(self, values: np.ndarray) -> np.ndarray:
        """Returns the position of each value, rounded to 0.1."""
        part = (values - self._low) / (self._high - self._low)
        return np.round(self._start + part * (self._end - self._start), 1)

    def ticks(self, percent: bool = False) -> list[Tick]:
        """Returns four to eight round values."""
        raw = (self._high - self._low) / 5
        power = 10 ** math.floor(math.log10(raw))
        step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= 0.999 * raw)
        first, last = math.ceil(self._low / step - 1e-9), math.floor(self._high / step + 1e-9)
        return [(self(k * step), _number(k * step, percent)) for k in range(first, last + 1)]


def _number(value: float, percent: bool) -> str:
    if percent:
        return f"{100 * value:.4g} %"
    if 0 < abs(value) < 0.01:
        digits, power = f"{value:.3e}".split("e")
        return f"{float(digits):g}e{int(power)}"
    return f"{value:,.0f}" if abs(value) >= 9999.5 else f"{value:.4g}"  # that is 1e+04 in four digits


def _path(x_axis: _Axis, y_axis: _Axis, x: np.ndarray, y: np.ndarray) -> str:
    points = [*zip(x_axis.positions(x), y_axis.positions(y), strict=True)]
    if len(points) == 1:
        ((left, top),) = points
        return f"M{left - _DASH / 2:g},{top:g}h{_DASH}"
    return "M" + "L".join(f"{left:g},{top:g}" for left, top in points)


def _thinned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns means over neighboring points; the last point is kept."""
    if len(x) <= _POINTS:
        return x, y
    starts = np.linspace(0, len(x) - 1, _POINTS).astype(int)
    sizes = np.diff(np.append(starts, len(x)))
    return np.add.reduceat(x, starts) / sizes, np.add.reduceat(y, starts) / sizes
