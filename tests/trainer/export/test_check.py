from dataclasses import replace

import keras
import numpy as np
import pytest
import tensorflow as tf

from convoy.core.errors import DataError
from convoy.input_pipeline.dataset.open import Dataset
from convoy.input_pipeline.reading.decode import Crop, resize
from convoy.input_pipeline.reading.reader import BatchSlice, Reader
from convoy.input_pipeline.reading.viewed import decode_as_viewed
from convoy.trainer.export.check import NUM_SAMPLES, Samples, compare, draw_samples
from convoy.trainer.export.formats import ServingModel
from convoy.trainer.run.task import Decision
from tests.input_pipeline.datasets import write_split
from tests.input_pipeline.images import pixels
from tests.trainer.export.helpers import NAMES, SIZE, write_model
from tests.trainer.user_models import small

pytestmark = pytest.mark.usefixtures("float32_policy")


def make_dataset(tmp_path, number, image_format, splits=("test", "train")):
    split = write_split(tmp_path / "data", [pixels(i, 16 + i % 40) for i in range(number)], [0] * number, image_format)
    opened = {name: replace(split, name=name) for name in splits}
    return Dataset(tmp_path / "data", "made", ("a", "b"), splits, {}, opened)


@pytest.mark.parametrize("image_format", ["png", "jpeg", "raw"])
def test_samples_are_evenly_spaced_and_match_evaluation(tmp_path, image_format):
    dataset = make_dataset(tmp_path, 100, image_format)
    samples = draw_samples(dataset, Crop(SIZE))
    (batch,) = Reader(dataset.split("test"), Crop(SIZE)).evaluation(BatchSlice(100))
    images = samples.images[: -samples.others]
    numbers = [int(np.flatnonzero((batch["image"] == image).numpy().all((1, 2, 3)))[0]) for image in images]
    assert len(set(numbers)) == NUM_SAMPLES
    assert (numbers[0], numbers[-1]) == (0, 99)
    for number, encoded in zip(numbers, samples.encoded, strict=False):
        decoded = tf.io.decode_image(encoded).numpy()
        assert decoded.shape == (16 + number % 40, 16 + number % 40, 3)
        assert image_format == "jpeg" or np.array_equal(decoded, pixels(number, 16 + number % 40))


def test_samples_have_files_that_a_viewer_shows_otherwise_than_stored(tmp_path):
    samples = draw_samples(make_dataset(tmp_path, 1, "raw"), Crop(SIZE))
    others = [*zip(samples.images, samples.encoded, strict=True)][-samples.others :]
    for image, encoded in others:
        assert np.array_equal(resize(decode_as_viewed(encoded), Crop(SIZE)), image)
    for image, encoded in others[:3]:  # turned by EXIF, or transparent
        assert not np.array_equal(resize(tf.io.decode_image(encoded, channels=3), Crop(SIZE)), image)


@pytest.mark.parametrize(
    ("splits", "chosen"), [(("test", "train", "validation"), "validation"), (("train",), "train"), (("dev",), "dev")]
)
def test_samples_come_from_the_validation_split_if_there_is_one(tmp_path, splits, chosen):
    samples = draw_samples(make_dataset(tmp_path, 3, "png", splits), Crop(SIZE))
    assert (samples.split, len(samples.images)) == (chosen, 3 + samples.others)


def test_undecodable_sample_names_shard_and_record(tmp_path):
    with pytest.raises(DataError, match=r"data.*record 0 .*decoded"):
        draw_samples(make_dataset(tmp_path, 3, "cut"), Crop(SIZE))


@pytest.fixture
def model():
    keras.utils.set_random_seed(0)
    return ServingModel(small(len(NAMES), SIZE), lambda pixels: pixels / 255.0, Crop(SIZE), Decision(NAMES))


def test_returns_the_largest_difference(model, images, tmp_path):
    path, samples = write_model("onnx", model, tmp_path), Samples("validation", images, ())
    reference = model.probabilities(tf.constant(images)).numpy()
    assert compare("onnx", path, samples, reference, Decision(NAMES)) < 2e-6
    assert compare("onnx", path, samples, reference + np.float32(5e-5), Decision(NAMES)) == pytest.approx(
        5e-5, abs=2e-6
    )


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("probabilities", r"--format=onnx: .*differ.*0\.0002"),
        ("nan", r"--format=onnx: .*differ.*nan"),
        ("file", "--format=onnx: .*new process"),
    ],
)
def test_rejects_a_file_that_disagrees_or_cannot_be_loaded(model, images, tmp_path, fault, message):
    path, samples = write_model("onnx", model, tmp_path), Samples("validation", images, ())
    reference = model.probabilities(tf.constant(images)).numpy()
    reference += np.float32({"probabilities": 2e-4, "nan": np.nan}.get(fault, 0))
    if fault == "file":
        path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=message) as caught:
        compare("onnx", path, samples, reference, Decision(NAMES))
    assert len(str(caught.value).splitlines()) == 1


def test_rejects_another_top_class_unless_it_is_a_tie(model, images, tmp_path):
    model.model.set_weights([weight * 0 for weight in model.model.get_weights()])
    path, samples = write_model("onnx", model, tmp_path), Samples("validation", images, ())
    reference = np.full((len(images), len(NAMES)), 1 / len(NAMES))
    reference[0, 3] += 5e-7  # a tie in float32
    assert compare("onnx", path, samples, reference, Decision(NAMES)) < 1e-6
    reference[0, 3] += 5e-5
    with pytest.raises(DataError, match="--format=onnx: .*other classes"):
        compare("onnx", path, samples, reference, Decision(NAMES))


def test_rejects_other_class_names(model, images, tmp_path, monkeypatch):
    samples, reference = Samples("validation", images, ()), model.probabilities(tf.constant(images)).numpy()
    output = np.stack([reference] * 3), [NAMES[label] for label in reference.argmax(1)]  # what a SavedModel returns
    monkeypatch.setattr("convoy.trainer.export.check._predict_in_new_process", lambda *_: output)
    assert compare("saved_model", tmp_path, samples, reference, Decision(NAMES)) == 0
    with pytest.raises(DataError, match="--format=saved_model: .*class names"):
        compare("saved_model", tmp_path, samples, reference, Decision(NAMES[::-1]))
