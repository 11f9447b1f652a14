"""`--checkpoint=mean:N`: the mean of checkpoints, and batch statistics for it."""

import csv
import json
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from convoy.core.errors import DataError, UsageError
from convoy.trainer.checkpoint.checkpoints import CheckpointStore
from convoy.trainer.checkpoint.mean import load_mean
from convoy.trainer.evaluation.results import append_result
from convoy.trainer.models import ModelBundle
from convoy.trainer.models.from_users import unit_scale
from convoy.trainer.run.directory import RunDirectory
from convoy.trainer.run.listing import read_run
from convoy.trainer.session.batch_statistics import layers_to_renew, renew_batch_statistics
from convoy.trainer.session.chosen_steps import chosen_steps
from convoy.trainer.session.runtime import Runtime
from convoy.trainer.step.state import TrainState
from convoy.trainer.tf_compat.layers import with_fast_layers
from tests.trainer.report.made_runs import made_run


def values(seed):
    rng = np.random.default_rng(seed)
    return {
        "model/conv/kernel": rng.normal(size=(3, 3)).astype(np.float32),
        "average/conv/kernel": rng.normal(size=(3, 3)).astype(np.float32),
        "model/frozen": np.ones(2, np.float32),
        "model/counter": np.array(seed, np.int32),
        "optimizer/m/conv/kernel": np.zeros((3, 3), np.float32),
    }


@pytest.fixture
def run(tmp_path):
    """A run with the checkpoints of steps 10 (the best), 20, 30 and 40."""
    run = made_run(tmp_path / "run")
    store = CheckpointStore(run.checkpoints, keep=3)
    for step in (10, 20, 30, 40):
        store.save(values(step), step=step, metadata={}, score=0.9 if step == 10 else 0.5)
    return run


class TestMean:
    def test_variables_are_the_mean_of_the_files(self, run):
        mean, changed, _ = load_mean(CheckpointStore(run.checkpoints), (20, 30, 40))
        files = [np.load(run.checkpoints / f"step-{step:09}.npz") for step in (20, 30, 40)]
        for name in ("model/conv/kernel", "average/conv/kernel"):
            assert mean[name].dtype == np.float32
            np.testing.assert_allclose(mean[name], np.mean([file[name] for file in files], axis=0), rtol=1e-6)
        assert changed == {"model/conv/kernel", "average/conv/kernel", "model/counter"}
        assert mean["model/counter"] == 40 and "optimizer/m/conv/kernel" not in mean

    def test_a_damaged_checkpoint_among_them_is_named(self, run):
        path = run.checkpoints / "step-000000030.npz"
        path.write_bytes(path.read_bytes()[:-100])
        with pytest.raises(DataError, match=path.name):
            load_mean(CheckpointStore(run.checkpoints), (20, 30, 40))

    def test_checkpoints_of_other_models_have_no_mean(self, run):
        CheckpointStore(run.checkpoints).save({"model/other": np.ones(2)}, step=50, metadata={})
        with pytest.raises(DataError, match=r"step-000000050\.npz"):
            load_mean(CheckpointStore(run.checkpoints), (30, 40, 50))


class TestChosenSteps:
    def test_the_last_ones_are_taken_without_an_old_best(self, run):
        assert chosen_steps(run, "mean:3") == (20, 30, 40)
        assert chosen_steps(run, "mean:2") == (30, 40)
        assert (chosen_steps(run, "best"), chosen_steps(run, "last"), chosen_steps(run, "20")) == ((10,), (40,), (20,))

    @pytest.mark.parametrize("text", ["mean:4", "mean:1", "mean:0", "mean:", "mean:-2", "mean", "median:2"])
    def test_others_are_refused(self, run, text):
        with pytest.raises(UsageError, match=f"--checkpoint={text}"):
            chosen_steps(run, text)

    def test_too_few_names_the_field_and_what_there_is(self, run):
        with pytest.raises(UsageError) as raised:
            chosen_steps(run, "mean:5")
        assert "config.keep_checkpoints=5" in str(raised.value) and "20, 30, 40" in str(raised.value)


def test_rows_of_a_mean_say_so_and_are_not_the_best_step(tmp_path):
    run = made_run(tmp_path / "run", results=[("validation", 20, 0.5)])
    quality = {"loss": 1.0, "top1": 0.75, "top5": 1.0, "macro_f1": 0.7, "ece": 0.1}
    append_result(run, step=40, split="validation", quality=quality, checkpoint="mean:3 (steps 20-40)")
    append_result(run, step=40, split="validation", quality={**quality, "top1": 0.625})
    with open(run.results_table, newline="") as file:
        assert [row["checkpoint"] for row in csv.DictReader(file)] == ["", "mean:3 (steps 20-40)", ""]
    assert (read_run(run.path).best_step, read_run(run.path).best_top1) == (40, 0.625)


class Block(layers.Layer):
    """Batch norm inside of a layer, as in users' models."""

    def __init__(self, **options):
        super().__init__(**options)
        self.norm = layers.BatchNormalization(name="inner_norm")

    def call(self, inputs, training=False):
        return tf.nn.relu(self.norm(inputs, training=training))


def normalized(rate):
    inputs = layers.Input((16, 16, 3))
    x = layers.Dropout(rate)(Block(name="block")(layers.Conv2D(4, 3, name="conv1")(inputs)))
    x = layers.Activation("relu")(layers.BatchNormalization(name="norm2")(layers.Conv2D(6, 3, name="conv2")(x)))
    x = layers.BatchNormalization(name="frozen")(layers.GlobalAveragePooling2D()(x))
    return keras.Model(inputs, layers.Dense(3)(x), name="normalized")


class TestBatchStatistics:
    def test_they_are_what_keras_measures_on_the_same_batches_without_dropout(self):
        keras.utils.set_random_seed(0)
        batches = [np.random.default_rng(k).integers(0, 255, (9 - k, 16, 16, 3), np.uint8) for k in range(3)]
        model, plain = with_fast_layers(normalized(0.5)), normalized(0.0)
        plain.set_weights([w for w in model.get_weights() if w.dtype == np.float32])
        state = TrainState(model, None, tf.distribute.get_strategy())
        runtime = Runtime(state.strategy, "float32", False, ModelBundle(model, unit_scale), {}, None, state)
        changed = {variable.path for variable in state.statistics if "frozen" not in variable.path}
        found = layers_to_renew(model, changed)
        assert [layer.name for layer in found] == ["inner_norm", "norm2"]
        renew_batch_statistics(runtime, found, iter(batches))

        plain.get_layer("frozen").trainable = False
        norms = [plain.get_layer("block").norm, plain.get_layer("norm2")]
        measured = []
        for norm in norms:
            norm.momentum = 0.0
        for batch in batches:
            plain(batch / np.float32(255), training=True)
            measured.append([value.numpy() for norm in norms for value in (norm.moving_mean, norm.moving_variance)])
        for layer, place in zip(found, (0, 2), strict=True):
            for offset, value in enumerate((layer.moving_mean, layer.moving_variance)):
                expected = np.average([each[place + offset] for each in measured], axis=0, weights=[9, 8, 7])
                np.testing.assert_allclose(value, expected, rtol=2e-5, atol=1e-6)
        frozen = model.get_layer("frozen")
        assert not frozen.moving_mean.numpy().any() and (frozen.moving_variance.numpy() == 1).all()
        assert found[1].momentum == 0.99


@pytest.fixture(scope="module")
def answered(finished_run, dataset, convoy, tmp_path_factory):
    """A copy of the finished run, answers of commands with `mean:3`, and their folder."""
    folder = tmp_path_factory.mktemp("mean")
    run = shutil.copytree(finished_run.workdir, folder / "run")
    where = (f"--workdir={run}", "--checkpoint=mean:3")
    evaluate = ("evaluate", "--split=test", *where)
    photos = f"--images={dataset.photos / 'test'}"
    commands = {
        "one": (*evaluate, "--devices=cpu:1", f"--json={folder / 'one.json'}"),
        "two": (*evaluate, "--devices=cpu:2", f"--json={folder / 'two.json'}"),
        "last": ("evaluate", "--split=test", f"--workdir={run}", "--checkpoint=last", f"--json={folder / 'last.json'}"),
        "mean again": (*evaluate, "--devices=cpu:1"),
        "predict": ("predict", photos, *where, "--devices=cpu:2", f"--output={folder / 'predictions.csv'}"),
        "export": ("export", *where, "--format=keras", f"--output={folder / 'exported'}"),
        "of the export": ("predict", photos, f"--export={folder / 'exported'}", f"--output={folder / 'exported.csv'}"),
        "too many": ("evaluate", "--split=test", f"--workdir={run}", "--checkpoint=mean:30"),
    }
    answers = {name: convoy(*command, check=name != "too many") for name, command in commands.items()}
    return RunDirectory(run), answers, folder


@pytest.mark.slow
class TestCommands:
    def test_one_device_and_two_evaluate_the_same_weights(self, answered):
        _, answers, folder = answered
        one, two, last = (json.loads((folder / f"{name}.json").read_text()) for name in ("one", "two", "last"))
        assert one == pytest.approx(two, abs=1e-6)
        assert one["loss"] != pytest.approx(last["loss"], abs=1e-4)
        assert one["checkpoint"].startswith("mean:3 ") and "mean:3 " in answers["one"].output

    def test_files_say_which_weights_they_are_of(self, answered):
        run, answers, folder = answered
        steps = CheckpointStore(run.checkpoints).steps()[-3:]
        text = f"mean:3 (steps {steps[0]}-{steps[-1]})"
        with open(run.results_table, newline="") as file:
            assert [row["checkpoint"] for row in csv.DictReader(file) if row["split"] == "test"] == [
                text,
                text,
                "",
                text,
            ]
        assert json.loads(run.evaluation("test").read_text())["checkpoint"] == text
        assert f"| weights | {text} |" in run.model_card.read_text()
        assert text in answers["predict"].output and text in answers["of the export"].output
        assert json.loads((folder / "exported" / "export.json").read_text())["checkpoint"] == text

    def test_export_has_the_predictions_of_the_run(self, answered):
        _, _, folder = answered
        assert (folder / "predictions.csv").read_text() == (folder / "exported.csv").read_text()

    def test_too_many_is_one_line(self, answered):
        _, answers, _ = answered
        assert answers["too many"].returncode == 2 and len(answers["too many"].output.splitlines()) == 1
