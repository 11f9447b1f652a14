"""Every format of every kind of model gives what the model gives; here all are loaded in the tests' own process."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from convoy.trainer.export.formats import Deployable
from convoy.trainer.export.loaders import FILES, load
from convoy.trainer.models import build_model
from convoy.trainer.tf_compat.layers import with_fast_layers, with_keras_layers
from tests.trainer.export.written import NAMES, SIZE, written
from tests.trainer.user_models import small

pytestmark = pytest.mark.usefixtures("float32_policy")

SCALINGS = {
    "unit": lambda pixels: pixels / 255.0,
    "caffe": keras.applications.resnet50.preprocess_input,
    "torch": keras.applications.densenet.preprocess_input,
    "tf": keras.applications.mobilenet_v2.preprocess_input,
}


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("file_format", FILES)
def test_scaling_is_inside(file_format, scaling, images, tmp_path):
    keras.utils.set_random_seed(0)
    model = Deployable(small(len(NAMES), SIZE), SCALINGS[scaling], SIZE, NAMES)
    scaled = SCALINGS[scaling](images.astype(np.float32))
    expected = tf.nn.softmax(model.model(scaled, training=False)).numpy()
    found = load(file_format, written(file_format, model, tmp_path))(images)
    assert np.ptp(expected, axis=0).max() > 1e-2  # the images are told apart
    np.testing.assert_allclose(found, expected, atol=2e-6)


def test_a_full_disk_is_told_from_a_model_that_a_format_cannot_express(tmp_path, monkeypatch):
    def full(*_, **__):
        raise tf.errors.ResourceExhaustedError(None, None, "{{node}} variables/part-00000; No space left on device")

    monkeypatch.setattr(tf.saved_model, "save", full)
    with pytest.raises(OSError, match=r"^\[Errno 28\] No space left on device$"):
        written("saved_model", Deployable(small(len(NAMES), SIZE), SCALINGS["unit"], SIZE, NAMES), tmp_path)


@pytest.mark.slow
def test_a_model_of_keras_applications_is_written_with_its_own_scaling(images, tmp_path):
    keras.utils.set_random_seed(0)
    built = build_model("keras_applications:MobileNetV3Small", num_classes=len(NAMES), image_size=SIZE)
    for variable in built.model.non_trainable_variables:
        if variable.path.endswith("moving_variance"):
            variable.assign(variable * 0.05)  # or random weights would give every image the same probabilities
    expected = tf.nn.softmax(built.model(built.scale_pixels(images.astype(np.float32)), training=False)).numpy()
    assert np.ptp(expected, axis=0).max() > 1e-3
    model = Deployable(with_keras_layers(built.model), built.scale_pixels, SIZE, NAMES)
    found = load("onnx", written("onnx", model, tmp_path))(images)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_keras_own_layers_have_the_weights_and_the_function_of_the_fast_ones(images):
    keras.utils.set_random_seed(0)
    fast = with_fast_layers(build_model("convnet", num_classes=3, image_size=SIZE).model)
    plain = with_keras_layers(fast)
    assert {type(layer).__module__.split(".")[0] for layer in plain.layers} == {"keras"}
    for ours, theirs in ((fast.trainable_variables, plain.trainable_variables), (fast.weights, plain.weights)):
        assert [v.path for v in ours] == [v.path for v in theirs]
    pixels = images / np.float32(255)
    np.testing.assert_allclose(plain(pixels), fast(pixels), atol=1e-5)
