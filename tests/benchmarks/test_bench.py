import importlib.util
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import measure, workers
from benchmarks.workers import PeerError, Round
from convoy import cli

ROOT = Path(__file__).parents[2]
FAKE = "tests.benchmarks.fake_peers"


@pytest.fixture
def mark(monkeypatch):
    """A word in the environment that every process of this test inherits, to find those that are left."""
    word = uuid.uuid4().hex
    monkeypatch.setenv("CONVOY_TEST_MARK", word)
    return word


def processes(mark, module="benchmarks."):
    """Returns the ids of running worker processes that inherited the mark."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            environment, command = (entry / "environ").read_bytes(), (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if mark.encode() in environment and f"\0-m\0{module}".encode() in command:
            found.append(int(entry.name))
    return found


def wait_until(condition, seconds):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


@pytest.fixture
def bench(forks, capsys, monkeypatch, tmp_path_factory):
    """Runs `convoy bench *arguments` in this process, with forked peers; returns JSON, output and messages."""
    folder = tmp_path_factory.mktemp("b")  # sockets lie in it, whose paths must be short
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setattr(workers, "subprocess", SimpleNamespace(Popen=forks.popen, PIPE=subprocess.PIPE))

    def run(*arguments):
        path = folder / "bench.json"
        code = cli.main(["convoy", "bench", *map(str, arguments), f"--json={path}"])
        output, messages = capsys.readouterr()
        assert code == 0, messages
        assert not list(folder.glob("convoy-bench-*"))
        return json.loads(path.read_text()), output, messages

    return run


def is_installed(package):
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:  # of its parent
        return False


def refused(capsys, named, *arguments):
    """Asserts a usage error of one or two lines that contains each word of `named`."""
    assert cli.main(["convoy", "bench", *map(str, arguments)]) == 2
    error = capsys.readouterr().err.strip()
    assert all(word in error for word in named.split()), error
    assert len(error.splitlines()) <= 2


@pytest.fixture
def options(tmp_path):
    return {"threads": 0, "seconds": 0.02, "log": str(tmp_path / "log")}


# What is made of rounds.


def test_ratios_pair_rounds_of_the_same_number():
    quiet_then_busy = [Round(1.0, 1.0, 100), Round(4.0, 1.0, 100), Round(1.0, 1.0, 100)]
    twice_as_fast = [Round(0.5, 1.0, 100), Round(2.0, 1.0, 100), Round(0.5, 1.0, 100)]
    slow = measure.Row("slow", "slow", tuple(quiet_then_busy), {})
    fast = measure.Row("fast", "fast", tuple(twice_as_fast), {})
    assert fast.ratio_to(slow) == 2.0
    assert slow.ratio_to(None) is None
    assert (slow.rate, min(slow.rates), slow.rate_per_core) == (100, 25, 100)


def test_peers_take_turns_and_rotate(options, mark):
    long = options | {"seconds": 0.2}  # so that a busy machine does not change the ratio
    measured = measure.measure(FAKE, {"steady": "Steady", "double": "Double"}, long, rounds=3)
    assert list(measured.rows) == ["steady", "double"]
    assert measured.rows["double"].label == "Double"
    assert [len(row.rounds) for row in measured.rows.values()] == [3, 3]
    assert 1.5 < measured.rows["double"].ratio_to(measured.rows["steady"]) < 2.5
    turns = Path(options["log"]).read_text().split()
    assert turns == ["steady", "double", "double", "steady", "steady", "double", "double", "steady"]
    assert processes(mark, FAKE) == []


def test_unavailable_peer_is_skipped_with_the_reason(options):
    measured = measure.measure(FAKE, {"absent": "Absent", "steady": "Steady"}, options, rounds=1)
    assert list(measured.rows) == ["steady"]
    assert measured.skipped == {"absent": "the package absent is not installed"}


@pytest.mark.parametrize(
    ("peer", "words"), [("broken", "ValueError: cannot be prepared"), ("dying", "ended with exit code 7")]
)
def test_failing_peer_is_named_with_its_output_and_no_worker_is_left(options, mark, peer, words):
    with pytest.raises(PeerError, match=f"peer {peer} ") as failure:
        measure.measure(FAKE, {"steady": "Steady", peer: peer}, options, rounds=1)
    assert words in str(failure.value)
    assert processes(mark, FAKE) == []


def test_peer_is_pinned_to_a_number_of_cores(options):
    measured = measure.measure(FAKE, {"steady": "Steady"}, options | {"threads": 1}, rounds=1)
    assert measured.rows["steady"].facts["cores"] == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_workers_exit_with_their_parent(options, mark, number):
    code = (
        "import json, sys; from benchmarks import measure\n"
        f"measure.measure({FAKE!r}, dict(steady='', double=''), json.loads(sys.argv[1]), rounds=1000)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code, json.dumps(options)], cwd=ROOT, stderr=subprocess.DEVNULL, start_new_session=True
    )
    wait_until(lambda: len(processes(mark, FAKE)) == 2 and Path(options["log"]).exists(), 30)
    parent.send_signal(number)
    parent.wait(30)
    wait_until(lambda: not processes(mark, FAKE), 10)


# The command.


def test_usage_errors_come_first(capsys, tmp_path):
    refused(capsys, "'stpe' 'step'", "stpe")
    refused(capsys, "step input", "--rounds=2")
    refused(capsys, "'step input'", "step", "input")
    refused(capsys, "--peers 'torch-float23' 'torch-float32'", "step", "--peers=torch-float23")
    refused(capsys, "--batch_size=6 4", "step", "--batch_size=6")
    refused(capsys, f"--threads={os.cpu_count() + 1}", "step", f"--threads={os.cpu_count() + 1}")
    refused(capsys, f"--json={tmp_path}/missing/step.json", "step", f"--json={tmp_path}/missing/step.json")
    refused(capsys, "--large=0 --data=DATA", "input", "--small=0", "--medium=0", "--large=0")
    refused(capsys, "--large=0 --images=DIR", "convert", "--small=0", "--large=0")
    refused(capsys, f"--images={tmp_path}", "convert", f"--images={tmp_path}")


@pytest.mark.slow
def test_help_lists_the_flags_of_the_benchmark_without_tensorflow():
    flag_of = {
        "step": "--steps_per_round",
        "input": "--with_step",
        "augment": "--line",
        "convert": "--resize",
        "scaling": "--link",
        "monitoring": "--log_every",
        "": "--small",
    }
    code = (
        "import sys; from convoy import cli\n"
        "for name in sys.argv[1:]: print(name); cli.main(['convoy', 'bench', *name.split(), '--help']); print('END')\n"
        "assert 'tensorflow' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code, *flag_of], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    pages = done.stdout.split("END\n")[:-1]
    for (name, flag), page in zip(flag_of.items(), pages, strict=True):
        assert page.startswith(f"{name}\n") and flag in page


@pytest.mark.slow
def test_bench_step_in_a_process_of_its_own(tmp_path, mark):
    path = tmp_path / "step.json"
    names = ["fit-float32", "convoy-float32", "gemm-float32"]
    sizes = ("--image_size=20", "--batch_size=8", "--rounds=2", "--steps_per_round=2")
    command = [sys.executable, "-m", "convoy", "bench", "step", f"--peers={','.join(names)}", f"--json={path}", *sizes]
    process = subprocess.Popen(
        command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert processes(mark) == []
    result = json.loads(path.read_text())
    rows = {row["peer"]: row for row in result["rows"]}
    assert list(rows) == names[:2]
    rates = {name: [r["work"] / r["seconds"] for r in row["rounds"]] for name, row in rows.items()}
    for name, row in rows.items():
        assert [r["work"] for r in row["rounds"]] == [16, 16]
        assert row["median"] == statistics.median(rates[name])
        ratios = [own / base for own, base in zip(rates[name], rates["fit-float32"], strict=True)]
        assert row["ratio"] == statistics.median(ratios)
        assert 0 < row["share_of_gemm"] < 1
        assert row["label"] in output
    assert rows["fit-float32"]["ratio"] == 1
    assert result["gemm"][0]["median"] > 1e9
    assert result["environment"]["versions"]["tensorflow"]


@pytest.mark.slow
def test_bench_input_measures_every_reader(bench):
    generated = ("--small=40", "--medium=0", "--large=0")
    sizes = ("--image_size=32", "--batch_size=8", "--rounds=2", "--round_seconds=0.05")
    result, output, messages = bench("input", *generated, *sizes)
    rows = {row["peer"]: row for row in result["rows"]}
    readers = ["reader", "reader-fast", "reader-disk", "crops", "crops-fast", "crops-disk"]
    assert list(rows)[:10] == ["decode", "decode-batch", *readers, "tfdata", "tfds"]
    assert rows["decode"]["ratio"] == rows["reader"]["reader_ratio"] == 1
    assert all(row["ratio"] > 0 and row["images"] == "40 JPEGs of 64x64" for row in rows.values())
    assert "Convoy's reader" in output
    others = (
        ("torch", "torch", "PyTorch"),
        ("torchvision", "torchvision", "PyTorch"),
        ("dali", "nvidia.dali", "NVIDIA DALI"),
    )
    for peer, package, name in others:
        assert (peer in rows) or f"{name} is not installed" in messages
        assert (peer in rows) == is_installed(package)


@pytest.mark.slow
def test_bench_augment_measures_pipelines_and_other_libraries(bench):
    sizes = ("--small=40", "--image_size=32", "--batch_size=8", "--rounds=1", "--round_seconds=0.05")
    result, output, messages = bench("augment", *sizes, "--line=crop(32) | trivial")
    rows = {row["peer"]: row for row in result["rows"]}
    assert list(rows)[:4] == ["line", "simple", "none", "keras"]
    assert rows["line"]["line_ratio"] == 1 and all(row["median"] > 0 for row in rows.values())
    assert "Keras layers in tf.data" in output
    assert "torchvision" in rows or "torchvision cannot be imported" in messages


@pytest.mark.slow
def test_bench_convert_measures_converters(bench):
    peers = ["convoy-command", "convoy", "convoy-tar", "convoy-parquet", "tfds", "script"]
    peers += ["convoy-resize", "pillow-resize"]
    sizes = ("--small=40", "--large=0", "--resize=32", "--rounds=1")
    result, output, _ = bench("convert", *sizes, f"--peers={','.join(peers)}")
    rows = {row["peer"]: row for row in result["rows"]}
    assert list(rows) == peers
    assert rows["tfds"]["ratios"]["tfds"] == rows["pillow-resize"]["ratios"]["pillow-resize"] == 1
    assert rows["convoy-tar"]["ratios"]["to a folder"] > 0 and rows["convoy-parquet"]["ratios"]["to a folder"] > 0
    for row in rows.values():
        assert row["label"] in output
        assert row["median"] > 0
    # The command's computing is that of its worker processes too, which import TensorFlow. The others' may be too short
    # for the kernel's clock of computing.
    assert sum(r["cpu_seconds"] for r in rows["convoy-command"]["rounds"]) > 0.5
    assert "40 JPEGs of 64x64, resized to 32x32" in output


@pytest.mark.slow
def test_bench_monitoring_trains_with_and_without_monitoring(bench, dataset):
    sizes = ("--image_size=20", "--batch_size=8", "--rounds=1", "--steps=6", "--log_every=2")
    result, output, _ = bench("monitoring", f"--data={dataset.data}", *sizes)
    assert [row["peer"] for row in result["rows"]] == ["monitored", "bare", "hooks"]
    assert all(r["work"] == 6 for row in result["rows"] for r in row["rounds"])
    assert 0 < result["share"]["of_lines"] < 1  # six lines, in which much is written for tiny steps
    assert "All monitoring takes" in output


def test_cpu_time_includes_exited_and_orphaned_processes(options):
    measured = measure.measure(FAKE, {"family": "Family"}, options, rounds=1)
    (result,) = measured.rows["family"].rounds
    assert result.cpu_seconds >= 0.3


@pytest.mark.slow
def test_training_from_a_dataset_directory(bench, dataset):
    sizes = ("--image_size=20", "--batch_size=8", "--rounds=1", "--round_seconds=0.05")
    result, *_ = bench("input", f"--data={dataset.data}", "--peers=step-memory,step-reader", *sizes)
    rows = {row["peer"]: row for row in result["rows"]}
    assert rows["step-memory"]["ratio"] == 1
    assert rows["step-reader"]["ratio"] > 0
