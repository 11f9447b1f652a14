from dataclasses import replace

import keras
import numpy as np
import pytest
import tensorflow as tf

from convoy.core.errors import DataError
from convoy.input_pipeline.dataset.open import Dataset
from convoy.input_pipeline.reading.decode import Crop
from convoy.input_pipeline.reading.reader import BatchSlice, Reader
from convoy.trainer.export.check import NUM_SAMPLES, Samples, compare, draw_samples
from convoy.trainer.export.formats import Deployable
from tests.input_pipeline.datasets import write_split
from tests.input_pipeline.images import pixels
from tests.trainer.export.written import NAMES, SIZE, written
from tests.trainer.user_models import small

pytestmark = pytest.mark.usefixtures("float32_policy")


def dataset_of(tmp_path, number, image_format, splits=("test", "train")):
    split = write_split(tmp_path / "data", [pixels(i, 16 + i % 40) for i in range(number)], [0] * number, image_format)
    opened = {name: replace(split, name=name) for name in splits}
    return Dataset(tmp_path / "data", "made", ("a", "b"), splits, {}, opened)


@pytest.mark.parametrize("image_format", ["png", "jpeg", "raw"])
def test_samples_are_images_from_all_over_the_split_as_evaluation_sees_them(tmp_path, image_format):
    dataset = dataset_of(tmp_path, 100, image_format)
    samples = draw_samples(dataset, SIZE)
    (batch,) = Reader(dataset.split("test"), Crop(SIZE)).evaluation(BatchSlice(100))
    numbers = [int(np.flatnonzero((batch["image"] == image).numpy().all((1, 2, 3)))[0]) for image in samples.images]
    assert len(set(numbers)) == NUM_SAMPLES
    assert (numbers[0], numbers[-1]) == (0, 99)
    for number, encoded in zip(numbers, samples.encoded, strict=True):
        decoded = tf.io.decode_image(encoded).numpy()
        assert decoded.shape == (16 + number % 40, 16 + number % 40, 3)
        assert image_format == "jpeg" or np.array_equal(decoded, pixels(number, 16 + number % 40))


@pytest.mark.parametrize(
    ("splits", "chosen"), [(("test", "train", "validation"), "validation"), (("train",), "train"), (("dev",), "dev")]
)
def test_samples_are_of_the_split_that_is_nearest_to_a_validation(tmp_path, splits, chosen):
    samples = draw_samples(dataset_of(tmp_path, 3, "png", splits), SIZE)
    assert (samples.split, len(samples.images)) == (chosen, 3)


def test_a_sample_that_cannot_be_decoded_is_named(tmp_path):
    with pytest.raises(DataError, match=r"image 0 of split 'test' in .* cannot be decoded. `convoy verify --data="):
        draw_samples(dataset_of(tmp_path, 3, "cut"), SIZE)


@pytest.fixture
def model():
    keras.utils.set_random_seed(0)
    return Deployable(small(len(NAMES), SIZE), lambda pixels: pixels / 255.0, SIZE, NAMES)


def test_what_agrees_is_accepted_and_how_far_it_differs_is_told(model, images, tmp_path):
    path, samples = written("onnx", model, tmp_path), Samples("validation", images, ())
    reference = model.probabilities(tf.constant(images)).numpy()
    assert compare("onnx", path, samples, reference, NAMES) < 2e-6
    assert compare("onnx", path, samples, reference + np.float32(5e-5), NAMES) == pytest.approx(5e-5, abs=2e-6)


@pytest.mark.parametrize(
    ("what", "told"),
    [
        ("probabilities", "gives probabilities that differ by 0.0002 from evaluation's, more than 0.0001"),
        ("not a number", "gives probabilities that differ by nan"),
        ("file", "a new process cannot load and apply it: "),
    ],
)
def test_what_does_not_agree_is_refused(model, images, tmp_path, what, told):
    path, samples = written("onnx", model, tmp_path), Samples("validation", images, ())
    reference = model.probabilities(tf.constant(images)).numpy()
    reference += np.float32({"probabilities": 2e-4, "not a number": np.nan}.get(what, 0))
    if what == "file":
        path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=told) as caught:
        compare("onnx", path, samples, reference, NAMES)
    assert len(str(caught.value).splitlines()) == 1


def test_another_category_in_front_is_refused_however_near_it_is(model, images, tmp_path):
    model.model.set_weights([weight * 0 for weight in model.model.get_weights()])
    path, samples = written("onnx", model, tmp_path), Samples("validation", images, ())
    reference = np.full((len(images), len(NAMES)), 1 / len(NAMES))
    reference[0, 3] += 5e-7  # a tie, for float32
    assert compare("onnx", path, samples, reference, NAMES) < 1e-6
    reference[0, 3] += 5e-5
    with pytest.raises(DataError, match="it puts other categories first: not exported"):
        compare("onnx", path, samples, reference, NAMES)


def test_other_names_are_refused(model, images, tmp_path, monkeypatch):
    samples, reference = Samples("validation", images, ()), model.probabilities(tf.constant(images)).numpy()
    answer = np.stack([reference] * 3), [NAMES[label] for label in reference.argmax(1)]  # as of a SavedModel
    monkeypatch.setattr("convoy.trainer.export.check._in_a_new_process", lambda *_: answer)
    assert compare("saved_model", tmp_path, samples, reference, NAMES) == 0
    with pytest.raises(DataError, match="it gives other names to the categories: not exported"):
        compare("saved_model", tmp_path, samples, reference, NAMES[::-1])
