"""Every format returns the model's probabilities, for every kind of preprocessing. Loads them in the test process."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from convoy.input_pipeline.reading.decode import Crop, resize
from convoy.trainer.config.resolution import RESIZES
from convoy.trainer.export.formats import ServingModel, obstacle
from convoy.trainer.export.loaders import FILES, load
from convoy.trainer.models import build_model
from convoy.trainer.run.task import Decision
from convoy.trainer.tf_compat.layers import with_fast_layers, with_keras_layers
from tests.input_pipeline.images import pixels
from tests.trainer.export.helpers import NAMES, SIZE, write_model
from tests.trainer.user_models import small

pytestmark = pytest.mark.usefixtures("float32_policy")

SCALINGS = {
    "unit": lambda pixels: pixels / 255.0,
    "caffe": keras.applications.resnet50.preprocess_input,
    "torch": keras.applications.densenet.preprocess_input,
    "tf": keras.applications.mobilenet_v2.preprocess_input,
}


@pytest.mark.parametrize(
    ("file_format", "scaling"),
    [
        pytest.param(name, scaling, marks=[pytest.mark.slow] * (name == "saved_model" and scaling != "unit"))
        for name in FILES
        for scaling in SCALINGS
    ],
)
def test_format_includes_preprocessing(file_format, scaling, images, tmp_path):
    keras.utils.set_random_seed(0)
    model = ServingModel(small(len(NAMES), SIZE), SCALINGS[scaling], Crop(SIZE), Decision(NAMES))
    scaled = SCALINGS[scaling](images.astype(np.float32))
    expected = tf.nn.softmax(model.model(scaled, training=False)).numpy()
    found = load(file_format, write_model(file_format, model, tmp_path))(images)
    assert np.ptp(expected, axis=0).max() > 1e-2  # the model distinguishes the images
    np.testing.assert_allclose(found, expected, atol=2e-6)


@pytest.mark.slow
@pytest.mark.parametrize("mode", RESIZES)
def test_saved_model_resizes_as_evaluation_does(mode, tmp_path):
    keras.utils.set_random_seed(0)
    model = ServingModel(small(len(NAMES), SIZE), SCALINGS["unit"], Crop(SIZE, resize=mode), Decision(NAMES))
    loaded = tf.saved_model.load(str(write_model("saved_model", model, tmp_path)))
    pictures = [pixels(number, 60)[:height, :width] for number, (height, width) in enumerate([(60, 20), (17, 60)])]
    expected = model.probabilities(tf.stack([resize(tf.constant(picture), model.crop) for picture in pictures]))
    encoded = tf.constant([tf.io.encode_png(picture).numpy() for picture in pictures])
    found = loaded.signatures["serving_default"](image_bytes=encoded)["probabilities"]
    np.testing.assert_allclose(found, expected, atol=2e-6)
    for number, picture in enumerate(pictures):
        found = loaded.signatures["images"](images=tf.constant(picture[np.newaxis]))["probabilities"]
        np.testing.assert_allclose(found[0], expected[number], atol=2e-6)


@pytest.mark.parametrize("file_format", [pytest.param("saved_model", marks=pytest.mark.slow), "keras", "onnx"])
def test_no_images_get_no_answers(file_format, images, tmp_path):
    model = ServingModel(small(len(NAMES), SIZE), SCALINGS["unit"], Crop(SIZE), Decision(NAMES))
    path = write_model(file_format, model, tmp_path)
    assert load(file_format, path)(images[:0]).shape == (0, len(NAMES))
    if file_format == "saved_model":
        loaded = tf.saved_model.load(str(path))
        answer = loaded.signatures["serving_default"](image_bytes=tf.constant([], tf.string))
        assert (answer["probabilities"].shape, answer["category"].shape) == ((0, len(NAMES)), (0,))
        tiff = tf.constant([tf.io.encode_png(images[0]).numpy(), b"II*\0" + bytes(30)])
        with pytest.raises(tf.errors.InvalidArgumentError, match="image 1 .*TIFF.*PNG"):
            loaded.signatures["serving_default"](image_bytes=tiff)


def test_full_disk_raises_oserror(tmp_path, monkeypatch):
    def full(*_, **__):
        raise tf.errors.ResourceExhaustedError(None, None, "{{node}} variables/part-00000; No space left on device")

    monkeypatch.setattr(tf.saved_model, "save", full)
    with pytest.raises(OSError, match=r"^\[Errno 28\] No space left on device$"):
        write_model(
            "saved_model",
            ServingModel(small(len(NAMES), SIZE), SCALINGS["unit"], Crop(SIZE), Decision(NAMES)),
            tmp_path,
        )


@pytest.mark.slow
def test_keras_applications_model_includes_its_own_preprocessing(images, tmp_path):
    keras.utils.set_random_seed(0)
    built = build_model("keras_applications:MobileNetV3Small", num_classes=len(NAMES), image_size=SIZE)
    for variable in built.model.non_trainable_variables:
        if variable.path.endswith("moving_variance"):
            variable.assign(variable * 0.05)  # otherwise random weights give every image the same probabilities
    expected = tf.nn.softmax(built.model(built.scale_pixels(images.astype(np.float32)), training=False)).numpy()
    assert np.ptp(expected, axis=0).max() > 1e-3
    model = ServingModel(with_keras_layers(built.model), built.scale_pixels, Crop(SIZE), Decision(NAMES))
    found = load("onnx", write_model("onnx", model, tmp_path))(images)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_keras_layers_have_the_same_weights_and_outputs_as_the_fast_ones(images):
    keras.utils.set_random_seed(0)
    fast = with_fast_layers(build_model("convnet", num_classes=3, image_size=SIZE).model)
    plain = with_keras_layers(fast)
    assert {type(layer).__module__.split(".")[0] for layer in plain.layers} == {"keras"}
    for ours, theirs in ((fast.trainable_variables, plain.trainable_variables), (fast.weights, plain.weights)):
        assert [v.path for v in ours] == [v.path for v in theirs]
    pixels = images / np.float32(255)
    np.testing.assert_allclose(plain(pixels), fast(pixels), atol=1e-5)


@keras.saving.register_keras_serializable("tests")
class Own(keras.layers.Layer):
    def call(self, inputs):
        return inputs


class OwnModel(keras.Model):
    def call(self, inputs):
        return inputs


class TestObstacle:
    @pytest.mark.parametrize(
        ("layer", "named"),
        [
            (Own(name="mine"), "Own 'mine'"),
            (keras.layers.TimeDistributed(Own(), name="each"), "Own in TimeDistributed 'each'"),
            (keras.layers.Lambda(lambda inputs: inputs / 2, name="half"), "Lambda 'half'"),
            (keras.layers.Activation(np.negative, name="act"), "'act'"),
        ],
    )
    def test_code_that_keras_does_not_have_is_named(self, layer, named):
        nested = keras.Sequential([layer])
        model = keras.Sequential([keras.Input((4, 3)), nested, keras.layers.Flatten(), keras.layers.Dense(2)])
        assert named in obstacle("keras", model)
        assert all(not obstacle(file_format, model) for file_format in FILES if file_format != "keras")

    def test_subclassed_model_is_named(self):
        assert "OwnModel" in obstacle("keras", OwnModel())

    @pytest.mark.parametrize("name", ["convnet", "baseline_cnn"])
    def test_models_that_come_with_convoy_have_none(self, name):
        model = with_fast_layers(build_model(name, num_classes=3, image_size=SIZE).model)
        assert not any(obstacle(file_format, model) for file_format in FILES)
