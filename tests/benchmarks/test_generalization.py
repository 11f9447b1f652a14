"""The generalization benchmark: tables, time budget, reuse of finished runs."""

import dataclasses
import re
import sys
from pathlib import Path

import pytest

from benchmarks.generalization import (
    INGREDIENTS,
    Entry,
    Study,
    ablation_table,
    ingredients_of,
    parse_entry,
    spread,
    table,
)
from benchmarks.trained_runs import Outcome, Runs, TrainedRun, seconds_of, steps_within
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


def outcome(*, train=0.9, test=0.6, seconds=100.0, **other):
    known = {"command": ["convoy", "train", "--config=it"], "steps": 10, "parameters": 11_253_258}
    known |= {"images_per_second": 250.0, "seconds": seconds, "seconds_to_best": seconds / 2}
    return Outcome(**known | other, train_top1=train, test_top1=test)


# What is made of runs.


def test_table_has_mean_and_deviation_over_seeds_and_the_command():
    rows = table({Entry("baseline_cnn"): [outcome(test=0.6), outcome(test=0.7)], Entry("convnet", 4.0): [outcome()]})
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert cells[0][0] == "recipe" and cells[0][-1] == "command"
    assert len({len(row) for row in cells}) == 1
    numbers = ["11,253,258", "250", "100 s", "50 s", "90.0 ± 0.0 %", "65.0 ± 7.1 %", "25.0 ± 7.1"]
    assert cells[2] == ["`baseline_cnn`", *numbers, "`convoy train --config=it`"]
    assert cells[3][0] == "`convnet`, 4x the budget"
    assert cells[3][5:8] == ["90.0 %", "60.0 %", "30.0"]


def test_ablation_pairs_runs_with_the_same_seed():
    whole = [outcome(test=0.6), outcome(test=0.8)]
    without = Entry("convnet", None, {"augment.ops": "crop | flip"}, "erase(0.25)")
    rows = ablation_table({Entry("convnet"): whole, without: [outcome(test=0.58), outcome(test=0.78)]})
    assert "| 100 s | 90.0 ± 0.0 % | 70.0 ± 14.1 % |" in rows[2]
    assert "| -2.0 ± 0.0 |" in rows[3]
    assert r"`--config.augment.ops=crop \| flip`" in rows[3]  # a bar in a cell would end it


def test_no_deviation_for_a_single_run():
    assert spread([71.44], " %") == "71.4 %"
    assert spread([1.0, 3.0], signed=True) == "+2.0 ± 1.4"


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
        "evaluate baseline_cnn-seed0 test",
    ]
    assert len(done) == 2 * 3 + 2 + 2 * 3
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
    assert commands(runs) == ["train a", "evaluate a train", "evaluate a train", "evaluate a test"]


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
    ],
)
def test_usage_errors_come_first(capsys, tmp_path, flag, named):
    assert cli.main(["convoy", "bench", "generalization", f"--workdir={tmp_path}", flag]) == 2
    error = capsys.readouterr().err.strip()
    assert named in error and len(error.splitlines()) <= 2
    assert list(tmp_path.iterdir()) == []
