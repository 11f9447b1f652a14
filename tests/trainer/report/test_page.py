import dataclasses
import json
import re

import numpy as np
import pytest
from PIL import Image

from convoy.core.errors import DataError
from convoy.core.finding import Severity
from convoy.trainer.evaluation import heat_maps, predictions
from convoy.trainer.evaluation.predictions import Predictions
from convoy.trainer.evaluation.report.history import read_history
from convoy.trainer.evaluation.report.insights import Evaluated, derive_insights
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


def insights_of(run):
    """Returns the findings on a run by code."""
    history, evaluations = read_history(run), predictions.evaluations(run)
    analyzed = None
    if evaluations:
        found = predictions.load(run, evaluations[0], history.class_names)
        analyzed = Evaluated.of(evaluations[0], found, len(history.class_names))
    insights = derive_insights(history, analyzed)
    by_code = {finding.code: finding for finding in insights}
    assert len(by_code) == len(insights)
    return by_code


def speed(wait):
    return {"perf/input_wait_pct": wait, "perf/images_per_s": 100.0, "perf/step_ms_p50": 12.5}


def finished(tmp_path, train, validation, test, wait=1.0, **result):
    """A finished run of 40 steps, evaluated on 400 test images."""
    metrics = [line("train", step, train, **speed(wait)) for step in (20, 40)]
    metrics += [line("validation", step, validation) for step in (20, 40)]
    results = [("validation", 40, validation), ("test", 40, test), ("train", 40, train)]
    run = made_run(tmp_path / "run", metrics=metrics, results=results, result={"weights_sha256": "ab", **result})
    found, _ = drawn_predictions(np.arange(400) % 4, num_classes=4, right=test)
    evaluated(run, found, top1=test)
    return run


class TestInsights:
    def test_accuracy_comes_first_then_the_most_serious(self, tmp_path):
        run = finished(tmp_path, 0.98, 0.7, 0.69)
        insights = list(insights_of(run).values())
        assert insights[0].code == "accuracy" and insights[0].severity == Severity.NOTE
        assert all(value in insights[0].text for value in ("69.0 %", "400 images", "test", "25.0 %"))
        ranks = [finding.severity.rank for finding in insights[1:]]
        assert ranks == sorted(ranks)

    def test_sections_of_findings_are_on_the_page(self, tmp_path):
        for run in (finished(tmp_path / "a", 0.98, 0.7, 0.5), made_run(tmp_path / "b")):
            page = page_of(run)
            for finding in insights_of(run).values():
                assert finding.text in page.words("summary")
                assert finding.section in page.text

    def test_gap_to_training_images_is_overfitting(self, tmp_path):
        insights = insights_of(finished(tmp_path, 0.98, 0.7, 0.69))
        finding = insights["overfitting"]
        assert finding.severity == Severity.WARNING
        assert all(value in finding.text for value in ("98.0 %", "70.0 %", "28 points"))
        assert "config.augment" in finding.fix
        assert "underfitting" not in insights and "generalization" not in insights

    def test_lower_accuracy_on_test_than_on_validation_is_a_distribution_shift(self, tmp_path):
        insights = insights_of(finished(tmp_path, 0.95, 0.93, 0.6))
        assert insights["distribution-shift"].severity == Severity.WARNING
        assert all(value in insights["distribution-shift"].text for value in ("93.0 %", "60.0 %", "33 points"))
        assert "generalization" not in insights  # good on validation, which is not what the reader cares for

    def test_a_difference_between_splits_that_chance_explains_is_no_shift(self, tmp_path):
        run = finished(tmp_path, 0.95, 0.93, 0.84)
        identity = json.loads(run.dataset.read_text())
        for validation_images, shifted in ((2000, True), (30, False)):
            run.write_json(run.dataset, {**identity, "validation_images": validation_images})
            insights = insights_of(run)
            assert ("distribution-shift" in insights) == shifted
            assert ("generalization" in insights) != shifted

    def test_a_moderate_gap_or_one_on_few_images_is_not_called_none(self, tmp_path):
        assert "10 points" in insights_of(finished(tmp_path / "a", 0.95, 0.85, 0.85))["some-overfitting"].text
        run = finished(tmp_path / "b", 0.92, 0.61, 0.61)
        assert "31 points" in insights_of(run)["overfitting"].text
        run.write_json(run.dataset, {**json.loads(run.dataset.read_text()), "validation_images": 6})
        insights = insights_of(run)
        assert "6 images, too few to tell" in insights["some-overfitting"].text
        assert not {"overfitting", "generalization"} & insights.keys()

    @pytest.mark.parametrize(
        ("curve", "improves"),
        [
            ((0.5, 0.6, 0.66, 0.70, 0.73, 0.76), True),
            ((0.5, 0.6, 0.69, 0.74, 0.781, 0.760), False),  # fell at the end
            ((0.70, 0.74, 0.76, 0.75, 0.77, 0.75, 0.77, 0.76), False),  # noise
            ((0.76, 0.762, 0.764, 0.766, 0.768), False),  # less than a point
            ((0.5, 0.7), False),
        ],
    )
    def test_still_improving_needs_a_rise_beyond_noise_to_the_end(self, tmp_path, curve, improves):
        metrics = [line("validation", step, top1) for step, top1 in enumerate(curve, 1)]
        run = made_run(tmp_path / "run", metrics=metrics, result={"weights_sha256": "ab"})
        run.write_json(run.dataset, {**json.loads(run.dataset.read_text()), "validation_images": 1000})
        assert ("still-improving" in insights_of(run)) == improves

    def test_advice_is_not_what_is_on_already(self, tmp_path):
        run = finished(tmp_path, 0.98, 0.7, 0.69, wait=45.0)
        config = json.loads(run.config.read_text())
        for on in (True, False):
            config["mix"]["mixup"], config["optimizer"]["weight_decay"] = (0.2, 0.05) if on else (0.0, 0.0)
            config["augment"]["ops"], config["cache"] = ("flip", "memory") if on else ("", "none")
            run.write_json(run.config, config)
            insights = insights_of(run)
            for field, code in (("mixup=", "overfitting"), ("weight_decay=", "overfitting"), ("cache=", "input-bound")):
                assert (field in insights[code].fix) != on, field
            assert ("stronger config.augment.ops" in insights["overfitting"].fix) == on

    def test_low_accuracy_on_training_images_is_underfitting(self, tmp_path):
        finding = insights_of(finished(tmp_path, 0.45, 0.44, 0.44))["underfitting"]
        assert finding.severity == Severity.WARNING and "45.0 %" in finding.text

    def test_low_accuracy_on_augmented_images_alone_is_not_underfitting(self, tmp_path):
        metrics = [line("train", 40, 0.5), line("validation", 40, 0.9)]
        run = made_run(
            tmp_path / "run", metrics=metrics, results=[("validation", 40, 0.9)], result={"weights_sha256": "ab"}
        )
        evaluated(run, drawn_predictions(np.arange(400) % 4, num_classes=4, right=0.9)[0], split="validation", top1=0.9)
        insights = insights_of(run)
        assert "underfitting" not in insights
        assert all(value in insights["generalization"].text for value in ("50.0 %", "augmented", "90.0 %", "no gap"))

    def test_images_of_a_single_class_are_inconclusive(self, tmp_path):
        run = made_run(tmp_path / "run")
        evaluated(run, drawn_predictions([2] * 30, num_classes=4, right=1.0)[0])
        insights = insights_of(run)
        assert insights["single-class-split"].severity == Severity.WARNING
        assert "no-better-than-majority" not in insights

    def test_accuracy_of_the_majority_class_is_an_error(self, tmp_path):
        run = finished(tmp_path, 0.25, 0.25, 0.24)
        finding = insights_of(run)["no-better-than-majority"]
        assert finding.severity == Severity.ERROR and "24.0 %" in finding.text
        assert page_of(run).words("summary").startswith("Summary fix ")

    def test_too_few_images_are_inconclusive(self, tmp_path):
        run = made_run(tmp_path / "run")
        evaluated(run, drawn_predictions([0, 1, 2, 3], num_classes=4)[0], top1=0.5)
        assert insights_of(run)["not-significant"].severity == Severity.ERROR

    @pytest.mark.parametrize(("wrong", "reported"), [(40, True), (150, False)])
    def test_label_errors_are_reported_for_accurate_models_only(self, tmp_path, wrong, reported):
        label, predicted = np.arange(1000, dtype=np.int32) % 4, np.arange(1000, dtype=np.int32) % 4
        predicted[:wrong] = (predicted[:wrong] + 1) % 4
        sure = np.full(1000, 0.95, np.float32)
        found = Predictions([""] * 1000, label, predicted, np.where(label == predicted, sure, 0.01), sure)
        run = made_run(tmp_path / "run")
        evaluated(run, found)
        insights = insights_of(run)
        assert ("label-errors" in insights) == reported
        assert ("probably correct" in page_of(run).words("labels")) != reported
        if reported:
            assert insights["label-errors"].severity == Severity.NOTE
            assert "40 images (4.0 %)" in insights["label-errors"].text

    @pytest.mark.parametrize(("ece", "code"), [(0.01, "calibrated"), (0.2, "underconfident")])
    def test_calibration_is_reported(self, tmp_path, ece, code):
        run = made_run(tmp_path / "run")
        sure, labels = np.full(40, 0.5, np.float32), np.arange(40, dtype=np.int32) % 4
        evaluated(run, Predictions([""] * 40, labels, labels, sure, sure), ece=ece)
        assert code in insights_of(run)

    def test_input_wait_is_reported_with_its_share(self, tmp_path):
        finding = insights_of(finished(tmp_path, 0.9, 0.9, 0.9, wait=45.0))["input-bound"]
        assert finding.severity == Severity.WARNING and "45 %" in finding.text

    def test_bottleneck_is_taken_from_the_result(self, tmp_path):
        sentence = "compute-bound: 97 % of step time is compute"
        limits = {"bound": "compute", "sentence": sentence, "cores": 2, "peak": 1.23456789}
        run = finished(tmp_path, 0.9, 0.9, 0.9, limits=limits)
        finding = insights_of(run)["compute-bound"]
        assert finding.severity == Severity.OK and "97 %" in finding.text
        page = page_of(run)
        assert f"ok {finding.text}" in page.words("summary")
        assert sentence in page.words("speed")
        assert "peak 1.23457" in page.words("speed")


class TestPage:
    def test_metrics_are_those_of_the_evaluation(self, tmp_path):
        run = finished(tmp_path, 0.9, 0.85, 0.8)
        page = page_of(run)
        header = page.words("")
        for value in (
            "400 images of test",
            "step 40",
            "80.00 % top-1",
            "90.00 % top-5",
            "50.00 % macro F1",
            "10.00 % cal",
        ):
            assert value in header
        assert page.rows["summary"][1:] == [
            ["train", "40", "90.00 %", "90.00 %", "50.00 %", "10.00 %", "1.5000"],
            ["validation", "40", "85.00 %", "90.00 %", "50.00 %", "10.00 %", "1.5000"],
            ["test", "40", "80.00 %", "90.00 %", "50.00 %", "10.00 %", "1.5000"],
        ]

    def test_classes_are_listed_with_their_metrics_the_worst_first(self, tmp_path):
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

    def test_names_cannot_break_the_markup(self, tmp_path):
        run = made_run(tmp_path / "<i>run</i>", class_names=HOSTILE)
        found, _ = drawn_predictions(np.arange(100) % 10, num_classes=10, right=0.3)
        found.filename[:] = [HOSTILE[i % 10] for i in range(100)]
        evaluated(run, found, class_names=HOSTILE)
        (run.path / "command.txt").write_text("convoy train --data='</pre><script>alert(1)</script>'")
        page = page_of(run)
        for section in ("classes", "confusion", "errors"):
            assert "<script>alert(1)</script>" in page.words(section)
        assert "a\\x0ab\\x09c\\u2028e" in page.words("classes")
        assert "</pre><script>alert(1)</script>" in page.words("run")
        raw = run.report.read_text("utf-8")
        assert not set("\u202e\u2066\u2028") & set(raw)
        assert len(raw) < 300_000
        assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in raw
        with Image.open(run.confusion_matrix) as image:
            assert image.format == "PNG" and image.width > 300

    def test_page_stays_small_with_a_thousand_classes(self, tmp_path):
        names = tuple(f"class {i}" for i in range(1000))
        run = made_run(tmp_path / "run", class_names=names)
        found, _ = drawn_predictions(np.arange(5000) % 1000, num_classes=1000, right=0.6)
        evaluated(run, found, class_names=names)
        page = page_of(run)
        assert page.size < 400_000
        assert "40 worst" in page.words("classes") and "10 best of 1,000" in page.words("classes")
        assert len(page.rows["classes"]) == 52
        assert "40 of 1,000 classes" in page.words("confusion")
        assert "other classes" in page.words("confusion")
        assert "12 of" in page.words("confusion") and "24 of" in page.words("errors")

    def test_wide_characters_fit_next_to_the_matrix(self):
        matrix = matrix_plot(np.ones((2, 3), int), ["商品" * 30, "bag"], complete=True)
        (short, name, _), _ = matrix.rows
        assert short == "商品商品商品商品商…" and name == "商品" * 30
        assert matrix.left > 11.5 * len(short)  # pixels per wide character

    def test_coverage_and_calibration_are_listed(self, tmp_path):
        page = page_of(finished(tmp_path, 0.9, 0.9, 0.8))
        coverages = [row for row in page.rows["calibration"] if len(row) == 3][1:]
        assert coverages[0][0] == "100.0 %" and len(coverages) == 6
        assert "(ECE) 10.00 %" in page.words("calibration")

    def test_run_without_errors(self, tmp_path):
        run = made_run(tmp_path / "run")
        labels, sure = np.arange(40, dtype=np.int32) % 4, np.full(40, 0.9, np.float32)
        found = Predictions([""] * 40, labels, labels, sure, sure)
        evaluated(run, found)
        page = page_of(run)
        for section in ("confusion", "errors", "labels"):
            assert re.search("No .*(classes|errors)", page.words(section))
            assert page.images[section] == []
        assert "confused-pair" not in insights_of(run)

    def test_numbers_just_below_a_round_one_have_no_exponent(self, tmp_path):
        run = finished(tmp_path, 0.98, 0.7, 0.7, images_per_second=9999.8)
        run.metrics.write_text(json.dumps(line("train", 20, 0.9, **{"perf/images_per_s": 9999.8})) + "\n")
        path = run.evaluation("test")
        run.write_json(path, run.read_json(path) | {"parameters": 999_999})
        page = page_of(run)
        assert "1 M parameters" in page.words("")
        assert page.words("speed").count("10,000") == 3 and "e+0" not in page.words("speed")

    def test_missing_dataset_costs_only_the_thumbnails(self, tmp_path):
        run = finished(tmp_path, 0.9, 0.9, 0.8)
        (note,) = [text for text in write_report(run) if "thumbnails" in text]
        assert str(run.path / "data") in note and "--data=DATA" in note
        assert "--data=DATA" in Page(run.report.read_bytes()).words("errors")


class TestSeveralSplits:
    @pytest.fixture
    def run(self, tmp_path):
        """A run evaluated on `test`, with one error at step 40, then on validation, with none at step 20."""
        run = made_run(tmp_path / "run")
        labels = np.arange(40, dtype=np.int32) % 4
        for split, step, wrong in (("test", 40, 1), ("validation", 20, 0)):
            predicted = (labels + (np.arange(40) < wrong)) % 4
            found = Predictions([f"{split}.jpg"] * 40, labels, predicted, np.full(40, 0.5), np.full(40, 0.9))
            evaluated(run, found, split=split, step=step)
        return run

    def test_each_is_on_the_page_with_its_step_the_newest_first(self, run):
        page = page_of(run)
        assert "40 images of validation, weights of step 20" in page.words("")
        assert "No errors" in page.words("errors") and "validation, step 20" in page.words("errors")
        assert "test: top-1 97.50 % on 40 images, weights of step 40" in page.words("")
        assert "test.jpg" in page.words("split-1-errors") and "test, step 40" in page.words("split-1-errors")
        assert len(page.rows["split-1-classes"]) == len(page.rows["classes"]) == 5

    def test_a_new_evaluation_replaces_only_that_of_its_split(self, run):
        labels = np.arange(40, dtype=np.int32) % 4
        evaluated(run, Predictions(["new.jpg"] * 40, labels, labels, np.full(40, 0.9), np.full(40, 0.9)), step=60)
        page = page_of(run)
        assert "40 images of test, weights of step 60" in page.words("") and "validation: top-1" in page.words("")
        assert "test.jpg" not in page.words("errors") and not [name for name in page.text if name.startswith("split-2")]

    def test_links_lead_to_what_is_on_the_page(self, run):
        page_of(run)
        text = run.report.read_text()
        targets = re.findall(r' id="([^"]+)"', text)
        assert len(targets) == len(set(targets))
        assert set(re.findall(r'href="#([^"]+)"', text)) <= set(targets) and "split-1" in targets

    def test_an_older_one_that_cannot_be_read_is_named_and_left_out(self, run):
        run.predictions("test").write_text("edited")
        notes = write_report(run)
        assert [note for note in notes if str(run.predictions("test")) in note and "--split=test" in note]
        assert "split-1" not in run.report.read_text()


class TestRunInProgress:
    def test_curves_are_shown_before_the_first_evaluation(self, tmp_path):
        metrics = [line("train", step, 0.1 * step / 20, **speed(2.0)) for step in range(20, 400, 20)]
        run = made_run(tmp_path / "run", metrics=metrics)
        page, finding = page_of(run), insights_of(run)["unfinished"]
        assert finding.severity == Severity.NOTE and "step 380" in finding.text
        assert "convoy evaluate --split=SPLIT" in page.words("summary")
        assert "Top-1" in page.words("curves") and "classes" not in page.text

    def test_curve_with_a_single_point_is_visible(self, tmp_path):
        run = made_run(tmp_path / "run", metrics=[line("train", 1, 0.5)])
        page_of(run)
        assert re.findall(r'<path class="line k0" d="([^"]*)"', run.report.read_text())[0] == "M416,112h8"

    def test_run_without_metrics_has_a_page(self, tmp_path):
        run = made_run(tmp_path / "run")
        assert "curves" not in page_of(run).text
        assert list(insights_of(run)) == ["unfinished"]

    def test_truncated_lines_are_ignored(self, tmp_path):
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
        assert "validation 20 40.00 %" in page_of(run).words("summary")

    def test_curves_skip_values_that_are_not_finite(self, tmp_path):
        metrics = [line("train", 20, 0.0), {"step": 40, "split": "train", "quality/top1": None}, line("train", 60, 0.2)]
        steps, values = read_history(made_run(tmp_path / "run", metrics=metrics)).curve("train", "quality/top1")
        assert steps.tolist() == [20, 60] and values.tolist() == [0.0, 0.2]

    def test_long_curves_are_downsampled_and_keep_their_last_value(self, tmp_path):
        metrics = [line("train", step, 0.9 if step < 50_000 else 0.123) for step in range(1, 50_001)]
        page = page_of(made_run(tmp_path / "run", metrics=metrics))
        assert page.size < 60_000
        assert "train 12.3 %" in page.words("curves")


class TestHeatMaps:
    @pytest.fixture
    def mapped(self, tmp_path):
        """A run with heat maps of its 24 most confident errors: (run, evaluation, predictions)."""
        run = made_run(tmp_path / "run")
        found, _ = drawn_predictions(np.arange(200) % 4, num_classes=4)
        evaluation = evaluated(run, found)
        worst = found.mistakes()[: heat_maps.NUM_ERRORS]
        rng = np.random.default_rng(0)
        maps = rng.random((len(worst), 2, 8, 8), np.float32)
        pixels = rng.integers(0, 255, (len(worst), 8, 8, 3), np.uint8)
        heat_maps.save(run, evaluation, found, heat_maps.drawn(worst, pixels, maps))
        return run, evaluation, found

    def test_each_error_is_shown_with_a_map_for_both_classes(self, mapped):
        run, _, found = mapped
        page = page_of(run)
        assert len(page.images["errors"]) == 3 * heat_maps.NUM_ERRORS == len(set(page.images["errors"]))
        assert not page.images["labels"]
        worst = found.mistakes()[0]
        for label in (found.predicted[worst], found.label[worst]):
            assert f'alt="Grad-CAM of {CLASSES[label]}, ' in run.report.read_text()

    def test_maps_of_other_predictions_and_damaged_ones_are_not_shown(self, mapped):
        run, evaluation, found = mapped
        text = run.heat_maps("test").read_text()
        predictions.save(run, dataclasses.replace(evaluation, step=30), found, CLASSES)
        assert not page_of(run).images["errors"]
        evaluated(run, drawn_predictions(np.arange(200) % 4, num_classes=4, seed=1)[0])
        assert not page_of(run).images["errors"]
        evaluated(run, found)
        assert page_of(run).images["errors"]
        for damaged in (text[:-20], "[]", '{"pictures": {"x": 3}}', text.replace("data:image/jpeg", "https://x")):
            run.heat_maps("test").write_text(damaged)
            assert not page_of(run).images["errors"]

    def test_models_without_maps_are_named_in_one_line(self, mapped):
        run, evaluation, found = mapped
        heat_maps.save(run, evaluation, found, heat_maps.HeatPictures(obstacle="model 'vit' has no <b>map</b>."))
        page = page_of(run)
        assert "model 'vit' has no <b>map</b>." in page.words("errors") and not page.images["errors"]


def test_folder_that_is_not_a_run_directory_is_named(tmp_path):
    with pytest.raises(DataError, match=f"--workdir={tmp_path / 'absent'}"):
        write_report(RunDirectory(tmp_path / "absent"))
    (tmp_path / "photos").mkdir()
    with pytest.raises(DataError, match=str(tmp_path / "photos")):
        write_report(RunDirectory(tmp_path / "photos"))


def test_page_written_elsewhere_leaves_the_run_unchanged(tmp_path):
    run = finished(tmp_path, 0.9, 0.9, 0.8)
    before = fingerprints(run.path)
    page_of(run, output=tmp_path / "page.html")
    assert fingerprints(run.path) == before


def test_folder_that_cannot_be_written_is_named(tmp_path):
    run = made_run(tmp_path / "run")
    with pytest.raises(DataError, match="absent.* cannot be written"):
        write_report(run, output=tmp_path / "absent" / "page.html")


def test_page_is_reproducible(tmp_path):
    run = finished(tmp_path, 0.9, 0.9, 0.8)
    page_of(run, output=tmp_path / "a.html")
    page_of(run, output=tmp_path / "b.html")
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()
    assert not re.search(r"https?://", (tmp_path / "a.html").read_text())
    assert json.loads(run.evaluation("test").read_text())["images"] == 400


class TestFolds:
    @pytest.fixture
    def run(self, tmp_path):
        """A cross-validation of two folds with top-1 50 % and 70 %, evaluated together."""
        run = made_run(tmp_path / "run", result={"mean": {}})
        run.write_json(run.dataset, run.read_dataset() | {"folds": 2})
        labels = np.arange(20, dtype=np.int32) % 4
        for fold, top1 in ((1, 0.5), (2, 0.7)):
            one = made_run(run.fold(fold), metrics=[line("validation", 10, 0.1), line("validation", 20, top1)])
            one.write_json(one.dataset, one.read_dataset() | {"fold": fold, "folds": 2, "validation_images": 20})
            predicted = Predictions([""] * 20, labels, labels, np.full(20, 0.9), np.full(20, 0.9))
            evaluated(one, predicted, split="validation", step=20, top1=top1)
        wrong = Predictions([f"{i}.jpg" for i in range(40)], *[np.tile(labels, 2)] * 2, *[np.full(40, 0.9)] * 2)
        evaluated(run, wrong, split="out_of_fold")
        return run

    def test_are_listed_with_mean_and_standard_deviation(self, run):
        page = page_of(run)
        tops = {row[0]: row[3] for row in page.rows["folds"]}
        assert tops == {
            "fold": "top-1",
            "1": "50.00 %",
            "2": "70.00 %",
            "mean": "60.00 %",
            "standard deviation": "14.14 %",
        }
        assert "fold 1 50 %" in page.words("curves") and "fold 2 70 %" in page.words("curves")
        assert "by the model that was not trained on it" in page.words("")
        assert not run.model_card.exists()

    def test_one_that_is_not_evaluated_yet_has_no_mean(self, run):
        one = RunDirectory(run.fold(2))
        one.evaluation("validation").unlink()
        assert [row[0] for row in page_of(run).rows["folds"]] == ["fold", "1", "2"]

    def test_one_that_diverged_has_no_standard_deviation(self, run):
        one = RunDirectory(run.fold(2))
        content = json.loads(one.evaluation("validation").read_text())
        one.write_json(one.evaluation("validation"), content | {"quality": content["quality"] | {"loss": None}})
        loss = page_of(run).rows["folds"]
        column = loss[0].index("loss")
        assert loss[-1][0] == "standard deviation" and not any(mark.isdigit() for mark in loss[-1][column])
