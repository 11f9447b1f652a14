"""Pretrained weights from files written by Keras, for a model with another head."""

import json
import re

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from convoy.core.errors import DataError
from convoy.trainer.models import build_model
from convoy.trainer.models.head import split
from convoy.trainer.models.pretrained import load_pretrained
from convoy.trainer.session.weights import has_same_classes
from convoy.trainer.step.optimizers import make_optimizer
from convoy.trainer.step.state import TrainState
from convoy.trainer.tf_compat.layers import with_fast_layers

SIZE = 16
FORMATS = ["legacy.h5", "whole.h5", "new.weights.h5", "whole.keras"]


@pytest.fixture(autouse=True)
def float32_policy():
    keras.config.set_dtype_policy("float32")
    yield
    keras.config.set_dtype_policy("float32")


def network(classes: int | None, filters: int = 6, hidden: bool = False) -> keras.Model:
    """Returns a small network with squeeze and excitation; without top if `classes` is None."""
    inputs = layers.Input((SIZE, SIZE, 3))
    x = layers.Conv2D(filters, 3, strides=2, padding="same", use_bias=False)(inputs)
    x = layers.BatchNormalization()(x)
    gate = layers.Dense(filters, activation="sigmoid")(layers.GlobalAveragePooling2D(keepdims=True)(x))
    x = layers.Conv2D(8, 3)(layers.Multiply()([x, gate]))
    x = layers.BatchNormalization()(x)
    if classes:
        x = layers.GlobalAveragePooling2D()(x)
        x = layers.Dense(10, activation="relu")(x) if hidden else x
        x = layers.Dense(classes)(layers.Dropout(0.2)(x))
    return keras.Model(inputs, x, name="network")


def randomized(model: keras.Model, seed: int = 0) -> keras.Model:
    random = np.random.default_rng(seed)
    model.set_weights([random.uniform(0.2, 0.9, w.shape).astype(w.dtype) for w in model.get_weights()])
    return model


def save(model: keras.Model, path) -> str:
    if path.name == "whole.h5":  # as in Keras 2: weights in a group next to the model's config
        legacy = path.with_name("part.h5")
        keras.src.legacy.saving.legacy_h5_format.save_model_to_hdf5(model, legacy)
        legacy.rename(path)
    elif path.name == "legacy.h5":
        import h5py

        with h5py.File(path, "w") as file:
            keras.src.legacy.saving.legacy_h5_format.save_weights_to_hdf5_group(file, model)
    elif path.name.endswith(".weights.h5"):
        model.save_weights(path)
    else:
        model.save(path)
    return str(path)


def loaded(model: keras.Model, path: str) -> tuple[keras.Model, str]:
    fast = with_fast_layers(model)
    return fast, load_pretrained(model, fast, path)


def assert_counts(summary: str, path: str, backbone: str, head: str) -> None:
    """Asserts the numbers of loaded weights in the summary, such as `13 of 13`."""
    assert path in summary and re.findall(r"\d+ of \d+", summary) == [backbone, head]


def backbone_weights(model: keras.Model) -> list[np.ndarray]:
    return split(model)[0].get_weights()


def images():
    return tf.constant(np.random.default_rng(3).random((4, SIZE, SIZE, 3)), tf.float32)


@pytest.mark.parametrize("file_format", FORMATS)
@pytest.mark.parametrize("classes_in_file", [None, 20, 5])
def test_files_of_all_formats_with_and_without_top_load_the_backbone(tmp_path, file_format, classes_in_file):
    published = randomized(network(classes_in_file))
    path = save(published, tmp_path / file_format)
    model = network(5)
    head_before = split(model)[1].get_weights()
    fast, summary = loaded(model, path)
    reference = published if classes_in_file is None else split(published)[0]
    for one, other in zip(backbone_weights(fast), reference.get_weights(), strict=True):
        assert np.array_equal(one, other)
    features = split(fast)[0](images(), training=False)
    expected = reference(images(), training=False)
    expected = tf.reduce_mean(expected, (1, 2)) if classes_in_file is None else expected
    np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-5)
    head_after = split(fast)[1].get_weights()
    if classes_in_file == 5:
        assert np.array_equal(head_after[0], published.get_weights()[-2])
        assert_counts(summary, path, "13 of 13", "2 of 2")
    else:
        assert all(np.array_equal(a, b) for a, b in zip(head_before, head_after, strict=True))
        assert_counts(summary, path, "13 of 13", "0 of 2")


@pytest.mark.parametrize("file_format", FORMATS)
def test_layers_of_the_head_are_loaded_if_they_fit(tmp_path, file_format):
    published = randomized(network(20, hidden=True))
    path = save(published, tmp_path / file_format)
    fast, summary = loaded(network(5, hidden=True), path)
    assert_counts(summary, path, "13 of 13", "2 of 4")
    assert np.array_equal(split(fast)[1].get_weights()[0], published.get_weights()[-4])


@pytest.mark.parametrize("hidden", [False, True])
def test_the_last_layer_of_other_classes_is_not_loaded(tmp_path, hidden):
    published = randomized(network(5, hidden=hidden))
    path = save(published, tmp_path / "new.weights.h5")
    model = network(5, hidden=hidden)
    last = model.layers[-1].get_weights()
    fast = with_fast_layers(model)
    summary = load_pretrained(model, fast, path, same_classes=False)
    assert_counts(summary, path, "13 of 13", "2 of 4" if hidden else "0 of 2")
    assert "other classes" in summary
    assert all(np.array_equal(a, b) for a, b in zip(fast.layers[-1].get_weights(), last, strict=True))
    summaries = [load_pretrained(model, fast, path, same_classes=known) for known in (None, True)]
    for summary in summaries:
        assert_counts(summary, path, "13 of 13", "4 of 4" if hidden else "2 of 2")
    assert "classes" in summaries[0] and "classes" not in summaries[1]


def test_the_classes_of_runs_and_exports_are_known(tmp_path):
    run, export = tmp_path / "run", tmp_path / "export"
    for folder, file in ((run, "dataset.json"), (export, "export.json")):
        folder.mkdir()
        (folder / file).write_text(json.dumps({"class_names": ["cup", "jar"]}))
    files = [run / "checkpoints/step-000000003.npz", export / "model.keras", export / "saved_model"]
    for file in map(str, files):
        assert has_same_classes(file, ("cup", "jar")) is True
        assert has_same_classes(file, ("jar", "cup")) is has_same_classes(file, ("cup", "pot")) is False
    assert has_same_classes(str(tmp_path / "weights.h5"), ("cup", "jar")) is None


def test_a_file_written_from_the_fast_layers_is_loaded(tmp_path):
    published = with_fast_layers(randomized(network(20)))
    fast, _ = loaded(network(5), save(published, tmp_path / "new.weights.h5"))
    for one, other in zip(backbone_weights(fast), backbone_weights(published), strict=True):
        assert np.array_equal(one, other)


@pytest.mark.parametrize("file_format", FORMATS)
def test_a_file_for_another_architecture_is_rejected_with_the_missing_weights(tmp_path, file_format):
    path = save(network(5, filters=7), tmp_path / file_format)
    with pytest.raises(DataError, match=r"'network': .*\b\d+ of 13\b") as caught:
        loaded(network(5), path)
    assert len(str(caught.value).splitlines()) == 1 and path in str(caught.value)


def test_a_model_keeps_its_weights_if_a_file_is_rejected(tmp_path):
    model = network(5)
    before = model.get_weights()
    with pytest.raises(DataError):
        loaded(model, save(network(5, filters=7), tmp_path / "new.weights.h5"))
    assert all(np.array_equal(a, b) for a, b in zip(model.get_weights(), before, strict=True))


@pytest.mark.parametrize("file_format", FORMATS)
def test_a_truncated_file_is_rejected_with_a_one_line_message(tmp_path, file_format):
    path = tmp_path / file_format
    save(network(5), path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])
    with pytest.raises(DataError, match=rf"{path}.*damaged") as caught:
        loaded(network(5), str(path))
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("where", ["external file", "linked file", "virtual", "huge"])
def test_a_legacy_file_takes_no_content_from_elsewhere_and_no_memory(tmp_path, where):
    path = save(randomized(network(4)), tmp_path / "legacy.h5")
    secret = tmp_path / "secret"
    with h5py.File(secret, "w") as file:
        file["kernel"] = np.ones((3, 3, 3, 6), np.float32)
    with h5py.File(path, "r+") as file:
        layer = next(file[name] for name in file.attrs["layer_names"] if len(file[name].attrs["weight_names"]))
        name = layer.attrs["weight_names"][0]
        shape = layer[name].shape
        del layer[name]
        if where == "external file":
            layer.create_dataset(name, shape, np.float32, external=[(str(secret), 0, h5py.h5f.UNLIMITED)])
        elif where == "linked file":
            layer[name] = h5py.ExternalLink(str(secret), "kernel")
        elif where == "virtual":
            virtual = h5py.VirtualLayout(shape, np.float32)
            virtual[:] = h5py.VirtualSource(str(secret), "kernel", shape)
            layer.create_virtual_dataset(name, virtual)
        else:
            layer.create_dataset(name, (2**20, 2**20), np.float32, chunks=(1024, 1024), compression="gzip")
    with pytest.raises(DataError, match="legacy.h5"):
        loaded(network(4), path)


@pytest.mark.parametrize("nested", [False, True])
def test_a_restored_state_restores_the_input_scaling(nested):
    """Keras' Normalization computes with copies of its mean and variance."""

    def state_of(model):
        return TrainState(model, make_optimizer("sgd"), tf.distribute.get_strategy())

    def scaling():
        inputs, scale = layers.Input((None, None, 3)), layers.Normalization(name="scaling")
        if nested:
            scale = keras.Sequential([layers.Input((None, None, 3)), scale], name="nested")
        x = layers.GlobalAveragePooling2D(name="average")(scale(inputs))
        return keras.Model(inputs, layers.Dense(5, kernel_initializer="ones", name="logits")(x), name="scaling")

    saved, restored = scaling(), scaling()
    scale = saved.get_layer("nested") if nested else saved
    scale.get_layer("scaling").adapt(np.random.default_rng(0).normal(3, 2, (9, 4, 4, 3)).astype(np.float32))
    assert not np.allclose(saved(images()), restored(images()))
    state_of(restored).assign(state_of(saved).values(), step=1)
    assert np.array_equal(saved(images()), restored(images()))


@pytest.mark.slow
@pytest.mark.parametrize("file_format", ["legacy.h5", "new.weights.h5"])
def test_a_keras_application_loads_a_file_for_imagenet_classes(tmp_path, file_format):
    keras.utils.clear_session()
    published = randomized(keras.applications.MobileNet(weights=None, input_shape=(32, 32, 3), classes=1000))
    path = save(published, tmp_path / file_format)
    built = build_model("keras_applications:MobileNet", num_classes=5, image_size=48, weights=path)
    assert_counts(built.loaded, path, "135 of 135", "0 of 2")
    for one, other in zip(backbone_weights(built.model), published.get_weights()[:-2], strict=True):
        assert np.array_equal(one, other)


@pytest.mark.slow
def test_efficientnet_with_published_weights_equals_keras(tmp_path, monkeypatch):
    """Keras adds a second scaling, but only if it downloads the file itself."""
    keras.utils.clear_session()
    keras.utils.set_random_seed(0)
    published = keras.applications.EfficientNetB0(weights=None, include_top=False)
    random = np.random.default_rng(0)
    for variable in published.variables:
        if variable.name in ("beta", "moving_mean", "bias"):
            variable.assign(random.normal(0, 0.1, variable.shape))
    (scaling,) = (layer for layer in published.layers if isinstance(layer, layers.Normalization))
    scaling.adapt_mean.assign([0.485, 0.456, 0.406])
    scaling.adapt_variance.assign(np.square([0.229, 0.224, 0.225]))
    path = save(published, tmp_path / "legacy.h5")
    monkeypatch.setattr(keras.src.utils.file_utils, "get_file", lambda *arguments, **options: path)
    reference = keras.applications.EfficientNetB0(weights="imagenet", include_top=False, pooling="avg")
    built = build_model("keras_applications:EfficientNetB0", num_classes=5, image_size=32, weights=path)
    pixels = tf.constant(random.integers(0, 256, (2, 32, 32, 3)), tf.float32)
    expected = reference(keras.applications.efficientnet.preprocess_input(pixels), training=False)
    features = split(built.model)[0](built.scale_pixels(pixels), training=False)
    # With random weights the features depend little on the image, so the test compares differences between two images.
    difference, expected_difference = features[1] - features[0], expected[1] - expected[0]
    np.testing.assert_allclose(difference, expected_difference, rtol=0, atol=1e-2 * np.abs(expected_difference).max())
