import json
import re

import numpy as np
import pytest
from PIL import Image

from convoy.core.errors import DataError
from convoy.trainer.evaluation.predictions import Predictions
from convoy.trainer.evaluation.report.history import read_history
from convoy.trainer.evaluation.report.matrix import matrix_plot
from convoy.trainer.evaluation.report.page import write_report
from convoy.trainer.run.directory import RunDirectory
from tests.pages import Page
from tests.trainer.report.made_runs import CLASSES, drawn_predictions, evaluated, made_run
from tests.trainer.run_files import fingerprints

HOSTILE = (
    "<script>alert(1)</script>",
    "\"'><img src=x onerror=alert(1)>",
    "a\nb\tc\u2028e",
    "\u202egpj.exe\u2066",
    "{{ 7 * 7 }}</table></section>&amp;",
    "../x",
    "=1+1",
    "long" * 5_000,
    "\U0001f984 中文",
    "$\\frac{1}{0}$",
)


def line(split, step, top1, **values):
    return {"step": step, "split": split, "quality/top1": top1, "quality/loss": 2 - top1, **values}


def page_of(run, **options):
    write_report(run, **options)
    return Page((options.get("output") or run.report).read_bytes())


def findings(page):
    return page.words("verdict")


def speed(wait):
    return {"perf/input_wait_pct": wait, "perf/images_per_s": 100.0, "perf/step_ms_p50": 12.5}


def finished(tmp_path, train, validation, test, wait=1.0, **result):
    """A finished run of 40 steps that was evaluated on 400 test images."""
    metrics = [line("train", step, train, **speed(wait)) for step in (20, 40)]
    metrics += [line("validation", step, validation) for step in (20, 40)]
    results = [("validation", 40, validation), ("test", 40, test), ("train", 40, train)]
    run = made_run(tmp_path / "run", metrics=metrics, results=results, result={"weights_sha256": "ab", **result})
    found, _ = drawn_predictions(np.arange(400) % 4, num_classes=4, right=test)
    evaluated(run, found, top1=test)
    return run


class TestVerdict:
    def test_how_good_it_is_stands_first(self, tmp_path):
        page = page_of(finished(tmp_path, 0.8, 0.79, 0.78))
        assert findings(page).startswith("In short note 78.0 % of the 400 images of test are classified right (95 % ")
        assert "Always saying the largest class would give 25.0 %." in findings(page)

    def test_a_gap_to_the_training_images_is_called_overfitting_with_what_to_try(self, tmp_path):
        text = findings(page_of(finished(tmp_path, 0.98, 0.7, 0.69)))
        assert "It overfits: 98.0 % on the training images, 70.0 % in validation, a gap of 28 points." in text
        assert "Try: more images, stronger config.augment" in text
        assert "underfits" not in text

    def test_images_of_another_kind_are_told_from_overfitting(self, tmp_path):
        text = findings(page_of(finished(tmp_path, 0.95, 0.93, 0.6)))
        assert "93.0 % are right in validation and 60.0 % in test: 33 points less." in text
        assert (
            "It does not overfit much: 95.0 % on the training images, 93.0 % in validation, a gap of 2 points" in text
        )

    def test_a_run_that_did_not_learn_its_training_images_underfits(self, tmp_path):
        assert "It underfits: 45.0 %" in findings(page_of(finished(tmp_path, 0.45, 0.44, 0.44)))

    def test_a_run_that_is_good_on_new_images_does_not_underfit_however_hard_augmented_ones_are(self, tmp_path):
        metrics = [line("train", 40, 0.5), line("validation", 40, 0.9)]
        run = made_run(
            tmp_path / "run", metrics=metrics, results=[("validation", 40, 0.9)], result={"weights_sha256": "ab"}
        )
        evaluated(run, drawn_predictions(np.arange(400) % 4, num_classes=4, right=0.9)[0], split="validation", top1=0.9)
        text = findings(page_of(run))
        assert "underfits" not in text
        assert "50.0 % on the training images as they were augmented, 90.0 % in validation, no gap" in text

    def test_images_of_one_class_do_not_tell_whether_it_has_learnt_anything(self, tmp_path):
        run = made_run(tmp_path / "run")
        evaluated(run, drawn_predictions([2] * 30, num_classes=4, right=1.0)[0])
        assert "All are of one class" in findings(page_of(run))
        assert "learnt nothing" not in findings(page_of(run))

    def test_a_run_that_is_no_better_than_a_constant_answer_has_learnt_nothing(self, tmp_path):
        text = findings(page_of(finished(tmp_path, 0.25, 0.25, 0.24)))
        assert text.startswith("In short mend 24.0 %") and "It has learnt nothing." in text

    def test_labels_are_doubted_by_a_model_that_is_mostly_right_and_not_by_a_weak_one(self, tmp_path):
        for wrong, doubts in ((4, True), (50, False)):
            label, predicted = np.arange(100, dtype=np.int32) % 4, np.arange(100, dtype=np.int32) % 4
            predicted[:wrong] = (predicted[:wrong] + 1) % 4
            sure = np.full(100, 0.95, np.float32)
            found = Predictions([""] * 100, label, predicted, np.where(label == predicted, sure, 0.01), sure)
            run = made_run(tmp_path / str(wrong))
            evaluated(run, found)
            page = page_of(run)
            assert ("4 images (4.0 %) may have wrong labels" in findings(page)) == doubts
            assert ("most of these will be its own mistakes" not in page.words("labels")) == doubts

    def test_waiting_for_input_is_told_with_its_share(self, tmp_path):
        assert "It is input-bound: 45 % of the time it waited" in findings(
            page_of(finished(tmp_path, 0.9, 0.9, 0.9, wait=45.0))
        )

    def test_what_limits_the_run_is_taken_from_its_result(self, tmp_path):
        limits = {
            "bound": "compute",
            "sentence": "compute-bound: 97 % of a step computes",
            "cores": 2,
            "peak": 1.23456789,
        }
        page = page_of(finished(tmp_path, 0.9, 0.9, 0.9, limits=limits))
        assert "fine Compute-bound: 97 % of a step computes." in findings(page)
        assert "compute-bound: 97 % of a step computes" in page.words("speed")
        assert "peak 1.23457" in page.words("speed")


class TestPage:
    def test_its_numbers_are_those_of_the_evaluation(self, tmp_path):
        run = finished(tmp_path, 0.9, 0.85, 0.8)
        page = page_of(run)
        assert "400 images of test, each once, with the weights of step 40" in page.words("")
        assert "80.00 % top-1 on test 90.00 % among the first five 50.00 % macro F1 10.00 % calibration" in page.words(
            ""
        )
        assert page.rows["verdict"][1:] == [
            ["train", "40", "90.00 %", "90.00 %", "50.00 %", "10.00 %", "1.5000"],
            ["validation", "40", "85.00 %", "90.00 %", "50.00 %", "10.00 %", "1.5000"],
            ["test", "40", "80.00 %", "90.00 %", "50.00 %", "10.00 %", "1.5000"],
        ]

    def test_classes_stand_with_their_quality_the_worst_first(self, tmp_path):
        run = made_run(tmp_path / "run")
        found, probabilities = drawn_predictions([0] * 30 + [1] * 20 + [2] * 10, num_classes=4)
        evaluated(run, found)
        predicted, rows = probabilities.argmax(1), page_of(run).rows["classes"][1:]
        assert {row[0] for row in rows} == set(CLASSES)
        for name, images, precision, recall, _ in rows:
            label = CLASSES.index(name)
            hits = np.sum((predicted == label) & (found.label == label))
            assert int(images) == np.sum(found.label == label)
            assert precision == f"{100 * hits / np.sum(predicted == label):.1f} %"
            assert recall == ("-" if name == "sock" else f"{100 * hits / int(images):.1f} %")
        f1 = [float(row[4].removesuffix(" %")) for row in rows]
        assert f1 == sorted(f1)

    def test_no_name_can_leave_its_place(self, tmp_path):
        run = made_run(tmp_path / "<i>run</i>", class_names=HOSTILE)
        found, _ = drawn_predictions(np.arange(100) % 10, num_classes=10, right=0.3)
        found.filename[:] = [HOSTILE[i % 10] for i in range(100)]
        evaluated(run, found, class_names=HOSTILE)
        (run.path / "command.txt").write_text("convoy train --data='</pre><script>alert(1)</script>'")
        page = page_of(run)
        for section in ("classes", "confusion", "mistakes"):
            assert "<script>alert(1)</script>" in page.words(section)
        assert "a\\x0ab\\x09c\\u2028e" in page.words("classes")
        assert "</pre><script>alert(1)</script>" in page.words("run")
        raw = run.report.read_text("utf-8")
        assert not set("\u202e\u2066\u2028") & set(raw)
        assert len(raw) < 300_000
        assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in raw
        with Image.open(run.confusion_matrix) as image:
            assert image.width > 300

    def test_a_thousand_classes_fit_on_a_small_page(self, tmp_path):
        names = tuple(f"class {i}" for i in range(1000))
        run = made_run(tmp_path / "run", class_names=names)
        found, _ = drawn_predictions(np.arange(5000) % 1000, num_classes=1000, right=0.6)
        evaluated(run, found, class_names=names)
        page = page_of(run)
        assert page.size < 400_000
        assert "The 40 worst and the 10 best of 1,000" in page.words("classes")
        assert len(page.rows["classes"]) == 52
        assert "the 40 of 1,000 classes with the most errors" in page.words("confusion")
        assert "other classes" in page.words("confusion")
        assert "12 of" in page.words("confusion") and "24 of" in page.words("mistakes")

    def test_wide_letters_of_a_name_stay_on_the_matrix(self):
        matrix = matrix_plot(np.ones((2, 3), int), ["商品" * 30, "bag"], complete=True)
        (short, name, _), _ = matrix.rows
        assert short == "商品商品商品商品商…" and name == "商品" * 30
        assert matrix.left > 11.5 * len(short)  # pixels of such a letter

    def test_coverage_and_confidence_are_told_in_numbers(self, tmp_path):
        page = page_of(finished(tmp_path, 0.9, 0.9, 0.8))
        answered = [row for row in page.rows["confidence"] if len(row) == 3][1:]
        assert answered[0][0] == "100.0 %" and len(answered) == 6
        assert "90 % right:" in page.words("confidence") and "Calibration error (ECE) 10.00 %" in page.words(
            "confidence"
        )

    def test_a_run_without_mistakes_says_so(self, tmp_path):
        run = made_run(tmp_path / "run")
        labels, sure = np.arange(40, dtype=np.int32) % 4, np.full(40, 0.9, np.float32)
        found = Predictions([""] * 40, labels, labels, sure, sure)
        evaluated(run, found)
        page = page_of(run)
        assert "No image is taken for another class." in page.words("confusion")
        assert page.words("mistakes").startswith("Mistakes None.")
        assert "None stands out." in page.words("labels")

    def test_a_dataset_that_is_gone_costs_only_the_thumbnails(self, tmp_path):
        run = finished(tmp_path, 0.9, 0.9, 0.8)
        told = write_report(run)
        assert any(text.startswith("No thumbnails: dataset folder") and "--data=DATA" in text for text in told)
        assert "No thumbnails:" in Page(run.report.read_bytes()).words("mistakes")


class TestRunInProgress:
    def test_curves_are_shown_before_anything_was_evaluated(self, tmp_path):
        metrics = [line("train", step, 0.1 * step / 20, **speed(2.0)) for step in range(20, 400, 20)]
        page = page_of(made_run(tmp_path / "run", metrics=metrics))
        assert "The run is not done: this page shows it at step 380." in findings(page)
        assert "Nothing was evaluated yet." in page.words("")
        assert "convoy evaluate --split=SPLIT" in findings(page)
        assert "Top-1" in page.words("curves") and "classes" not in page.text

    def test_a_curve_of_one_point_can_be_seen(self, tmp_path):
        run = made_run(tmp_path / "run", metrics=[line("train", 1, 0.5)])
        page_of(run)
        assert re.findall(r'<path class="line k0" d="([^"]*)"', run.report.read_text())[0] == "M416,112h8"

    def test_a_run_that_has_written_nothing_yet_has_a_page(self, tmp_path):
        page = page_of(made_run(tmp_path / "run"))
        assert "this page shows it before its first steps" in findings(page)
        assert "curves" not in page.text

    def test_lines_that_a_crash_cut_short_are_left_out(self, tmp_path):
        run = made_run(tmp_path / "run", metrics=[line("train", 20, 0.5)], results=[("validation", 20, 0.4)])
        with open(run.metrics, "a") as file:
            file.write('{"step": 40, "split": "tr')
        with open(run.results_table, "a") as file:
            file.write("2026-01-01T00:00:00,40,validation,1.")
        run.events.write_text('{"event": "start", "time": 1.0, "step": 0}\n{"event"')
        history = read_history(run)
        assert history.last_step == 20
        assert [(row.split, row.step) for row in history.results] == [("validation", 20)]
        assert [event["event"] for event in history.events] == ["start"]
        assert "validation 20 40.00 %" in findings(page_of(run))

    def test_a_metric_that_was_not_finite_leaves_a_hole_and_zero_does_not(self, tmp_path):
        metrics = [line("train", 20, 0.0), {"step": 40, "split": "train", "quality/top1": None}, line("train", 60, 0.2)]
        steps, values = read_history(made_run(tmp_path / "run", metrics=metrics)).curve("train", "quality/top1")
        assert steps.tolist() == [20, 60] and values.tolist() == [0.0, 0.2]

    def test_a_long_run_is_thinned_out_and_ends_with_its_last_value(self, tmp_path):
        metrics = [line("train", step, 0.9 if step < 50_000 else 0.123) for step in range(1, 50_001)]
        page = page_of(made_run(tmp_path / "run", metrics=metrics))
        assert page.size < 60_000
        assert "train 12.3 %" in page.words("curves")


def test_what_is_no_run_directory_is_named(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        write_report(RunDirectory(tmp_path / "absent"))
    (tmp_path / "photos").mkdir()
    with pytest.raises(DataError, match="is no run directory of `convoy train`"):
        write_report(RunDirectory(tmp_path / "photos"))


def test_the_page_can_be_written_elsewhere_and_the_run_stays_as_it_is(tmp_path):
    run = finished(tmp_path, 0.9, 0.9, 0.8)
    before = fingerprints(run.path)
    page_of(run, output=tmp_path / "page.html")
    assert fingerprints(run.path) == before


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    run = made_run(tmp_path / "run")
    with pytest.raises(DataError, match="absent.* cannot be written"):
        write_report(run, output=tmp_path / "absent" / "page.html")


def test_the_same_run_gives_the_same_page_twice(tmp_path):
    run = finished(tmp_path, 0.9, 0.9, 0.8)
    page_of(run, output=tmp_path / "a.html")
    page_of(run, output=tmp_path / "b.html")
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()
    assert not re.search(r"https?://", (tmp_path / "a.html").read_text())
    assert json.loads(run.evaluation("test").read_text())["images"] == 400
