"""`config.model.weights=imagenet`: files as Keras publishes them, downloaded from a server on this machine."""

import hashlib
import json
import re
import shutil

import h5py
import keras
import pytest
from keras.src.applications import mobilenet_v3

from convoy.core.devices import parse_devices
from convoy.core.errors import DataError, UsageError
from convoy.core.exit_codes import DATA
from convoy.core.files import sha256_of
from convoy.trainer import config as configs
from convoy.trainer.doctor.tf_probe import Setup, _weights
from convoy.trainer.models.published import published_file
from convoy.trainer.session.weights import available_weights, local_weights
from tests.file_server import FileServer
from tests.trainer.run_files import result_of

# One of each family, with the size of images.
FAMILIES = {
    **{"ConvNeXtTiny": 32, "DenseNet121": 32, "EfficientNetB0": 32, "EfficientNetV2B0": 32, "InceptionResNetV2": 75},
    **{"InceptionV3": 75, "MobileNet": 32, "MobileNetV2": 32, "MobileNetV3Small": 32, "NASNetMobile": 32},
    **{"ResNet50": 32, "ResNet50V2": 32, "VGG16": 32, "VGG19": 32, "Xception": 71},
}
WITHOUT_HASH = ("MobileNet", "MobileNetV2")
# A recipe that downloads from another server.
RECIPE = """
import os
from keras.src.applications import mobilenet
from convoy.configs.smoke import get_config
mobilenet.BASE_WEIGHT_PATH = os.environ["SERVER"]
"""


def config_of(name: str, **fields):
    return configs.configured("smoke", {"model": {"name": f"keras_applications:{name}", **fields}})


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("CONVOY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    return tmp_path / "cache/weights"


def checked_by_doctor(config):
    return _weights(Setup(config, "", "", parse_devices("cpu:1"), "auto", heartbeat_seconds=30))


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_the_file_without_top_of_each_family_is_known(name):
    file = published_file(name, FAMILIES[name])
    assert re.fullmatch(r"https://[\w.-]+/[\w./-]+\.h5", file.url)
    assert re.search("no_?top", file.name)
    assert len(file.digest) in ((0,) if name in WITHOUT_HASH else (32, 64))


def test_mobilenet_v2_has_weights_for_some_sizes():
    names = [published_file("MobileNetV2", size).name for size in (96, 100)]
    assert "_96_" in names[0] and "_224_" in names[1]
    with pytest.raises(UsageError, match="MobileNetV2"):
        published_file("MobilNetV2", 96)


@pytest.mark.parametrize(
    ("name", "weights", "fix"),
    [
        ("keras_applications:VGG16", "preset", "imagenet"),
        ("keras_hub:vit_base_patch16_224_imagenet", "imagenet", "preset"),
        ("convnet", "imagenet", "keras_applications:NAME"),
        ("models.py:mine", "preset", "keras_hub:PRESET"),
    ],
)
def test_weights_that_a_model_does_not_have_are_refused(name, weights, fix):
    with pytest.raises(UsageError, match=rf"config\.model\.weights={weights}: .*{fix}.*\./{weights}"):
        configs.configured("smoke", {"model": {"name": name, "weights": weights}})


def test_a_file_is_downloaded_checked_and_then_used_offline(tmp_path, cache, monkeypatch):
    (tmp_path / "served").mkdir()
    config = config_of("MobileNetV3Small", weights="imagenet")
    name = published_file("MobileNetV3Small", config.image_size).name
    (tmp_path / "served" / name).write_bytes(b"weights")
    with FileServer(tmp_path / "served") as server:
        digests = [hashlib.md5(content).hexdigest() for content in (b"weights", b"others")]
        for digest in reversed(digests):
            monkeypatch.setattr(mobilenet_v3, "BASE_WEIGHT_PATH", server.url(""))
            monkeypatch.setitem(mobilenet_v3.WEIGHTS_HASHES, "small_224_1.0_float", ("", digest))
            published_file.cache_clear()
            if digest == digests[1]:
                with pytest.raises(DataError, match=rf"config\.model\.weights=imagenet: .*{digest}.*{cache}") as caught:
                    local_weights(config)
                assert server.url(name) in str(caught.value) and not available_weights(config)
    with pytest.raises(DataError, match=str(cache / name)):
        local_weights(config)
    checked = checked_by_doctor(config)
    assert server.url(name) in checked["path"] and checked["problem"]
    shutil.copy(tmp_path / "served" / name, cache)
    assert checked_by_doctor(config) == {"path": str(cache / name), "problem": ""}
    assert local_weights(config) == available_weights(config) == str(cache / name)
    published_file.cache_clear()
    assert checked_by_doctor(config_of("MobileNetV3Small", weights="absent.h5"))["problem"]
    assert checked_by_doctor(config_of("MobileNetV3Small")) is None


@pytest.mark.slow
def test_two_workers_download_once_and_the_run_goes_on_without_the_file(tmp_path, cache, cluster, convoy, dataset):
    served, run = tmp_path / "served", tmp_path / "run"
    served.mkdir()
    keras.utils.clear_session()
    model = keras.applications.MobileNet(weights=None, include_top=False, input_shape=(32, 32, 3))
    name = "mobilenet_1_0_224_tf_no_top.h5"
    with h5py.File(served / name, "w") as file:  # the format of the published files
        keras.src.legacy.saving.legacy_h5_format.save_weights_to_hdf5_group(file, model)
    (tmp_path / "recipe.py").write_text(RECIPE)
    flags = (
        *("train", f"--config={tmp_path / 'recipe.py'}", f"--data={dataset.data}", f"--workdir={run}"),
        *("--config.model.name=keras_applications:MobileNet", "--config.model.weights=imagenet", "--devices=cpu:1"),
        *("--config.steps=2", "--config.checkpoint_every_steps=1", "--config.batch_size=4", "--deterministic"),
        "--config.virtual_replicas=2",
    )
    variables = {"CONVOY_CACHE": str(cache.parent), "KERAS_HOME": str(tmp_path / "keras"), "no_proxy": "*"}
    with FileServer(served) as server:
        variables["SERVER"] = server.url("")
        environments = dict.fromkeys(range(2), variables)
        workers = cluster(*flags, output=tmp_path / "first", environments=environments, check=True)
        assert server.requests == [f"/{name}"]
    assert "135 of 135" in workers.output(0) and "0 of 2" in workers.output(0)
    environment = json.loads((run / "environment.json").read_text())
    assert environment["pretrained_sha256"] == sha256_of(served / name)
    first = result_of(run)
    # The server and the file are gone.
    shutil.rmtree(cache)
    (run / "checkpoints/step-000000002.npz").unlink()
    convoy(*flags, environment=variables, check=True)
    assert result_of(run)["weights_sha256"] == first["weights_sha256"] and not cache.exists()
    assert json.loads((run / "environment.json").read_text())["pretrained_sha256"] == sha256_of(served / name)
    shutil.rmtree(run)  # nothing to resume
    answer = convoy(*flags, environment=variables)
    assert answer.returncode == DATA and str(cache / name) in answer.output and not run.exists()
