"""`convoy evaluate` and `convoy report` on a run whose categories have names that no page or spreadsheet may obey."""

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
def told(dataset, convoy_together, tmp_path_factory):
    """Such a run, what each command said, and the folder of it all."""
    folder = tmp_path_factory.mktemp("report")
    data, run = folder / "data", folder / "run"
    convert, name_of = [], dict(zip(dataset.categories, NAMES, strict=True))
    for split in ("train", "test"):
        manifest = folder / f"{split}.csv"
        with open(manifest, "w", encoding="utf-8", newline="") as file:
            rows = [(name, name_of[category]) for name, category in dataset.rows(split)]
            csv.writer(file).writerows([("filename", "category"), *rows])
        images = (f"--images={dataset.photos / split}", f"--manifest={manifest}")
        convert.append(["convert", *images, f"--output={data}", f"--split={split}", "--workers=1"])
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
    answers = convoy_together(*convert, *commands.values(), timeout=300)
    for answer in answers[: len(convert)]:
        assert answer.returncode == 0, answer.output
    return run, dict(zip(commands, answers[len(convert) :], strict=True)), folder


@pytest.fixture(scope="module")
def page(told):
    run, answers, _ = told
    assert answers["evaluate"].returncode == 0, answers["evaluate"].output
    return Page((run / "report.html").read_bytes())


def test_where_nothing_was_evaluated_the_validation_split_is(told):
    run, answers, folder = told
    assert answers["first report"].returncode == 0, answers["first report"].output
    assert "validation: loss " in answers["first report"].output
    assert f"Report: {folder / 'first.html'}" in answers["first report"].output
    page = Page((folder / "first.html").read_bytes())
    assert "9 images of validation, each once and mirrored" in page.words("")
    assert len(page.rows["classes"]) > 2


def test_an_evaluation_is_not_made_again_for_the_report(told):
    _, answers, _ = told
    assert answers["report"].returncode == 0, answers["report"].output
    assert answers["report"].output.count("\n") == 1 and "loss" not in answers["report"].output


def test_a_run_without_a_checkpoint_has_a_page_of_what_is_there(told):
    _, answers, folder = told
    assert answers["begun"].returncode == 0, answers["begun"].output
    assert "Without an evaluation: " in answers["begun"].output and "no checkpoint yet" in answers["begun"].output
    assert "train 25 %" in Page((folder / "begun" / "report.html").read_bytes()).words("curves")


def test_every_image_is_in_the_predictions_with_its_file(told, dataset):
    run, _, _ = told
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


def test_the_pages_numbers_are_those_of_results_csv(told, page):
    run, _, _ = told
    newest = {row["split"]: row for row in read_csv(run / "results.csv")}
    assert [row[0] for row in page.rows["verdict"][1:]] == ["validation", "test"]
    for split, step, *shown, loss in page.rows["verdict"][1:]:
        row = newest[split]
        assert step == row["step"]
        assert shown == [f"{100 * float(row[name]):.2f} %" for name in ("top1", "top5", "macro_f1", "ece")]
        assert float(loss) == pytest.approx(float(row["loss"]), abs=5.1e-5)
    f1 = [float(row[4].removesuffix(" %")) / 100 for row in page.rows["classes"][1:]]
    assert np.mean(f1) == pytest.approx(float(newest["test"]["macro_f1"]), abs=1e-3)


def test_names_stand_on_the_page_as_they_are(page):
    text = page.words("classes")
    for name in NAMES:
        assert name[:150].strip() in text
    assert "a very long name " * 9 in text and "indeed" not in text
    assert len(page.images["mistakes"]) == 24 and len(page.images["confusion"]) >= 12


def test_the_files_beside_the_page_are_there(told):
    run, answers, _ = told
    with Image.open(run / "confusion_matrix.png") as image:
        assert image.format == "PNG" and image.width > 300
    card = (run / "MODEL_CARD.md").read_text()
    assert r"\<script\>alert(1)\</script\>" in card
    index = yaml.safe_load(card.split("---\n")[1])["model-index"][0]
    assert {entry["dataset"]["split"] for entry in index["results"]} == {"validation", "test"}
    assert "Warning" not in answers["evaluate"].output and "Traceback" not in answers["evaluate"].output
    assert json.loads((run / "evaluation_test.json").read_text())["images"] == 259


@pytest.mark.parametrize(
    ("name", "code", "said"),
    [
        ("no run", 3, "no such folder. Give the --workdir of `convoy train`."),
        ("no folder", 2, "does not exist. Make it first."),
        ("a folder", 2, "is a folder. Name the page to write in it."),
    ],
)
def test_what_cannot_be_reported_is_named(told, name, code, said):
    answer = told[1][name]
    assert (answer.returncode, len(answer.output.splitlines())) == (code, 1)
    assert said in answer.output


def test_a_dataset_that_moved_is_found_where_data_says(told, tmp_path, capsys):
    run, _, folder = told
    moved = shutil.copytree(run, tmp_path / "run")
    evaluation = json.loads((moved / "evaluation_test.json").read_text())
    (moved / "evaluation_test.json").write_text(json.dumps({**evaluation, "data": str(tmp_path / "gone")}))
    assert main(["convoy", "report", f"--workdir={moved}"]) == 0
    assert "No thumbnails: dataset folder" in capsys.readouterr().out
    assert not Page((moved / "report.html").read_bytes()).images.get("mistakes")
    assert main(["convoy", "report", f"--workdir={moved}", f"--data={folder / 'data'}"]) == 0
    assert len(Page((moved / "report.html").read_bytes()).images["mistakes"]) == 24


@pytest.mark.skipif(bool(missing_browser()), reason=f"no browser: {missing_browser()}")
@pytest.mark.parametrize("width", [1280, 390], ids=["desktop", "phone"])
def test_a_browser_shows_the_page_without_a_network_scripts_or_scrolling_sideways(told, page, width, tmp_path):
    run, _, _ = told
    with Browser(tmp_path / "browser", size=(width, 900)) as browser:
        browser.open(f"file://{run / 'report.html'}")
        text = browser.wait_for("In short", "Made by")
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
