"""Tables, intervals and summary of the generalization benchmark."""

import pytest

from benchmarks.generalization_tables import (
    Result,
    ablation_table,
    estimate,
    half_width,
    page,
    summaries,
    summary_table,
    table,
)
from benchmarks.measure import spread
from benchmarks.study import Entry
from benchmarks.trained_runs import Outcome

FIRST, SECOND = Entry("baseline_cnn"), Entry("convnet", 4.0)


def outcome(*, train=0.9, test=0.6, seconds=100.0, **other):
    known = {"command": ["convoy", "train", "--config=it"], "steps": 1200, "parameters": 11_253_258}
    known |= {"images_per_second": 250.0, "seconds": seconds, "seconds_to_best": seconds / 2}
    known |= {"test_images": 100, "validation_top1": 0.7, "validation_ece": 0.02, "test_ece": 0.04}
    return Outcome(**known | other, train_top1=train, test_top1=test)


def cells_of(rows):
    """Returns the cells of a table without its rule."""
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in (rows[0], *rows[2:])]


def result(dataset, first, second, image_seed=0):
    return Result(dataset, image_seed, "some images", {FIRST: first, SECOND: second})


# Values.


def test_interval_is_that_of_students_t():
    assert half_width([1.0, 3.0]) == pytest.approx(12.706)
    assert half_width([1.0, 2.0, 3.0]) == pytest.approx(4.303 / 3**0.5)
    many = [0.0, 1.0] * 50
    assert half_width(many) == pytest.approx(2.042 * (0.25 * 100 / 99) ** 0.5 / 10)
    assert half_width([1.0]) is None


def test_interval_agrees_with_scipy():
    stats = pytest.importorskip("scipy.stats")
    for number in range(2, 32):
        values = [float(value % 7) for value in range(number)]
        _, high = stats.t.interval(0.95, number - 1, loc=sum(values) / number, scale=stats.sem(values))
        assert half_width(values) == pytest.approx(high - sum(values) / number, rel=3e-4)


def test_mean_with_interval_or_deviation():
    assert estimate([1.0, 2.0, 3.0], " %") == "2.0 ± 2.5 %"
    assert estimate([1.0, 2.0, 3.0], signed=True, digits=0) == "+2 ± 2"
    assert spread([1.0, 3.0], signed=True) == "+2.0 ± 1.4"
    for format_values in (estimate, spread):
        assert format_values([71.44], " %") == "71.4 %"


# Tables of a dataset.


def test_table_has_a_row_per_recipe():
    rows = cells_of(table({FIRST: [outcome(test=0.6), outcome(test=0.61)], SECOND: [outcome()]}))
    assert len({len(row) for row in rows}) == 1
    first, second = (dict(zip(rows[0], row, strict=True)) for row in rows[1:])
    assert first == {
        "recipe": "`baseline_cnn`",
        "parameters": "11,253,258",
        "steps": "1,200",
        "images/s": "250",
        "wall time": "100 ± 0 s",
        "to its best": "50 ± 0 s",
        "train top-1": "90.0 ± 0.0 %",
        "validation top-1": "70.0 ± 0.0 %",
        "test top-1": "60.5 ± 6.4 %",
        "gap": "29.5 ± 6.4",
        "validation ECE": "2.0 ± 0.0 %",
        "test ECE": "4.0 ± 0.0 %",
    }
    assert second["recipe"] == "`convnet`, 4x the budget" and second["test top-1"] == "60.0 %"


def test_missing_calibration_error_leaves_the_cell_empty():
    runs = [outcome(), outcome(test_ece=None)]
    rows = cells_of(table({FIRST: runs}))
    assert rows[1][-2:] == ["2.0 ± 0.0 %", ""]
    assert summaries([result("digits", runs, runs)])[FIRST].test_ece is None


def test_ablation_pairs_runs_with_the_same_seed():
    whole = [outcome(test=0.6), outcome(test=0.8)]
    without = Entry("convnet", None, {"augment.ops": "crop | flip"}, "erase(0.25)")
    rows = ablation_table({Entry("convnet"): whole, without: [outcome(test=0.58), outcome(test=0.78)]})
    assert "| 70.0 ± 127.1 % |" in rows[2]
    assert "| -2.0 ± 0.0 |" in rows[3]
    assert r"`--config.augment.ops=crop \| flip`" in rows[3]  # a bar in a cell would end it


# Summary and page.


def test_summary_is_the_mean_over_datasets_and_ratios_to_the_first_recipe():
    found = summaries(
        [
            result("digits", [outcome(test=0.9), outcome(test=0.9)], [outcome(test=0.95), outcome(test=0.95)]),
            result(
                "photos",
                [outcome(test=0.5, seconds=10.0), outcome(test=0.5, seconds=10.0)],
                [outcome(test=0.5, seconds=40.0), outcome(test=0.7, seconds=40.0)],
            ),
        ]
    )
    assert found[FIRST].test_top1 == pytest.approx([0.7, 0.7])
    assert found[SECOND].test_top1 == pytest.approx([0.725, 0.825])
    assert found[SECOND].changes == pytest.approx([0.025, 0.125])
    assert found[SECOND].errors_ratio == pytest.approx((0.5 * 0.8) ** 0.5)
    assert found[SECOND].seconds_ratio == pytest.approx((1 * 4) ** 0.5)
    assert found[FIRST].errors_ratio == found[FIRST].seconds_ratio == pytest.approx(1.0)
    assert found[SECOND].gap == pytest.approx(0.9 - 0.775) and found[SECOND].test_ece == pytest.approx(0.04)
    rows = cells_of(summary_table(found))
    assert rows[1][:2] == ["`baseline_cnn`", "70.0 ± 0.0 %"] and rows[1][2] == ""
    assert rows[2] == ["`convnet`, 4x the budget", "77.5 ± 63.5 %", "+7.5 ± 63.5", "0.63", "2.00", "12.5", "4.0 %"]


def test_datasets_count_once_and_the_held_out_one_not_at_all():
    better, worse = [outcome(test=0.8)], [outcome(test=0.6)]
    found = summaries(
        [
            result("clothes", [outcome(test=0.1)], [outcome(test=0.2)]),
            result("digits", worse, better, image_seed=1),
            result("digits", worse, better, image_seed=2),
            result("photos", worse, worse),
        ]
    )
    assert found[SECOND].test_top1 == pytest.approx([0.7])
    assert found[SECOND].errors_ratio == pytest.approx((0.5 * 1.0) ** 0.5)
    assert summaries([result("clothes", worse, better)]) == {}


def test_recipe_without_an_error_has_a_ratio():
    found = summaries([result("digits", [outcome(test=0.95)], [outcome(test=1.0)])])
    assert found[SECOND].errors_ratio == pytest.approx(0.5 / 5)  # as if half an image were wrong


def test_page_has_command_machine_summary_and_a_table_per_dataset():
    runs = [outcome(), outcome()]
    results = [result("digits", runs, runs), result("clothes", runs, runs, image_seed=3)]
    text = page(results, "convoy bench it", "a date, a machine", seeds=2)
    headings = [line for line in text.splitlines() if line.startswith("#")]
    assert headings == [
        "# Generalization",
        "## digits",
        "## clothes, image seed 3 (held out from all choices)",
        "## Columns",
    ]
    assert "```sh\nconvoy bench it\n```" in text and "a date, a machine" in text
    assert "## Summary" in page([*results, result("photos", runs, runs)], "", "", seeds=2)
