"""`convoy export --quantize=int8`: the files, their accuracy, and refusals."""

import csv
import itertools
import json
import re
from dataclasses import replace
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf

from convoy.core.errors import DataError
from convoy.input_pipeline.dataset.open import open_dataset
from convoy.input_pipeline.reading.decode import Crop
from convoy.trainer.export.accuracy import Int8Accuracy, count_correct, split_to_measure
from convoy.trainer.export.check import Samples, compare_int8
from convoy.trainer.export.formats import ServingModel
from convoy.trainer.export.int8 import calibration_images, write_int8
from convoy.trainer.export.loaders import FILES, load
from convoy.trainer.export.request import QUANTIZABLE
from convoy.trainer.models import build_model
from convoy.trainer.run.task import Decision
from tests.trainer.export.helpers import NAMES, SIZE, write_model
from tests.trainer.export.test_check import make_dataset
from tests.trainer.run_files import result_of

INT8 = ("--quantize=int8", f"--format={','.join(QUANTIZABLE)}")


def calibration(dataset):
    return calibration_images(SimpleNamespace(config=SimpleNamespace(seed=3), crop=Crop(SIZE)), dataset)


class TestCalibrationImages:
    def test_are_different_training_images_chosen_by_the_seed(self, tmp_path):
        dataset = make_dataset(tmp_path, 300, "png", ("train", "validation"))
        first, again = calibration(dataset), calibration(dataset)
        assert (first.split.name, len(first), len(set(first.numbers))) == ("train", 256, 256)
        assert np.array_equal(first.numbers, again.numbers)
        assert {image.shape for image in itertools.islice(first, 3)} == {(SIZE, SIZE, 3)}

    def test_are_all_images_of_a_small_split(self, tmp_path):
        assert sorted(calibration(make_dataset(tmp_path, 5, "raw")).numbers) == [0, 1, 2, 3, 4]

    def test_need_a_training_split(self, tmp_path):
        with pytest.raises(DataError, match=r"'train'.*--data"):
            calibration(make_dataset(tmp_path, 3, "png", ("test", "validation")))


class TestAccuracy:
    def test_counts_every_image_once(self, tmp_path):
        split = make_dataset(tmp_path, 70, "png").split("train")
        split = replace(split, label=np.arange(70, dtype=np.int32) % 2)
        always = [lambda images, label=label: np.eye(3)[np.full(len(images), label)] for label in range(3)]
        assert count_correct(always, split, Crop(SIZE)) == [35, 35, 0]

    @pytest.mark.parametrize(
        ("splits", "measured"), [(("test", "train", "validation"), "validation"), (("test", "train"), "train")]
    )
    def test_is_never_measured_on_the_test_split(self, tmp_path, splits, measured):
        assert split_to_measure(make_dataset(tmp_path, 3, "png", splits)).name == measured

    @pytest.mark.parametrize(("correct", "points"), [(900, ""), (890, ""), (889, "1.1"), (400, "50.0"), (950, "")])
    def test_more_than_a_point_less_is_a_warning(self, correct, points):
        warning = Int8Accuracy("validation", 1000, correct, 900, 10, 60).warning()
        assert bool(warning) == bool(points)
        assert points in warning


@pytest.fixture
def model(float32_policy):
    """A network with batch and instance normalization whose predictions depend on the image."""
    keras.utils.set_random_seed(0)
    built = build_model("convnet", num_classes=len(NAMES), image_size=SIZE)
    return ServingModel(built.model, lambda pixels: pixels / 255.0, Crop(SIZE), Decision(NAMES))


@pytest.mark.slow
class TestFiles:
    @pytest.mark.parametrize("name", QUANTIZABLE)
    def test_hold_integers_and_predict_as_float32_does(self, model, tmp_path, name):
        float32 = write_model(name, model, tmp_path)
        path = tmp_path / f"int8{float32.suffix}"
        images = calibration(make_dataset(tmp_path, 20, "png"))
        write_int8(name, model, float32, images, path)
        assert path.stat().st_size < 0.35 * float32.stat().st_size
        pixels = np.stack([*images])
        expected, found = (load(name, file)(pixels) for file in (float32, path))
        assert np.ptp(expected, axis=0).max() > 0.05  # the model distinguishes the images
        assert np.abs(found - expected).max() < 0.03
        assert len(np.unique(found)) > 0.9 * found.size  # probabilities are not multiples of 1/256

    def test_of_litert_take_pixels_as_they_are(self, model, tmp_path):
        path = tmp_path / "model.tflite"
        dark = [np.full((SIZE, SIZE, 3), 40, np.uint8)]  # their range is not that of all pixels
        write_int8("litert", model, tmp_path, dark, path)
        (details,) = tf.lite.Interpreter(model_path=str(path)).get_input_details()
        assert (details["dtype"], details["quantization"]) == (np.uint8, (1.0, 0))

    @pytest.mark.parametrize("name", QUANTIZABLE)
    def test_damaged_training_image_is_named(self, model, tmp_path, name):
        float32 = write_model(name, model, tmp_path)
        with pytest.raises(DataError, match="record [01] .*decoded"):
            write_int8(name, model, float32, calibration(make_dataset(tmp_path, 2, "cut")), tmp_path / "int8")


def test_a_file_that_disagrees_on_most_images_is_rejected(model, images, tmp_path):
    path, samples = write_model("onnx", model, tmp_path), Samples("validation", images, ())
    reference = model.probabilities(tf.constant(images)).numpy()
    assert compare_int8("onnx", path, samples, reference)[1] == len(images)
    others = np.eye(len(NAMES))[(reference.argmax(1) + 1) % len(NAMES)]
    with pytest.raises(DataError, match=r"--format=onnx: .*5 of 5 images.*--quantize"):
        compare_int8("onnx", path, samples, others)


@pytest.fixture(scope="module")
def exports(finished_run, dataset, convoy, tmp_path_factory):
    """The finished run, trained on two devices, and the same on one device, exported in int8: (folders, results)."""
    folder = tmp_path_factory.mktemp("int8")
    where = (f"--data={dataset.data}", f"--workdir={folder / 'run'}", "--devices=cpu:1")
    convoy("train", *finished_run.flags, *where, check=True)
    assert result_of(folder / "run")["weights_sha256"] == result_of(finished_run.workdir)["weights_sha256"]
    runs = {"two": finished_run.workdir, "one": folder / "run"}
    results = {
        devices: convoy("export", f"--workdir={run}", *INT8, f"--output={folder / devices}", check=True)
        for devices, run in runs.items()
    }
    return folder, results


@pytest.mark.slow
class TestCommand:
    @pytest.mark.parametrize("name", QUANTIZABLE)
    def test_the_same_weights_give_the_same_file(self, exports, name):
        folder, _ = exports
        one, two = ((folder / devices / FILES[name]).read_bytes() for devices in ("one", "two"))
        assert one == two

    def test_accuracy_before_and_after_is_that_of_the_files(self, exports, dataset):
        folder, results = exports
        description = json.loads((folder / "two" / "export.json").read_text())
        split = open_dataset(dataset.data).split("validation")
        assert description["quantization"] == {"type": "int8", "calibration_split": "train", "calibration_images": 82}
        for name in QUANTIZABLE:
            entry, path = description["formats"][name], folder / "two" / FILES[name]
            (correct,) = count_correct([load(name, path)], split, Crop(32))
            assert (entry["split"], entry["images"], entry["top1"]) == ("validation", 9, correct / 9)
            assert entry["float32_bytes"] > 1000  # this model is too small for a smaller int8 file
            printed = [f"{100 * entry[key]:.1f} %" for key in ("top1", "float32_top1")]
            assert re.search(rf"^{name} .* {printed[0]} +{printed[1]} ", results["two"].stdout, re.MULTILINE)

    def test_folder_has_no_float32_files(self, exports):
        folder, _ = exports
        expected = [*(FILES[name] for name in QUANTIZABLE), "export.json", "labels.txt"]
        assert sorted(path.name for path in (folder / "two").rglob("*")) == sorted(expected)

    @pytest.mark.parametrize("name", QUANTIZABLE)
    def test_predict_takes_it(self, exports, dataset, convoy, name):
        folder, _ = exports
        output = folder / f"{name}.csv"
        flags = (f"--export={folder / 'two'}", f"--format={name}", f"--output={output}", "--devices=cpu:1")
        convoy("predict", f"--images={dataset.photos / 'test'}", *flags, check=True)
        with open(output, encoding="utf-8", newline="") as file:
            assert {row["category"] for row in csv.DictReader(file)} <= set(dataset.categories)

    def test_refusals_are_one_line_and_write_nothing(self, finished_run, convoy, tmp_path):
        flags = ("export", f"--workdir={finished_run.workdir}", f"--output={tmp_path / 'exported'}")
        for format, quantize, named in (("onnx,keras", "int8", "--format=keras"), ("onnx", "int4", "--quantize=int4")):
            result = convoy(*flags, f"--format={format}", f"--quantize={quantize}")
            assert (result.returncode, len(result.output.splitlines())) == (2, 1), result.output
            assert named in result.output
        assert not any(tmp_path.iterdir())
