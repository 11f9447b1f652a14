"""The commands `convoy export` and `convoy predict --export`, run in new processes."""

import csv
import json
import re
import shutil
import zipfile

import numpy as np
import pytest
from PIL import Image

from convoy.core.errors import DataError
from convoy.trainer.checkpoint.checkpoints import CheckpointStore
from convoy.trainer.export.loaders import FILES
from convoy.trainer.models import build_model
from convoy.trainer.session.weights import weights_file
from tests.trainer import user_models
from tests.trainer.run_files import fingerprints, result_of

pytestmark = pytest.mark.slow


def read_csv(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def probabilities_in(path, categories):
    """Returns the probabilities [images, classes] in a CSV that lists every class."""
    rows = [dict(zip(row[1::2], map(float, row[2::2]), strict=True)) for row in read_csv(path)[1:]]
    return np.array([[row[category] for category in categories] for row in rows])


def assert_refused(result, code, *names):
    """Checks exit code and a short message that contains every name."""
    assert result.returncode == code, result.output
    assert "Traceback" not in result.output
    assert 1 <= len(result.output.splitlines()) <= 2
    for name in names:
        assert name in result.output


@pytest.fixture(scope="module")
def exported(finished_run, convoy, tmp_path_factory):
    """A run exported in every format: (folder, stdout)."""
    output = tmp_path_factory.mktemp("export") / "exported"
    flags = ("--checkpoint=last", f"--format={','.join(FILES)}", f"--output={output}")
    result = convoy("export", f"--workdir={finished_run.workdir}", *flags, check=True)
    assert result.stderr == ""
    return output, result.stdout


@pytest.fixture(scope="module")
def photos(dataset, tmp_path_factory):
    """PNGs and their mirror images. The first three have the model's size, so mirroring is exact."""
    folder = tmp_path_factory.mktemp("photos")
    files = sorted((dataset.photos / "test").rglob("*.jpg"))[::40]
    for k, size in enumerate([(32, 32), (32, 32), (32, 32), (20, 45), (47, 64), (9, 7)]):
        image = Image.open(files[k]).resize(size)
        for name, picture in (("asis", image), ("mirrored", image.transpose(Image.Transpose.FLIP_LEFT_RIGHT))):
            (folder / name).mkdir(exist_ok=True)
            picture.save(folder / name / f"{k}.png")
    return folder


@pytest.fixture(scope="module")
def results(exported, finished_run, photos, dataset, convoy, tmp_path_factory):
    """Valid and refused commands: ({name: result}, the CSVs' folder)."""
    output, _ = exported
    folder = tmp_path_factory.mktemp("predictions")
    run = f"--workdir={finished_run.workdir}"
    for kind in ("cut", "flipped", "json", "gone", "fields", "flip_tta"):
        shutil.copytree(output, folder / kind)
    onnx = (folder / "cut" / "model.onnx").read_bytes()
    middle = len(onnx) // 2
    (folder / "cut" / "model.onnx").write_bytes(onnx[:-100])
    (folder / "flipped" / "model.onnx").write_bytes(onnx[:middle] + bytes([onnx[middle] ^ 1]) + onnx[middle + 1 :])
    (folder / "json" / "export.json").write_text("{")
    (folder / "fields" / "export.json").write_text('{"format_version": 1, "formats": {"onnx": 3}}')
    (folder / "gone" / "model.onnx").unlink()
    description = folder / "flip_tta" / "export.json"
    description.write_text(description.read_text().replace('"flip_tta": false', '"flip_tta": true'))

    def predict(name, *flags, images=photos / "asis"):
        everything = (f"--top_k={len(dataset.categories)}", "--probabilities")
        return ["predict", f"--images={images}", f"--output={folder / name}.csv", *everything, *flags]

    commands = {
        "run": predict("run", run, "--checkpoint=last"),
        "run, mirrored": predict("run_mirrored", run, "--checkpoint=last", images=photos / "mirrored"),
        "run, tta": predict("run_tta", run, "--checkpoint=last", "--flip_tta"),
        "export": predict("export", f"--export={output}"),
        "export, tta": predict("export_tta", f"--export={output}", "--flip_tta"),
        "export of flip_tta": predict("export_of_flip_tta", f"--export={folder / 'flip_tta'}"),
        "export of flip_tta, noflip_tta": predict("export_notta", f"--export={folder / 'flip_tta'}", "--noflip_tta"),
        **{name: predict(name, f"--export={output}", f"--format={name}") for name in FILES},
        "both": predict("both", run, f"--export={output}"),
        "neither": predict("neither"),
        "checkpoint": predict("checkpoint", f"--export={output}", "--checkpoint=last"),
        "format of a run": predict("format", run, "--format=onnx"),
        "no such format": predict("tflite", f"--export={output}", "--format=onx"),
        **{kind: predict(kind, f"--export={folder / kind}", "--format=onnx") for kind in ("cut", "flipped", "gone")},
        "json": predict("json", f"--export={folder / 'json'}"),
        "fields": predict("fields", f"--export={folder / 'fields'}"),
        "no export": predict("none", f"--export={finished_run.workdir}"),
        "export to no export": ["export", run, "--format=onnx", f"--output={photos}"],
        "export nothing known": ["export", run, "--format=onnx,tflite", f"--output={folder / 'x'}"],
        "export no data": ["export", run, "--format=onnx", f"--output={folder / 'x'}", f"--data={folder}"],
        "export no checkpoint": ["export", run, "--format=onnx", f"--output={folder / 'x'}", "--checkpoint=7"],
    }
    on_cpu = ([*command, *["--devices=cpu:1"] * (command[0] == "predict")] for command in commands.values())
    return {name: convoy(*command) for name, command in zip(commands, on_cpu, strict=True)}, folder


class TestExport:
    @pytest.mark.parametrize("num_classes", [7, 5])
    @pytest.mark.parametrize("file_format", ["keras", "saved_model"])
    def test_file_is_a_start_for_the_next_training(self, exported, finished_run, file_format, num_classes):
        folder, _ = exported
        name = f"{user_models.__file__}:normalized"
        built = build_model(name, num_classes=num_classes, image_size=32, weights=str(folder / FILES[file_format]))
        values, _ = CheckpointStore(finished_run.workdir / "checkpoints").load(40)
        for variable in built.model.weights:
            expected = values.get(f"average/{variable.path}", values[f"model/{variable.path}"])
            if num_classes == 7 or expected.shape[-1:] != (7,):  # all but the head
                assert np.array_equal(variable, expected), variable.path

    def test_folder_stands_for_a_file_that_has_weights(self, exported):
        folder, _ = exported
        assert weights_file(str(folder)) == str(folder / FILES["keras"])
        assert weights_file(str(folder / FILES["saved_model"])) == str(folder / FILES["saved_model"])
        with pytest.raises(DataError, match="SavedModel"):
            build_model("convnet", num_classes=7, image_size=32, weights=str(folder / FILES["onnx"]))

    def test_prints_size_and_difference_of_each_format(self, exported):
        output, stdout = exported
        for name, file in FILES.items():
            (size, difference) = re.search(
                rf"^{name} +{file} +([\d.]+) +(\d\.\de-\d\d)$", stdout, re.MULTILINE
            ).groups()
            files = [path for path in [output / file, *(output / file).rglob("*")] if path.is_file()]
            assert float(size) == pytest.approx(sum(path.stat().st_size for path in files) / 1e6, abs=0.051)
            assert float(difference) < 1e-5
        assert "step 40" in stdout
        assert "9 images of split 'validation'" in stdout

    def test_folder_has_no_other_files(self, exported):
        output, _ = exported
        assert sorted(path.name for path in output.iterdir()) == sorted([*FILES.values(), "labels.txt", "export.json"])
        assert [path.name for path in output.parent.iterdir()] == ["exported"]

    def test_export_json_describes_the_run(self, exported, finished_run, dataset):
        output, _ = exported
        description = json.loads((output / "export.json").read_text())
        assert description["run"] == str(finished_run.workdir)
        assert description["step"] == 40
        assert description["weights_sha256"] == result_of(finished_run.workdir)["weights_sha256"]
        assert description["weights"] == "moving average"
        assert description["image_size"] == 32
        assert description["flip_tta"] is False
        assert description["class_names"] == list(dataset.categories)
        assert {"convoy", "tensorflow", "keras", "tf2onnx"} <= description["versions"].keys()
        assert description["comparison"]["images"] == 9
        assert set(description["formats"]) == set(FILES)

    def test_every_format_includes_the_class_names(self, exported, dataset):
        import onnx

        output, _ = exported
        expected = list(dataset.categories)
        assert (output / "labels.txt").read_text().splitlines() == expected
        assert (output / "saved_model" / "assets" / "labels.txt").read_text().splitlines() == expected
        for file in ("model.keras", "model.tflite"):
            with zipfile.ZipFile(output / file) as archive:
                assert archive.read("labels.txt").decode().splitlines() == expected
        metadata = {entry.key: entry.value for entry in onnx.load(output / "model.onnx").metadata_props}
        assert json.loads(metadata["class_names"]) == expected

    def test_saved_model_serves_encoded_images_of_any_size(self, exported, results, photos, dataset):
        import tensorflow as tf

        output, _ = exported
        _, folder = results
        rows = read_csv(folder / "run.csv")[1:]
        model = tf.saved_model.load(str(output / "saved_model"))
        encoded = tf.constant([(photos / "asis" / row[0]).read_bytes() for row in rows])
        served = model.signatures["serving_default"](image_bytes=encoded)
        expected = probabilities_in(folder / "run.csv", dataset.categories)
        np.testing.assert_allclose(served["probabilities"], expected, atol=2e-6)
        assert [category.decode() for category in served["category"].numpy()] == [row[1] for row in rows]

    def test_refusals_name_the_flag_and_write_nothing(self, results, photos):
        by_name, folder = results
        assert_refused(by_name["export to no export"], 2, f"--output={photos}:")
        assert sorted(path.name for path in photos.iterdir()) == ["asis", "mirrored"]
        assert_refused(by_name["export nothing known"], 2, "--format=tflite:", "did you mean 'litert'?")
        assert_refused(by_name["export no data"], 3, "is not a dataset")
        assert_refused(by_name["export no checkpoint"], 2, "--checkpoint=7:", "best, last", "40")
        assert not list(folder.glob("x*"))


class TestPredict:
    @pytest.mark.parametrize("name", ["export", *FILES])
    def test_export_predicts_like_the_run(self, results, dataset, name):
        by_name, folder = results
        assert by_name[name].returncode == 0, by_name[name].output
        assert "6 images" in by_name[name].output and "step 40" in by_name[name].output
        found, expected = read_csv(folder / f"{name}.csv"), read_csv(folder / "run.csv")
        assert [row[:2] for row in found] == [row[:2] for row in expected]
        tables = (probabilities_in(folder / f"{file}.csv", dataset.categories) for file in (name, "run"))
        np.testing.assert_allclose(*tables, atol=2e-6)

    @pytest.mark.parametrize("name", ["run", "export"])
    def test_flip_tta_averages_an_image_and_its_mirror_image(self, results, dataset, name):
        by_name, folder = results
        assert by_name[f"{name}, tta"].returncode == 0, by_name[f"{name}, tta"].output
        files = ("run", "run_mirrored", f"{name}_tta")
        asis, mirrored, both = (probabilities_in(folder / f"{file}.csv", dataset.categories)[:3] for file in files)
        np.testing.assert_allclose(both, (asis + mirrored) / 2, atol=2e-6)
        assert np.abs(asis - mirrored).max() > 1e-4

    def test_export_uses_flip_tta_if_its_run_does(self, results):
        _, folder = results
        assert read_csv(folder / "export_of_flip_tta.csv") == read_csv(folder / "export_tta.csv")
        assert read_csv(folder / "export_notta.csv") == read_csv(folder / "export.csv")

    def test_conflicting_flags_are_named(self, results):
        by_name, _ = results
        assert_refused(by_name["both"], 2, "--workdir", "--export")
        assert_refused(by_name["neither"], 2, "--workdir", "--export")
        assert_refused(by_name["checkpoint"], 2, "--checkpoint", "--export")
        assert_refused(by_name["format of a run"], 2, "--format", "--workdir")
        assert_refused(by_name["no such format"], 2, "--format=onx:", "did you mean 'onnx'?")

    def test_damaged_exports_name_the_file(self, results, finished_run):
        by_name, folder = results
        for kind in ("cut", "flipped"):
            assert_refused(by_name[kind], 3, f"{folder / kind / 'model.onnx'}:", "SHA-256")
        assert_refused(by_name["gone"], 3, f"{folder / 'gone' / 'model.onnx'}:")
        assert_refused(by_name["json"], 3, f"{folder / 'json' / 'export.json'}:")
        assert_refused(by_name["fields"], 3, "export.json: damaged")
        assert_refused(by_name["no export"], 3, f"--export={finished_run.workdir}:", "export.json")


@pytest.fixture(scope="module")
def custom_layer_exports(dataset, convoy, tmp_path_factory):
    """A bfloat16 run of a model with a custom layer, exported to ONNX, then Keras, then both: (folder, results)."""
    folder = tmp_path_factory.mktemp("own")
    run = f"--workdir={folder / 'run'}"
    model = "--config.model.name=tests/trainer/user_models.py:with_own_layer"
    config = ("--config=smoke", "--config.steps=4", "--config.precision=bfloat16", model, "--devices=cpu:1")
    convoy("train", *config, f"--data={dataset.data}", run, check=True)
    output = f"--output={folder / 'exported'}"
    first, alone = (convoy("export", run, f"--format={name}", output) for name in ("onnx", "keras"))
    both = convoy("export", run, "--format=keras,litert", f"--output={folder / 'both'}")
    return folder, first, alone, both


def test_bfloat16_run_is_exported_in_float32_and_the_difference_reported(custom_layer_exports):
    folder, completed, *_ = custom_layer_exports
    assert completed.returncode == 0, completed.output
    comparison = json.loads((folder / "exported" / "export.json").read_text())["comparison"]
    assert comparison["precision_of_run"] == "bfloat16"
    assert 1e-5 < comparison["largest_difference_to_precision_of_run"] < 0.1
    assert "computes in bfloat16" in completed.output


def test_format_that_needs_custom_code_is_refused_and_the_earlier_export_kept(custom_layer_exports):
    folder, _, completed, _ = custom_layer_exports
    assert_refused(completed, 3, "--format=keras:", "Halved 'halved'")
    assert set(fingerprints(folder / "exported")) == {"model.onnx", "labels.txt", "export.json"}
    assert sorted(path.name for path in folder.iterdir()) == ["both", "exported", "run"]


def test_the_other_formats_are_written(custom_layer_exports):
    folder, *_, completed = custom_layer_exports
    assert completed.returncode == 3
    assert len(completed.stderr.splitlines()) == 1 and "--format=keras:" in completed.stderr
    assert set(fingerprints(folder / "both")) == {"model.tflite", "labels.txt", "export.json"}
    assert set(json.loads((folder / "both" / "export.json").read_text())["formats"]) == {"litert"}
