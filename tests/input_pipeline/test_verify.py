import json
import os
import re
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest

from convoy.core.errors import DataError
from convoy.core.finding import Severity
from convoy.input_pipeline.dataset import records
from convoy.input_pipeline.dataset.layout import RecordFormat
from convoy.input_pipeline.dataset.open import open_dataset
from convoy.input_pipeline.verify import verify as verifier
from convoy.input_pipeline.verify.shard import check_shard
from convoy.input_pipeline.verify.verify import verify
from tests.input_pipeline.datasets import write_dataset
from tests.input_pipeline.images import pixels

NAMES = ("03", "Käse", "mug")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    images = [pixels(number, size=12) for number in range(20)]
    folder = tmp_path_factory.mktemp("written") / "data"
    return write_dataset(folder, {"train": images[:14], "validation": images[14:]}, NAMES)


@pytest.fixture
def data(written, tmp_path):
    return shutil.copytree(written, tmp_path / "data")


@pytest.fixture
def in_process(monkeypatch):
    """Checks shards in this process: starting workers takes seconds."""
    monkeypatch.setattr(verifier, "_work", lambda tasks, *_: list(map(check_shard, tasks)))


def shard_of(data, number=0, split="train"):
    return data / f"made-{split}.tfrecord-{number:05d}-of-00002"


def rewrite(path, change):
    content = bytearray(path.read_bytes())
    change(content)
    path.write_bytes(content)


def update_manifest(data, split="train"):
    """Writes the current sizes and checksums of the shards to the manifest."""
    import hashlib

    manifest = json.loads((data / "manifest.json").read_text())
    for shard in manifest["splits"][split]["shards"]:
        content = (data / shard["file"]).read_bytes()
        shard["bytes"], shard["sha256"] = len(content), hashlib.sha256(content).hexdigest()
    (data / "manifest.json").write_text(json.dumps(manifest))


def codes(report):
    return [(fault.code, fault.file, fault.offset, fault.record) for fault in report.faults]


def test_intact_dataset_has_no_faults(data, in_process):
    report = verify(data)
    assert report.faults == ()
    assert [(s.name, s.records, s.classes, s.shards, s.faults) for s in report.splits] == [
        ("train", 14, 3, 2, 0),
        ("validation", 6, 3, 2, 0),
    ]
    assert report.splits[0].size == sum(shard_of(data, number).stat().st_size for number in (0, 1))


def test_flipped_bit_is_reported_with_shard_offset_and_record(data, in_process):
    split = open_dataset(data).split("train")
    shard = shard_of(data, 1)
    record = int(np.flatnonzero(split.shard == 1)[2])
    offset = int(split.offset[record])

    def flip(content):
        content[offset + 60] ^= 1

    rewrite(shard, flip)
    report = verify(data)
    assert codes(report) == [
        ("shard-checksum", shard.name, None, None),
        ("record-checksum", shard.name, offset, record),
    ]
    assert {(fault.severity, fault.section, fault.split) for fault in report.faults} == {
        (Severity.ERROR, "shard", "train")
    }
    assert f"{shard.name} offset {offset} (record {record} of train): " in report.faults[1].line()
    assert report.faults[1].line().endswith(f"{report.faults[1].fix}.")
    assert [split.faults for split in report.splits] == [2, 0]


def test_after_a_damaged_header_the_index_gives_the_next_record(data, in_process):
    split = open_dataset(data).split("train")
    offset = int(split.offset[1])

    def damage(content):
        content[offset : offset + 8] = (2**60).to_bytes(8, "little")
        content[-1] ^= 1

    rewrite(shard_of(data), damage)
    report = verify(data)
    last = int(split.offset[split.shard == 0][-1])
    name = shard_of(data).name
    assert codes(report) == [
        ("shard-checksum", name, None, None),
        ("record-header", name, offset, 1),
        ("record-checksum", name, last, 6),
    ]
    assert report.splits[0].records == 13
    (data / "index-train.npz").unlink()
    report = verify(data)
    (unread,) = [fault for fault in report.faults if fault.offset == offset]
    assert f"{shard_of(data).stat().st_size - offset:,} bytes" in unread.text


def test_truncated_or_missing_shard_is_reported(data, in_process):
    shard = shard_of(data)
    size = shard.stat().st_size
    with open(shard, "ab") as file:
        file.truncate(size - 5)
    shard_of(data, 1).unlink()
    faults = {fault.code: fault for fault in verify(data).faults}
    for code, file in (("shard-size", shard), ("record-truncated", shard), ("shard-unreadable", shard_of(data, 1))):
        assert faults[code].file == file.name
    for code in ("shard-size", "record-truncated"):
        assert f"{size - 5:,}" in faults[code].text and f"{size:,}" in faults[code].text


@pytest.mark.parametrize(
    ("change", "code", "named"),
    [
        ({"image/class/label": 1}, "label-text", ("1", "'Käse'", "'03'")),
        ({"image/class/label": 3}, "label-range", ("3",)),
        ({"image/height": 13}, "image-mismatch", ("height", "12", "13")),
        ({"image/format": "jpeg"}, "image-mismatch", ("png", "jpeg")),
        ({"image/channels": 1}, "image-mismatch", ("channels", "3", "1")),
        ({"image/encoded": b"\x89PNG\r\n\x1a\nnothing more"}, "image-undecodable", ("TensorFlow",)),
        ({"image/encoded": b"\xff\xd8\xff"}, "image-undecodable", ("TensorFlow",)),
        ({"image/encoded": b"", "image/format": "raw"}, "image-mismatch", ("0 bytes", "12 x 12 x 3")),
    ],
)
def test_record_that_contradicts_itself_is_reported(data, in_process, change, code, named):
    from convoy.input_pipeline.dataset.examples import from_bytes, read_features

    shard = shard_of(data)
    content = shard.read_bytes()
    length = next(records.walk(shard))[1]
    payload = content[records.HEADER_BYTES : records.HEADER_BYTES + length]
    features = {name: values[0] for name, values in read_features(from_bytes(payload), length).items()}
    first = records.frame(records.example(features | change))
    shard.write_bytes(first + content[length + records.FRAME_OVERHEAD :])
    update_manifest(data)
    report = verify(data)
    (fault,) = [fault for fault in report.faults if fault.section == "shard"]
    assert (fault.code, fault.offset, fault.record) == (code, 0, 0)
    assert all(value in fault.text for value in named)


def test_index_that_differs_from_the_records_is_reported(data, in_process):
    path = data / "index-train.npz"
    with np.load(path) as index:
        arrays = dict(index)
    arrays["label"][[0, 1]] = arrays["label"][[1, 0]]
    arrays["crc"][3] ^= 1
    np.savez(path, **arrays)
    report = verify(data)
    assert {(fault.section, fault.code) for fault in report.faults} == {("index", "index-mismatch")}
    assert [fault.record for fault in report.faults] == [0, 1, 3]
    assert "label 0" in report.faults[0].text and "2" in report.faults[0].text


def test_descriptions_are_compared_with_the_manifest(data, in_process):
    (data / "image.class.label.labels.txt").write_text("03\nKase\nmug\n")
    (data / "image-class-label.labels.txt").unlink()
    info = json.loads((data / "dataset_info.json").read_text())
    info["splits"][0]["shardLengths"][0] = "8"
    (data / "dataset_info.json").write_text(json.dumps(info))
    np.savez(data / "images-train.npz", width=np.zeros(14), content=np.zeros(13))
    report = verify(data)
    assert [(fault.code, fault.file) for fault in report.faults] == [
        ("label-file-mismatch", "image.class.label.labels.txt"),
        ("label-file-unreadable", "image-class-label.labels.txt"),
        ("dataset-info-mismatch", "dataset_info.json"),
        ("sidecar-length", "images-train.npz"),
    ]
    assert {fault.section for fault in report.faults} == {"description"}
    assert "content 13" in report.faults[-1].text


def test_class_counts_are_compared_with_the_manifest(data, in_process):
    manifest = json.loads((data / "manifest.json").read_text())
    counts = manifest["splits"]["train"]["counts"]
    counts[0], counts[1] = counts[0] + 1, counts[1] - 1
    (data / "manifest.json").write_text(json.dumps(manifest))
    (fault,) = verify(data).faults
    assert (fault.code, fault.file, fault.split) == ("class-counts", "manifest.json", "train")
    assert all(value in fault.text for value in ("6 images", "class 0", "5"))


def test_repair_rebuilds_lost_indexes_and_nothing_else(data, written, in_process):
    whole = {path.name: path.read_bytes() for path in written.iterdir()}
    (data / "index-train.npz").unlink()
    (data / "index-validation.npz").write_bytes(b"not an index")
    idx = shard_of(data).with_name(shard_of(data).name + ".idx")
    idx.write_text("0 1\n")
    assert [fault.code for fault in verify(data).faults] == ["index-unusable", "idx-mismatch", "index-unusable"]
    report = verify(data, repair_index=True)
    assert (report.faults, len(report.repaired), report.not_rebuilt) == ((), 3, ())
    assert {path.name: path.read_bytes() for path in data.iterdir()} == whole
    assert verify(data).faults == ()


def test_index_is_not_rebuilt_from_damaged_shards(data, in_process):
    def flip(content):
        content[40] ^= 1

    rewrite(shard_of(data), flip)
    for split in ("train", "validation"):
        (data / f"index-{split}.npz").unlink()
    report = verify(data, repair_index=True)
    assert report.not_rebuilt == ("train",)
    assert not (data / "index-train.npz").exists()
    assert (data / "index-validation.npz").exists()
    assert {fault.split for fault in report.faults} == {"train"}


def test_shards_that_the_description_of_a_tfds_directory_does_not_name_are_reported(data, in_process):
    (data / "manifest.json").unlink()  # what remains is a directory as TFDS writes it
    assert verify(data).faults == ()
    info = json.loads((data / "dataset_info.json").read_text())
    info["splits"] = [split for split in info["splits"] if split["name"] != "validation"]
    (data / "dataset_info.json").write_text(json.dumps(info))
    assert [(fault.code, fault.file) for fault in verify(data).faults] == [("shards-not-named", "dataset_info.json")]


def test_external_datasets_are_checked_and_indexed(tmp_path, in_process):
    payloads = [
        records.example({"image": _png(number), "label": number % 2, "image/height": 12}) for number in range(6)
    ]
    folder = tmp_path / "external"
    folder.mkdir()
    frames = [records.frame(payload) for payload in payloads]
    shard = folder / "train-00000-of-00001"
    shard.write_bytes(b"".join(frames))
    report = verify(folder)
    assert (report.faults, report.splits[0].records, report.splits[0].classes) == ((), 6, 2)
    assert not (folder / ".convoy").exists()
    assert verify(folder, repair_index=True).faults == ()
    assert (folder / ".convoy" / "index-train.npz").exists()

    content = bytearray(b"".join(frames))
    content[len(frames[0]) + 3] ^= 1
    content[len(content) - 30] ^= 1
    times = shard.stat()
    shard.write_bytes(content)
    os.utime(shard, ns=(times.st_atime_ns, times.st_mtime_ns))
    report = verify(folder, repair_index=True)
    assert [(fault.offset, fault.record) for fault in report.faults] == [
        (len(frames[0]), 1),
        (sum(map(len, frames[:5])), 5),
    ]
    assert report.not_rebuilt == ("train",)


def test_indexes_of_external_datasets_are_rebuilt_only_if_the_shards_are_intact(tmp_path, in_process):
    folder = tmp_path / "external"
    folder.mkdir()

    def write(split, labels):
        frames = [
            records.frame(records.example({"image": _png(number), "label": label}))
            for number, label in enumerate(labels)
        ]
        path = folder / f"{split}-00000-of-00001"
        times = path.stat() if path.exists() else None
        path.write_bytes(b"".join(frames))
        if times:  # like a copy that keeps modification times
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        return path

    for split in ("train", "validation"):
        write(split, [1, 0, 1])
    open_dataset(folder)
    write("train", [0, 1, 1])
    damaged = write("validation", [0, 1, 1])
    rewrite(damaged, lambda content: content.__setitem__(60, content[60] ^ 1))
    os.utime(damaged, ns=(0, (folder / "train-00000-of-00001").stat().st_mtime_ns))
    kept = (folder / ".convoy" / "index-validation.npz").read_bytes()
    found = verify(folder)
    assert {fault.section for fault in found.faults if fault.split == "train"} == {"index"}

    report = verify(folder, repair_index=True)
    assert (report.rebuilt, report.not_rebuilt) == (("train",), ("validation",))
    assert {(fault.split, fault.section) for fault in report.repaired} == {("train", "index")}
    assert {fault.split for fault in report.faults} == {"validation"}
    assert [(split.name, split.faults > 0) for split in report.splits] == [("train", False), ("validation", True)]
    assert (folder / ".convoy" / "index-validation.npz").read_bytes() == kept
    assert open_dataset(folder).split("train").label.tolist() == [0, 1, 1]


def test_what_all_records_of_another_tool_have_is_one_fault(tmp_path, in_process):
    for split, images in (("train", [b"p" * 12 * 12 * 3] * 3), ("test", [_png(0), b"p" * 12 * 12 * 3, b"II*\0"])):
        payloads = [{"image": image, "label": 1 + number % 2} for number, image in enumerate(images)]
        (tmp_path / f"{split}.tfrec").write_bytes(b"".join(records.frame(records.example(one)) for one in payloads))
    report = verify(tmp_path)
    found = [(fault.split, fault.code, fault.record is None and fault.offset is None) for fault in report.faults]
    assert found == [("test", "image-kind", False), ("test", "image-kind", False), ("train", "image-kind", True)]
    assert "all 3 records" in report.faults[-1].text and "TIFF" in report.faults[1].text
    assert report.first_label == 1
    assert not any("convert again" in fault.fix for fault in report.faults)


def test_labels_of_another_tool_are_compared_with_given_class_names(tmp_path, in_process):
    payloads = [records.example({"jpg": _png(label), "cls": label}) for label in (0, 1, 2)]
    (tmp_path / "train.tfrec").write_bytes(b"".join(map(records.frame, payloads)))
    names = ("cup", "jar", "pot")
    assert verify(tmp_path, record_format=RecordFormat("jpg", "cls", names)).faults == ()
    (fault,) = verify(tmp_path, record_format=RecordFormat("jpg", "cls", names[:2])).faults
    assert (fault.code, fault.section) == ("class-names", "description")
    (fault,) = verify(tmp_path, record_format=RecordFormat("jpg", "jpg")).faults
    assert (fault.code, "--label_key" in fault.fix) == ("label-missing", True)


def test_external_index_that_cannot_be_written_is_an_error(tmp_path, in_process, monkeypatch):
    folder = tmp_path / "external"
    folder.mkdir()
    (folder / "train.tfrecord").write_bytes(records.frame(records.example({"image": _png(0), "label": 0})))
    (folder / ".convoy").write_text("a file, so that not even root can create the directory")
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    with pytest.raises(DataError, match="index-train.npz"):
        verify(folder, repair_index=True)


def _png(number):
    from tests.input_pipeline.datasets import encode

    return encode(pixels(number, size=12), "png")


def test_command_prints_a_table_and_faults_and_repairs_indexes(data, convoy, tmp_path):
    index, report = data / "index-train.npz", tmp_path / "report.json"
    index.unlink()
    found = convoy("verify", f"--data={data}", f"--json={report}")
    assert found.returncode == 3
    assert f"{data} has 1 fault" in found.stderr.splitlines()[-1]
    assert any("index-train.npz" in line and "--repair_index" in line for line in found.stdout.splitlines())
    rows = {line.split()[0]: line.split()[1:] for line in found.stdout.splitlines()[:3]}
    assert rows["train"] == ["14", "3", "2", "0.0", "1"]
    content = json.loads(report.read_text())
    assert content.keys() == {"splits", "faults", "repaired", "rebuilt", "not_rebuilt"}
    (fault,) = content["faults"]
    assert fault.keys() == {"code", "kind", "split", "file", "offset", "record", "problem", "fix"}
    assert (fault["code"], fault["kind"], fault["split"]) == ("index-unusable", "index", "train")
    assert (fault["file"], fault["offset"], fault["record"]) == ("index-train.npz", None, None)
    repaired = convoy("verify", f"--data={data}", "--repair_index", f"--json={report}", check=True)
    assert "index-train.npz" in repaired.stdout
    content = json.loads(report.read_text())
    assert (content["faults"], content["rebuilt"]) == ([], ["train"])
    assert [fault["file"] for fault in content["repaired"]] == ["index-train.npz"]


def test_command_refuses_a_folder_that_is_not_a_dataset(convoy, tmp_path):
    result = convoy("verify", f"--data={tmp_path}")
    assert result.returncode == 3
    assert "not a dataset" in result.stderr and "Traceback" not in result.stderr


@pytest.fixture
def many_records(tmp_path):
    """A folder with two shards that take several seconds to check."""
    folder = tmp_path / "external"
    folder.mkdir()
    record = records.frame(records.example({"image": _png(0), "label": 0}))
    for number in range(2):
        (folder / f"train-{number:05d}-of-00002").write_bytes(record * 50_000)
    return folder


@pytest.mark.slow
def test_killed_worker_is_reported_with_its_position(convoy_started, wait_until, tmp_path, many_records):
    log, shard, workers = tmp_path / "log", many_records / "train-00001-of-00002", []
    with convoy_started("verify", f"--data={many_records}", "--workers=2", output=log) as process:

        def is_working():
            workers[:] = [one for one in _group(process.pid) if one != process.pid and _has_open(one, shard)]
            return workers

        wait_until(is_working, "the start of a worker on the shard")
        os.kill(workers[0], signal.SIGKILL)
        assert process.wait(60) == 3
        wait_until(lambda: not _group(process.pid), "the end of the workers", 30)
    assert re.search(r"SIGKILL.* train-00001-of-00002 offset \d+\b.*--workers=1", log.read_text().splitlines()[-1])


@pytest.mark.slow
def test_ctrl_c_ends_the_command_and_its_workers(convoy_started, wait_until, tmp_path, many_records):
    log = tmp_path / "log"
    with convoy_started("verify", f"--data={many_records}", "--workers=2", output=log) as process:
        # The command, a worker, Python's fork server and its resource tracker.
        wait_until(lambda: len(_group(process.pid)) > 3, "the start of a worker")
        os.kill(process.pid, signal.SIGINT)
        assert process.wait(60) == 130
        wait_until(lambda: not _group(process.pid), "the end of the workers", 30)
    assert "interrupted" in log.read_text().splitlines()[-1]


def _group(leader):
    """Returns the running processes of a process group."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/stat") as file:
                    fields = file.read().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[2]) == leader and fields[0] != "Z":
                found.append(int(entry))
    return found


def _has_open(process, path):
    try:
        return str(path) in [os.readlink(entry) for entry in Path(f"/proc/{process}/fd").iterdir()]
    except OSError:  # the process has ended, or closed a file
        return False
