"""`convoy report --learning_curve`: runs on a quarter and a half of the training images of a run."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest

from convoy.input_pipeline.dataset.open import open_dataset
from convoy.input_pipeline.dataset.subsets import training_subset
from convoy.trainer.config import changes_of_virtual_replicas, default_config, scaled
from convoy.trainer.run.directory import RunDirectory
from tests.pages import Page
from tests.trainer import user_models
from tests.trainer.report.made_runs import made_run
from tests.trainer.run_files import events_of, fingerprints, result_of

NAMES = ("quarter", "half")
STEPS = 400  # of `reference_run`
PIECES = """
import convoy
import tensorflow as tf

@convoy.register_operation("dimmed", draws=1, strength=(0, 1))
def dimmed(pixels, draws, strength: float = 0.5):
    return pixels * (1.0 - strength * draws[:, 0])[:, None, None, None]

def loss(logits, labels):
    return tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
"""


def curve_of(run):
    return json.loads((run / "learning_curve.json").read_text())


def fraction(run, name):
    return run / "learning_curve" / name


def weights(run):
    return [result_of(fraction(run, name))["weights_sha256"] for name in NAMES]


class TestScaledConfig:
    def config(self):
        config = default_config()
        config.epochs, config.steps = 8.0, 400
        config.schedule.warmup_images, config.eval_every_epochs, config.checkpoint_every_steps = 1000, 1.0, 1
        config.extended.steps, config.extended.lengths = (100, 200), (150, 300)
        return config

    def test_durations_are_shorter_and_epochs_stay(self):
        found = scaled(self.config(), 0.25)
        assert (found.epochs, found.steps) == (8.0, 100)
        assert (found.schedule.warmup_images, found.schedule.warmup_steps) == (250, 0)
        assert (found.eval_every_epochs, found.checkpoint_every_steps) == (1.0, 1)
        assert found.extended.to_dict() == {"steps": (25, 50), "lengths": (38, 75)}

    def test_all_steps_have_the_newest_number_of_virtual_replicas(self):
        config = self.config()
        config.virtual_replicas = 8
        config.earlier_virtual_replicas.steps, config.earlier_virtual_replicas.numbers = (100,), (2,)
        assert changes_of_virtual_replicas(scaled(config, 0.25)) == []
        assert scaled(config, 0.25).virtual_replicas == 8

    def test_nothing_else_changes(self):
        before, found = self.config(), scaled(self.config(), 1.0)
        assert found == before and before.steps == 400


@pytest.fixture(scope="module")
def measured(reference_run, dataset, convoy, tmp_path_factory):
    """A run of 400 steps with its learning curve, on one device."""
    run = tmp_path_factory.mktemp("curve") / "run"
    shutil.copytree(reference_run.workdir, run)
    convoy("report", "--learning_curve", f"--workdir={run}", "--devices=cpu:1", check=True)
    return run


@pytest.mark.slow
class TestMeasured:
    def test_points_are_runs_on_nested_parts_of_the_images(self, measured, dataset):
        curve, whole = curve_of(measured), open_dataset(dataset.data)
        sizes = [training_subset(whole, part).split("train").num_images for part in (0.25, 0.5)]
        assert [point["images"] for point in curve["points"]] == [*sizes, whole.split("train").num_images]
        assert [point["fraction"] for point in curve["points"]] == [0.25, 0.5, 1.0]
        assert curve["split"] == "test" and curve["missing"] == []
        assert [point["weights_sha256"] for point in curve["points"]] == [
            *weights(measured),
            result_of(measured)["weights_sha256"],
        ]
        for name, point in zip(NAMES, curve["points"], strict=False):
            evaluation = json.loads((fraction(measured, name) / "evaluation_test.json").read_text())
            assert point["top1"] == evaluation["quality"]["top1"] and point["step"] == evaluation["step"]
            assert point["evaluated_images"] == whole.split("test").num_images

    def test_runs_have_the_same_config_but_for_their_length(self, measured):
        whole, points = json.loads((measured / "config.json").read_text()), curve_of(measured)["points"]
        for name, point in zip(NAMES, points, strict=False):
            steps = round(STEPS * point["images"] / points[-1]["images"])
            assert result_of(fraction(measured, name))["step"] == steps
            config = json.loads((fraction(measured, name) / "config.json").read_text())
            differing = {field for field in whole if config[field] != whole[field]}
            # The model's name is that of its copy in RUN.
            assert differing <= {"steps", "eval_every_steps", "checkpoint_every_steps", "schedule", "model"}
            assert Path(config["model"]["name"].rpartition(":")[0]).is_relative_to(measured)

    def test_report_shows_it_also_later(self, measured, convoy, tmp_path):
        for more in ((), (f"--output={tmp_path / 'page.html'}",)):
            convoy("report", f"--workdir={measured}", *more, check=True)
        for path in (measured / "report.html", tmp_path / "page.html"):
            rows = Page(path.read_bytes()).rows["learning-curve"]
            assert [row[0] for row in rows[1:4]] == [str(point["images"]) for point in curve_of(measured)["points"]]

    def test_same_command_trains_nothing_again(self, measured, convoy):
        before = {name: fingerprints(fraction(measured, name)) for name in NAMES}
        curve = curve_of(measured)
        convoy("report", "--learning_curve", f"--workdir={measured}", "--devices=cpu:1", check=True)
        assert {name: fingerprints(fraction(measured, name)) for name in NAMES} == before
        assert curve_of(measured) == curve

    def test_stopped_killed_and_resumed_on_other_devices_it_is_the_same(
        self, measured, reference_run, convoy, convoy_started, wait_until, tmp_path
    ):
        run = tmp_path / "run"
        shutil.copytree(reference_run.workdir, run)
        command = ("report", "--learning_curve", f"--workdir={run}", "--devices=cpu:2")
        convoy(*command, "--max_hours=0.000001", check=True)
        assert result_of(fraction(run, "quarter"))["stop"]["resumable"] and not fraction(run, "half").exists()
        assert curve_of(run)["missing"] == ["quarter", "half"] and len(curve_of(run)["points"]) == 1
        assert len(Page((run / "report.html").read_bytes()).rows["learning-curve"]) == 2
        with convoy_started(*command, output=tmp_path / "output") as process:
            checkpoints = fraction(run, "half") / "checkpoints"
            wait_until(lambda: any(checkpoints.glob("step-*.npz")) or process.poll() is not None, "a checkpoint")
            os.killpg(process.pid, signal.SIGKILL)
            assert process.wait(60) == -signal.SIGKILL
        assert not (fraction(run, "half") / "result.json").exists()
        convoy(*command, check=True)
        assert weights(run) == weights(measured)
        assert [len(events_of(fraction(run, name), "restored")) for name in NAMES] == [1, 1]
        found, expected = curve_of(run), curve_of(measured)
        assert found["missing"] == []
        for one, other in zip(found["points"], expected["points"], strict=True):
            assert {**one, "seconds": 0} == {**other, "seconds": 0}

    def test_the_run_of_a_fraction_is_evaluated_on_its_images(self, measured, convoy):
        half = fraction(measured, "half")
        convoy("evaluate", f"--workdir={half}", "--split=train", "--devices=cpu:1", check=True)
        evaluation = json.loads((half / "evaluation_train.json").read_text())
        assert evaluation["images"] == curve_of(measured)["points"][1]["images"]
        (half / "evaluation_train.json").unlink()
        together = convoy("evaluate", f"--workdir={measured},{half}", "--split=validation", "--devices=cpu:1")
        assert together.returncode == 0, together.output

    def test_another_length_is_refused(self, measured, convoy, tmp_path):
        run = tmp_path / "run"
        shutil.copytree(measured, run)
        config = json.loads((run / "config.json").read_text())
        RunDirectory(run).write_json(run / "config.json", {**config, "steps": 2 * STEPS})
        result = convoy("report", "--learning_curve", f"--workdir={run}", "--devices=cpu:1")
        assert result.returncode == 2 and str(run / "learning_curve") in result.stderr

    def test_changed_images_are_refused(self, measured, dataset_without_validation, convoy, tmp_path):
        run = tmp_path / "run"
        shutil.copytree(measured, run, ignore=shutil.ignore_patterns("learning_curve"))
        described = json.loads((run / "dataset.json").read_text())
        RunDirectory(run).write_json(run / "dataset.json", {**described, "train_digest": "0" * 16})
        result = convoy("report", "--learning_curve", f"--workdir={run}", "--devices=cpu:1")
        assert result.returncode == 3 and "has changed" in result.stderr
        assert not (run / "learning_curve").exists()

    def test_a_dataset_without_other_images_is_refused(self, dataset_without_validation, convoy, tmp_path):
        run = tmp_path / "run"
        where = (f"--data={dataset_without_validation}", f"--workdir={run}", "--devices=cpu:1")
        model = f"--config.model.name={user_models.__file__}:small"
        convoy("train", "--config=smoke", "--config.steps=2", model, *where, check=True)
        for split, code in ((), 3), (("--split=train",), 2), (("--split=tset",), 3):
            result = convoy("report", "--learning_curve", f"--workdir={run}", *split)
            assert result.returncode == code and len(result.stderr.splitlines()) == 1
        assert not (run / "learning_curve").exists()

    def test_pieces_of_users_are_those_that_the_run_keeps(self, dataset, convoy, tmp_path):
        run, code = tmp_path / "run", tmp_path / "code"
        code.mkdir()
        shutil.copy(user_models.__file__, code / "models.py")
        (code / "pieces.py").write_text(PIECES)
        flags = (
            f"--config.model.name={code / 'models.py'}:small",
            f"--config.loss.name={code / 'pieces.py'}:loss",
            f"--config.augment.ops=flip | {code / 'pieces.py'}:dimmed(0.3)",
            "--config.metrics=mcc,balanced_accuracy",
            "--config.label_smoothing=0",
            "--config.steps=8",
            f"--data={dataset.data}",
            f"--workdir={run}",
            "--devices=cpu:1",
        )
        convoy("train", "--config=smoke", *flags, check=True)
        shutil.rmtree(code)
        convoy("report", "--learning_curve", "--split=validation", f"--workdir={run}", "--devices=cpu:1", check=True)
        config = json.loads((fraction(run, "half") / "config.json").read_text())
        assert config["loss"]["name"] == f"{run}/code/loss/pieces.py:loss"
        assert config["augment"]["ops"] == f"flip | {run}/code/operation-0/pieces.py:dimmed(0.3)"
        assert config["metrics"] == "mcc,balanced_accuracy"
        assert (fraction(run, "half") / "code/operation-0/pieces.py").read_text() == PIECES
        assert curve_of(run)["split"] == "validation"


DONE = {"weights_sha256": "ab", "seconds": {}}


@pytest.mark.parametrize(
    ("flags", "dataset", "result", "named"),
    [
        ((), {}, None, "not finished"),
        ((), {}, {**DONE, "stop": {"reason": "time", "by": "x", "resumable": True}}, "not finished"),
        ((), {"fold": 1, "folds": 3}, DONE, "part"),
        ((), {"fraction": 0.5}, DONE, "part"),
        ((), {"multi_label": True}, DONE, "several labels"),
        (("--checkpoint=20",), {}, DONE, "--checkpoint=20"),
    ],
)
def test_runs_without_a_learning_curve_are_refused(convoy, tmp_path, flags, dataset, result, named):
    run = made_run(tmp_path / "run", result=result)
    run.write_json(run.dataset, {**json.loads(run.dataset.read_text()), **dataset})
    found = convoy("report", "--learning_curve", f"--workdir={run.path}", *flags)
    assert found.returncode == 2 and len(found.stderr.splitlines()) == 1
    assert named in found.stderr and str(run.path) in found.stderr + str(flags and run.path)
    assert not run.learning_curve.exists() and not run.fraction("half").exists()


def test_a_cross_validation_is_refused(convoy, tmp_path):
    run = made_run(tmp_path / "run", result=DONE)
    fold = made_run(tmp_path / "run" / "fold-1", result=DONE)
    for each in (run, fold):
        each.write_json(each.dataset, {**json.loads(each.dataset.read_text()), "folds": 3})
    found = convoy("report", "--learning_curve", f"--workdir={run.path}")
    assert found.returncode == 2 and "cross-validation" in found.stderr


@pytest.mark.parametrize("flag", ["--max_hours=1", "--split=test"])
def test_flags_of_a_learning_curve_need_it(convoy, tmp_path, flag):
    found = convoy("report", f"--workdir={made_run(tmp_path / 'run').path}", flag)
    assert found.returncode == 2 and flag.partition("=")[0] in found.stderr and "--learning_curve" in found.stderr
