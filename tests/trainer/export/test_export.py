"""From a run to files that other programs load, and predictions from these: whole commands, new processes."""

import csv
import json
import re
import shutil
import zipfile

import numpy as np
import pytest
from PIL import Image

from convoy.trainer.export.loaders import FILES
from tests.trainer.run_files import fingerprints, result_of

pytestmark = pytest.mark.slow


def read_csv(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def probabilities_in(path, categories):
    """Returns [images, classes] of a CSV with every category's."""
    rows = [dict(zip(row[1::2], map(float, row[2::2]), strict=True)) for row in read_csv(path)[1:]]
    return np.array([[row[category] for category in categories] for row in rows])


def refused(answer, code, told):
    assert answer.returncode == code, answer.output
    assert "Traceback" not in answer.output
    assert 1 <= len(answer.output.splitlines()) <= 2
    assert told in answer.output


@pytest.fixture(scope="module")
def exported(finished_run, convoy, tmp_path_factory):
    """A run in every format: (the folder, what was said)."""
    output = tmp_path_factory.mktemp("export") / "exported"
    flags = ("--checkpoint=last", f"--format={','.join(FILES)}", f"--output={output}")
    result = convoy("export", f"--workdir={finished_run.workdir}", *flags, check=True)
    assert result.stderr == ""
    return output, result.stdout


@pytest.fixture(scope="module")
def photos(dataset, tmp_path_factory):
    """PNGs as drawn, and mirrored beside; the first three have the model's size, so that mirroring is exact."""
    folder = tmp_path_factory.mktemp("photos")
    files = sorted((dataset.photos / "test").rglob("*.jpg"))[::40]
    for k, size in enumerate([(32, 32), (32, 32), (32, 32), (20, 45), (47, 64), (9, 7)]):
        image = Image.open(files[k]).resize(size)
        for name, shown in (("asis", image), ("mirrored", image.transpose(Image.Transpose.FLIP_LEFT_RIGHT))):
            (folder / name).mkdir(exist_ok=True)
            shown.save(folder / name / f"{k}.png")
    return folder


@pytest.fixture(scope="module")
def asked(exported, finished_run, photos, dataset, convoy_together, tmp_path_factory):
    """Predictions from the run and its export, and refusals, in one process: ({name: answer}, the CSVs' folder)."""
    output, _ = exported
    folder = tmp_path_factory.mktemp("predictions")
    run = f"--workdir={finished_run.workdir}"
    for kind in ("cut", "flipped", "json", "gone", "fields", "flip_tta"):
        shutil.copytree(output, folder / kind)
    onnx = (folder / "cut" / "model.onnx").read_bytes()
    (folder / "cut" / "model.onnx").write_bytes(onnx[:-100])
    (folder / "flipped" / "model.onnx").write_bytes(onnx[:5000] + bytes([onnx[5000] ^ 1]) + onnx[5001:])
    (folder / "json" / "export.json").write_text("{")
    (folder / "fields" / "export.json").write_text('{"format_version": 1, "formats": {"onnx": 3}}')
    (folder / "gone" / "model.onnx").unlink()
    of_run_with_flips = folder / "flip_tta" / "export.json"
    of_run_with_flips.write_text(of_run_with_flips.read_text().replace('"flip_tta": false', '"flip_tta": true'))

    def predict(name, *flags, images=photos / "asis"):
        everything = (f"--top_k={len(dataset.categories)}", "--probabilities")
        return ["predict", f"--images={images}", f"--output={folder / name}.csv", *everything, *flags]

    questions = {
        "run": predict("run", run, "--checkpoint=last"),
        "run, mirrored": predict("run_mirrored", run, "--checkpoint=last", images=photos / "mirrored"),
        "run, tta": predict("run_tta", run, "--checkpoint=last", "--flip_tta"),
        "export": predict("export", f"--export={output}"),
        "export, tta": predict("export_tta", f"--export={output}", "--flip_tta"),
        "export, eval_flip": predict("export_eval_flip", f"--export={folder / 'flip_tta'}"),
        "export, eval_flip, notta": predict("export_notta", f"--export={folder / 'flip_tta'}", "--noflip_tta"),
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
    commands = ([*question, *["--devices=cpu:1"] * (question[0] == "predict")] for question in questions.values())
    return dict(zip(questions, convoy_together(*commands, timeout=600), strict=True)), folder


class TestExport:
    def test_says_what_was_written_and_compared(self, exported):
        output, said = exported
        for name, file in FILES.items():
            (size, difference) = re.search(rf"^{name} +{file} +([\d.]+) +(\d\.\de-\d\d)$", said, re.MULTILINE).groups()
            assert float(size) > 4  # MB, of 1.2 million weights
            assert float(difference) < 1e-5
        assert "the weights of step 40, reloaded in new processes and compared with a float32" in said
        assert "evaluation of 9 images of split 'validation'" in said

    def test_nothing_else_is_in_the_folder(self, exported):
        output, _ = exported
        assert sorted(path.name for path in output.iterdir()) == sorted([*FILES.values(), "labels.txt", "export.json"])
        assert [path.name for path in output.parent.iterdir()] == ["exported"]

    def test_it_says_where_it_is_from(self, exported, finished_run, dataset):
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

    def test_every_format_holds_the_label_names(self, exported, dataset):
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

    def test_a_saved_model_serves_encoded_images_of_any_size(self, exported, asked, photos, dataset):
        import tensorflow as tf

        output, _ = exported
        _, folder = asked
        rows = read_csv(folder / "run.csv")[1:]
        model = tf.saved_model.load(str(output / "saved_model"))
        encoded = tf.constant([(photos / "asis" / row[0]).read_bytes() for row in rows])
        answer = model.signatures["serving_default"](image_bytes=encoded)
        expected = probabilities_in(folder / "run.csv", dataset.categories)
        np.testing.assert_allclose(answer["probabilities"], expected, atol=2e-6)
        assert [category.decode() for category in answer["category"].numpy()] == [row[1] for row in rows]

    def test_what_cannot_be_exported_is_named_and_nothing_is_written(self, asked, photos):
        answers, folder = asked
        refused(answers["export to no export"], 2, f"--output={photos} is there and is no export")
        assert sorted(path.name for path in photos.iterdir()) == ["asis", "mirrored"]
        refused(answers["export nothing known"], 2, "--format=tflite (did you mean 'litert'?): give one or more of")
        refused(answers["export no data"], 3, "is not a dataset")
        refused(answers["export no checkpoint"], 2, "--checkpoint=7: give best, last or one of the steps")
        assert not list(folder.glob("x*"))


class TestPredict:
    @pytest.mark.parametrize("name", ["export", *FILES])
    def test_an_export_predicts_what_the_run_predicts(self, asked, dataset, name):
        answers, folder = asked
        assert answers[name].returncode == 0, answers[name].output
        assert "6 images, with the weights of step 40" in answers[name].output
        found, expected = read_csv(folder / f"{name}.csv"), read_csv(folder / "run.csv")
        assert [row[:2] for row in found] == [row[:2] for row in expected]
        tables = (probabilities_in(folder / f"{file}.csv", dataset.categories) for file in (name, "run"))
        np.testing.assert_allclose(*tables, atol=2e-6)

    @pytest.mark.parametrize("name", ["run", "export"])
    def test_tta_is_the_mean_over_an_image_and_its_mirror_image(self, asked, dataset, name):
        answers, folder = asked
        assert answers[f"{name}, tta"].returncode == 0, answers[f"{name}, tta"].output
        files = ("run", "run_mirrored", f"{name}_tta")
        asis, mirrored, both = (probabilities_in(folder / f"{file}.csv", dataset.categories)[:3] for file in files)
        np.testing.assert_allclose(both, (asis + mirrored) / 2, atol=2e-6)
        assert np.abs(asis - mirrored).max() > 1e-4

    def test_an_export_takes_mirror_images_too_where_its_run_does(self, asked):
        _, folder = asked
        assert read_csv(folder / "export_eval_flip.csv") == read_csv(folder / "export_tta.csv")
        assert read_csv(folder / "export_notta.csv") == read_csv(folder / "export.csv")

    def test_flags_that_do_not_go_together_are_named(self, asked):
        answers, _ = asked
        refused(answers["both"], 2, "Give --workdir=RUN, or --export=DIR of `convoy export`: one of the two.")
        refused(answers["neither"], 2, "Give --workdir=RUN, or --export=DIR of `convoy export`: one of the two.")
        refused(answers["checkpoint"], 2, "--checkpoint does not go with --export")
        refused(answers["format of a run"], 2, "--format does not go with --workdir")
        refused(answers["no such format"], 2, "has no such format (did you mean 'onnx'?)")

    def test_damaged_exports_are_named(self, asked, finished_run):
        answers, folder = asked
        for kind in ("cut", "flipped"):
            refused(answers[kind], 3, f"{folder / kind / 'model.onnx'} is not as it was exported")
        refused(answers["gone"], 3, f"{folder / 'gone' / 'model.onnx'} is missing. Export again.")
        refused(answers["json"], 3, f"{folder / 'json' / 'export.json'} cannot be read")
        refused(answers["fields"], 3, "export.json is damaged")
        refused(answers["no export"], 3, f"--export={finished_run.workdir}: it has no export.json")


@pytest.fixture(scope="module")
def of_ones_own(dataset, convoy_together, tmp_path_factory):
    """A bfloat16 run of a model with a layer of its user's own, exported twice: (the folder, the two answers)."""
    folder = tmp_path_factory.mktemp("own")
    run = f"--workdir={folder / 'run'}"
    model = "--config.model.name=tests/trainer/user_models.py:with_own_layer"
    config = ("--config=smoke", "--config.steps=4", "--config.precision=bfloat16", model, "--devices=cpu:1")
    trained, *answers = convoy_together(
        ["train", *config, f"--data={dataset.data}", run],
        ["export", run, "--format=onnx", f"--output={folder / 'exported'}"],
        ["export", run, "--format=keras", f"--output={folder / 'exported'}"],
    )
    assert trained.returncode == 0, trained.output
    return folder, *answers


def test_a_bfloat16_run_is_exported_in_float32_and_the_difference_told(of_ones_own):
    folder, answer, _ = of_ones_own
    assert answer.returncode == 0, answer.output
    comparison = json.loads((folder / "exported" / "export.json").read_text())["comparison"]
    assert comparison["precision_of_run"] == "bfloat16"
    assert 1e-5 < comparison["largest_difference_to_precision_of_run"] < 0.1
    assert "The run computes in bfloat16: `convoy evaluate` differs from float32 by up to 0.0" in answer.output


def test_a_format_that_needs_the_users_own_code_is_refused_and_the_export_before_stays(of_ones_own):
    folder, _, answer = of_ones_own
    refused(answer, 3, "--format=keras: a new process cannot load and apply it: ")
    assert set(fingerprints(folder / "exported")) == {"model.onnx", "labels.txt", "export.json"}
    assert sorted(path.name for path in folder.iterdir()) == ["exported", "run"]
