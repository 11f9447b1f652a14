"""Models of Keras Hub, from presets that Keras Hub itself wrote to folders of this machine."""

import importlib.util
import json
import shutil
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from convoy.core.errors import DataError, UsageError
from convoy.core.files import sha256_of
from convoy.trainer.models import build_model
from convoy.trainer.models.blocks import blocks_of_weights
from convoy.trainer.models.head import split
from convoy.trainer.step.state import TrainState
from tests.trainer.run_files import result_of

pytestmark = pytest.mark.skipif(not importlib.util.find_spec("keras_hub"), reason="needs the extra hub (Python 3.11)")

SIZE = 32
SCALE, OFFSET = [1 / 127.5, 1 / 100, 1 / 90], [-1.0, -0.9, -0.8]


@pytest.fixture(autouse=True)
def float32_policy():
    keras.config.set_dtype_policy("float32")
    yield
    keras.config.set_dtype_policy("float32")


def randomized(model):
    random = np.random.default_rng(0)
    model.set_weights([random.normal(0, 0.3, w.shape).astype(w.dtype) for w in model.get_weights()])
    return model


@pytest.fixture(scope="module")
def preset(tmp_path_factory):
    """A vision transformer of two blocks, with weights and the scaling of its pixels."""
    import keras_hub

    folder = tmp_path_factory.mktemp("presets") / "tiny_vit"
    keras.config.set_dtype_policy("float32")
    backbone = randomized(
        keras_hub.models.ViTBackbone(
            image_shape=(SIZE, SIZE, 3), patch_size=8, num_layers=2, num_heads=2, hidden_dim=8, mlp_dim=16
        )
    )
    backbone.save_to_preset(folder)
    keras_hub.layers.ViTImageConverter(image_size=(SIZE, SIZE), scale=SCALE, offset=OFFSET).save_to_preset(folder)
    return folder


def build(preset, image_size=SIZE, **options):
    return build_model(f"keras_hub:{preset}", num_classes=5, image_size=image_size, **options)


def pixels(size=SIZE):
    return tf.constant(np.random.default_rng(1).integers(0, 256, (2, size, size, 3)), tf.float32)


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "keras_hub", None)
    with pytest.raises(UsageError, match=r"keras_hub.*convoy-train\[hub\]") as caught:
        build("vit_base_patch16_224_imagenet")
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_unknown_and_damaged_presets_are_refused(preset, tmp_path):
    with pytest.raises(UsageError, match="vit_base_patch16_224_imagenet"):
        build("vit_base_patch16_224_imagnet")
    with pytest.raises(DataError, match=r"keras_hub:"):
        build(tmp_path)
    shutil.copytree(preset, tmp_path / "cut")
    weights = tmp_path / "cut/model.weights.h5"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(DataError, match="damaged"):
        build(tmp_path / "cut", weights="preset")
    with pytest.raises(UsageError, match=r"config\.image_size=33"):
        build(preset, image_size=33)
    text = json.loads((preset / "config.json").read_text())
    text |= {"module": "keras_hub.src.models.bert.bert_backbone", "class_name": "BertBackbone"}
    text["config"] = {"vocabulary_size": 9, "num_layers": 1, "num_heads": 1, "hidden_dim": 4, "intermediate_dim": 4}
    (tmp_path / "text").mkdir()
    text["registered_name"] = "keras_hub>BertBackbone"
    (tmp_path / "text/config.json").write_text(json.dumps(text))
    with pytest.raises(UsageError, match="BertBackbone is not a model of RGB images"):
        build(tmp_path / "text")


@pytest.mark.slow
def test_features_are_those_of_keras_hub(preset):
    import keras_hub

    built = build(preset, weights="preset")
    original = keras_hub.models.ViTBackbone.from_preset(str(preset))
    backbone, head = split(built.model)
    assert f"{len(original.weights)} of {len(original.weights)}" in built.loaded and "0 of 2" in built.loaded
    scaled = pixels() * SCALE + OFFSET
    np.testing.assert_allclose(built.scale_pixels(pixels()), scaled, rtol=1e-5, atol=1e-5)
    expected = original(scaled, training=False)[:, 0]
    np.testing.assert_allclose(backbone(built.scale_pixels(pixels()), training=False), expected, rtol=1e-4, atol=1e-4)
    assert [weight.path for weight in head.weights] == ["logits/kernel", "logits/bias"]
    assert blocks_of_weights(backbone)[0] == 0 and max(blocks_of_weights(backbone)) == 2
    TrainState(built.model, None, tf.distribute.get_strategy())  # each variable has its own path
    for other in (build(preset), build(preset, image_size=24)):
        assert other.loaded == "" and not np.allclose(other.model.get_weights()[1], original.get_weights()[1])


@pytest.mark.slow
def test_position_embeddings_are_interpolated_for_other_sizes(preset):
    own, larger = (build(preset, size, weights="preset").model for size in (SIZE, 2 * SIZE))
    values = [
        {weight.path.partition("/")[2]: weight.numpy() for weight in model.weights if "embedding" in weight.path}
        for model in (own, larger)
    ]
    before, after = (value["position_embedding/embeddings"] for value in values)
    assert before.shape == (17, 8) and after.shape == (65, 8)
    np.testing.assert_array_equal(before[0], after[0])  # the class token
    grids = before[1:].reshape(4, 4, 8), after[1:].reshape(8, 8, 8)
    means = [grid.mean((0, 1)) for grid in grids]
    np.testing.assert_allclose(means[0], means[1], atol=0.15)
    corners = grids[0][0, 0] - grids[1][0, 0]
    assert np.abs(corners).max() < np.abs(grids[0][0, 0] - grids[0][3, 3]).max()
    np.testing.assert_array_equal(values[0]["patch_embedding/kernel"], values[1]["patch_embedding/kernel"])


@pytest.mark.slow
def test_other_backbones_are_pooled_as_their_own_classifiers_do(tmp_path):
    import keras_hub

    models = keras_hub.models
    resnet = models.ResNetBackbone(
        **{"input_conv_filters": [64], "input_conv_kernel_sizes": [7], "stackwise_num_filters": [64, 64]},
        **{"stackwise_num_blocks": [1, 1], "stackwise_num_strides": [1, 2], "block_type": "basic_block"},
    )
    swin = models.SwinTransformerBackbone(
        image_shape=(64, 64, 3), embed_dim=8, depths=(2, 2), num_heads=(2, 2), window_size=4
    )
    for backbone in (resnet, swin):
        folder = tmp_path / type(backbone).__name__
        randomized(backbone).save_to_preset(folder)
        built = build(folder, 64, weights="preset")
        original = models.Backbone.from_preset(str(folder))
        outputs = original(pixels(64) / 255, training=False)
        expected = tf.reduce_mean(outputs, list(range(1, len(outputs.shape) - 1)))
        features = split(built.model)[0](built.scale_pixels(pixels(64)), training=False)
        np.testing.assert_allclose(features, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())
        assert max(blocks_of_weights(split(built.model)[0])) == (2 if backbone is resnet else 4)


@pytest.mark.slow
def test_a_run_needs_its_preset_only_to_begin(preset, convoy, dataset, tmp_path):
    moved, run, names = tmp_path / "preset", tmp_path / "run", ("one", "two")
    shutil.copytree(preset, moved)
    flags = (
        *("train", "--config=smoke", f"--data={dataset.data}", f"--config.model.name=keras_hub:{moved}"),
        *("--config.model.weights=preset", "--config.model.freeze_steps=1", "--config.model.layer_decay=0.7"),
        *("--config.optimizer.name=adamw", "--config.ema.decay=0.9", "--config.checkpoint_every_steps=1"),
        *("--deterministic", "--config.precision=float32", "--config.virtual_replicas=2", "--config.batch_size=8"),
    )
    steps = "--config.steps=3"
    answer = convoy(*flags, steps, f"--workdir={run}", "--devices=cpu:1", check=True)
    output = " ".join(answer.output.replace("│", " ").split())
    assert "4 learning rates" in output and "38 of 38" in output
    assert json.loads((run / "environment.json").read_text())["pretrained_sha256"] == sha256_of(
        preset / "model.weights.h5"
    )
    for name in names:
        shutil.copytree(run, tmp_path / name)
        (tmp_path / name / "checkpoints/step-000000003.npz").unlink()
    shutil.rmtree(moved)
    resumed = tmp_path / names[0]
    convoy(*flags, steps, f"--workdir={resumed}", "--devices=cpu:2", check=True)
    assert result_of(resumed)["weights_sha256"] == result_of(run)["weights_sha256"]
    convoy("evaluate", f"--workdir={run}", "--split=validation", check=True)
    convoy("export", f"--workdir={run}", "--format=saved_model", f"--output={tmp_path / 'out'}", check=True)
    # In half precision, compiled by XLA.
    (tmp_path / names[1] / "code/model/config.json").unlink()
    shutil.copytree(preset, moved)
    half = ("--config.precision=bfloat16", "--config.xla=on", "--config.steps=2", f"--workdir={tmp_path / 'half'}")
    convoy(*(flag for flag in flags if flag != "--deterministic"), *half, "--devices=cpu:1", check=True)
