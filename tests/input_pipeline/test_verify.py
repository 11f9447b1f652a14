import json
import os
import re
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest

from convoy.core.errors import DataError
from convoy.input_pipeline.dataset import records
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
    """Has shards checked in this process, as workers check them: starting those takes seconds."""
    monkeypatch.setattr(verifier, "_work", lambda tasks, *_: list(map(check_shard, tasks)))


def shard_of(data, number=0, split="train"):
    return data / f"made-{split}.tfrecord-{number:05d}-of-00002"


def rewrite(path, change):
    content = bytearray(path.read_bytes())
    change(content)
    path.write_bytes(content)


def as_the_manifest_says(data, split="train"):
    """Writes sizes and checksums of the shards into the manifest, as whoever damages data by a program would."""
    import hashlib

    manifest = json.loads((data / "manifest.json").read_text())
    for shard in manifest["splits"][split]["shards"]:
        content = (data / shard["file"]).read_bytes()
        shard["bytes"], shard["sha256"] = len(content), hashlib.sha256(content).hexdigest()
    (data / "manifest.json").write_text(json.dumps(manifest))


def lines(report):
    return [fault.line() for fault in report.faults]


def test_a_whole_dataset_is_whole(data, in_process):
    report = verify(data)
    assert report.faults == ()
    assert [(s.name, s.records, s.classes, s.shards, s.faults) for s in report.splits] == [
        ("train", 14, 3, 2, 0),
        ("validation", 6, 3, 2, 0),
    ]
    assert report.splits[0].size == sum(shard_of(data, number).stat().st_size for number in (0, 1))


def test_a_flipped_bit_is_named_by_shard_offset_and_record(data, in_process):
    split = open_dataset(data).split("train")
    shard = shard_of(data, 1)
    record = int(np.flatnonzero(split.shard == 1)[2])
    offset = int(split.offset[record])

    def flip(content):
        content[offset + 60] ^= 1

    rewrite(shard, flip)
    report = verify(data)
    assert lines(report) == [
        f"{shard.name}: its SHA-256 is not the manifest's: bytes were changed. Copy the file again, or convert again",
        f"{shard.name} offset {offset} (record {record} of train): the record: its bytes do not give its checksum. "
        "Copy the file again, or convert again",
    ]
    assert [split.faults for split in report.splits] == [2, 0]


def test_behind_a_damaged_header_the_index_leads_on(data, in_process):
    split = open_dataset(data).split("train")
    offset = int(split.offset[1])

    def damage(content):
        content[offset : offset + 8] = (2**60).to_bytes(8, "little")
        content[-1] ^= 1

    rewrite(shard_of(data), damage)
    report = verify(data)
    last = int(split.offset[split.shard == 0][-1])
    assert [(fault.offset, fault.record) for fault in report.faults] == [(None, None), (offset, 1), (last, 6)]
    assert "header is damaged" in report.faults[1].problem
    assert report.splits[0].records == 13
    (data / "index-train.npz").unlink()
    report = verify(data)
    unread = [fault for fault in report.faults if fault.offset == offset]
    assert f"{shard_of(data).stat().st_size - offset:,} bytes cannot be read" in unread[0].problem


def test_a_shard_that_is_cut_short_or_missing_is_named(data, in_process):
    shard = shard_of(data)
    size = shard.stat().st_size
    with open(shard, "ab") as file:
        file.truncate(size - 5)
    shard_of(data, 1).unlink()
    said = "\n".join(lines(verify(data)))
    assert f"{shard.name}: has {size - 5:,} bytes and the manifest says {size:,}" in said
    assert f"the record should end at byte {size:,} and the file ends at {size - 5:,}" in said
    assert f"{shard_of(data, 1).name}: cannot be read (No such file or directory)" in said


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"image/class/label": 1}, "its label 1 is 'Käse' and its text '03'"),
        ({"image/class/label": 3}, "its label is 3 of 3 classes"),
        ({"image/height": 13}, "its height is 12 and the record says 13"),
        ({"image/format": "jpeg"}, "its format is png and the record says jpeg"),
        ({"image/channels": 1}, "its channels is 3 and the record says 1"),
        ({"image/encoded": b"\x89PNG\r\n\x1a\nnothing more"}, "TensorFlow cannot decode its image"),
        ({"image/encoded": b"\xff\xd8\xff"}, "TensorFlow cannot decode its image"),
        ({"image/encoded": b"", "image/format": "raw"}, "0 bytes of raw pixels are not 12 x 12 x 3"),
    ],
)
def test_a_record_that_is_not_what_it_says_is_named(data, in_process, change, complaint):
    from convoy.input_pipeline.dataset.examples import from_bytes, read_features

    shard = shard_of(data)
    content = shard.read_bytes()
    length = next(records.walk(shard))[1]
    payload = content[records.HEADER_BYTES : records.HEADER_BYTES + length]
    features = {name: values[0] for name, values in read_features(from_bytes(payload), length).items()}
    first = records.frame(records.example(features | change))
    shard.write_bytes(first + content[length + records.FRAME_OVERHEAD :])
    as_the_manifest_says(data)
    report = verify(data)
    faults = [fault for fault in report.faults if fault.kind == "shard"]
    assert [(fault.offset, fault.record) for fault in faults] == [(0, 0)]
    assert complaint in faults[0].problem


def test_an_index_that_says_something_else_than_the_records_is_named(data, in_process):
    path = data / "index-train.npz"
    with np.load(path) as index:
        arrays = dict(index)
    arrays["label"][[0, 1]] = arrays["label"][[1, 0]]
    arrays["crc"][3] ^= 1
    np.savez(path, **arrays)
    report = verify(data)
    assert {fault.kind for fault in report.faults} == {"index"}
    assert [fault.record for fault in report.faults] == [0, 1, 3]
    assert "the record has label 0 and the index says 2" in lines(report)[0]


def test_descriptions_are_compared_with_the_manifest(data, in_process):
    (data / "image.class.label.labels.txt").write_text("03\nKase\nmug\n")
    (data / "image-class-label.labels.txt").unlink()
    info = json.loads((data / "dataset_info.json").read_text())
    info["splits"][0]["shardLengths"][0] = "8"
    (data / "dataset_info.json").write_text(json.dumps(info))
    np.savez(data / "images-train.npz", width=np.zeros(14), content=np.zeros(13))
    said = lines(verify(data))
    assert [line.split(":")[0] for line in said] == [
        "image.class.label.labels.txt",
        "image-class-label.labels.txt",
        "dataset_info.json",
        "images-train.npz",
    ]
    assert "content 13" in said[-1]


def test_counts_a_class_are_compared_with_the_manifest(data, in_process):
    manifest = json.loads((data / "manifest.json").read_text())
    counts = manifest["splits"]["train"]["counts"]
    counts[0], counts[1] = counts[0] + 1, counts[1] - 1
    (data / "manifest.json").write_text(json.dumps(manifest))
    said = lines(verify(data))
    assert any("manifest.json: says 6 images of class 0 in train, and there are 5" in line for line in said)


def test_repairing_writes_the_indexes_that_were_lost_and_nothing_else(data, written, in_process):
    whole = {path.name: path.read_bytes() for path in written.iterdir()}
    (data / "index-train.npz").unlink()
    (data / "index-validation.npz").write_bytes(b"not an index")
    idx = shard_of(data).with_name(shard_of(data).name + ".idx")
    idx.write_text("0 1\n")
    assert len(verify(data).faults) == 3
    report = verify(data, repair_index=True)
    assert (report.faults, len(report.mended), report.not_rebuilt) == ((), 3, ())
    assert {path.name: path.read_bytes() for path in data.iterdir()} == whole
    assert verify(data).faults == ()


def test_an_index_is_not_rebuilt_from_damaged_shards(data, in_process):
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


def test_directories_of_others_are_checked_and_indexed_too(tmp_path, in_process):
    payloads = [
        records.example({"image": _png(number), "label": number % 2, "image/height": 12}) for number in range(6)
    ]
    folder = tmp_path / "others"
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


def test_indexes_of_directories_of_others_are_rebuilt_where_only_they_are_wrong(tmp_path, in_process):
    folder = tmp_path / "others"
    folder.mkdir()

    def write(split, labels):
        frames = [
            records.frame(records.example({"image": _png(number), "label": label}))
            for number, label in enumerate(labels)
        ]
        path = folder / f"{split}-00000-of-00001"
        times = path.stat() if path.exists() else None
        path.write_bytes(b"".join(frames))
        if times:  # as a copy leaves them that keeps times
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
    assert {fault.kind for fault in found.faults if fault.split == "train"} == {"index"}

    report = verify(folder, repair_index=True)
    assert (report.rebuilt, report.not_rebuilt) == (("train",), ("validation",))
    assert {(fault.split, fault.kind) for fault in report.mended} == {("train", "index")}
    assert {fault.split for fault in report.faults} == {"validation"}
    assert [(split.name, split.faults > 0) for split in report.splits] == [("train", False), ("validation", True)]
    assert (folder / ".convoy" / "index-validation.npz").read_bytes() == kept
    assert open_dataset(folder).split("train").label.tolist() == [0, 1, 1]


def test_an_index_of_others_that_can_be_written_nowhere_is_not_said_to_be_rebuilt(tmp_path, in_process, monkeypatch):
    folder = tmp_path / "others"
    folder.mkdir()
    (folder / "train.tfrecord").write_bytes(records.frame(records.example({"image": _png(0), "label": 0})))
    (folder / ".convoy").write_text("in the way, even of root")
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    with pytest.raises(DataError, match="index-train.npz cannot be written"):
        verify(folder, repair_index=True)


def _png(number):
    from tests.input_pipeline.datasets import encode

    return encode(pixels(number, size=12), "png")


def test_the_command_shows_a_table_names_faults_and_mends_what_can_be_mended(data, convoy, tmp_path):
    index, report = data / "index-train.npz", tmp_path / "report.json"
    index.unlink()
    found = convoy("verify", f"--data={data}", f"--json={report}")
    assert found.returncode == 3
    assert found.stderr.splitlines()[-1] == f"convoy: {data} has 1 fault"
    assert "index-train.npz: is missing. --repair_index mends it" in found.stdout
    rows = {line.split()[0]: line.split()[1:] for line in found.stdout.splitlines()[:3]}
    assert rows["train"] == ["14", "3", "2", "0.0", "1"]
    assert json.loads(report.read_text())["faults"][0]["file"] == "index-train.npz"
    mended = convoy("verify", f"--data={data}", "--repair_index", check=True)
    assert f"Rebuilt: index-train.npz.\n{data} is whole.\n" in mended.stdout


def test_the_command_refuses_what_is_no_folder(convoy):
    result = convoy("verify", "--data=gs://bucket/data")
    assert result.returncode == 2
    assert "--data=gs://bucket/data: every byte is read, and only of a folder: run it where" in result.stderr
    assert result.stdout == ""


def test_the_command_refuses_what_is_no_dataset(convoy, tmp_path):
    result = convoy("verify", f"--data={tmp_path}")
    assert result.returncode == 3
    assert "is not a dataset" in result.stderr and "Traceback" not in result.stderr


@pytest.fixture
def many_records(tmp_path):
    """A folder of two shards that take several seconds to check."""
    folder = tmp_path / "others"
    folder.mkdir()
    record = records.frame(records.example({"image": _png(0), "label": 0}))
    for number in range(2):
        (folder / f"train-{number:05d}-of-00002").write_bytes(record * 50_000)
    return folder


@pytest.mark.slow
def test_a_worker_that_is_killed_is_named_with_its_place(convoy_started, wait_until, tmp_path, many_records):
    log, shard, workers = tmp_path / "log", many_records / "train-00001-of-00002", []
    with convoy_started("verify", f"--data={many_records}", "--workers=2", output=log) as process:

        def is_at_work():
            workers[:] = [one for one in _group(process.pid) if one != process.pid and _has_open(one, shard)]
            return workers

        wait_until(is_at_work, "the start of a worker on the shard")
        os.kill(workers[0], signal.SIGKILL)
        assert process.wait(60) == 3
        wait_until(lambda: not _group(process.pid), "the end of the workers", 30)
    assert re.fullmatch(
        r"convoy: a worker process was killed \(SIGKILL\) at or soon after train-00001-of-00002 offset \d+\. "
        r"The same command with --workers=1 needs less memory",
        log.read_text().splitlines()[-1],
    )


@pytest.mark.slow
def test_ctrl_c_ends_the_command_and_its_workers(convoy_started, wait_until, tmp_path, many_records):
    log = tmp_path / "log"
    with convoy_started("verify", f"--data={many_records}", "--workers=2", output=log) as process:
        # Beside it and a worker: Python's server that workers are forked from, and its tracker of resources.
        wait_until(lambda: len(_group(process.pid)) > 3, "the start of a worker")
        os.kill(process.pid, signal.SIGINT)
        assert process.wait(60) == 130
        wait_until(lambda: not _group(process.pid), "the end of the workers", 30)
    assert log.read_text().splitlines()[-1] == "convoy: interrupted"


def _group(leader):
    """Returns the processes of a process group that still run."""
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
    except OSError:  # it has ended, or closed a file
        return False
