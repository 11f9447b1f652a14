"""Contents of TensorBoard's pages: counts, curves, pictures, the graph of layers."""

import io
import threading

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from tensorboard.plugins.graph import keras_util
from tensorboard.util.tensor_util import make_ndarray

from convoy.input_pipeline.augment.pipeline import parse_pipeline
from convoy.trainer.callbacks.tensorboard import summaries
from convoy.trainer.callbacks.tensorboard.model_graph import layers_of
from convoy.trainer.callbacks.tensorboard_pages import train_batch
from convoy.trainer.cluster.worker_group import WorkerGroup
from convoy.trainer.evaluation import pictures
from convoy.trainer.evaluation.counts import MISTAKES, THRESHOLDS, EvaluationCounts

CLASSES, IMAGES = 7, 200
ODD_NAMES = (
    "<script>alert(1)</script>",
    "../x",
    "=1+1",
    "\N{SOCKS} socks",
    r"$\frac{a$",
    "two\nlines\x00",
    "a surrogate \udcff",
    "a name that is much too long to stand below an image of 128 pixels",
    "",
)


@pytest.fixture(scope="module")
def predictions():
    """Indices, labels and probabilities of a model better than chance. Class 3 has no images."""
    rng = np.random.default_rng(0)
    labels = rng.choice([0, 1, 2, 4, 5, 6], IMAGES).astype(np.int32)
    logits = rng.normal(size=(IMAGES, CLASSES)) + 1.5 * np.eye(CLASSES)[labels]
    probabilities = (np.exp(logits) / np.exp(logits).sum(1, keepdims=True)).astype(np.float32)
    return rng.permutation(1000)[:IMAGES], labels, probabilities


class ThreadGroup:
    """Stands in for the `WorkerGroup` of workers that are threads of this process."""

    def __init__(self, workers):
        self._barrier = threading.Barrier(workers)
        self._values = [None] * workers

    def of(self, rank):
        class Worker:
            @staticmethod
            def exchange(name, value, seconds=None):
                self._values[rank] = value
                self._barrier.wait(10)
                gathered = list(self._values)
                self._barrier.wait(10)
                return gathered

        return Worker()


def gathered_counts(*parts):
    """Returns the summary on each worker; each adds its part of the predictions in batches."""
    group, summaries_by_rank = ThreadGroup(len(parts)), [None] * len(parts)

    def work(rank):
        counts = EvaluationCounts(CLASSES)
        for start in range(0, len(parts[rank][0]), 32):
            counts.add(*(column[start : start + 32] for column in parts[rank]))
        summaries_by_rank[rank] = counts.gather(group.of(rank))

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(len(parts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return summaries_by_rank


class TestEvaluationCounts:
    def test_every_image_counts_once(self, predictions):
        _, labels, probabilities = predictions
        (summary,) = gathered_counts(predictions)
        matrix = np.zeros([CLASSES, CLASSES], int)
        matrix[summary.labels, summary.predicted] = summary.counts
        expected = np.zeros_like(matrix)
        for label, predicted in zip(labels, probabilities.argmax(1), strict=True):
            expected[label, predicted] += 1
        assert np.array_equal(matrix, expected)

    def test_mistakes_are_the_most_confident_errors(self, predictions):
        indices, labels, probabilities = predictions
        (summary,) = gathered_counts(predictions)
        wrong = [k for k in range(IMAGES) if probabilities[k].argmax() != labels[k]]
        wrong.sort(key=lambda k: -probabilities[k].max())
        assert [m.index for m in summary.mistakes] == indices[wrong[:MISTAKES]].tolist()
        first = summary.mistakes[0]
        assert (first.label, first.predicted) == (labels[wrong[0]], probabilities[wrong[0]].argmax())
        assert first.probability == probabilities[wrong[0]].max()

    def test_curves_are_of_the_classes_with_the_lowest_f1(self, predictions):
        _, labels, probabilities = predictions
        (summary,) = gathered_counts(predictions)
        predicted = probabilities.argmax(1)
        f1 = {}
        for label in set(labels.tolist()):
            hits = np.sum((predicted == label) & (labels == label))
            f1[label] = 2 * hits / (np.sum(predicted == label) + np.sum(labels == label))
        assert list(summary.curves) == [-1, *sorted(f1, key=lambda label: (f1[label], label))[:5]]

    def test_precision_and_recall_at_each_threshold(self, predictions):
        _, labels, probabilities = predictions
        (summary,) = gathered_counts(predictions)
        for label, counts in summary.curves.items():
            is_class = np.eye(CLASSES, dtype=bool)[labels] if label < 0 else (labels == label)[:, np.newaxis]
            scores = probabilities if label < 0 else probabilities[:, [label]]
            curve = make_ndarray(summaries.pr_curve("pr", *counts).tensor)
            for k in range(THRESHOLDS):
                positive = np.floor(scores * (THRESHOLDS - 1)) >= k
                hits, wrong, missed = (
                    np.sum(positive & is_class),
                    np.sum(positive & ~is_class),
                    np.sum(~positive & is_class),
                )
                assert curve[:4, k].tolist() == [hits, wrong, np.sum(~positive & ~is_class), missed]
                assert curve[4, k] == pytest.approx(hits / max(1, hits + wrong))
                assert curve[5, k] == pytest.approx(hits / (hits + missed))

    def test_workers_gather_the_counts_of_a_single_worker(self, predictions):
        (alone,) = gathered_counts(predictions)
        for summary in gathered_counts(*(tuple(column[rank::3] for column in predictions) for rank in range(3))):
            for name in ("labels", "predicted", "counts"):
                assert np.array_equal(getattr(summary, name), getattr(alone, name))
            assert summary.mistakes == alone.mistakes
            assert summary.curves.keys() == alone.curves.keys()
            assert all(np.array_equal(summary.curves[k], alone.curves[k]) for k in alone.curves)

    def test_worker_without_images_and_model_without_errors(self):
        nothing = np.zeros(0, np.int64), np.zeros(0, np.int32), np.zeros([0, CLASSES], np.float32)
        right = np.arange(3), np.arange(3, dtype=np.int32), np.eye(CLASSES, dtype=np.float32)[:3]
        for summary in gathered_counts(nothing, right):
            assert (summary.counts.tolist(), summary.mistakes) == ([1, 1, 1], [])

    def test_nan_probabilities_are_counted(self):
        counts = EvaluationCounts(CLASSES)
        counts.add(np.arange(2), np.int32([0, 3]), np.full([2, CLASSES], np.nan, np.float32))
        assert counts.gather(WorkerGroup(None)).counts.sum() == 2


@pytest.mark.parametrize("values", [[1, 1 + 2**-23], [0, 1e-45], [-3e38, 3e38], [np.nan, np.inf], [7]])
def test_histogram_counts_all_finite_weights(values):
    histogram = make_ndarray(summaries.histogram("weights/gamma", np.float32(values)).tensor)
    assert histogram[:, 2].sum() == np.isfinite(np.float32(values)).sum()


class TestPictures:
    @pytest.mark.parametrize("count", [1, 2, 9, 16, 25, 40])
    def test_grid_takes_images_of_any_size_and_any_names(self, count):
        sizes = ((32, 32), (1, 500), (300, 20))
        images = [np.full([*sizes[k % 3], 3], k, np.uint8) for k in range(count)]
        grid = pictures.image_grid(images, [(ODD_NAMES[k % len(ODD_NAMES)],) * 3 for k in range(count)])
        assert grid.mode == "RGB"
        assert max(grid.size) < 1000

    @pytest.mark.parametrize("classes", [2, 9, 42, 3000])
    def test_confusion_matrix_is_bounded_in_size(self, classes):
        names = [f"{ODD_NAMES[k % len(ODD_NAMES)]}{k // len(ODD_NAMES) or ''}" for k in range(classes)]
        labels = np.arange(classes)
        shares = pictures.row_shares(labels, labels[::-1], np.full(classes, 3), classes)
        picture = pictures.confusion_matrix(shares, names, "$a title")
        assert max(picture.size) < 1100

    def test_rows_of_a_confusion_matrix_add_up_to_1(self):
        shares = pictures.row_shares(np.array([0, 0, 2]), np.array([0, 1, 2]), np.array([3, 1, 5]), 3)
        np.testing.assert_array_equal(shares, [[0.75, 0.25, 0], [0, 0, 0], [0, 0, 1]])

    def test_darker_cells_of_a_confusion_matrix_are_larger_shares(self):
        picture = pictures.confusion_matrix(np.array([[0.9, 0.1], [0.6, 0.4]]), ["a", "b"], "").convert("L")
        left, top, side = picture.width - 640 - 15, 15, 320
        gray = [[picture.getpixel((left + k * side + 20, top + row * side + 20)) for k in (0, 1)] for row in (0, 1)]
        assert gray[0][0] < gray[1][0] < gray[1][1] < gray[0][1]

    @pytest.mark.parametrize("name", ODD_NAMES)
    def test_printable_name_can_be_encoded(self, name):
        shown = pictures.printable(name)
        shown.encode()
        assert len(shown.splitlines()) <= 1
        summaries.scalar(shown, 1.0)
        summaries.text("run/dataset", name)
        summaries.session_start({"name": name}, 0.0)


def branches():
    inputs = keras.Input([8, 8, 3], name="image")
    left = keras.layers.Conv2D(4, 3, padding="same", name="left")(inputs)
    right = keras.layers.Conv2D(4, 3, padding="same", name="right", dtype="mixed_bfloat16")(inputs)
    merged = keras.layers.Concatenate(name="merged")([left, right]) * 2.0 + left[..., :1]
    inner = keras.Sequential([keras.layers.Flatten(name="flat"), keras.layers.Dense(5, name="hidden")], name="inner")
    return keras.Model(inputs, keras.layers.Dense(3, name="logits")(inner(merged)))


class WithoutLayers(keras.Model):
    def call(self, inputs):
        return inputs


class TestModelGraph:
    def test_graph_has_every_layer_and_its_inputs(self):
        model = branches()
        graph = keras_util.keras_model_to_graph_def(layers_of(model))
        nodes = {node.name.removeprefix(f"{model.name}/"): node for node in graph.node}
        inputs = {
            name: [source.removeprefix(f"{model.name}/") for source in node.input] for name, node in nodes.items()
        }
        assert (inputs["left"], inputs["right"], inputs["merged"]) == (["image"], ["image"], ["left", "right"])
        assert inputs["logits"] == ["inner/hidden"]
        assert inputs["inner/hidden"] == ["inner/flat"]
        assert nodes["left"].attr["keras_class"].s == b"Conv2D"

    def test_model_that_does_not_list_its_layers_has_no_graph(self):
        assert layers_of(WithoutLayers()) is None


def test_training_batch_is_shown_augmented():
    count, size = 4, 32
    batch = {
        "image": tf.fill([count, size, size, 3], tf.constant(10, tf.uint8)),
        "label": tf.zeros([count], tf.int32),
        "randomness": tf.constant(np.random.default_rng(0).random((count, 16)), tf.float32),
    }
    strategy = tf.distribute.OneDeviceStrategy("cpu:0")

    def erased_pixels(text):
        pipeline = parse_pipeline(text, image_size=size)
        (shown,) = train_batch(batch, pipeline.device, ["mug"], strategy)
        picture = np.asarray(Image.open(io.BytesIO(shown.tensor.string_val[-1])))
        return int((picture == 128).all(-1).sum())

    assert erased_pixels("flip") < 20  # at most pixels of the captions
    assert erased_pixels("erase(1, area=0.3..0.3)") > 1000
