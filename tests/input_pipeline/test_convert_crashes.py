"""Conversions that are interrupted or run out of disk or memory."""

import os
import re
import signal
import time
from pathlib import Path

import pytest
from PIL import Image

from convoy import cli
from convoy.core.errors import DataError
from convoy.input_pipeline.convert import publish
from convoy.input_pipeline.convert.convert import Options, convert
from convoy.input_pipeline.dataset.open import open_dataset
from tests.input_pipeline.conversions import contents, examples, start
from tests.input_pipeline.datasets import encode
from tests.input_pipeline.images import draw, draw_classes, pixels
from tests.input_pipeline.test_parquet_sources import write as write_rows
from tests.input_pipeline.test_tar_members import write as write_members
from tests.small_disk import small_disk


@pytest.fixture
def photos(tmp_path):
    return draw_classes(tmp_path / "photos", {"03": 6, "mug": 8})


def worker_processes(parent):
    """Returns the descendants of a process, Python's fork server first."""
    children = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        children.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    found, generation = [], [parent]
    while generation:
        generation = [child for process in generation for child in children.get(process, [])]
        found += generation
    return found


def is_running(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture
def stopped(tmp_path, convoy_started, wait_until):
    """Returns a function that starts a conversion to `data` and stops it after one more shard.

    It returns the exit code and stderr.
    """
    errors = tmp_path / "errors"

    def stop_one(flags, stop):
        marks = tmp_path / "data.partial" / "marks"
        before = len(list(marks.glob("*-of-00008")))
        with convoy_started("convert", *flags, f"--output={tmp_path}/data", output=errors) as process:
            wait_until(
                lambda: process.poll() is not None or len(list(marks.glob("*-of-00008"))) > before, "a shard", 60
            )
            workers = worker_processes(process.pid)
            stop(process, workers)
            process.wait(60)
            wait_until(lambda: not any(map(is_running, workers)), "the end of the workers", 20)
        assert not (tmp_path / "data").exists()
        return process.returncode, errors.read_text()

    return stop_one


@pytest.mark.slow
def test_conversion_killed_at_any_time_resumes_with_identical_results(tmp_path, stopped, convoy):
    images = draw_classes(tmp_path / "photos", {"a": 120, "b": 120}, size=200, suffix=".png")
    settings = ("--image_size=300", "--shards=8", "--workers=2", f"--images={images}")

    code, _ = stopped(settings, lambda process, workers: os.kill(process.pid, signal.SIGKILL))
    assert code == -signal.SIGKILL
    code, errors_text = stopped(settings, lambda process, workers: os.kill(workers[-1], signal.SIGKILL))
    assert code == 3
    # No image is named if the worker was between two shards.
    assert re.search(r"SIGKILL\)( .* [ab]/[ab]_\d+\.png)?\.", errors_text)
    assert re.search(r"convoy: \d finished shards? .*data\.partial\b", errors_text)
    assert "--workers=1" in errors_text and "Traceback" not in errors_text
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)):
        ended = stopped(settings, lambda process, workers, number=number: os.killpg(process.pid, number))
        assert ended[0] == code
        assert "Traceback" not in ended[1]

    resumed = convoy("convert", *settings, f"--output={tmp_path}/data", check=True)
    assert re.search(r"reusing \d+ of its \d+ finished shards", resumed.output)
    convert(Options(images, tmp_path / "reference" / "data", image_size=300, shards=8, workers=1))
    assert contents(tmp_path / "data") == contents(tmp_path / "reference" / "data")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "errors", "photos", "reference"]


def write_tar(folder):
    images = {f"{i:03d}.png": encode(pixels(i, 100), "png") for i in range(40)}
    labels = {f"{i:03d}.cls": b"%d" % (i % 2) for i in range(40)}
    return f"--tar={write_members(folder / 'photos.tar', images | labels)}"


def write_parquet(folder):
    rows = [{"bytes": encode(pixels(i, 100), "png"), "path": None} for i in range(40)]
    return f"--parquet={write_rows(folder / 'photos.parquet', rows, [i % 2 for i in range(40)])}"


def write_function(folder):
    photos = "photos = [(pixels(i, 100), 'ab'[i % 2]) for i in range(40)]"
    (folder / "photos.py").write_text(f"from tests.input_pipeline.images import pixels\n{photos}")
    return f"--images={folder}/photos.py:photos"


@pytest.mark.slow
@pytest.mark.parametrize("write", [write_tar, write_parquet, write_function])
def test_killed_conversion_of_other_sources_resumes_with_identical_results(tmp_path, stopped, convoy, write):
    (tmp_path / "in").mkdir()
    source = write(tmp_path / "in")
    settings = ("--image_size=300", "--shards=8", "--validation_fraction=0", "--workers=1", source)
    code, _ = stopped(settings, lambda process, workers: os.kill(process.pid, signal.SIGKILL))
    assert code == -signal.SIGKILL
    resumed = convoy("convert", *settings, f"--output={tmp_path}/data", check=True)
    assert re.search(r"reusing (\d+) of its \1 finished shard", resumed.output)
    assert cli.main(["convoy", "convert", *settings, f"--output={tmp_path}/reference/data"]) == 0
    assert contents(tmp_path / "data") == contents(tmp_path / "reference" / "data")
    # What the killed one had copied is gone.
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "errors", "in", "reference"]


@pytest.fixture
def stopped_before_publishing(monkeypatch):
    """Returns a function that runs a conversion and interrupts it when all shards are finished."""

    def stop(options):
        with monkeypatch.context() as patch:
            patch.setattr(publish, "publish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                convert(options)

    return stop


@pytest.mark.slow
def test_shards_are_rewritten_if_an_image_or_a_setting_has_changed(tmp_path, photos, stopped_before_publishing):
    logged = []
    stopped_before_publishing(Options(photos, tmp_path / "data", shards=3))
    draw(photos / "mug" / "mug_003.jpg", 77)
    convert(Options(photos, tmp_path / "data", shards=3), log=logged.append)
    assert re.search(r"3 of its 4 finished shards \(1 outdated", logged.pop())
    convert(Options(photos, tmp_path / "reference" / "data", shards=3))
    assert contents(tmp_path / "data") == contents(tmp_path / "reference" / "data")

    stopped_before_publishing(Options(photos, tmp_path / "small", shards=2))
    (damaged,) = (tmp_path / "small.partial" / "dataset").glob("*-train.tfrecord-00001-of-00002")
    damaged.write_bytes(damaged.read_bytes()[:-1])
    convert(Options(photos, tmp_path / "small", shards=2), log=logged.append)
    assert "2 of its 3 " in logged.pop()
    stopped_before_publishing(Options(photos, tmp_path / "tiny", shards=2))
    convert(Options(photos, tmp_path / "tiny", shards=2, image_size=8), log=logged.append)
    assert "0 of its 3 " in logged.pop()
    assert {example["image/width"] for example in examples(tmp_path / "tiny").values()} == {8}
    assert sorted(path.name for path in tmp_path.iterdir() if "partial" in path.name) == []


@pytest.mark.slow
def test_kill_while_publishing_leaves_the_dataset_intact_and_a_rerun_finishes(tmp_path, photos, forks):
    data, reference = tmp_path / "data", tmp_path / "reference" / "data"
    test = draw_classes(tmp_path / "test", {"mug": 5}, first=500)
    (test / "mug" / "stray.txt").touch()
    for output in (data, reference):
        convert(Options(photos, output))
    convert(Options(test, reference, split="test", shards=2))
    for renames in (0, 1, 3, 5, 8, 11):
        assert forks.run("tests.input_pipeline.killed_publication", test, data, renames).returncode == -signal.SIGKILL
        assert open_dataset(data).splits == ("train", "validation")
    convert(Options(test, data, split="test", shards=2))
    assert contents(data) == contents(reference)


@pytest.mark.slow
def test_full_disk_is_a_one_line_error_and_a_rerun_resumes(tmp_path, convoy):
    images = draw_classes(tmp_path / "photos", {"a": 20, "b": 20}, size=200, suffix=".png")
    flags = (f"--images={images}", "--shards=8", "--validation_fraction=0", "--workers=1", "--name=data")

    with small_disk(tmp_path / "disk", 12 * 2**20) as disk:
        disk.fill(all_but=2_000_000)  # the dataset takes about 5 MB
        refused = convoy("convert", *flags, f"--output={disk.seen / 'data'}")
        assert refused.returncode == 3, refused.output
        assert "No space left on device" in refused.stderr and f"--output={disk.seen / 'data'}" in refused.stderr
        assert re.search(r"convoy: [1-7] finished shards? ", refused.stderr) and "Traceback" not in refused.stderr
        disk.make_room()
        convoy("convert", *flags, f"--output={disk.seen / 'data'}", check=True)
        convoy("convert", *flags, f"--output={tmp_path / 'data'}", check=True)
        assert contents(disk.seen / "data") == contents(tmp_path / "data")


@pytest.fixture
def memory_group():
    """A cgroup with a memory limit: (its folder, the files of its usage and its limit)."""
    root = Path("/sys/fs/cgroup")
    for parent, *files in (
        (root / "memory", "memory.usage_in_bytes", "memory.limit_in_bytes"),
        (root, "memory.current", "memory.max"),
    ):
        group = parent / f"convoy-test-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        if (group / files[1]).exists():
            break
        group.rmdir()
    else:
        pytest.skip("cannot create a memory cgroup")
    yield group, group / files[0], group / files[1]
    group.rmdir()


@pytest.mark.slow
def test_worker_killed_by_the_oom_killer_is_reported_with_its_image(tmp_path, memory_group, wait_until):
    group, usage, limit = memory_group
    for number in range(12):
        path = tmp_path / "photos" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (6000, 6000), (number, 0, 0)).save(path)
    flags = (f"--images={tmp_path}/photos", f"--output={tmp_path}/data", "--shards=2", "--workers=2", "--image_size=32")
    with open(tmp_path / "errors", "w") as file:
        process = start(*flags, "--validation_fraction=0", file=file)
        (group / "cgroup.procs").write_text(str(process.pid))
        wait_until(lambda: process.poll() is not None or list(tmp_path.glob("data.partial/dataset/*.tmp")), "work", 240)
        limit.write_text(str(int(usage.read_text()) + 50_000_000))  # a decoded image is 108 MB
        assert process.wait(240) == 3
    errors_text = (tmp_path / "errors").read_text()
    assert re.search(r"SIGKILL.*memory.* [ab]/\d+\.png\b.*--workers=1", errors_text)
    wait_until(lambda: not (group / "cgroup.procs").read_text(), "the end of the processes", 120)


def test_interrupt_while_workers_start_prints_one_line(tmp_path):
    images = draw_classes(tmp_path / "photos", {"a": 4, "b": 4})
    process = start(f"--images={images}", f"--output={tmp_path}/data", "--workers=2")
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("data.partial")):  # workers are importing TensorFlow now
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert output == "" and len(errors.splitlines()) == 1 and "interrupted" in errors
    assert process.returncode == 130
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def test_failure_while_adding_a_split_is_rolled_back(tmp_path, photos, monkeypatch):
    data = tmp_path / "data"
    convert(Options(photos, data))
    before = contents(data)
    test = draw_classes(tmp_path / "test", {"mug": 3}, first=500)
    replace = os.replace

    def full_disk(source, target):
        if Path(target) == data / "dataset_info.json":
            monkeypatch.setattr(os, "replace", replace)
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(DataError, match="No space left on device"):
        convert(Options(test, data, split="test"))
    after = contents(data)
    assert {name: after[name] for name in before} == before
    assert {name.partition("/")[0] for name in after.keys() - before.keys()} == {"test.partial"}
