import json
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest

from convoy.core.errors import DataError
from convoy.input_pipeline.dataset import records
from convoy.input_pipeline.dataset.index import RecordKeys
from convoy.input_pipeline.dataset.open import open_dataset
from tests.input_pipeline.images import pixels


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


def refused(message, directory):
    with pytest.raises(DataError, match=message) as caught:
        open_dataset(directory)
    assert "\n" not in str(caught.value)


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_a_tfds_directory_is_read_as_tfds_reads_it(photos):
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


def test_an_index_is_kept_and_used_until_the_shards_change(photos, capfd):
    first = open_dataset(photos)
    assert "index missing" in capfd.readouterr().err
    assert sorted(path.name for path in (photos / ".convoy").iterdir()) == [
        f"index-{split}.npz" for split in ("test", "train", "validation")
    ]
    again = open_dataset(photos)
    assert capfd.readouterr().err == ""
    assert again.digest("train") == first.digest("train")
    shard = photos / "photos-train.tfrecord-00000-of-00001"
    content = shard.read_bytes()
    last = int(first.split("train").offset[-1])
    shard.write_bytes(content[last:] + content[:last])
    changed = open_dataset(photos)
    assert "(train;" in capfd.readouterr().err
    assert changed.split("train").label[0] == first.split("train").label[-1]
    assert changed.digest("train") != first.digest("train")
    assert changed.digest("validation") == first.digest("validation")


def test_a_directory_that_cannot_be_written_to_has_its_index_in_the_users_cache(photos, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (photos / ".convoy").write_text("in the way, even of root")
    digest = open_dataset(photos).digest("train")
    assert len(list(tmp_path.glob("cache/convoy/*/index-*.npz"))) == 3
    capfd.readouterr()
    assert open_dataset(photos).digest("train") == digest
    assert capfd.readouterr().err == ""
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    assert open_dataset(photos).digest("train") == digest


def test_a_damaged_kept_index_is_replaced(photos, capfd):
    digest = open_dataset(photos).digest("train")
    kept = photos / ".convoy" / "index-train.npz"
    content = kept.read_bytes()
    kept.write_bytes(content[:500])
    assert open_dataset(photos).digest("train") == digest
    assert kept.read_bytes() == content


def test_processes_that_open_a_directory_at_once_leave_one_whole_index(photos, capfd):
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
    said = {process.communicate(timeout=60)[0] for process in processes}
    assert said == {f"{open_dataset(photos).digest('train')} False\n"}
    assert len(list((photos / ".convoy").iterdir())) == 3


def test_a_split_without_labels_can_be_opened_and_not_used(photos):
    dataset = open_dataset(photos)
    assert dataset.split("train").num_images == 60
    with pytest.raises(DataError, match="split 'test' of .* record 0 has label -1.* from 0 to 2"):
        dataset.split("test")
    with pytest.raises(DataError, match="record 0 has label -1"):
        dataset.digest("test")
    with pytest.raises(DataError, match=r"no split 'valid' \(did you mean 'validation'\?\)"):
        dataset.split("valid")


@pytest.mark.parametrize(
    ("file", "change", "complaint"),
    [
        ("dataset_info", lambda c: c.update(fileFormat="array_record"), "file format 'array_record'.*tfrecord"),
        ("dataset_info", lambda c: c["splits"][0].update(shardLengths=["61"]), "60 records.*61"),
        ("dataset_info", lambda c: c["splits"][0].update(shardLengths=["30", "30"]), "00000-of-00002 is missing"),
        ("dataset_info", lambda c: c["splits"][0].update(filepathTemplate="../{SPLIT}"), "cannot be used"),
        ("dataset_info", lambda c: c.update(splits=[]), "it has no splits"),
        ("features", lambda c: c["featuresDict"]["features"].pop("kind"), "no ClassLabel feature.* id, photo"),
        (
            "features",
            lambda c: c["featuresDict"]["features"].update(other=c["featuresDict"]["features"]["photo"]),
            r"2 Image features \(photo, other\)",
        ),
        (
            "features",
            lambda c: c["featuresDict"]["features"]["photo"]["image"].update(dtype="float32"),
            "'photo' are float32",
        ),
        (
            "features",
            lambda c: c["featuresDict"]["features"]["kind"]["classLabel"].update(numClasses=str(2**60)),
            "features.json cannot be used",
        ),
        (
            "features",
            lambda c: c["featuresDict"]["features"]["kind"]["classLabel"].update(numClasses="4"),
            "kind.labels.txt has 3 lines.*4",
        ),
    ],
)
def test_unusable_tfds_directory_is_explained(photos, file, change, complaint):
    edit(photos / f"{file}.json", change)
    refused(complaint, photos)


def test_a_tfds_directory_without_names_has_numbers(photos):
    (photos / "kind.labels.txt").unlink()
    assert open_dataset(photos).class_names == ("0", "1", "2")


def test_shards_like_model_gardens_are_read(tmp_path):
    from convoy.input_pipeline.reading.decode import Crop
    from convoy.input_pipeline.reading.reader import BatchSlice, Reader
    from tests.input_pipeline.external_sets import write_like_model_garden

    write_like_model_garden(tmp_path / "imagenet", range(12), "train")
    write_like_model_garden(tmp_path / "imagenet", range(12, 15), "validation", shards=1)
    dataset = open_dataset(tmp_path / "imagenet")
    assert (dataset.name, dataset.splits) == ("imagenet", ("train", "validation"))
    assert dataset.class_names == ("0", "cup", "fork", "jar")
    split = dataset.split("train")
    assert split.label.tolist() == [i % 3 + 1 for i in [*range(0, 12, 2), *range(1, 12, 2)]]
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
        (["train.tfrecord", "train.tfrecord.idx", "model-00000-of-00002", ".hidden/test.tfrecord"], {"train": 1}),
    ],
)
def test_splits_are_determined_by_file_and_directory_names(tmp_path, files, splits):
    for file in files:
        write_shard(tmp_path / file, [0, 1])
    dataset = open_dataset(tmp_path)
    assert {split: len(dataset.split(split).shard_paths) for split in dataset.splits} == splits


@pytest.mark.parametrize(
    ("files", "complaint"),
    [
        (["train-00000-of-00003", "train-00002-of-00003"], "shard 1 of the 3 shards 'train'"),
        (
            [f"train-{number:05d}-of-{total:05d}" for total in (2, 4) for number in range(total)],
            "'train' of a set of 2 and of a set of 4",
        ),
        (
            ["train-00000-of-00003", "train-00000-of-00001"],
            "shards 'train' of a set of 1 and of a set of 3",
        ),
        (
            ["train-00000-of-00001", "train-00000-of-00001.tfrecord"],
            "shard 0 of the 1 shards 'train' twice",
        ),
        (["photos.tfrecord"], "photos.tfrecord: unknown split"),
        (["train.tfrecord.gz"], "train.tfrecord.gz is compressed"),
        (["notes.txt"], "is not a dataset: it has no manifest.json"),
    ],
)
def test_unusable_shard_directory_is_explained(tmp_path, files, complaint):
    for file in files:
        write_shard(tmp_path / file, [0, 1])
    refused(complaint, tmp_path)


def test_ctrl_c_ends_the_reading_of_headers_at_once(tmp_path):
    record = records.frame(records.example({"image": b"x", "label": 0}))
    for number in range(4):  # half a minute of work
        (tmp_path / f"train-{number:05d}-of-00004").write_bytes(record * 300_000)
    program = f"from convoy.input_pipeline.dataset.open import open_dataset; open_dataset({str(tmp_path)!r})"
    with subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True) as process:
        try:
            assert "reading record headers" in process.stderr.readline()
            process.send_signal(signal.SIGINT)
            assert process.wait(10) == -signal.SIGINT
        finally:
            process.kill()
    assert not (tmp_path / ".convoy").exists()


def test_the_folder_around_datasets_is_not_taken_for_one(photos, tmp_path):
    shutil.copytree(photos, tmp_path / "2.0.0")
    refused(f"{tmp_path} .*--data={photos}", tmp_path)


def test_records_with_other_keys_are_named(tmp_path):
    write_shard(tmp_path / "train.tfrecord", [0], image_key="jpg", label_key="cls")
    refused("cls, jpg.*image/encoded and image/class/label", tmp_path)


def test_compressed_records_are_named(tmp_path):
    import tensorflow as tf

    with tf.io.TFRecordWriter(str(tmp_path / "train.tfrecord"), "GZIP") as writer:
        writer.write(records.example({"image": b"x", "label": 0}))
    refused("GZIP", tmp_path)


def test_a_class_is_named_after_its_text_where_that_is_clear(tmp_path):
    labels, texts = [0, 0, 1, 1, 2, 4, 5], ["cup", "cup", "fork", "jar", "crane", "crane", b"caf\xc3\xa9\n noir"]
    write_shard(tmp_path / "train.tfrecord", labels, texts=texts)
    expected = ("cup", "1", "crane (2)", "3", "crane (4)", "café noir")
    assert open_dataset(tmp_path).class_names == expected
    assert open_dataset(tmp_path).class_names == expected  # from the kept index


def test_plain_keys_are_read_too(tmp_path):
    write_shard(tmp_path / "train.tfrecord", [2, 0], image_key="image", label_key="label")
    dataset = open_dataset(tmp_path)
    assert dataset.split("train").keys == RecordKeys("image", "label")
    assert dataset.class_names == ("0", "1", "2")


def test_nothing_is_converted_into_a_directory_of_others(photos, tmp_path):
    from convoy.core.errors import UsageError
    from convoy.input_pipeline.convert.convert import Options, convert
    from tests.input_pipeline.images import draw_classes

    before = sorted(path.name for path in photos.iterdir())
    images = draw_classes(tmp_path / "drawn", {"cup": 2, "jar": 2})
    with pytest.raises(UsageError, match="exists and is not a dataset"):
        convert(Options(images=images, output=photos, split="more"))
    assert sorted(path.name for path in photos.iterdir()) == before


@pytest.mark.slow
def test_a_run_trains_resumes_and_is_evaluated_on_a_tfds_directory(
    photos, tmp_path, convoy_together, convoy_started, wait_until
):
    run, other = tmp_path / "run", shutil.copytree(photos, tmp_path / "other")
    content = (photos / "photos-train.tfrecord-00000-of-00001").read_bytes()
    second = open_dataset(photos).split("train").offset[1]
    (other / "photos-train.tfrecord-00000-of-00001").write_bytes(content[second:] + content[:second])
    flags = ("--config=smoke", "--config.batch_size=12", "--config.steps=40", "--config.eval_every_steps=40")
    command = ["train", f"--workdir={run}", *flags, "--config.checkpoint_every_steps=5"]
    events = run / "events.jsonl"
    with convoy_started(*command, f"--data={photos}", output=tmp_path / "log") as process:
        # One is whole when the next begins.
        wait_until(lambda: events.exists() and events.read_text().count('"checkpoint"') > 1, "the second checkpoint")
        os.killpg(process.pid, 9)
    resumed, evaluated, refused = convoy_together(
        [*command, f"--data={photos}"],
        ["evaluate", f"--workdir={run}", "--split=validation"],
        [*command, f"--data={other}"],
    )
    assert "Resumed at step" in resumed.output and "3 classes, 15 validation images" in resumed.output
    assert "15 images, each once" in evaluated.output
    assert refused.returncode == 3 and "another dataset" in refused.output
