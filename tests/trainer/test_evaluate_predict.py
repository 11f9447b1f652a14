"""`convoy evaluate` and `convoy predict` on a trained run: exact metrics, and CSVs in the requested order."""

import csv
import json
import os
import random
import shutil

import numpy as np
import pytest
from PIL import Image

from convoy.trainer.checkpoint.checkpoints import CheckpointStore

pytestmark = pytest.mark.slow

TOP = 7

# The run's weights in a plain Keras call: no reader, no strategy, no compiled step.
_PLAIN_PROBABILITIES = """
import sys
import numpy as np
import tensorflow as tf
from convoy.trainer.models import build_model
from tests.trainer import user_models
checkpoint, temperature, output, *files = sys.argv[1:]
values = np.load(checkpoint)
model = build_model(f"{user_models.__file__}:normalized", num_classes=7, image_size=32).model
for variable in model.variables:
    for name in (f"average/{variable.path}", f"model/{variable.path}"):
        if name in values:
            variable.assign(values[name])
            break
images = np.stack([tf.io.decode_jpeg(tf.io.read_file(file)).numpy() for file in files])
logits = model(images.astype("float32") / 255, training=False)
np.save(output, tf.nn.softmax(logits / float(temperature)).numpy())
"""


def read_csv(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def write_csv(path, rows):
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


def quality(probabilities, labels):
    """Returns loss, top-1, top-5 and macro F1 from their definitions."""
    of_label = probabilities[np.arange(len(labels)), labels]
    predicted = probabilities.argmax(1)
    f1 = []
    for label in range(probabilities.shape[1]):
        hits = np.sum((predicted == label) & (labels == label))
        occurrences = np.sum(predicted == label) + np.sum(labels == label)
        f1 += [2 * hits / occurrences] if occurrences else []
    return {
        "loss": -np.log(of_label).mean(),
        "top1": np.mean(predicted == labels),
        "top5": np.mean((probabilities > of_label[:, np.newaxis]).sum(1) < 5),
        "macro_f1": np.mean(f1),
    }


def draw_odd_images(folder):
    """Draws images that decoders and viewers may show differently, and what a viewer shows as a plain PNG."""
    rng = np.random.default_rng(0)
    smooth = Image.fromarray(rng.integers(0, 255, (5, 4, 3), np.uint8)).resize((40, 52), Image.Resampling.BICUBIC)
    for category in ("odd", "plain"):
        (folder / category / "deep" / "er").mkdir(parents=True)
    odd, plain = (folder / name / "deep" / "er" for name in ("odd", "plain"))
    gray = smooth.convert("L")
    gray.save(odd / "gray.png")
    gray.convert("RGB").save(plain / "gray.png")
    alpha = Image.linear_gradient("L").resize(smooth.size)
    transparent = smooth.copy()
    transparent.putalpha(alpha)
    transparent.save(odd / "transparent.png")
    white = Image.new("RGBA", smooth.size, "white")
    Image.alpha_composite(white, transparent).convert("RGB").save(plain / "transparent.png")
    smooth.quantize(256).save(odd / "palette.png")
    smooth.quantize(256).convert("RGB").save(plain / "palette.png")
    turned = Image.Exif()
    turned[0x0112] = 6  # viewers rotate the image by 90 degrees clockwise
    smooth.save(odd / "turned.png", exif=turned)
    smooth.transpose(Image.Transpose.ROTATE_270).save(plain / "turned.png")
    smooth.save(odd / "bitmap.bmp")
    smooth.save(plain / "bitmap.png")
    smooth.save(odd / "photo.jpg", exif=turned, quality=98, subsampling=0)
    smooth.transpose(Image.Transpose.ROTATE_270).save(plain / "photo.png")
    return folder


@pytest.fixture(scope="module")
def run(finished_run, tmp_path_factory):
    """A copy of the finished run whose best checkpoint is not its last."""
    workdir = shutil.copytree(finished_run.workdir, tmp_path_factory.mktemp("trained") / "run")
    store = CheckpointStore(workdir / "checkpoints")
    values, metadata = store.load(36)
    later = [store.load(step) for step in store.steps() if step > 36]
    store.save(values, step=36, metadata=metadata, score=1.0)
    for values, metadata in later:
        store.save(values, step=metadata["step"], metadata=metadata, score=metadata["score"])
    return workdir


@pytest.fixture(scope="module")
def answered(run, dataset, dataset_without_validation, convoy, tmp_path_factory):
    """Results of many commands on one device: ({name: result}, folder of the CSVs, test rows)."""
    folder = tmp_path_factory.mktemp("predictions")
    photos = dataset.photos / "test"
    rows = dataset.rows("test")
    shuffled = random.Random(0).sample(rows, len(rows))
    write_csv(folder / "manifest.csv", [("note", "filename"), *(("x", name) for name, _ in shuffled)])
    some = [name for name, _ in shuffled[:5]]
    write_csv(folder / "like.csv", [("image id", "label", "unused"), *((name, "", "") for name in some)])
    ids = [name.rpartition(".")[0] for name in some]
    columns = list(reversed(dataset.categories))
    write_csv(
        folder / "sample_per_class.csv", [("id", *columns), *((f"test/{image}", *["0.5"] * TOP) for image in ids)]
    )
    write_csv(folder / "sample_too_few.csv", [("id", *columns[1:]), *((image, *["0"] * (TOP - 1)) for image in ids)])
    write_csv(folder / "sample_name_last.csv", [("label", "id"), *(("03", image) for image in ids)])
    write_csv(
        folder / "sample_several.csv",
        [("id", "labels"), *((image, "03 3 -1" if k else "03 3") for k, image in enumerate(ids))],
    )
    files = [next(photos.rglob(name)) for name in some[:2]]
    write_csv(folder / "some.csv", [("filename",), *((name,) for name in reversed(some))])
    write_csv(folder / "missing.csv", [("filename",), (some[0],), ("no_such_image.jpg",)])
    write_csv(folder / "header.csv", [("file", "category"), (some[0], "")])
    broken = folder / "broken"
    shutil.copytree(photos, broken / "garbage")
    (sorted((broken / "garbage").rglob("*.jpg"))[3]).write_bytes(b"no image at all")
    shutil.copytree(photos, broken / "cut")
    cut = sorted((broken / "cut").rglob("*.jpg"))[5]
    cut.write_bytes(cut.read_bytes()[:-40])  # it opens as an image, but its last rows are missing
    odd = draw_odd_images(folder / "images")

    def predict(name, images=photos, **flags):
        given = [f"--{flag}={value}" for flag, value in flags.items()]
        return ["predict", f"--images={images}", f"--output={folder / name}.csv", *given]

    commands = {
        "best": ["evaluate", "--split=test"],
        "last": ["evaluate", "--split=test", "--checkpoint=last"],
        "mirrored": ["evaluate", "--split=test", "--checkpoint=36", "--flip_tta"],
        "step": ["evaluate", "--split=validation", "--checkpoint=36", f"--json={folder / 'quality.json'}"],
        "no json": ["evaluate", "--split=validation", f"--json={folder}"],
        "validation": ["evaluate", "--split=validation", "--checkpoint=40"],
        "no checkpoint": ["evaluate", "--split=test", "--checkpoint=37"],
        "no split": ["evaluate", "--split=tset"],
        "other classes": ["evaluate", "--split=train", f"--data={dataset_without_validation}"],
        "all": predict("all", manifest=folder / "manifest.csv", checkpoint="last", top_k=TOP, probabilities="true"),
        "by name": predict("by name", checkpoint="last"),
        "top": predict("top", checkpoint="last", top_k=3),
        "mirrored names": predict("mirrored", checkpoint=36, top_k=TOP, probabilities="true", tta="true"),
        "like": predict("liked", checkpoint="last", like=folder / "like.csv"),
        "like and probabilities": predict("liked2", like=folder / "like.csv", probabilities="true"),
        "column per class": predict("per_class", checkpoint="last", like=folder / "sample_per_class.csv"),
        "too few columns": predict("too_few", like=folder / "sample_too_few.csv"),
        "name last": predict("name_last", checkpoint="last", like=folder / "sample_name_last.csv"),
        "several": predict("several", checkpoint="last", like=folder / "sample_several.csv"),
        "skipped": predict("skipped", images=broken / "cut", on_corrupt="skip", corrupt_label="?", checkpoint="last"),
        "files": ["predict", f"--images={files[0]},{files[1]}", "--checkpoint=last"],
        "too large": ["predict", f"--images={files[0]}", "--max_megapixels=0.001"],
        "files and like": ["predict", f"--images={files[0]}", f"--like={folder / 'like.csv'}"],
        "like and manifest": predict("both", like=folder / "like.csv", manifest=folder / "some.csv"),
        "like and another manifest": predict("differ", like=folder / "like.csv", manifest=folder / "manifest.csv"),
        "missing": predict("missing_out", manifest=folder / "missing.csv"),
        "header": predict("header_out", manifest=folder / "header.csv"),
        "garbage": predict("garbage", images=broken / "garbage"),
        "cut": predict("cut", images=broken / "cut"),
        "no images": predict("none", images=folder / "predictions"),
        "too many": predict("many", top_k=8),
        "no folder": predict("no/folder"),
        "odd": predict("odd", images=odd, top_k=TOP, probabilities="true"),
    }
    # The last --workdir counts.
    commands["no run"] = ["evaluate", "--split=test", f"--workdir={folder}"]
    commands["absent run"] = ["evaluate", "--split=test", f"--workdir={folder / 'absent'}"]
    where = (f"--workdir={run}", "--devices=cpu:1")
    return {name: convoy(command, *where, *flags) for name, (command, *flags) in commands.items()}, folder, shuffled


@pytest.fixture(scope="module")
def answered_on_two_devices(run, dataset, answered, convoy, tmp_path_factory):
    """The evaluation of the test split on two devices, and the CSV of its predictions."""
    _, folder, _ = answered
    output = tmp_path_factory.mktemp("two") / "all.csv"
    common = [f"--workdir={run}", "--devices=cpu:2", "--checkpoint=last"]
    images = (f"--images={dataset.photos / 'test'}", f"--manifest={folder / 'manifest.csv'}")
    convoy("predict", *images, f"--output={output}", f"--top_k={TOP}", "--probabilities", *common, check=True)
    return convoy("evaluate", "--split=test", *common), output


@pytest.fixture(scope="module")
def plain_quality(run, dataset, python, tmp_path_factory):
    """Metrics of the last checkpoint on the test images, from the plain computation."""
    output = tmp_path_factory.mktemp("plain") / "probabilities.npy"
    rows = dataset.rows("test")
    files = [next((dataset.photos / "test").rglob(name)) for name, _ in rows]
    last = CheckpointStore(run / "checkpoints")
    temperature = last.load(40)[1]["reported"]["temperature"]
    result = python("-c", _PLAIN_PROBABILITIES, last.path(40), temperature, output, *files)
    assert result.returncode == 0, result.stderr
    return quality(np.load(output), np.array([dataset.categories.index(category) for _, category in rows]))


def probabilities_of(path, categories):
    """Returns names and [images, classes] probabilities of a CSV with those of all categories."""
    _, *rows = read_csv(path)
    values = np.zeros((len(rows), len(categories)))
    for values_of_image, (_, *pairs) in zip(values, rows, strict=True):
        for category, probability in zip(pairs[::2], pairs[1::2], strict=True):
            values_of_image[categories.index(category)] = float(probability)
    return [name for name, *_ in rows], values


def rejected(answer, code):
    assert answer.returncode == code, answer.output
    assert "Traceback" not in answer.output
    lines = [line for line in answer.output.splitlines() if not line.startswith("E0000 ")]  # of TensorFlow's decoder
    assert 1 <= len(lines) <= 2
    return answer.output


def results(run):
    with open(run / "results.csv", newline="") as file:
        return list(csv.DictReader(file))


class TestEvaluate:
    def test_metrics_equal_those_of_a_plain_computation(self, run, answered, answered_on_two_devices, plain_quality):
        rows = [row for row in results(run) if (row["split"], row["step"]) == ("test", "40")]
        assert len(rows) == 2  # on one device and on two
        for row in rows:
            for name, value in plain_quality.items():
                assert float(row[name]) == pytest.approx(value, abs=2e-6), name

    def test_output_has_number_of_images_and_step(self, answered, answered_on_two_devices):
        answers, _, _ = answered
        for answer in (answers["last"], answered_on_two_devices[0]):
            assert answer.returncode == 0, answer.output
            assert "259 images" in answer.output and "step 40" in answer.output
            assert "test: loss " in answer.output

    def test_best_checkpoint_is_the_default(self, run, answered):
        answers, _, _ = answered
        assert "259 images" in answers["best"].output and "step 36" in answers["best"].output
        assert "9 images" in answers["step"].output and "step 36" in answers["step"].output
        by_step = {row["step"]: row["loss"] for row in results(run) if row["split"] == "test"}
        assert by_step["36"] != by_step["40"]

    def test_metrics_are_written_as_json(self, run, answered):
        answers, folder, _ = answered
        written = json.loads((folder / "quality.json").read_text())
        assert (written["split"], written["step"], written["images"], written["flip_tta"]) == (
            "validation",
            36,
            9,
            False,
        )
        rows = [row for row in results(run) if (row["split"], row["step"]) == ("validation", "36")]
        for name in ("loss", "top1", "top5", "macro_f1", "ece"):
            assert float(rows[-1][name]) == pytest.approx(written[name], abs=1e-6)
        assert f"--json={folder}" in rejected(answers["no json"], 2)

    def test_evaluation_during_training_equals_evaluate(self, run, answered):
        answers, _, _ = answered
        assert "9 images" in answers["validation"].output and "step 40" in answers["validation"].output
        in_training, afterwards = (row for row in results(run) if (row["split"], row["step"]) == ("validation", "40"))
        for name in ("top1", "top5", "macro_f1"):
            assert float(in_training[name]) == pytest.approx(float(afterwards[name]), abs=2e-6)
        # The temperature is fitted to these images.
        assert float(afterwards["loss"]) < float(in_training["loss"])
        evaluation = json.loads((run / "evaluation_validation.json").read_text())
        assert float(in_training["ece"]) == pytest.approx(evaluation["ece_before"], abs=2e-6)
        assert float(afterwards["ece"]) == pytest.approx(evaluation["ece_after"], abs=2e-6)

    def test_flip_tta_averages_each_image_and_its_mirror_image(self, run, answered, dataset):
        answers, folder, _ = answered
        assert "flip" in answers["mirrored"].output and "step 36" in answers["mirrored"].output
        names, probabilities = probabilities_of(folder / "mirrored.csv", dataset.categories)
        category_of = dict(dataset.rows("test"))
        labels = np.array([dataset.categories.index(category_of[name.split("/")[-1]]) for name in names])
        plain, mirrored = (row for row in results(run) if (row["split"], row["step"]) == ("test", "36"))
        assert plain["loss"] != mirrored["loss"]
        for name, value in quality(probabilities, labels).items():
            assert float(mirrored[name]) == pytest.approx(value, abs=1e-5), name

    def test_invalid_evaluation_is_named(self, answered):
        answers, _, _ = answered
        assert "--checkpoint=37" in rejected(answers["no checkpoint"], 2)
        no_split = rejected(answers["no split"], 3)
        assert "'tset'" in no_split and "'test'" in no_split
        assert "7 classes and the run 7; different: '" in rejected(answers["other classes"], 3)

    def test_folder_that_is_not_a_run_directory_is_named(self, answered):
        answers, folder, _ = answered
        assert str(folder / "config.json") in rejected(answers["no run"], 3)
        assert f"--workdir={folder / 'absent'}" in rejected(answers["absent run"], 3)


class TestPredict:
    def test_rows_follow_the_manifest_and_categories_are_unchanged(self, answered, dataset):
        answers, folder, shuffled = answered
        assert answers["all"].returncode == 0, answers["all"].output
        assert "259 images" in answers["all"].output and "step 40" in answers["all"].output
        _, *rows = read_csv(folder / "all.csv")
        assert [row[0] for row in rows] == [name for name, _ in shuffled]
        for row in rows:
            assert sorted(row[1::2]) == list(dataset.categories)

    def test_probabilities_are_sorted_and_add_up_to_1(self, answered):
        _, folder, _ = answered
        header, *rows = read_csv(folder / "all.csv")
        assert header[:5] == ["filename", "category", "probability", "category_2", "probability_2"]
        for row in rows:
            values = [float(value) for value in row[2::2]]
            assert values == sorted(values, reverse=True)
            assert sum(values) == pytest.approx(1, abs=1e-5)

    def test_predictions_have_the_accuracy_of_evaluate(self, answered, dataset, plain_quality):
        _, folder, shuffled = answered
        _, *rows = read_csv(folder / "all.csv")
        right = [row[1] == category for row, (_, category) in zip(rows, shuffled, strict=True)]
        assert np.mean(right) == pytest.approx(plain_quality["top1"])

    def test_two_devices_give_the_same_predictions(self, answered, answered_on_two_devices, dataset):
        _, folder, _ = answered
        names, one = probabilities_of(folder / "all.csv", dataset.categories)
        names_of_two, two = probabilities_of(answered_on_two_devices[1], dataset.categories)
        assert names_of_two == names
        np.testing.assert_allclose(two, one, atol=2e-6)

    def test_without_a_manifest_all_images_are_listed_by_path(self, answered, dataset):
        _, folder, _ = answered
        header, *rows = read_csv(folder / "by name.csv")
        photos = dataset.photos / "test"
        assert header == ["filename", "category"]
        assert [name for name, _ in rows] == sorted(str(path.relative_to(photos)) for path in photos.rglob("*.jpg"))
        best = {row[0]: row[1] for row in read_csv(folder / "all.csv")[1:]}
        assert all(category == best[name.split("/")[-1]] for name, category in rows)

    def test_top_k_has_k_columns(self, answered):
        _, folder, _ = answered
        header, *rows = read_csv(folder / "top.csv")
        assert header == ["filename", "category", "category_2", "category_3"]
        of_all = {row[0]: row[1:6:2] for row in read_csv(folder / "all.csv")[1:]}
        assert all(categories == of_all[name.split("/")[-1]] for name, *categories in rows)

    def test_like_sets_header_and_order(self, answered):
        _, folder, shuffled = answered
        header, *rows = read_csv(folder / "liked.csv")
        assert header == ["image id", "label", "unused"]
        assert [(name, unused) for name, _, unused in rows] == [(name, "") for name, _ in shuffled[:5]]
        best = {row[0]: row[1] for row in read_csv(folder / "all.csv")[1:]}
        assert all(category == best[name] for name, category, _ in rows)

    def test_like_with_a_column_per_class_gets_probabilities(self, answered, dataset):
        answers, folder, shuffled = answered
        assert answers["column per class"].returncode == 0, answers["column per class"].output
        header, *rows = read_csv(folder / "per_class.csv")
        assert header == ["id", *reversed(dataset.categories)]
        names, expected = probabilities_of(folder / "all.csv", dataset.categories)
        for row, (name, _) in zip(rows, shuffled[:5], strict=True):
            assert row[0] == f"test/{name.rpartition('.')[0]}"
            probabilities = np.array(row[1:], float)[::-1]
            np.testing.assert_allclose(probabilities, expected[names.index(name)], atol=2e-6)
        assert "5 names have no suffix" in answers["column per class"].stderr

    def test_like_with_the_names_in_another_column_or_several_categories(self, answered):
        answers, folder, shuffled = answered
        top = {row[0]: row[1::2] for row in read_csv(folder / "all.csv")[1:]}
        header, *rows = read_csv(folder / "name_last.csv")
        assert header == ["label", "id"]
        ids = [name.rpartition(".")[0] for name, _ in shuffled[:5]]
        assert rows == [[top[name][0], image] for image, (name, _) in zip(ids, shuffled, strict=False)]
        header, *rows = read_csv(folder / "several.csv")
        assert header == ["id", "labels"]
        for number, (row, (name, _)) in enumerate(zip(rows, shuffled, strict=False)):
            assert row[1].split(" ") == top[name][: 3 if number else 2]

    def test_unreadable_images_can_be_skipped_and_are_listed(self, answered):
        answers, folder, _ = answered
        assert answers["skipped"].returncode == 0, answers["skipped"].output
        rows = dict(read_csv(folder / "skipped.csv")[1:])
        (unreadable,) = [name for name, category in rows.items() if category == "?"]
        assert repr(unreadable) in answers["skipped"].stderr and "1 of them unreadable" in answers["skipped"].stdout
        by_name = dict(read_csv(folder / "by name.csv")[1:])
        assert {name: by_name[name] for name in rows if name != unreadable} == {
            name: category for name, category in rows.items() if name != unreadable
        }

    def test_answers_for_files_are_printed(self, answered):
        answers, folder, shuffled = answered
        assert answers["files"].returncode == 0, answers["files"].output
        best = {row[0]: row[1] for row in read_csv(folder / "all.csv")[1:]}
        lines = answers["files"].stdout.splitlines()
        for name, _ in shuffled[:2]:
            (line,) = [line for line in lines if name in line]
            assert line.split()[-3] == best[name] and line.endswith(" %")

    def test_like_sets_the_order_if_a_manifest_lists_the_same_images(self, answered):
        answers, folder, shuffled = answered
        assert answers["like and manifest"].returncode == 0
        header, *rows = read_csv(folder / "both.csv")
        assert header == ["image id", "label", "unused"]
        assert [row[0] for row in rows] == [name for name, _ in shuffled[:5]]

    @pytest.mark.parametrize(
        ("name", "code", "named"),
        [
            ("missing", 3, ["'no_such_image.jpg'"]),
            ("header", 3, ["header.csv", "'filename'", "'file'"]),
            ("like and another manifest", 3, ["like.csv", "manifest.csv"]),
            ("no images", 3, ["predictions"]),
            ("too many", 2, ["--top_k=8", "7"]),
            ("no folder", 2, ["--output=", "no/folder"]),
            ("like and probabilities", 2, ["--probabilities", "--like="]),
            ("too few columns", 3, ["sample_too_few.csv", "'true'"]),
            ("files and like", 2, ["--like"]),
            ("too large", 3, ["--max_megapixels=0.001 "]),
        ],
    )
    def test_invalid_request_is_named(self, answered, name, code, named):
        output = rejected(answered[0][name], code)
        assert all(value in output for value in named)

    @pytest.mark.parametrize(("name", "place"), [("garbage", 3), ("cut", 5)])
    def test_unreadable_image_is_named_and_no_csv_is_written(self, answered, name, place):
        answers, folder, _ = answered
        images = folder / "broken" / name
        assert repr(str(sorted(images.rglob("*.jpg"))[place].relative_to(images))) in rejected(answers[name], 3)
        assert not (folder / f"{name}.csv").exists()

    def test_no_partial_file_is_left(self, answered):
        _, folder, _ = answered
        assert not list(folder.rglob("*partial*"))
        assert not [
            name for name in ("missing_out", "header_out", "differ", "many") if (folder / f"{name}.csv").exists()
        ]

    @pytest.mark.parametrize(
        ("name", "tolerance"),
        [("gray", 0), ("transparent", 0), ("palette", 0), ("turned", 0), ("bitmap", 0), ("photo", 0.02)],
    )
    def test_images_are_decoded_as_a_viewer_shows_them(self, answered, dataset, name, tolerance):
        answers, folder, _ = answered
        assert answers["odd"].returncode == 0, answers["odd"].output
        names, values = probabilities_of(folder / "odd.csv", dataset.categories)
        found = {path.rsplit(".", 1)[0]: probabilities for path, probabilities in zip(names, values, strict=True)}
        np.testing.assert_allclose(found[f"odd/deep/er/{name}"], found[f"plain/deep/er/{name}"], atol=tolerance)


@pytest.mark.slow
def test_metrics_of_a_read_only_run_are_printed(run, convoy_started, tmp_path):
    if not shutil.which("unshare") or os.geteuid():
        pytest.skip("needs root to mount a file system")
    as_read_only = f'mount --bind "{run}" "{run}" && mount -o remount,ro,bind "{run}" && exec "$@"'
    prefix = ("unshare", "--mount", "sh", "-c", as_read_only, "sh")
    command = ("evaluate", f"--workdir={run}", "--split=test", f"--json={tmp_path / 'metrics.json'}", "--devices=cpu:1")
    before = sorted(run.rglob("*"))
    with convoy_started(*command, output=tmp_path / "output", prefix=prefix) as process:
        code = process.wait(240)
    output = (tmp_path / "output").read_text()
    if "cannot be written" not in output:
        pytest.skip(f"cannot mount a file system: {output}")
    assert code == 0, output
    assert "top-1" in output and "Traceback" not in output
    assert json.loads((tmp_path / "metrics.json").read_text())["images"] == 259
    assert sorted(run.rglob("*")) == before
