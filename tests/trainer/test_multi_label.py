"""Training, evaluation, prediction and export with several labels per image."""

import csv
import json
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from sklearn.metrics import average_precision_score, f1_score, multilabel_confusion_matrix

from convoy.api.runs import Run
from convoy.api.training import TrainingResult
from convoy.core.errors import UsageError
from convoy.input_pipeline.convert.convert import convert
from convoy.input_pipeline.convert.options import Options
from convoy.input_pipeline.convert.sources import Table
from convoy.input_pipeline.dataset.open import open_dataset
from convoy.trainer.config import default_config
from convoy.trainer.run.task import MULTI_LABEL, SINGLE_LABEL
from convoy.trainer.session.objective import class_weights, config_for, find_objective
from convoy.trainer.step.losses import binary_cross_entropy, focal
from convoy.trainer.step.mixing import Mixed
from convoy.trainer.step.multi_label_metrics import MultiLabelMetrics
from convoy.trainer.step.outputs import logits_of_mean, probabilities
from tests.trainer import user_models
from tests.trainer.run_files import approximately, events_of, json_lines, measured, result_of

RANDOM = np.random.default_rng(0)
LOGITS = tf.constant(2 * RANDOM.normal(size=(8, 4)), tf.float32)
TARGETS = np.float32(RANDOM.random((8, 4)) < 0.4)
WEIGHTS = (2.0, 0.5, 1.0, 3.0)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_bce_is_that_of_keras(smoothing):
    expected = keras.losses.binary_crossentropy(TARGETS, LOGITS, from_logits=True, label_smoothing=smoothing)
    np.testing.assert_allclose(binary_cross_entropy(LOGITS, TARGETS, smoothing), expected, rtol=1e-5)


def test_focal_is_that_of_keras():
    expected = keras.losses.binary_focal_crossentropy(TARGETS, LOGITS, gamma=1.5, from_logits=True)
    np.testing.assert_allclose(focal(LOGITS, TARGETS, 1.5), expected, rtol=1e-4)


def test_positive_weights_multiply_the_loss_of_images_with_the_class():
    found = binary_cross_entropy(LOGITS, TARGETS, positive_weights=WEIGHTS)
    each = np.array(keras.ops.binary_crossentropy(TARGETS, LOGITS, from_logits=True))
    expected = np.mean(each * np.where(TARGETS > 0, np.array(WEIGHTS), 1.0), 1)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_allclose(focal(LOGITS, TARGETS, 0.0, positive_weights=WEIGHTS), found, rtol=1e-5)


@pytest.mark.parametrize("task", [SINGLE_LABEL, MULTI_LABEL], ids=["one", "several"])
def test_mirrored_images_and_other_models_count_by_their_probabilities(task):
    batches = [LOGITS, -LOGITS + 1, 2 * LOGITS]
    for number in (1, 2, 3):
        mean = probabilities(logits_of_mean(batches[:number], task), task)
        expected = sum(probabilities(logits, task) for logits in batches[:number]) / number
        np.testing.assert_allclose(mean, expected, rtol=1e-4)


def test_mixed_images_count_with_the_labels_of_the_larger_share():
    mixed = Mixed(tf.zeros([8, 1, 1, 3]), TARGETS, np.roll(TARGETS, -1, 0), tf.constant([0.7, 0.3] * 4))
    expected = np.where(np.tile([[True], [False]], (4, 1)), TARGETS, np.roll(TARGETS, -1, 0))
    np.testing.assert_array_equal(mixed.main_labels, expected)


class TestMetrics:
    targets = np.float32(RANDOM.random((400, 5)) < 0.3)
    logits = np.float32(2 * RANDOM.normal(size=(400, 5)) + 2 * targets - 1)
    metrics = MultiLabelMetrics()

    def sums(self, part=slice(None), weights=None):
        losses = tf.ones(len(self.targets[part]))
        return self.metrics.batch_sums(
            tf.constant(self.logits[part]), tf.constant(self.targets[part]), losses, weights
        ).numpy()

    def test_summary_is_that_of_scikit_learn(self):
        found = self.metrics.summarize(self.sums())
        predicted = self.logits >= 0
        assert found["micro_f1"] == pytest.approx(f1_score(self.targets, predicted, average="micro"))
        assert found["macro_f1"] == pytest.approx(f1_score(self.targets, predicted, average="macro"))
        exact = average_precision_score(self.targets, self.logits)
        assert found["mean_average_precision"] == pytest.approx(exact, abs=0.02)  # from a histogram
        assert found["loss"] == 1

    def test_sums_add_up_without_padding(self):
        parts = self.sums(slice(0, 150)) + self.sums(slice(150, 400))
        np.testing.assert_array_equal(parts, self.sums())
        padded = self.sums(weights=tf.concat([tf.ones(150), tf.zeros(250)], 0))
        np.testing.assert_array_equal(padded, self.sums(slice(0, 150)))
        assert self.metrics.image_count(padded) == 150


NAMES = ("blue", "green", "red", "stripes")
_COLORS = {"blue": (20, 40, 230), "green": (20, 210, 50), "red": (230, 30, 30)}


def draw(folder, number=96):
    """Draws images of colored squares, each with any of the classes, and their CSV."""
    random = np.random.default_rng(1)
    (folder / "photos").mkdir(parents=True)
    lines = ["filename,category"]
    for i in range(number):
        labels = [name for name, share in zip(NAMES, (0.5, 0.4, 0.3, 0.3), strict=True) if random.random() < share]
        pixels = random.integers(90, 150, (24, 24, 3)).astype(np.uint8)
        if "stripes" in labels:
            pixels[::4] = 255
        for name in set(labels) - {"stripes"}:
            x, y = random.integers(0, 12, 2)
            pixels[y : y + 12, x : x + 12] = _COLORS[name]
        Image.fromarray(pixels).save(folder / f"photos/{i:03}.png")
        lines.append(f"{i:03}.png,{'|'.join(labels)}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    table = Table(folder / "labels.csv", label_delimiter="|")
    shares = {"train": 0.6, "validation": 0.2, "test": 0.2}
    convert(Options(folder / "photos", folder / "data", table, splits=shares, workers=1))
    return ""


@pytest.fixture(scope="session")
def drawn(made_once):
    return made_once("multi_label", draw)[0]


class TestObjective:
    def test_defaults_follow_the_dataset(self, drawn):
        dataset, config = open_dataset(drawn / "data"), default_config()
        found = config_for(config, dataset)
        assert (found.loss.name, found.early_stopping.metric) == ("bce", "mean_average_precision")
        assert config.loss.name == "cross_entropy"
        config.loss.name = "focal"
        assert config_for(config, dataset).loss.name == "focal"

    def test_class_weights_are_those_of_positives(self, drawn):
        dataset = open_dataset(drawn / "data")
        split = dataset.split("train")
        counts = split.class_counts(4)
        expected = (split.num_images - counts) / counts
        np.testing.assert_allclose(class_weights("balanced", dataset), expected)
        np.testing.assert_allclose(class_weights("inverse_sqrt", dataset), np.sqrt(expected))
        np.testing.assert_allclose(dataset.manifest["splits"]["train"]["class_weights"], expected)
        assert class_weights('{"red": 5}', dataset) == (1, 1, 5, 1)

    @pytest.mark.parametrize(
        ("field", "value", "named"),
        [("loss.name", "cross_entropy", "bce"), ("metrics", "mcc", "mcc")],
    )
    def test_what_is_for_one_label_is_refused(self, field, value, named):
        config = default_config()
        config.update_from_flattened_dict({"loss.name": "bce", field: value})
        with pytest.raises(UsageError, match=named):
            find_objective(config, 4, task=MULTI_LABEL)
        config.loss.name = "cross_entropy"
        find_objective(config, 4, task=SINGLE_LABEL)

    def test_losses_of_users_get_all_labels(self, tmp_path):
        path = tmp_path / "losses.py"
        path.write_text(
            "import tensorflow as tf\n"
            "def mine(logits, labels): return tf.reduce_sum(tf.square(tf.sigmoid(logits) - labels), -1)\n"
            "def sparse(logits, labels):\n"
            "    return tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits)\n"
        )
        config = default_config()
        config.loss.name = f"{path}:mine"
        assert find_objective(config, 4, task=MULTI_LABEL).loss(LOGITS, TARGETS).shape == (8,)
        config.loss.class_weights = "balanced"
        with pytest.raises(UsageError, match="positive_weights"):
            find_objective(config, 4, task=MULTI_LABEL)
        config.loss.class_weights = "none"
        config.loss.name = f"{path}:sparse"
        with pytest.raises(UsageError):
            find_objective(config, 4, task=MULTI_LABEL)


FLAGS = (
    "--config=smoke",
    f"--config.model.name={user_models.__file__}:normalized",
    "--deterministic",
    "--config.precision=float32",
    "--config.virtual_replicas=2",
    "--config.batch_size=16",
    "--config.image_size=24",
    "--config.steps=24",
    "--config.eval_every_steps=12",
    "--config.checkpoint_every_steps=12",
    "--config.log_every_steps=6",
    "--config.loss.class_weights=balanced",
    "--config.label_smoothing=0.05",
    "--config.mix.mixup=0.2",
    "--config.mix.cutmix=0.5",
    "--config.sampling=inverse_sqrt",
)


@pytest.fixture(scope="session")
def run(made_once, convoy, drawn):
    """A run on one device, and its evaluation on the test split."""

    def make(folder):
        found = convoy(
            "train", *FLAGS, f"--data={drawn / 'data'}", f"--workdir={folder / 'run'}", "--devices=cpu:1", check=True
        )
        convoy("evaluate", f"--workdir={folder / 'run'}", "--split=test", check=True)
        return found.stdout

    folder, output = made_once("multi_label_run", make)
    assert "bce" in output
    return folder / "run"


@pytest.mark.slow
class TestRun:
    def test_is_the_same_on_two_devices_and_after_a_resume(self, run, convoy, drawn, tmp_path):
        where = (f"--data={drawn / 'data'}", f"--workdir={tmp_path / 'run'}", "--devices=cpu:2")
        convoy("train", *FLAGS, *where, check=True)
        assert result_of(tmp_path / "run")["weights_sha256"] == result_of(run)["weights_sha256"]
        assert measured(tmp_path / "run", "validation") == approximately(measured(run, "validation"))
        assert result_of(tmp_path / "run")["temperature"] == result_of(run)["temperature"]
        for path in (tmp_path / "run/checkpoints").iterdir():  # as if it had been killed at step 12
            if "24" in path.name:
                path.unlink()
        (tmp_path / "run/result.json").unlink()
        convoy("train", *FLAGS, *where, check=True)
        assert [event["step"] for event in events_of(tmp_path / "run", "restored")] == [12]
        assert result_of(tmp_path / "run")["weights_sha256"] == result_of(run)["weights_sha256"]

    def test_is_the_same_in_two_processes(self, run, cluster, drawn, tmp_path):
        where = (f"--data={drawn / 'data'}", f"--workdir={tmp_path / 'run'}", "--devices=cpu:1")
        cluster("train", *FLAGS, *where, processes=2, output=tmp_path / "logs", check=True)
        assert result_of(tmp_path / "run")["weights_sha256"] == result_of(run)["weights_sha256"]
        assert measured(tmp_path / "run", "validation") == approximately(measured(run, "validation"))
        assert result_of(tmp_path / "run")["thresholds"] == pytest.approx(result_of(run)["thresholds"], rel=1e-4)
        assert result_of(tmp_path / "run")["temperature"] == result_of(run)["temperature"]

    def test_files_have_its_metrics(self, run):
        line = json_lines(run / "metrics.jsonl")[-1]
        names = {"quality/loss", "quality/mean_average_precision", "quality/micro_f1", "quality/macro_f1"}
        assert {name for name in line if name.startswith("quality/")} == names
        result = result_of(run)
        assert TrainingResult.__annotations__.keys() - {"workdir"} == result.keys()
        assert set(result["best"]) == {"step", "mean_average_precision"}
        assert len(result["thresholds"]) == len(NAMES)
        assert json.loads((run / "config.json").read_text())["loss"]["name"] == "bce"
        page = (run / "report.html").read_text()
        assert 'id="classes"' in page and 'id="confusion"' not in page
        assert not (run / "confusion_matrix.png").exists()

    def test_evaluation_is_that_of_the_predictions(self, run):
        evaluation = json.loads((run / "evaluation_test.json").read_text())
        with open(run / "predictions_test.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        targets = np.array([[name in row["labels"].split("|") for name in NAMES] for row in rows])
        scores = np.array([[float(row[name]) for name in NAMES] for row in rows])
        predicted = np.array([[name in row["predicted"].split("|") for name in NAMES] for row in rows])
        np.testing.assert_array_equal(predicted, scores >= evaluation["thresholds"])
        quality = evaluation["quality"]
        assert quality["mean_average_precision"] == pytest.approx(average_precision_score(targets, scores), abs=1e-6)
        assert quality["macro_f1"] == pytest.approx(f1_score(targets, predicted, average="macro"), abs=1e-6)
        from_python = Run(run).evaluation("test")
        np.testing.assert_array_equal(from_python.confusion, multilabel_confusion_matrix(targets, predicted))
        per_class = [row["average_precision"] for row in from_python.per_class()]
        np.testing.assert_allclose(per_class, average_precision_score(targets, scores, average=None), atol=1e-6)

    def test_predictions_and_exports_agree(self, run, convoy, drawn, tmp_path):
        formats = "--format=saved_model,keras,litert,onnx"
        convoy("export", f"--workdir={run}", formats, f"--output={tmp_path / 'exported'}", check=True)
        description = json.loads((tmp_path / "exported/export.json").read_text())
        assert set(description["formats"]) == {"saved_model", "keras", "litert", "onnx"}
        assert description["multi_label"] and len(description["thresholds"]) == len(NAMES)
        with open(drawn / "labels.csv", newline="") as file:
            names = [row["filename"] for row in csv.DictReader(file)]
        sample = tmp_path / "sample.csv"  # in another order, the first image without its suffix
        lines = ["red,id,blue,green,stripes", "1,000,0,0,0", *(f"0,{name},0,0,1" for name in names[:0:-1])]
        sample.write_text("\n".join(lines))
        of_run, of_export = (tmp_path / f"{name}.csv" for name in ("run", "export"))
        images = f"--images={drawn / 'photos'}"
        convoy("predict", f"--workdir={run}", images, f"--output={of_run}", "--probabilities", check=True)
        source = f"--export={tmp_path / 'exported'}"
        convoy("predict", source, images, f"--like={sample}", f"--output={of_export}", check=True)
        with open(of_run, newline="") as file:
            predicted = {row["filename"]: set(row["category"].split("|")) - {""} for row in csv.DictReader(file)}
        with open(of_export, newline="") as file:
            filled = list(csv.DictReader(file))
        assert list(filled[0]) == ["red", "id", "blue", "green", "stripes"]
        assert [row["id"] for row in filled] == ["000", *names[:0:-1]]
        found = {row["id"]: {name for name in NAMES if row[name] == "1"} for row in filled}
        assert found | {"000.png": found.pop("000")} == predicted
        assert set(map(len, predicted.values())) > {1}

    def test_what_is_for_one_label_is_refused(self, run, convoy, drawn, tmp_path):
        assert convoy("predict", f"--workdir={run}", f"--images={drawn / 'photos'}", "--top_k=2").returncode == 2
        with pytest.raises(UsageError, match="quantize.*int8"):
            Run(run).export(tmp_path / "int8", formats="onnx", quantize="int8")

    def test_ensembles_and_means_of_checkpoints_average_probabilities_and_thresholds(self, run, convoy, tmp_path):
        metrics, quality = tmp_path / "metrics.json", {}
        with_copy = f"{run},{shutil.copytree(run, tmp_path / 'copy')}"
        for name, flags in {
            "best": (f"--workdir={run}",),
            "ensemble": (f"--workdir={with_copy}",),
            "mean": (f"--workdir={shutil.copytree(run, tmp_path / 'mean')}", "--checkpoint=mean:2"),
        }.items():
            convoy("evaluate", *flags, "--split=validation", f"--json={metrics}", check=True)
            found = json.loads(metrics.read_text())
            quality[name] = {metric: found[metric] for metric in MULTI_LABEL.metrics}
        assert quality["ensemble"] == pytest.approx(quality["best"], rel=1e-4)
        thresholds = []
        for step in (12, 24):
            with np.load(run / f"checkpoints/step-{step:09}.npz") as archive:
                thresholds.append(json.loads(archive["metadata.json"])["reported"]["thresholds"])
        evaluation = json.loads((tmp_path / "mean/evaluation_validation.json").read_text())
        np.testing.assert_allclose(evaluation["thresholds"], np.mean(thresholds, 0))
        assert "No heat maps" in (tmp_path / "mean/report.html").read_text()
