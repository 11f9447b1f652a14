"""`convoy evaluate` and `convoy report` on a run whose class names contain markup and formulas."""

import csv
import json
import shutil

import numpy as np
import pytest
import yaml
from PIL import Image

from convoy.cli import main
from tests.browser import Browser, missing_browser
from tests.pages import Page
from tests.trainer.report.made_runs import made_run

pytestmark = pytest.mark.slow

NAMES = (
    "<script>alert(1)</script>",
    "../x",
    "=1+1",
    "\U0001f984 unicorn",
    "a very long name " * 20 + "indeed",
    "\"quoted\" & 'quoted', $x$",
    "-1",
)


def read_csv(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def reported(dataset, convoy, tmp_path_factory):
    """The run, the result of each command, and the folder of all files."""
    folder = tmp_path_factory.mktemp("report")
    data, run = folder / "data", folder / "run"
    name_of = dict(zip(dataset.categories, NAMES, strict=True))
    for split in ("train", "test"):
        manifest = folder / f"{split}.csv"
        with open(manifest, "w", encoding="utf-8", newline="") as file:
            rows = [(name, name_of[category]) for name, category in dataset.rows(split)]
            csv.writer(file).writerows([("filename", "category"), *rows])
        images = (f"--images={dataset.photos / split}", f"--manifest={manifest}")
        convoy("convert", *images, f"--output={data}", f"--split={split}", "--workers=1", check=True)
    here, device = f"--workdir={run}", "--devices=cpu:1"
    begun = made_run(folder / "begun", class_names=NAMES, metrics=[{"step": 5, "split": "train", "quality/top1": 0.25}])
    commands = {
        "train": [
            "train",
            "--config=smoke",
            f"--data={data}",
            here,
            device,
            "--config.steps=30",
            "--config.flip_tta=True",
        ],
        "first report": ["report", here, device, f"--output={folder / 'first.html'}"],
        "evaluate": ["evaluate", here, device, "--split=test"],
        "report": ["report", here],
        "begun": ["report", f"--workdir={begun.path}", device],
        "no run": ["report", f"--workdir={folder / 'absent'}"],
        "no folder": ["report", here, f"--output={folder / 'absent' / 'page.html'}"],
        "a folder": ["report", here, f"--output={folder}"],
    }
    return run, {name: convoy(*command) for name, command in commands.items()}, folder


@pytest.fixture(scope="module")
def page(reported):
    run, answers, _ = reported
    assert answers["evaluate"].returncode == 0, answers["evaluate"].output
    return Page((run / "report.html").read_bytes())


def test_report_evaluates_the_validation_split_if_nothing_was_evaluated(reported):
    run, answers, folder = reported
    assert answers["first report"].returncode == 0, answers["first report"].output
    assert "validation: loss " in answers["first report"].output
    assert str(folder / "first.html") in answers["first report"].output
    page = Page((folder / "first.html").read_bytes())
    assert "9 images of validation" in page.words("") and "flip" in page.words("")
    assert len(page.rows["classes"]) > 2


def test_report_uses_an_existing_evaluation(reported):
    _, answers, _ = reported
    assert answers["report"].returncode == 0, answers["report"].output
    assert answers["report"].output.count("\n") == 1 and "loss" not in answers["report"].output


def test_run_without_a_checkpoint_has_a_page(reported):
    _, answers, folder = reported
    assert answers["begun"].returncode == 0, answers["begun"].output
    assert "checkpoint" in answers["begun"].output
    assert "train 25 %" in Page((folder / "begun" / "report.html").read_bytes()).words("curves")


def test_every_image_is_in_the_predictions_with_its_file_name(reported, dataset):
    run, _, _ = reported
    rows = read_csv(run / "predictions_test.csv")
    expected = dict(zip(dataset.categories, NAMES, strict=True))
    labels = {name: expected[category] for name, category in dataset.rows("test")}
    assert len(rows) == 259
    for row in rows:
        assert row["label"].removeprefix("'") == labels[row["filename"].split("/")[-1]]
        assert row["correct"] == str(int(row["label"] == row["predicted"]))
        assert not row["label"].startswith(("=", "-")) and not row["predicted"].startswith(("=", "-"))
    result = read_csv(run / "results.csv")[-1]
    assert float(result["top1"]) == pytest.approx(np.mean([row["correct"] == "1" for row in rows]), abs=1e-6)


def test_metrics_on_the_page_are_those_of_results_csv(reported, page):
    run, _, _ = reported
    newest = {row["split"]: row for row in read_csv(run / "results.csv")}
    assert [row[0] for row in page.rows["summary"][1:]] == ["validation", "test"]
    for split, step, *shown, loss in page.rows["summary"][1:]:
        row = newest[split]
        assert step == row["step"]
        assert shown == [f"{100 * float(row[name]):.2f} %" for name in ("top1", "top5", "macro_f1", "ece")]
        assert float(loss) == pytest.approx(float(row["loss"]), abs=5.1e-5)
    f1 = [float(row[4].removesuffix(" %")) / 100 for row in page.rows["classes"][1:]]
    assert np.mean(f1) == pytest.approx(float(newest["test"]["macro_f1"]), abs=1e-3)


def test_class_names_are_shown_verbatim(page):
    text = page.words("classes")
    for name in NAMES:
        assert name[:150].strip() in text
    assert "a very long name " * 9 in text and "indeed" not in text
    assert len(page.images["errors"]) == 3 * 24 and len(page.images["confusion"]) >= 12


def test_confusion_matrix_and_model_card_are_written(reported):
    run, answers, _ = reported
    with Image.open(run / "confusion_matrix.png") as image:
        assert image.format == "PNG" and image.width > 300
    card = (run / "MODEL_CARD.md").read_text()
    assert r"\<script\>alert(1)\</script\>" in card
    index = yaml.safe_load(card.split("---\n")[1])["model-index"][0]
    assert {entry["dataset"]["split"] for entry in index["results"]} == {"validation", "test"}
    assert "Warning" not in answers["evaluate"].output and "Traceback" not in answers["evaluate"].output
    assert json.loads((run / "evaluation_test.json").read_text())["images"] == 259


@pytest.mark.parametrize(
    ("name", "code", "named"),
    [
        ("no run", 3, "--workdir={}/absent"),
        ("no folder", 2, "--output={}/absent/page.html"),
        ("a folder", 2, "--output={}"),
    ],
)
def test_invalid_flag_is_named(reported, name, code, named):
    _, answers, folder = reported
    answer = answers[name]
    assert (answer.returncode, len(answer.output.splitlines())) == (code, 1)
    assert named.format(folder) in answer.output


def test_moved_dataset_is_found_with_data_flag(reported, tmp_path, capsys):
    run, _, folder = reported
    moved = shutil.copytree(run, tmp_path / "run")
    evaluation = json.loads((moved / "evaluation_test.json").read_text())
    (moved / "evaluation_test.json").write_text(json.dumps({**evaluation, "data": str(tmp_path / "gone")}))
    assert main(["convoy", "report", f"--workdir={moved}"]) == 0
    assert "--data=DATA" in capsys.readouterr().out
    assert not Page((moved / "report.html").read_bytes()).images.get("confusion")
    assert main(["convoy", "report", f"--workdir={moved}", f"--data={folder / 'data'}"]) == 0
    assert len(Page((moved / "report.html").read_bytes()).images["confusion"]) >= 12


@pytest.mark.skipif(bool(missing_browser()), reason=f"no browser: {missing_browser()}")
@pytest.mark.parametrize("width", [1280, 390], ids=["desktop", "phone"])
def test_browser_shows_the_page_without_network_scripts_or_horizontal_scrolling(reported, page, width, tmp_path):
    run, _, _ = reported
    with Browser(tmp_path / "browser", size=(width, 900)) as browser:
        browser.open(f"file://{run / 'report.html'}")
        text = browser.wait_for("Summary", "Generated by")
        assert browser.problems == []
        assert browser.value("document.scripts.length") == 0
        assert browser.value("document.querySelectorAll('[onerror],[onload],[onclick],iframe,link').length") == 0
        assert (
            browser.value("performance.getEntriesByType('resource').filter(e => !e.name.startsWith('data:')).length")
            == 0
        )
        assert browser.value("window.innerWidth") == width
        assert browser.value("document.scrollingElement.scrollWidth") <= width
        images = "[...document.images]"
        assert browser.value(f"{images}.length") >= 24 and browser.value(f"{images}.every(i => i.naturalWidth > 0)")
        for name in NAMES[:4]:
            assert name in text
        row = read_csv(run / "results.csv")[-1]
        assert f"{100 * float(row['top1']):.2f} %" in text.replace("\u00a0", " ")
        browser.screenshot(tmp_path / "page.png")
        with Image.open(tmp_path / "page.png") as image:
            assert image.width == width and len(image.convert("RGB").getcolors(10**6)) > 50
