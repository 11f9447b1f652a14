"""The generalization benchmark: what is trained for it, time budget, reuse of finished runs, files."""

import dataclasses
import json
import re
import sys
from pathlib import Path

import pytest

from benchmarks import generalization
from benchmarks.study import INGREDIENTS, Entry, Study, ingredients_of, parse_entry
from benchmarks.trained_runs import Runs, TrainedRun, seconds_of, steps_within
from convoy import cli
from convoy.core.errors import ConvoyError, UsageError
from convoy.trainer import config as configs
from convoy.trainer.run.directory import RunDirectory
from tests.benchmarks import fake_convoy

FAKE = (sys.executable, str(Path(__file__).with_name("fake_convoy.py")))


class FakeRuns(Runs):
    training_images = 640  # ten steps of 64

    def convoy(self, *words, name="dataset"):
        fake_convoy.main(*words)


@pytest.fixture
def runs(tmp_path):
    return FakeRuns(tmp_path)


def commands(runs):
    path = runs.folder / "commands"
    return path.read_text().splitlines() if path.exists() else []


# Times of runs.


def events(*lines):
    return [{"event": name, "step": step, "time": float(time)} for name, step, time in lines]


def test_time_of_a_run_until_its_end_or_a_checkpoint():
    run = events(("start", 0, 100), ("first_step", 1, 110), ("checkpoint", 5, 130), ("done", 9, 150))
    assert seconds_of(run) == 50
    assert seconds_of(run, until_step=5) == 30


def test_time_excludes_repeated_steps_and_pauses():
    run = events(
        ("start", 0, 100), ("checkpoint", 5, 130), ("checkpoint", 6, 135),
        ("restored", 5, 1000), ("checkpoint", 6, 1012), ("checkpoint", 8, 1020), ("done", 9, 1025),
    )  # fmt: skip
    assert seconds_of(run) == 30 + 25
    assert seconds_of(run, until_step=5) == 30
    assert seconds_of(run, until_step=6) == 30 + 12
    killed_early = events(("start", 0, 10), ("first_step", 1, 20)) + run
    assert seconds_of(killed_early) == 30 + 25


def test_steps_fit_into_the_budget():
    short = TrainedRun(None, [], {"step": 20}, events(("start", 0, 0), ("first_step", 1, 7), ("done", 20, 20)))
    longer = TrainedRun(None, [], {"step": 60}, events(("start", 0, 0), ("first_step", 1, 9), ("done", 60, 40)))
    assert steps_within(60.0, short, longer) == 100  # 10 s, and half a second each
    assert steps_within(1.0, short, longer) == 1


def test_inconsistent_run_times_are_refused(tmp_path):
    short, longer = (
        TrainedRun(RunDirectory(tmp_path / name), [], {"step": steps}, events(("start", 0, 0), ("done", steps, 9)))
        for name, steps in (("short", 20), ("longer", 60))
    )
    with pytest.raises(ConvoyError, match=r"short .*9\.0 s for 20 steps.*longer .*9\.0 s for 60"):
        steps_within(60.0, short, longer)


# What is trained.


def test_finished_runs_are_reused(runs):
    entries = [Entry("baseline_cnn"), Entry("convnet", 1.0)]
    first = Study(runs, seeds=range(2)).outcomes(entries)
    done = commands(runs)
    assert done[:3] == [
        "train baseline_cnn-seed0",
        "evaluate baseline_cnn-seed0 train",
        "evaluate baseline_cnn-seed0 validation",
    ]
    assert len(done) == 2 * 4 + 2 + 2 * 4
    again = Study(runs, seeds=range(2)).outcomes(entries)
    assert list(again.values()) == list(first.values())
    assert [run.test_top1 for run in again[entries[0]]] == pytest.approx([0.6, 0.7])
    assert commands(runs) == done
    Study(runs, seeds=range(3)).outcomes(entries[:1])
    assert commands(runs)[len(done) :][0] == "train baseline_cnn-seed2"


def test_trained_run_is_only_evaluated(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    runs = Runs(tmp_path, program=FAKE)
    (runs.folder / "fail-evaluate").touch()
    with pytest.raises(ConvoyError, match="(?s)evaluate .*exit code 1.*it was told to fail"):
        runs.outcome("a", "baseline_cnn", {"seed": 0})
    (runs.folder / "fail-evaluate").unlink()
    assert runs.outcome("a", "baseline_cnn", {"seed": 0}).gap == pytest.approx(0.3)
    evaluated = ["evaluate a train", "evaluate a validation", "evaluate a test"]
    assert commands(runs) == ["train a", evaluated[0], *evaluated]


def test_run_with_another_config_is_refused(runs):
    runs.trained("a", "baseline_cnn", {"seed": 0})
    with pytest.raises(UsageError, match="epochs: 15.* -> 30"):
        runs.trained("a", "baseline_cnn", {"seed": 0, "epochs": 30.0})


def test_recipe_with_a_budget_trains_that_long(runs):
    baseline_cnn, convnet = Entry("baseline_cnn"), Entry("convnet", 4.0)
    study = Study(runs, seeds=range(1))
    found = study.outcomes([baseline_cnn, convnet])
    assert study.budget_seconds == 10 + 0.5 * 49  # the fake run's best is its step 50
    steps = 1 + int((4 * 34.5 - 10) / 0.5)
    assert found[convnet][0].steps == steps
    assert found[convnet][0].seconds == pytest.approx(4 * 34.5, abs=0.5)
    assert found[convnet][0].command[:5] == [
        "convoy", "train", "--config=convnet", "--config.seed=0", f"--config.steps={steps}",
    ]  # fmt: skip


def test_recipes_of_their_own_length_are_trained_in_turn(runs):
    study = Study(runs, seeds=range(2))
    study.outcomes([Entry("baseline_cnn"), Entry("convnet")])
    trained = [line for line in commands(runs) if line.startswith("train")]
    assert trained == [f"train {name}-seed{seed}" for seed in (0, 1) for name in ("baseline_cnn", "convnet")]
    assert study.budget_seconds == 0


def test_evaluation_without_a_calibration_error_is_accepted(runs):
    path = runs.trained("a", "baseline_cnn", {"seed": 0}).run.evaluation("test")
    path.write_text(json.dumps({"parameters": 1, "images": 10, "quality": {"top1": 0.5}}))
    found = runs.outcome("a", "baseline_cnn", {"seed": 0})
    assert (found.test_top1, found.test_ece, found.validation_ece) == (0.5, None, 0.05)


def test_more_seeds_keep_the_budget_and_its_runs(runs, monkeypatch):
    def slower_the_higher_its_seed(name, recipe, overrides):
        found = Runs.outcome(runs, name, recipe, overrides)
        return dataclasses.replace(found, seconds_to_best=found.seconds_to_best * (1 + overrides["seed"]))

    monkeypatch.setattr(runs, "outcome", slower_the_higher_its_seed)
    entries = [Entry("baseline_cnn"), Entry("convnet", 4.0)]
    (first,) = Study(runs, seeds=range(1)).outcomes(entries)[entries[1]]
    found = Study(runs, seeds=range(2)).outcomes(entries)[entries[1]]
    assert [run.steps for run in found] == [first.steps] * 2


def test_ablation_removes_each_ingredient_once(runs):
    found = Study(runs, seeds=range(1), budget_seconds=60.0).ablation(Entry("convnet", 1.0))
    assert {"", "label smoothing", "weight decay", "instance normalization"} <= {entry.without for entry in found}
    assert len({runs_of[0].steps for runs_of in found.values()}) == 1
    for entry, (run,) in found.items():
        changed = [word for word in run.command if word.startswith("--config.")][:-2]
        assert len(changed) == len(entry.overrides) and all(name in str(changed) for name in entry.overrides)


# What a recipe is made of.


def test_ingredients_of_a_recipe():
    assert "label smoothing" in ingredients_of(configs.load_recipe("convnet"))
    assert not ingredients_of(configs.load_recipe("baseline_cnn"))


def test_instance_normalization_is_an_ingredient_of_models_that_use_it():
    for recipe, has in (("convnet", True), ("resnet10", True), ("finetune", False)):
        assert ("instance normalization" in ingredients_of(configs.load_recipe(recipe))) == has


def test_overrides_are_valid_flags(capsys):
    overrides = {name: value for fields in INGREDIENTS.values() for name, value in fields.items()}
    words = [f"--config.{name}={value}" for name, value in overrides.items()]
    assert cli.main(["convoy", "train", "--print_config", *words]) == 0, capsys.readouterr().err
    defaults = dict(configs.fields(configs.default_config()))
    del overrides["model.instance_norm"]  # a model has it by itself
    assert {name: defaults[name] for name in overrides} == overrides  # taken away is as if it had never been set


def test_each_augmentation_operation_is_an_ingredient():
    config = configs.default_config().unlock()
    config.augment.ops = "crop(scale=0.35..1) | flip | erase(0.25)"
    found = ingredients_of(config)
    lines = {name: fields["augment.ops"] for name, fields in found.items() if "augment.ops" in fields}
    assert lines == {
        "crop(scale=0.35..1)": "flip | erase(0.25)",
        "flip": "crop(scale=0.35..1) | erase(0.25)",
        "erase(0.25)": "crop(scale=0.35..1) | flip",
    }


def test_entry_is_a_recipe_with_an_optional_multiple():
    assert (parse_entry("convnet").recipe, parse_entry("convnet").times) == ("convnet", None)
    assert parse_entry("convnet:4").times == 4.0
    for text in ("convnet:", "convnet:x", "convnet:-1", "convnet:nan"):
        with pytest.raises(UsageError, match=re.escape(repr(text))):
            parse_entry(text)


@pytest.mark.parametrize(
    ("flag", "named"),
    [
        ("--recipes=convnet24", "'convnet'"),
        ("--dataset=digit", "'digits'"),
        ("--batch_size=3", "--batch_size"),
        ("--image_seed=1,-2", "--image_seed=1,-2"),
        ("--page=missing/page.md", "--page=missing/page.md"),
    ],
)
def test_usage_errors_come_first(capsys, tmp_path, flag, named):
    assert cli.main(["convoy", "bench", "generalization", f"--workdir={tmp_path}", flag]) == 2
    error = capsys.readouterr().err.strip()
    assert named in error and len(error.splitlines()) <= 2
    assert list(tmp_path.iterdir()) == []


# The command.


@pytest.fixture
def bench(tmp_path, monkeypatch):
    """Returns a function that runs the benchmark, without images, and returns the page and the JSON."""
    monkeypatch.setattr(generalization, "Runs", FakeRuns)
    monkeypatch.setattr(FakeRuns, "description", "some images")
    monkeypatch.setattr(
        generalization, "make_dataset", lambda name, runs, **other: runs.folder.mkdir(parents=True, exist_ok=True)
    )

    def run(*words):
        outputs = (f"--page={tmp_path / 'page.md'}", f"--json={tmp_path / 'all.json'}")
        words = ("--recipes=convnet,baseline_cnn", f"--workdir={tmp_path / 'runs'}", *outputs, *words)
        assert cli.main(["convoy", "bench", "generalization", *words]) == 0
        return (tmp_path / "page.md").read_text(), json.loads((tmp_path / "all.json").read_text())

    return run


def test_all_datasets_but_the_held_out_one_are_trained_on_by_default(bench, tmp_path):
    page, content = bench("--seeds=1")
    names = [found["dataset"] for found in content["datasets"]]
    assert names == ["sample", "tenth", "digits", "stamps", "photos"]
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == sorted(names)
    assert "clothes" not in page and not any(found["held_out"] for found in content["datasets"])


def test_held_out_dataset_is_trained_on_if_named_and_is_not_in_the_summary(bench):
    page, content = bench("--seeds=1", "--dataset=clothes,digits,photos")
    assert [found["held_out"] for found in content["datasets"]] == [True, False, False]
    assert "Mean over digits; photos." in page and "## clothes (held out" in page
    assert bench("--seeds=1", "--dataset=clothes")[1]["summary"] == []


def test_several_image_seeds_are_datasets_of_their_own(bench, tmp_path):
    page, content = bench("--seeds=2", "--dataset=digits", "--image_seed=0,3")
    assert [found["image_seed"] for found in content["datasets"]] == [0, 3]
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["digits", "digits-images3"]
    assert "Mean over digits; digits, image seed 3." in page
    assert "convoy bench generalization --recipes=convnet,baseline_cnn --dataset=digits --image_seed=0,3" in page
    assert [len(row["runs"]) for found in content["datasets"] for row in found["rows"]] == [2] * 4


def test_ablation_is_on_the_page(bench):
    page, content = bench("--seeds=1", "--dataset=digits", "--recipes=convnet", "--ablate")
    rows = content["datasets"][0]["ablations"]["convnet"]
    assert [row["without"] for row in rows[:2]] == ["", "label smoothing"]
    assert "| label smoothing |" in page and "## Summary" not in page


def test_averages_are_on_the_page_and_are_evaluated_once(bench, tmp_path):
    words = ("--seeds=2", "--dataset=digits,photos", "--recipes=convnet", "--averages")
    page, content = bench(*words)
    ways = {each["way"]: each for each in content["datasets"][0]["averages"]["convnet"]}
    plain, flips, mean, together, both = ways.values()
    assert [each["passes"] for each in ways.values()] == [1, 2, 1, 2, 4]
    assert plain["top1"] == pytest.approx([0.6, 0.7]) and flips["top1"] == pytest.approx([0.62, 0.72])
    assert (len(mean["top1"]), together["top1"], both["top1"]) == (2, pytest.approx([0.65]), pytest.approx([0.67]))
    assert "| mirror images | 2 | 67.0 % | +2.0 |" in page
    before = commands(FakeRuns(tmp_path / "runs/digits"))
    assert bench(*words)[1]["datasets"] == content["datasets"]
    assert commands(FakeRuns(tmp_path / "runs/digits")) == before
