"""The learning curve in a run's report, from RUN/learning_curve.json."""

import json

import pytest

from convoy.core.finding import Severity
from convoy.trainer.evaluation.report.history import read_history
from convoy.trainer.evaluation.report.insights import derive_insights
from convoy.trainer.evaluation.report.learning_curve import LearningCurve, Outlook, Point
from convoy.trainer.evaluation.report.page import write_report
from convoy.trainer.evaluation.report.plots import BOTTOM, LEFT, RIGHT, TOP, learning_curve_chart
from tests.browser import Browser, missing_browser
from tests.pages import Page
from tests.trainer.report.made_runs import made_run

SHA = "ab" * 32
RISING = ((0.25, 0.7), (0.5, 0.8), (1.0, 0.867))


def curve_of(*tops, evaluated=3000):
    """Returns a curve of points (fraction, top-1) of 400 training images."""
    points = [Point(part, round(400 * part), 80, top1, evaluated, 60 * part, SHA) for part, top1 in tops]
    return LearningCurve("test", points)


def run_with(folder, curve, sha=SHA):
    run = made_run(folder, result={"weights_sha256": sha})
    run.write_json(run.learning_curve, curve.content())
    return run


def codes(run):
    return {finding.code: finding for finding in derive_insights(read_history(run), None)}


@pytest.mark.parametrize(
    ("tops", "evaluated", "outlook"),
    [
        (RISING, 3000, Outlook.HELPS),
        (RISING[1:], 3000, Outlook.HELPS),
        (((0.25, 0.7), (0.5, 0.75), (1.0, 0.75)), 20, Outlook.UNCLEAR),
        (((0.25, 0.9), (0.5, 0.9), (1.0, 0.9)), 3000, Outlook.LITTLE),
        (((0.25, 0.92), (0.5, 0.91), (1.0, 0.9)), 3000, Outlook.LITTLE),
        (((0.25, 0.995), (0.5, 0.997), (1.0, 0.998)), 10_000, Outlook.LITTLE),
        (((0.25, 1.0), (0.5, 1.0), (1.0, 1.0)), 300, Outlook.LITTLE),
        (RISING[2:], 3000, None),
    ],
)
def test_outlook(tops, evaluated, outlook):
    assert curve_of(*tops, evaluated=evaluated).outlook == outlook


def test_content_has_fit_and_extrapolation_and_is_read_again():
    curve = curve_of(*RISING)
    content = json.loads(json.dumps(curve.content()))
    assert LearningCurve.parsed(content) == curve
    assert [entry["images"] for entry in content["extrapolation"]] == [800, 1600]
    for entry in content["extrapolation"]:
        assert content["points"][-1]["top1"] < entry["low"] < entry["top1"] < entry["high"] < 1
        assert entry["top1"] == pytest.approx(
            1 - content["fit"]["factor"] * entry["images"] ** -content["fit"]["exponent"]
        )
    assert content["interval"] == 0.9 and content["missing"] == [] and content["outlook"] == "helps"


def test_accuracy_that_does_not_rise_is_not_extrapolated():
    content = curve_of((0.25, 0.92), (0.5, 0.91), (1.0, 0.9)).content()
    assert content["fit"] is None and content["extrapolation"] == [] and content["outlook"] == "little"


def test_finding_has_the_numbers(tmp_path):
    finding = codes(run_with(tmp_path / "run", curve_of(*RISING)))["more-images-helps"]
    _, top1, (low, high) = curve_of(*RISING).extrapolated()[0]
    assert finding.severity == Severity.NOTE and finding.section == "learning-curve"
    for value in (f"{100 * top1:.1f} %", f"{100 * low:.1f} to {100 * high:.1f} %", "86.7 %", "test"):
        assert value in finding.text


@pytest.mark.parametrize(
    ("tops", "missing"), [(RISING[1:], ["quarter"]), (RISING[2:], ["quarter", "half"]), (RISING, [])]
)
def test_missing_runs_are_named(tmp_path, tops, missing):
    run = run_with(tmp_path / "run", curve_of(*tops))
    assert json.loads(run.learning_curve.read_text())["missing"] == missing
    found = codes(run)
    assert ("learning-curve-incomplete" in found) == bool(missing)
    assert all(name in found["learning-curve-incomplete"].text for name in missing)


def test_page_has_points_and_extrapolation(tmp_path):
    run = run_with(tmp_path / "run", curve_of(*RISING))
    write_report(run)
    page = Page(run.report.read_bytes())
    assert [row[:2] for row in page.rows["learning-curve"][1:4]] == [
        ["100", "70.0 %"],
        ["200", "80.0 %"],
        ["400", "86.7 %"],
    ]
    assert [row[0] for row in page.rows["learning-curve"][4:]] == ["800", "1,600"]
    assert curve_of(*RISING).sentence() in page.words("summary")


def test_page_of_one_point_has_no_extrapolation(tmp_path):
    run = run_with(tmp_path / "run", curve_of(RISING[2]))
    write_report(run)
    page = Page(run.report.read_bytes())
    assert [row[0] for row in page.rows["learning-curve"][1:]] == ["400"]


def test_curve_of_an_earlier_result_is_not_shown(tmp_path):
    run = run_with(tmp_path / "run", curve_of(*RISING), sha="cd" * 32)
    notes = write_report(run)
    assert any(str(run.learning_curve) in note for note in notes)
    assert "learning-curve" not in Page(run.report.read_bytes()).text
    assert "more-images-helps" not in codes(run)


def test_chart_is_inside_its_box():
    for tops, evaluated in ((RISING, 3000), (RISING[2:], 5), (((0.25, 0.0), (1.0, 1.0)), 1)):
        chart = learning_curve_chart(curve_of(*tops, evaluated=evaluated))
        for bar in chart.bars:
            assert bar.x >= LEFT and bar.x + bar.width <= RIGHT
            assert bar.y >= TOP - 4 and bar.y + bar.height <= BOTTOM + 4
        assert len(chart.bars) == 2 * len(tops)
    chart = learning_curve_chart(curve_of(*RISING))
    assert [text for _, text in chart.x_ticks] == ["100", "200", "400", "800", "1,600"]
    gaps = [second[0] - first[0] for first, second in zip(chart.x_ticks, chart.x_ticks[1:], strict=False)]
    assert max(gaps) - min(gaps) < 0.3  # logarithmic
    assert len(chart.lines) == 2 and len(chart.areas) == 1


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.skipif(bool(missing_browser()), reason=str(missing_browser()))
def test_browser_shows_the_chart_on_a_phone(tmp_path, dark):
    run = run_with(tmp_path / "run", curve_of(*RISING))
    write_report(run)
    with Browser(tmp_path / "browser") as browser:
        browser.emulate(390, 844, dark=dark)
        browser.open(f"file://{run.report}#learning-curve")
        browser.wait_for("Learning curve", "1,600")
        assert browser.value("document.documentElement.scrollWidth") == 390
        box = "document.querySelector('#learning-curve .chart').getBoundingClientRect()"
        assert browser.value(f"{box}.width") > 250
        label = browser.value("document.querySelector('#learning-curve .chart').getAttribute('aria-label')")
        assert label == curve_of(*RISING).sentence()
        assert browser.problems == []
