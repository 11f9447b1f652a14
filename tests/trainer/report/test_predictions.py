import csv
import dataclasses
import json

import numpy as np
import pytest

from convoy.core.errors import DataError
from convoy.trainer.evaluation import predictions
from tests.trainer.report.made_runs import CLASSES, drawn_predictions, evaluated, made_run

UNUSUAL = (
    "=1+1",
    "+1",
    "-1",
    "@SUM(A1)",
    "'quoted",
    "\t=1",
    " =1",
    "\uff1d1",
    'say "so", twice',
    "a\r\nb",
    "<script>alert(1)</script>",
    "../x",
    "\U0001f984",
    "x" * 3000,
    "007",
)


def rows_of(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def unusual(tmp_path):
    """An evaluated run whose classes and files have unusual names, and its predictions."""
    labels = np.arange(60) % len(UNUSUAL)
    found, _ = drawn_predictions(labels, num_classes=len(UNUSUAL))
    found.filename[:] = [UNUSUAL[-1 - i % len(UNUSUAL)] for i in range(60)]
    run = made_run(tmp_path / "run", class_names=UNUSUAL)
    evaluated(run, found, class_names=UNUSUAL)
    return run, found


def test_no_cell_is_a_spreadsheet_formula(unusual):
    run, found = unusual
    rows = rows_of(run.predictions("test"))
    assert len(rows) == 60
    for row in rows:
        for column in ("filename", "label", "predicted"):
            assert not row[column].lstrip().startswith(("=", "+", "-", "@", "\uff1d"))
            assert not row[column].startswith("\t")
        assert float(row["label_probability"]) >= 0  # numbers are not quoted
    assert b'"\'=1+1"' in run.predictions("test").read_bytes()


def test_removing_one_apostrophe_restores_each_name(unusual):
    run, found = unusual
    for row, name, label in zip(rows_of(run.predictions("test")), found.filename, found.label, strict=True):
        assert row["filename"].removeprefix("'") == name
        assert row["label"].removeprefix("'") == UNUSUAL[label]


def test_predictions_are_read_back_exactly(unusual):
    run, found = unusual
    read = predictions.load(run, predictions.evaluations(run)[0], UNUSUAL)
    assert read.filename == found.filename
    for name in ("label", "predicted", "label_probability", "predicted_probability"):
        np.testing.assert_array_equal(getattr(read, name), getattr(found, name))
        assert getattr(read, name).dtype == getattr(found, name).dtype


def test_rows_have_label_prediction_and_probabilities(tmp_path):
    found, probabilities = drawn_predictions([2, 0, 1, 3], num_classes=4)
    run = made_run(tmp_path / "run")
    evaluated(run, found)
    for i, row in enumerate(rows_of(run.predictions("test"))):
        label, predicted = found.label[i], probabilities[i].argmax()
        assert (row["index"], row["filename"]) == (str(i), f"{i}.jpg")
        assert (row["label"], row["predicted"]) == (CLASSES[label], CLASSES[predicted])
        assert np.float32(row["label_probability"]) == probabilities[i, label]
        assert np.float32(row["predicted_probability"]) == probabilities[i, predicted]
        assert row["correct"] == str(int(label == predicted))


def test_file_name_that_is_not_utf8_is_escaped(tmp_path):
    found, _ = drawn_predictions([0, 1], num_classes=4)
    found.filename[:] = ["bad\udcff.jpg", "=\udc80"]
    run = made_run(tmp_path / "run")
    evaluated(run, found)
    names = [row["filename"] for row in rows_of(run.predictions("test"))]
    assert names == ["bad\\udcff.jpg", "'=\\udc80"]
    assert predictions.load(run, predictions.evaluations(run)[0], CLASSES).filename == ["bad\\udcff.jpg", "=\\udc80"]


def test_sorted_csv_is_read_and_damaged_csv_is_rejected(tmp_path):
    found, _ = drawn_predictions(np.arange(20) % 4, num_classes=4)
    run = made_run(tmp_path / "run")
    evaluation = evaluated(run, found)
    header, *lines = run.predictions("test").read_text().splitlines(keepends=True)
    run.predictions("test").write_text("\ufeff" + header + "".join(sorted(lines, key=lambda line: line[::-1])))
    np.testing.assert_array_equal(predictions.load(run, evaluation, CLASSES).label, found.label)
    for content, problem in ((header + "".join(lines[1:]), "19 rows for 20 images"), ("", ""), ("index\nx\n", "x")):
        run.predictions("test").write_text(content)
        with pytest.raises(DataError, match=str(run.predictions("test"))) as error:
            predictions.load(run, evaluation, CLASSES)
        assert problem in str(error.value) and "convoy evaluate --workdir=" in str(error.value)


def test_newest_readable_evaluation_is_used(tmp_path):
    found, _ = drawn_predictions([0, 1], num_classes=4)
    run = made_run(tmp_path / "run")
    assert predictions.evaluations(run) == []
    for split in ("test", "train", "validation", "extra"):
        evaluated(run, found, split=split)
    assert predictions.evaluations(run)[0].split == "extra"
    run.predictions("extra").unlink()
    run.evaluation("validation").write_text(run.evaluation("validation").read_text()[:-20])
    later = json.loads(run.evaluation("train").read_text()) | {"field of a later version": 1}
    run.write_json(run.evaluation("train"), later)
    assert predictions.evaluations(run)[0].split == "test"


def test_newest_evaluation_is_the_last_one_after_the_clock_was_set_back(tmp_path):
    found, _ = drawn_predictions([0, 1], num_classes=4)
    run = made_run(tmp_path / "run")
    first = evaluated(run, found, split="test")
    predictions.save(run, dataclasses.replace(first, split="train", time=first.time - 86400), found, CLASSES)
    assert predictions.evaluations(run)[0].split == "train"
