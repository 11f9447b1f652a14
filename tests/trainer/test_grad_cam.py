"""Grad-CAM: its formula against Keras, and that it points at the evidence."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import convoy as api
from convoy.core.errors import DataError
from convoy.input_pipeline.reading.decode import Crop
from convoy.trainer.evaluation.grad_cam import GradCam
from convoy.trainer.evaluation.loading import pixels_of, sources_of
from convoy.trainer.evaluation.pictures import heat_colors, heat_overlay
from convoy.trainer.models import ModelBundle
from convoy.trainer.models.from_users import unit_scale
from convoy.trainer.step.state import TrainState
from tests.pages import Page

CLASSES, SIZE = 5, 24
NAMES = ("blue", "green", "red")


@pytest.fixture(autouse=True)
def float32_policy():
    keras.utils.set_random_seed(0)
    yield
    keras.config.set_dtype_policy("float32")


def images(count=3, size=SIZE):
    return np.random.default_rng(1).integers(0, 255, (count, size, size, 3), np.uint8)


def convolutional(end, *, size=SIZE):
    """Returns a model whose layer `map` is its last feature map."""
    inputs = layers.Input((size, size, 3))
    x = layers.Conv2D(8, 3, strides=2, padding="same", name="conv")(inputs)
    x = layers.Activation("relu", name="map")(layers.BatchNormalization()(x))
    return keras.Model(inputs, end(x), name="small")


def pooled(x):
    x = layers.Dropout(0.5)(layers.GlobalAveragePooling2D()(x))
    return layers.Dense(CLASSES)(layers.Dense(16, activation="relu")(x))


def flattened(x):
    return layers.Dense(CLASSES)(layers.Flatten()(layers.MaxPooling2D(name="pool")(x)))


def pooled_with_sides(x):
    """As in MobileNet: the features are [n, 1, 1, c], and the logits come from a convolution."""
    x = layers.GlobalAveragePooling2D(keepdims=True)(x)
    return layers.Flatten()(layers.Conv2D(CLASSES, 1)(x))


def grad_cam_of(model, size=SIZE):
    state = TrainState(model, None, tf.distribute.get_strategy())
    return GradCam(state, ModelBundle(model, unit_scale), size), state


def computed_by_keras(model, map_layer, pixels, label):
    """Returns heat maps from a gradient tape over the whole model, [n, size, size]."""
    both = keras.Model(model.inputs, [model.get_layer(map_layer).output, model.output])
    with tf.GradientTape() as tape:
        maps, logits = both(tf.cast(pixels, tf.float32) / 255.0, training=False)
        target = logits[:, label]
    weights = tf.reduce_mean(tape.gradient(target, maps), axis=(1, 2))
    heat = np.maximum(0, np.einsum("nhwc,nc->nhw", maps, weights))
    heat = tf.image.resize(heat[..., np.newaxis], pixels.shape[1:3], "bilinear").numpy()[..., 0]
    return heat / np.maximum(heat.max((1, 2), keepdims=True), 1e-30)


class TestFormula:
    @pytest.mark.parametrize(("end", "map_layer"), [(pooled, "map"), (flattened, "pool"), (pooled_with_sides, "map")])
    def test_maps_are_those_of_a_gradient_through_the_keras_model(self, end, map_layer):
        model, pixels = convolutional(end), images()
        grad_cam, _ = grad_cam_of(model)
        labels = np.array([[0, 3], [2, 3], [4, 3]])
        maps = grad_cam.maps(pixels, labels)
        assert (maps.shape, maps.dtype) == ((3, 2, SIZE, SIZE), np.float32)
        np.testing.assert_allclose(maps[:, 1], computed_by_keras(model, map_layer, pixels, 3), atol=1e-5)
        np.testing.assert_allclose(maps[1, 0], computed_by_keras(model, map_layer, pixels, 2)[1], atol=1e-5)
        assert maps.min() == 0 and set(np.unique(maps.max((2, 3)))) <= {0, 1}

    @pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
    def test_mixed_precision_has_nearly_the_same_maps(self, precision):
        whole = convolutional(pooled)
        expected = grad_cam_of(whole)[0].maps(images(), np.array([[1]] * 3))
        keras.config.set_dtype_policy(precision)
        mixed = convolutional(pooled)
        mixed.set_weights(whole.get_weights())
        assert mixed.compute_dtype != "float32"
        np.testing.assert_allclose(grad_cam_of(mixed)[0].maps(images(), np.array([[1]] * 3)), expected, atol=0.1)

    def test_many_images_of_another_size_than_in_training(self):
        model = convolutional(pooled, size=None)
        grad_cam, _ = grad_cam_of(model, 40)
        pixels = images(37, 40)  # more than a batch
        maps = grad_cam.maps(pixels, np.full((37, 1), 2))
        np.testing.assert_allclose(maps[:, 0], computed_by_keras(model, "map", pixels, 2), atol=1e-5)

    def test_averages_are_explained_where_the_run_evaluates_them_and_nothing_is_changed(self):
        model = convolutional(pooled)
        state = TrainState(model, None, tf.distribute.get_strategy(), average_weights=True)
        expected = computed_by_keras(model, "map", images(), 1)
        for weight in state.weights:
            weight.assign(tf.random.normal(weight.shape))
        before = [variable.numpy() for variable in model.variables]  # with the seed states
        maps = GradCam(state, ModelBundle(model, unit_scale), SIZE).maps(images(), np.array([[1]] * 3))
        np.testing.assert_allclose(maps[:, 0], expected, atol=1e-5)
        for variable, value in zip(model.variables, before, strict=True):
            np.testing.assert_array_equal(variable, value)

    def test_a_class_without_evidence_has_an_empty_map(self):
        model = convolutional(lambda x: layers.Dense(CLASSES, kernel_initializer="zeros")(layers.Flatten()(x)))
        assert not grad_cam_of(model)[0].maps(images(), np.array([[1]] * 3)).any()


def of_tokens(x):
    """As in a vision transformer: the features are [n, tokens, channels]."""
    return layers.Dense(CLASSES)(layers.Flatten()(layers.Reshape((-1, 8))(x)))


@pytest.mark.parametrize(
    ("end", "size", "word"),
    [
        (of_tokens, SIZE, "feature map"),
        (lambda x: layers.Dense(CLASSES)(layers.Reshape((-1,))(x)), SIZE, "pooling"),
        (pooled, 2, "single point"),
    ],
)
def test_models_without_a_map_before_their_head_are_left_out(end, size, word):
    assert word in grad_cam_of(convolutional(end, size=size), size)[0].obstacle


def test_heat_is_drawn_over_a_gray_image_in_rising_brightness():
    pixels = np.full((2, 4, 3), (200, 40, 90), np.uint8)
    drawn = heat_overlay(pixels, np.array([[0, 0.3, 0.6, 1]] * 2)).astype(int)
    assert len(set(drawn[0, 0])) == 1  # gray where there is no heat
    assert all(np.ptp(pixel) > 30 for pixel in drawn[0, 1:])
    legend = [int(color[1:3], 16) + int(color[3:5], 16) for color in heat_colors(9)]
    assert legend[1:] == sorted(legend[1:])


def test_unreadable_file_is_named_without_a_traceback_of_tensorflow(tmp_path, capfd):
    Image.new("RGB", (8, 8)).save(tmp_path / "good.png")
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    _, sources = sources_of([tmp_path / "good.png", tmp_path / "broken.jpg"])
    with pytest.raises(DataError, match=r"broken\.jpg"):
        list(pixels_of(sources, Crop(16)))
    assert "Traceback" not in capfd.readouterr().err


@pytest.fixture(scope="module")
def patches_run(convoy, tmp_path_factory):
    """A run on gray noise with a patch in one quadrant, whose color is the class: (run, images, quadrants)."""
    folder, rng = tmp_path_factory.mktemp("patches"), np.random.default_rng(0)
    pixels, quadrants = [], []
    for number in range(240):
        image = np.repeat(rng.integers(60, 200, (32, 32, 1), np.uint8), 3, axis=2)
        label, (row, column) = number % 3, divmod(number // 3 % 4, 2)
        top, left = 16 * row + 4, 16 * column + 4
        image[top : top + 8, left : left + 8] = np.eye(3, dtype=np.uint8)[2 - label] * 220
        pixels.append(image)
        quadrants.append((row, column))
        path = folder / "photos" / NAMES[label] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    convoy("convert", f"--images={folder / 'photos'}", f"--output={folder / 'data'}", "--workers=1", check=True)
    flags = ("--config.image_size=32", "--config.steps=30", "--config.batch_size=32", "--config.augment.ops=flip")
    flags += (
        "--config.eval_every_steps=10",
        "--config.keep_checkpoints=9",
        "--config.schedule.warmup_steps=5",
        "--config.ema.decay=0",
    )
    run = folder / "run"
    where = (f"--data={folder / 'data'}", f"--workdir={run}", "--devices=cpu:2")
    convoy("train", "--config=smoke", *where, *flags, check=True)
    convoy("evaluate", f"--workdir={run}", "--split=train", "--checkpoint=10", "--devices=cpu:1", check=True)
    return run, np.stack(pixels), np.array(quadrants)


@pytest.mark.slow
class TestTrainedRun:
    def test_evidence_is_where_the_patch_is(self, patches_run):
        run, pixels, quadrants = patches_run
        found = api.open_run(run).explain(pixels[:24], checkpoint="last")
        assert list(found.labels) == [NAMES[number % 3] for number in range(24)]
        by_quadrant = found.maps.reshape(24, 2, 16, 2, 16).sum((2, 4))
        inside = by_quadrant[np.arange(24), quadrants[:24, 0], quadrants[:24, 1]] / by_quadrant.sum((1, 2))
        assert inside.mean() > 0.5 and np.median(inside) > 0.5  # 0.25 by chance

    def test_report_shows_errors_with_both_heat_maps(self, patches_run):
        run, _, _ = patches_run
        written = json.loads((run / "heat_maps_train.json").read_text())
        page = Page((run / "report.html").read_bytes())
        assert 0 < len(written["pictures"]) <= 24
        assert len(page.images["errors"]) == 3 * len(written["pictures"])
        assert {uri for each in written["pictures"].values() for uri in each.values()} == set(page.images["errors"])

    def test_tensorboard_shows_them_beside_the_worst_errors(self, patches_run):
        run, _, _ = patches_run
        events = EventAccumulator(str(run / "tensorboard" / "media"), {"tensors": 0}).Reload()
        steps = [{event.step for event in events.Tensors(tag)} for tag in ("media/worst", "media/grad_cam")]
        assert steps[0] == steps[1] != set()
