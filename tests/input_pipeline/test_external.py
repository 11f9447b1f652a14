import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zlib

import numpy as np
import pytest

from convoy import cli
from convoy.core.errors import DataError
from convoy.input_pipeline.dataset import external, index, records
from convoy.input_pipeline.dataset.index import RecordKeys
from convoy.input_pipeline.dataset.layout import RecordFormat, read_class_names
from convoy.input_pipeline.dataset.open import open_dataset
from tests.input_pipeline.images import pixels
from tests.trainer import user_models


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    from tests.input_pipeline.external_sets import prepare_with_tfds

    return prepare_with_tfds(tmp_path_factory.mktemp("tfds"))


@pytest.fixture
def photos(prepared, tmp_path):
    return shutil.copytree(prepared, tmp_path / "1.0.0", ignore=shutil.ignore_patterns(".convoy"))


def write_shard(path, labels, image=b"x", image_key="image/encoded", label_key="image/class/label", texts=()):
    path.parent.mkdir(parents=True, exist_ok=True)
    features = [{image_key: image, label_key: label} for label in labels]
    for record, text in zip(features, texts, strict=False):
        record["image/class/text"] = text
    path.write_bytes(b"".join(records.frame(records.example(record)) for record in features))
    return path


def write_compressed(path, compression, labels=(0, 1)):
    content = write_shard(path, labels).read_bytes()
    path.write_bytes(gzip.compress(content) if compression == "GZIP" else zlib.compress(content))


def assert_rejected(message, directory):
    with pytest.raises(DataError, match=message) as caught:
        open_dataset(directory)
    assert "\n" not in str(caught.value)


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.slow
def test_tfds_directory_is_read_as_tfds_does(photos):
    import tensorflow_datasets as tfds

    from convoy.input_pipeline.reading.decode import Crop
    from convoy.input_pipeline.reading.reader import BatchSlice, Reader

    dataset = open_dataset(photos)
    assert (dataset.name, dataset.class_names) == ("photos", ("cup", "fork", "jar"))
    assert dataset.splits == ("test", "train", "validation")
    split = dataset.split("train")
    assert split.keys == RecordKeys("photo", "kind")
    expected = list(tfds.builder_from_directory(str(photos)).as_dataset(split="train", shuffle_files=False))
    assert split.label.tolist() == [example["kind"].numpy() for example in expected]
    reader = Reader(split, Crop(24))
    images = [batch["image"].numpy() for batch in reader.evaluation(BatchSlice(20))]
    reader.close()
    np.testing.assert_array_equal(np.concatenate(images), [example["photo"].numpy() for example in expected])


def test_index_is_stored_and_reused_until_the_shards_change(photos, caplog):
    caplog.set_level("INFO", logger="convoy")
    first = open_dataset(photos)
    assert "index missing" in caplog.text
    assert sorted(path.name for path in (photos / ".convoy").iterdir()) == [
        f"index-{split}.npz" for split in ("test", "train", "validation")
    ]
    caplog.clear()
    again = open_dataset(photos)
    assert not caplog.text
    assert again.digest("train") == first.digest("train")
    shard = photos / "photos-train.tfrecord-00000-of-00001"
    content = shard.read_bytes()
    last = int(first.split("train").offset[-1])
    shard.write_bytes(content[last:] + content[:last])
    changed = open_dataset(photos)
    assert "(train;" in caplog.text
    assert changed.split("train").label[0] == first.split("train").label[-1]
    assert changed.digest("train") != first.digest("train")
    assert changed.digest("validation") == first.digest("validation")


def test_index_of_a_read_only_directory_is_in_the_user_cache(photos, tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO", logger="convoy")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (photos / ".convoy").write_text("a file, so that not even root can create the directory")
    digest = open_dataset(photos).digest("train")
    assert len(list(tmp_path.glob("cache/convoy/*/index-*.npz"))) == 3
    caplog.clear()
    assert open_dataset(photos).digest("train") == digest
    assert not caplog.text
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    assert open_dataset(photos).digest("train") == digest


def test_damaged_stored_index_is_replaced(photos):
    digest = open_dataset(photos).digest("train")
    stored = photos / ".convoy" / "index-train.npz"
    content = stored.read_bytes()
    stored.write_bytes(content[:500])
    assert open_dataset(photos).digest("train") == digest
    assert stored.read_bytes() == content


def test_concurrent_processes_write_one_intact_index(photos):
    program = (
        f"import sys; from convoy.input_pipeline.dataset.open import open_dataset; sys.stdin.read(1); "
        f"print(open_dataset({str(photos)!r}).digest('train'), 'tensorflow' in sys.modules)"
    )
    command = [sys.executable, "-c", program]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, **pipes) for _ in range(4)]
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    outputs = {process.communicate(timeout=60)[0] for process in processes}
    assert outputs == {f"{open_dataset(photos).digest('train')} False\n"}
    assert len(list((photos / ".convoy").iterdir())) == 3


def test_unlabeled_split_can_be_listed_but_not_read(photos):
    dataset = open_dataset(photos)
    assert dataset.split("train").num_images == 60
    with pytest.raises(DataError, match="'test'.* record 0 .*-1.* 0 to 2"):
        dataset.split("test")
    with pytest.raises(DataError, match="record 0 .*-1"):
        dataset.digest("test")
    with pytest.raises(DataError, match=r"'valid'.*'validation'"):
        dataset.split("valid")


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("dataset_info", lambda c: c.update(fileFormat="array_record"), "'array_record'.*tfrecord"),
        ("dataset_info", lambda c: c["splits"][0].update(shardLengths=["61"]), "60 records.*61"),
        ("dataset_info", lambda c: c["splits"][0].update(shardLengths=["30", "30"]), "00000-of-00002.*missing"),
        ("dataset_info", lambda c: c["splits"][0].update(filepathTemplate="../{SPLIT}"), "dataset_info.json"),
        ("dataset_info", lambda c: c.update(splits=[]), "no splits"),
        ("features", lambda c: c["featuresDict"]["features"].pop("kind"), "ClassLabel.* id, photo"),
        (
            "features",
            lambda c: add_image(c, "other"),
            r"2 Image.*photo, other.*--image_key",
        ),
        (
            "features",
            lambda c: c["featuresDict"]["features"]["photo"]["image"].update(dtype="float32"),
            "'photo'.*float32",
        ),
        (
            "features",
            lambda c: c["featuresDict"]["features"]["kind"]["classLabel"].update(numClasses=str(2**60)),
            "features.json",
        ),
        (
            "features",
            lambda c: c["featuresDict"]["features"]["kind"]["classLabel"].update(numClasses="4"),
            "kind.labels.txt.*3 .*4",
        ),
    ],
)
def test_unusable_tfds_directory_is_rejected(photos, file, change, message):
    edit(photos / f"{file}.json", change)
    assert_rejected(message, photos)


def test_tfds_classes_without_names_are_numbered(photos):
    (photos / "kind.labels.txt").unlink()
    assert open_dataset(photos).class_names == ("0", "1", "2")


def test_model_garden_shards_are_read(tmp_path):
    from convoy.input_pipeline.reading.decode import Crop
    from convoy.input_pipeline.reading.reader import BatchSlice, Reader
    from tests.input_pipeline.external_sets import write_like_model_garden

    write_like_model_garden(tmp_path / "imagenet", range(12), "train")
    write_like_model_garden(tmp_path / "imagenet", range(12, 15), "validation", shards=1)
    dataset = open_dataset(tmp_path / "imagenet")
    assert (dataset.name, dataset.splits) == ("imagenet", ("train", "validation"))
    assert (dataset.class_names, dataset.record_format.first_label) == (("cup", "fork", "jar"), 1)
    split = dataset.split("train")
    assert split.label.tolist() == [i % 3 for i in [*range(0, 12, 2), *range(1, 12, 2)]]
    reader = Reader(split, Crop(24))
    (batch,) = reader.evaluation(BatchSlice(12))
    reader.close()
    np.testing.assert_array_equal(batch["label"], split.label)
    error = np.abs(batch["image"][1].numpy().astype(int) - pixels(2))
    assert error.mean() < 10  # a JPEG


@pytest.mark.parametrize(
    ("files", "splits"),
    [
        (["train-00000-of-00002", "train-00001-of-00002"], {"train": 2}),
        (
            ["flowers-train.tfrecord-00000-of-00001", "flowers-holdout.tfrecord-00000-of-00001"],
            {"train": 1, "holdout": 1},
        ),
        (["imagenet-train-00000-of-00001.tfrecord", "val.tfrecords"], {"train": 1, "validation": 1}),
        (["a-train-00000-of-00001", "b-train-00000-of-00002", "b-train-00001-of-00002"], {"train": 3}),
        (["training_1.tfrecord", "training_2.tfrecord", "test.tfrecord"], {"train": 2, "test": 1}),
        (["train/01.tfrecord", "train/02.tfrecord", "valid/01.tfrecord"], {"train": 2, "validation": 1}),
        (["train/00-48x48-60.tfrec", "test/part-1", "val/a.bin"], {"train": 1, "test": 1, "validation": 1}),
        (["train-1.tfrec", "test", ".hidden/test.tfrecord"], {"train": 1, "test": 1}),
    ],
)
def test_splits_are_determined_by_file_and_directory_names(tmp_path, files, splits):
    for file in files:
        write_shard(tmp_path / file, [0, 1])
    for file in (
        "train.tfrecord.idx",
        "train-00000-of-00002.idx",
        "model-00000-of-00002",
        "train.txt",
        "notes",
        "events.out.tfevents.1",
    ):
        (tmp_path / file).write_bytes(b"not records, whatever the name")
    dataset = open_dataset(tmp_path)
    assert {split: len(dataset.split(split).shard_paths) for split in dataset.splits} == splits


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["train-00000-of-00003", "train-00002-of-00003"], "shard 1 .*3 shards 'train'"),
        (
            [f"train-{number:05d}-of-{total:05d}" for total in (2, 4) for number in range(total)],
            "'train'.* 2 .* 4",
        ),
        (
            ["train-00000-of-00003", "train-00000-of-00001"],
            "'train'.* 1 .* 3",
        ),
        (
            ["train-00000-of-00001", "train-00000-of-00001.tfrecord"],
            "shard 0 .*'train'.*twice",
        ),
        (["photos.tfrecord"], "photos.tfrecord.*split"),
        (["train.tfrecord", "01.tfrec"], "01.tfrec.*split"),
        (["notes.txt"], "not a dataset.*manifest.json"),
    ],
)
def test_unusable_shard_directory_is_rejected(tmp_path, files, message):
    for file in files:
        write_shard(tmp_path / file, [0, 1])
    assert_rejected(message, tmp_path)


def test_ctrl_c_stops_reading_headers(tmp_path):
    record = records.frame(records.example({"image": b"x", "label": 0}))
    for number in range(4):  # takes half a minute to scan
        (tmp_path / f"train-{number:05d}-of-00004").write_bytes(record * 300_000)
    program = "from convoy.core.logs import log_to_stderr; log_to_stderr(); "
    program += f"from convoy.input_pipeline.dataset.open import open_dataset; open_dataset({str(tmp_path)!r})"
    with subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True) as process:
        try:
            assert "reading record headers" in process.stderr.readline()
            process.send_signal(signal.SIGINT)
            assert process.wait(10) == -signal.SIGINT
        finally:
            process.kill()
    assert not (tmp_path / ".convoy").exists()


def test_parent_of_datasets_is_rejected_with_a_suggestion(photos, tmp_path):
    shutil.copytree(photos, tmp_path / "2.0.0")
    assert_rejected(f"{tmp_path} .*--data={photos}", tmp_path)


def test_unknown_record_keys_are_listed(tmp_path):
    write_shard(tmp_path / "train.tfrecord", [0], image_key="jpg", label_key="cls")
    assert_rejected("image/encoded.*image/class/label.* cls, jpg.*--image_key=NAME --label_key=cls", tmp_path)


@pytest.mark.parametrize(("compression", "name"), [("GZIP", "train.tfrecord"), ("ZLIB", "train-00000-of-00001")])
def test_compressed_records_are_named_and_can_be_converted(tmp_path, compression, name):
    write_compressed(tmp_path / name, compression)
    assert_rejected(f"{compression}.*convoy convert --tfrecords={tmp_path}", tmp_path)


def test_class_names_come_from_unambiguous_texts(tmp_path):
    labels, texts = [0, 0, 1, 1, 2, 4, 5], ["cup", "cup", "fork", "jar", "crane", "crane", b"caf\xc3\xa9\n noir"]
    write_shard(tmp_path / "train.tfrecord", labels, texts=texts)
    expected = ("cup", "1", "crane (2)", "3", "crane (4)", "café noir")
    assert open_dataset(tmp_path).class_names == expected
    assert open_dataset(tmp_path).class_names == expected  # from the stored index


def test_short_keys_are_read(tmp_path):
    write_shard(tmp_path / "train.tfrecord", [2, 0], image_key="image", label_key="label")
    dataset = open_dataset(tmp_path)
    assert dataset.split("train").keys == RecordKeys("image", "label")
    assert dataset.class_names == ("0", "1", "2")


def write_features(folder, *records_features):
    """Writes records of any features, as tf.train.Feature keyword arguments, to one shard; returns the folder."""
    import tensorflow as tf

    lists = {bytes: ("bytes_list", tf.train.BytesList), float: ("float_list", tf.train.FloatList)}
    folder.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(folder / "train.tfrecord")) as writer:
        for features in records_features:
            named = {}
            for name, values in features.items():
                field, kind = lists.get(type(values[0]) if values else int, ("int64_list", tf.train.Int64List))
                named[name] = tf.train.Feature(**{field: kind(value=values)})
            writer.write(tf.train.Example(features=tf.train.Features(feature=named)).SerializeToString())
    return folder


@pytest.mark.parametrize(
    ("values", "noun"),
    [
        ([0.5] * 48, "48 floats"),
        ([7] * 48, "48 integers"),
        ([b"one", b"two"], "2 images"),
        ([b"p" * 12 * 12 * 3], "raw pixels of 12x12x3"),
        ([b"\x93NUMPY\1\0"], "NumPy"),
        ([], "empty list"),
    ],
)
def test_what_is_there_instead_of_one_encoded_image_is_named(tmp_path, values, noun):
    write_features(tmp_path, *({"image": values, "label": [label]} for label in (0, 1)))
    assert_rejected(f"train.tfrecord.*{noun}", tmp_path)


@pytest.mark.parametrize(
    ("values", "noun"),
    [([], "empty list"), ([0, 1, 0], "3 integers .one-hot"), ([b"cup"], "text 'cup'"), ([b"\xff\0\1"], "3 bytes")],
)
def test_what_is_there_instead_of_one_label_is_named(tmp_path, values, noun):
    write_features(tmp_path, {"image": [b"x"], "label": values})
    assert_rejected(f"{noun}.*--label_key", tmp_path)


def test_keys_and_class_names_can_be_given(tmp_path):
    write_shard(tmp_path / "train.tfrecord", [0, 1, 0], image_key="jpg", label_key="cls")
    (tmp_path / "names.txt").write_text("cup\njar\npot\n", encoding="utf-8-sig")
    names = read_class_names(tmp_path / "names.txt")
    dataset = open_dataset(tmp_path, RecordFormat("jpg", "cls", names))
    assert (dataset.split("train").keys, dataset.class_names) == (RecordKeys("jpg", "cls"), ("cup", "jar", "pot"))
    assert open_dataset(tmp_path, dataset.record_format).digest("train") == dataset.digest("train")


@pytest.mark.parametrize(
    ("labels", "given", "names", "first"),
    [
        ([1, 2, 3], (), ("1", "2", "3"), 1),
        ([2, 3], (), ("0", "1", "2", "3"), 0),
        ([0, 1], (), ("0", "1"), 0),
        ([1, -1, 2], ("cup", "jar"), ("cup", "jar"), 1),
        ([1, 2], ("none", "cup", "jar"), ("none", "cup", "jar"), 0),
        ([0, 1], ("cup", "jar", "pot"), ("cup", "jar", "pot"), 0),
    ],
)
def test_labels_from_1_are_recognized(tmp_path, labels, given, names, first):
    write_shard(tmp_path / "train.tfrecord", [label for label in labels if label >= 0])
    write_shard(tmp_path / "test.tfrecord", labels)
    dataset = open_dataset(tmp_path, RecordFormat(class_names=given))
    assert (dataset.class_names, dataset.record_format.first_label) == (names, first)
    assert dataset.split("train").label.tolist() == [label - first for label in labels if label >= 0]


def test_labels_without_a_class_name_are_rejected(tmp_path):
    write_shard(tmp_path / "train.tfrecord", [0, 2])
    with pytest.raises(DataError, match="0 to 2.* 2 class names.*--class_names_file"):
        open_dataset(tmp_path, RecordFormat(class_names=("cup", "jar")))


@pytest.mark.parametrize(
    ("content", "noun"), [(b"cup\n\njar", "line 2"), (b"cup\ncup", "'cup'"), (b"\xff\xfe", "UTF-8")]
)
def test_unusable_class_names_are_rejected(tmp_path, content, noun):
    (tmp_path / "names.txt").write_bytes(content)
    with pytest.raises(DataError, match=f"--class_names_file=.*{noun}"):
        read_class_names(tmp_path / "names.txt")


def test_flags_for_records_are_refused_for_converted_data(tmp_path, capsys):
    (tmp_path / "manifest.json").touch()
    assert cli.main(["convoy", "verify", f"--data={tmp_path}", "--image_key=image"]) == 2
    assert "--image_key=image" in capsys.readouterr().err


def test_key_of_a_tfds_feature_can_be_given(photos):
    edit(photos / "features.json", lambda content: add_image(content, "other"))
    assert open_dataset(photos, RecordFormat(image_key="photo")).split("train").keys.image == "photo"
    with pytest.raises(DataError, match="--image_key=kind.*photo, other"):
        open_dataset(photos, RecordFormat(image_key="kind"))


def add_image(content, name):
    features = content["featuresDict"]["features"]
    features[name] = features["photo"]


def test_advice_about_a_damaged_shard_fits_its_origin(tmp_path):
    path = write_shard(tmp_path / "train.tfrecord", [0, 1])
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataError, match=r"truncated; copy .* from where it came from$"):
        open_dataset(tmp_path)


def test_conversion_into_an_external_dataset_is_rejected(photos, tmp_path):
    from convoy.core.errors import UsageError
    from convoy.input_pipeline.convert.convert import Options, convert
    from tests.input_pipeline.images import draw_classes

    before = sorted(path.name for path in photos.iterdir())
    images = draw_classes(tmp_path / "drawn", {"cup": 2, "jar": 2})
    with pytest.raises(UsageError, match="not a dataset"):
        convert(Options(images=images, output=photos, split="more"))
    assert sorted(path.name for path in photos.iterdir()) == before


@pytest.mark.slow
def test_train_resume_and_evaluate_on_a_tfds_directory(photos, tmp_path, convoy, convoy_started, wait_until):
    run, other = tmp_path / "run", shutil.copytree(photos, tmp_path / "other")
    content = (photos / "photos-train.tfrecord-00000-of-00001").read_bytes()
    second = open_dataset(photos).split("train").offset[1]
    (other / "photos-train.tfrecord-00000-of-00001").write_bytes(content[second:] + content[:second])
    flags = ("--config=smoke", f"--config.model.name={user_models.__file__}:small", "--config.batch_size=12")
    flags += ("--config.steps=200", "--config.eval_every_steps=200")
    command = ["train", f"--workdir={run}", *flags, "--config.checkpoint_every_steps=5"]
    events = run / "events.jsonl"
    with convoy_started(*command, f"--data={photos}", output=tmp_path / "log") as process:
        # The first checkpoint is complete when the second begins.
        wait_until(lambda: events.exists() and events.read_text().count('"checkpoint"') > 1, "the second checkpoint")
        os.killpg(process.pid, 9)
    resumed, evaluated, rejected = (
        convoy(*command, f"--data={photos}"),
        convoy("evaluate", f"--workdir={run}", "--split=validation"),
        convoy(*command, f"--data={other}"),
    )
    assert "Resumed at step" in resumed.output and "3 classes, 15 validation images" in resumed.output
    assert evaluated.returncode == 0, evaluated.output
    assert "Evaluated 15 images of validation" in evaluated.output and (run / "report.html").exists()
    assert rejected.returncode == 3 and "train_digest" in rejected.output


@pytest.mark.slow
def test_a_run_remembers_the_keys_of_its_records(tmp_path, convoy):
    from tests.input_pipeline.datasets import encode

    names, run, data = tmp_path / "names.txt", tmp_path / "run", tmp_path / "data"
    names.write_text("cup\njar\n")
    for split, numbers in (("train", range(24)), ("test", range(24, 32))):
        (data / split).mkdir(parents=True)
        examples = [{"jpg": encode(pixels(i), "png"), "cls": 1 + i % 2} for i in numbers]
        (data / split / "1.tfrec").write_bytes(b"".join(records.frame(records.example(one)) for one in examples))
    flags = ("--config=smoke", f"--config.model.name={user_models.__file__}:small", "--config.batch_size=12")
    command = ["train", f"--data={data}", f"--workdir={run}", *flags, "--config.steps=4"]
    given = ("--image_key=jpg", "--label_key=cls", f"--class_names_file={names}")
    assert convoy(*command).returncode == 3
    convoy(*command, *given, check=True)
    names.unlink()
    assert "Nothing left to train" in convoy(*command, check=True).output
    convoy("evaluate", f"--workdir={run}", "--split=test", check=True)
    rows = (run / "predictions_test.csv").read_text().splitlines()
    assert len(rows) == 9 and all("cup" in row or "jar" in row for row in rows[1:])
    part = shutil.copytree(data / "test", tmp_path / "part" / "test")
    other = convoy("evaluate", f"--workdir={run}", "--split=test", f"--data={part.parent}", check=True)
    assert "Evaluated 8 images" in other.output
    refused = convoy(*command, "--label_key=jpg")
    assert refused.returncode == 3 and "--label_key" in refused.output


def test_many_labels_with_the_same_text_are_named_at_once():
    number = 200_000
    scan = index.Scan({"label": np.arange(number)}, {label: {b"thing"} for label in range(number)})
    started = time.monotonic()
    names = external.names_of_labels([scan])
    assert names[7] == "thing (7)" and len(set(names)) == number
    assert time.monotonic() - started < 20  # comparing each with all others takes many minutes
