"""Every file that Convoy reads from a folder that somebody else may have made, replaced by one that is to do harm.

Commands end with one line that names the file. What only looks at a run, such as `convoy runs`, leaves the file out.
Nothing hangs, nothing outside of the folder is read into messages or written, and memory stays limited.
"""

import contextlib
import gzip
import io
import json
import os
import resource
import shutil
import struct
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest

from convoy.cli import runs
from convoy.core.errors import ConvoyError
from convoy.input_pipeline.convert import quarantine
from convoy.input_pipeline.convert.metadata import LABEL_FILES
from convoy.input_pipeline.dataset.open import open_dataset, read_manifest
from convoy.input_pipeline.dataset.records import masked_crc
from convoy.input_pipeline.verify import verify as verifier
from convoy.input_pipeline.verify.shard import check_shard
from convoy.launch.run_files import RunFiles
from convoy.trainer.callbacks.tensorboard.event_file import EventFile, cut_back
from convoy.trainer.checkpoint.checkpoints import CheckpointStore, load_latest_valid
from convoy.trainer.evaluation import predictions
from convoy.trainer.evaluation.report.history import read_history
from convoy.trainer.evaluation.report.insights import derive_insights
from convoy.trainer.evaluation.report.learning_curve import LearningCurve, Point
from convoy.trainer.evaluation.report.plots import learning_curve_chart
from convoy.trainer.evaluation.results import truncate_results
from convoy.trainer.export.folder import read_description, write_description
from convoy.trainer.run.directory import RunDirectory, truncate_json_lines
from tests.input_pipeline.datasets import encode, read_payloads, write_dataset
from tests.input_pipeline.images import pixels
from tests.trainer.report.made_runs import CLASSES, drawn_predictions, evaluated, made_run

MOST_BYTES = 2**28  # of address space that a reader may take more than it has: the files are a few kB
DEEP = b'{"a":' * 100_000 + b"1" + b"}" * 100_000
VALUES = (None, True, 0, -1, 2**63 - 1, 10**30, float("nan"), float("inf"), "", "../../secret", "/etc/passwd", [], {})
SHARD = "made-train.tfrecord-00000-of-00002"


def pipe(path, content):
    os.mkfifo(path)


def device(path, content):
    path.symlink_to("/dev/zero")


def folder(path, content):
    path.mkdir()


def tebibyte(path, content):
    with open(path, "wb") as file:
        file.truncate(2**40)


def writes(make):
    return lambda path, content: path.write_bytes(make(content))


def zip_bomb(content):
    """Returns an archive whose members are zeros, or the original ones, compressed 1,000 times."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        names = zipfile.ZipFile(io.BytesIO(content)).namelist() if zipfile.is_zipfile(io.BytesIO(content)) else ["a"]
        for name in names:
            with archive.open(name, "w", force_zip64=True) as member:
                for _ in range(8):
                    member.write(bytes(2**20))
    return file.getvalue()


def huge_numbers(content):
    """Returns the file with 2^62 for each 1."""
    return content.replace(b"1", b"4611686018427387904")


# By name: (path, content) -> None, which makes the file.
ANY = {
    "a pipe": pipe,
    "an endless device": device,
    "a folder": folder,
    "2^40 bytes": tebibyte,
    "empty": writes(lambda content: b""),
    "zeros": writes(lambda content: bytes(4096)),
    "0xff": writes(lambda content: b"\xff" * 4096),
    "cut": writes(lambda content: content[: len(content) // 2]),
    "one line of 8 MB": writes(lambda content: b"x" * 2**23),
    "nested deeply": writes(lambda content: DEEP),
    "10^4000": writes(lambda content: b'{"format_version": 1, "step": 1' + b"0" * 4000 + b"}"),
    "10^5000": writes(lambda content: b'{"format_version": 1, "step": 1' + b"0" * 5000 + b"}"),
    "a list": writes(lambda content: b"[]\n" * 3),
    "huge numbers": writes(huge_numbers),
    "a bomb in zip": writes(zip_bomb),
    "a bomb in gzip": writes(lambda content: gzip.compress(bytes(2**24))),
    "a record of 2^62 bytes": writes(lambda content: record_header(2**62)),
    "a pickle": writes(lambda content: b"\x80\x04cos\nsystem\n"),
}

VARIANTS = [name if name in ("a pipe", "nested deeply") else pytest.param(name, marks=pytest.mark.slow) for name in ANY]


def record_header(length):
    header = struct.pack("<Q", length)
    return header + struct.pack("<I", masked_crc(header)) + b"payload"


@contextlib.contextmanager
def limited_memory():
    with open("/proc/self/statm") as file:
        size = int(file.read().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (size + MOST_BYTES, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def refusal(read):
    """Returns the message with which a reader refuses; "" if it does not. Fails at any other exception."""
    with limited_memory():
        try:
            read()
        except ConvoyError as error:
            assert len(str(error).splitlines()) == 1 and len(str(error)) < 2_000
            return str(error)
        except OSError as error:  # of a function whose callers report it
            return str(error.filename)
    return ""


# ---- RUN


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with a file of every kind."""
    metrics = [
        {"step": step, "split": split, "quality/top1": 0.5, "quality/loss": 1.5, "perf/images_per_s": 100.0}
        for step in (10, 20)
        for split in ("train", "validation")
    ]
    made = made_run(
        tmp_path_factory.mktemp("runs") / "run",
        metrics=metrics,
        results=[("validation", 10, 0.4), ("validation", 20, 0.5)],
        result={"metrics": {"top1": 0.5}, "images_per_second": 100.0, "weights_sha256": "0" * 64},
    )
    evaluated(made, drawn_predictions(np.arange(8) % len(CLASSES), num_classes=len(CLASSES))[0])
    for step in (10, 20):
        CheckpointStore(made.checkpoints).save({"model/a": np.arange(8.0)}, step=step, metadata={}, score=0.5)
    for name in ("start", "first_step", "preempted"):
        made.append_event(name, step=10, attempt=1)
    made.sample_order.mkdir()
    (made.sample_order / "worker-0.jsonl").write_text('{"step": 1, "images": [1, 2]}\n{"step": 2, "images": [3]}\n')
    attempt = made.attempt(1)
    attempt.mkdir(parents=True)
    error = {"rank": 0, "time": 1000000000.5, "step": 11, "exit_code": 1, "error": "Oops"}
    (attempt / "error-0.json").write_text(json.dumps(error))
    (attempt / "end-0.json").write_text('{"rank": 0, "returncode": 1, "time": 1000000000.5}\n')
    (attempt / "worker-0.log").write_text("line 1\nline 2\n")
    made.write_json(made.launch, {"attempts": [{"attempt": 1}]})
    points = [
        Point(fraction, round(8 * fraction), 20, fraction / 2, 40, 9.5, "0" * 64) for fraction in (0.25, 0.5, 1.0)
    ]
    made.write_json(made.learning_curve, LearningCurve("test", points).content())
    EventFile(made.tensorboard / "train", first_step=1).write(10, [])
    return made.path


EVENTS = "tensorboard/train/events"
STRICT = {"config.json", "dataset.json", "predictions_test.csv"}
RUN_FILES = (
    "config.json",
    "dataset.json",
    "environment.json",
    "command.txt",
    "metrics.jsonl",
    "results.csv",
    "result.json",
    "events.jsonl",
    "evaluation_test.json",
    "predictions_test.csv",
    "learning_curve.json",
    "launch.json",
    "logs/attempt-1/error-0.json",
    "logs/attempt-1/end-0.json",
    "logs/attempt-1/worker-0.log",
    "order/worker-0.jsonl",
    "checkpoints/step-000000020.npz",
    EVENTS,
)


def run_readers(path):
    """Returns what reads a run: `convoy runs`, `report`, a resume before it starts, and the launchers."""
    run, files = RunDirectory(path), RunFiles(path)
    attempt = files.attempt(1)

    def resume():
        load_latest_valid(CheckpointStore(run.checkpoints))
        CheckpointStore(run.checkpoints).best()
        for file in (run.metrics, *run.sample_order.glob("*.jsonl")):
            truncate_json_lines(file, 10)
        truncate_results(run, 10)
        cut_back(run.tensorboard / "train", last_step=9)

    def launch():
        attempt.end(0), attempt.error(0), attempt.last_lines(0, 3)
        files.logged_step(), files.checkpoint_step(), files.events(files.events_end())

    def report():
        history = read_history(run)
        derive_insights(history, None)
        if history.learning_curve:
            learning_curve_chart(history.learning_curve)
        for evaluation in predictions.evaluations(run):
            predictions.load(run, evaluation, history.class_names)

    return {
        "runs": lambda: runs.run(SimpleNamespace(json=None), [path.parent]),
        "launch": launch,
        "report": report,
        "resume": resume,
    }


def replaced(folder, name, make):
    """Replaces a file of a folder by what `make` makes of its path and content; returns whether it must be noticed."""
    path = folder / name
    if name == EVENTS:
        (path,) = path.parent.glob("*tfevents*")
    content = path.read_bytes()
    path.unlink()
    make(path, content)
    return make is not ANY["huge numbers"]  # they may be allowed, or of no file


def json_variants(content):
    """Yields a JSON file's bytes with each of its values replaced by each of `VALUES`, one at a time."""

    def places(value, path=()):
        yield path
        if isinstance(value, dict | list):
            for key in value if isinstance(value, dict) else range(len(value)):
                yield from places(value[key], (*path, key))

    for path in places(json.loads(content)):
        for value in VALUES:
            changed = {"": json.loads(content)}
            inside, keys = changed, ("", *path)
            for key in keys[:-1]:
                inside = inside[key]
            inside[keys[-1]] = value
            yield path, value, json.dumps(changed[""]).encode()


@pytest.mark.parametrize("name", RUN_FILES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_file_of_a_run(run, tmp_path, name, variant):
    copy = tmp_path / "runs" / "run"
    shutil.copytree(run, copy)
    is_noticed = replaced(copy, name, ANY[variant])
    refused = {command: refusal(read) for command, read in run_readers(copy).items()}
    assert not refused["runs"] and not refused["launch"]
    file = os.path.basename(name)
    assert all(file in text or "checkpoints" in text for text in refused.values() if text), refused
    assert file in refused["report"] or name not in STRICT or not is_noticed


@pytest.mark.parametrize("name", [name for name in RUN_FILES if name.endswith((".json", ".jsonl"))])
@pytest.mark.slow
def test_values_in_json_of_a_run(run, tmp_path, name):
    copy = tmp_path / "runs" / "run"
    shutil.copytree(run, copy)
    lines = (copy / name).read_bytes().splitlines() if name.endswith(".jsonl") else [(copy / name).read_bytes()]
    readers = run_readers(copy)
    for place, value, content in json_variants(lines[-1]):
        for command in ("runs", "launch", "report"):
            (copy / name).write_bytes(b"\n".join([*lines[:-1], content]) + b"\n")
            try:
                text = refusal(readers[command])
            except Exception as error:
                raise AssertionError(f"{command}: {place} = {value!r}") from error
            assert not text or command == "report" and (os.path.basename(name) in text or "predictions" in text), place


# ---- DATA, as `convoy convert` writes it


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    images = [pixels(number, size=6) for number in range(9)]
    made = tmp_path_factory.mktemp("data") / "data"
    write_dataset(made, {"train": images[:6], "validation": images[6:]}, ("cup", "fork", "jar"))
    (made / "quarantine.jsonl").write_text('{"split": "train", "path": "a", "category": "cup", "reason": "damaged"}\n')
    return made


DATA_FILES = ("manifest.json", "index-train.npz", SHARD, "quarantine.jsonl")
DESCRIPTIONS = (f"{SHARD}.idx", LABEL_FILES[0], "dataset_info.json", "features.json")  # for other readers


def read_data(path):
    """Opens a dataset as `convoy train` does, and reads its records."""
    dataset = open_dataset(path)
    for name in dataset.splits:
        dataset.digest(name)
        read_payloads(dataset.split(name))


@pytest.mark.parametrize("name", DATA_FILES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_file_of_a_data_set(data, tmp_path, name, variant, caplog):
    copy = tmp_path / "data"
    shutil.copytree(data, copy)
    is_noticed = replaced(copy, name, ANY[variant])
    refused = [refusal(lambda: read_data(copy)), refusal(lambda: quarantine.read(copy, read_manifest(copy)))]
    is_empty_list = (name, variant) == ("quarantine.jsonl", "empty")
    assert any(name in text for text in (*refused, caplog.text)) or not is_noticed or is_empty_list


@pytest.fixture
def verify(monkeypatch):
    """Verifies in this process, with TensorFlow started before memory is limited."""
    from convoy.input_pipeline.verify import image

    image.decoded(encode(pixels(0, size=6), "png"))
    monkeypatch.setattr(verifier, "_work", lambda tasks, *_: list(map(check_shard, tasks)))
    return verifier.verify


@pytest.mark.slow
@pytest.mark.parametrize("name", (*DATA_FILES, *DESCRIPTIONS))
@pytest.mark.parametrize("variant", ANY)
def test_verify(data, tmp_path, name, variant, verify):
    copy, faults = tmp_path / "data", []
    shutil.copytree(data, copy)
    is_noticed = replaced(copy, name, ANY[variant])
    text = refusal(lambda: faults.extend(verify(copy).faults))
    assert name in f"{text} {faults}" or not is_noticed or name == "quarantine.jsonl"


def as_tfds(data, folder):
    """Makes a dataset of TFDS of one of `convoy convert`, which has its files."""
    shutil.copytree(data, folder)
    for path in (folder / "manifest.json", *folder.glob("index-*")):
        path.unlink()


@pytest.mark.parametrize("name", [SHARD, "dataset_info.json", "features.json"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_file_of_a_data_set_of_tfds(data, tmp_path, name, variant):
    copy = tmp_path / "data"
    as_tfds(data, copy)
    is_noticed = replaced(copy, name, ANY[variant])
    text = refusal(lambda: read_data(copy))
    is_missing = name == "dataset_info.json" and not (copy / name).is_file()  # then it is a folder of shards
    assert name in text or not is_noticed or is_missing


@pytest.mark.parametrize("variant", VARIANTS)
def test_index_that_convoy_keeps_of_other_data_sets(data, tmp_path, variant):
    copy = tmp_path / "data"
    as_tfds(data, copy)
    read_data(copy)
    replaced(copy, ".convoy/index-train.npz", ANY[variant])
    assert not refusal(lambda: read_data(copy))


def test_index_of_other_data_sets_is_not_written_through_a_link(data, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    as_tfds(data, tmp_path / "data")
    (tmp_path / "outside").mkdir()
    (tmp_path / "data" / ".convoy").symlink_to(tmp_path / "outside")
    read_data(tmp_path / "data")
    assert not any((tmp_path / "outside").iterdir()) and any((tmp_path / "cache").rglob("index-train.npz"))


# ---- exports


@pytest.mark.parametrize("variant", VARIANTS)
def test_description_of_an_export(tmp_path, variant):
    write_description(tmp_path, {"formats": {}})
    replaced(tmp_path, "export.json", ANY[variant])
    assert "export.json" in refusal(lambda: read_description(tmp_path))
