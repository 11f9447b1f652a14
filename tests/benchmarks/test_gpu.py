import json
import os
import subprocess
import sys

import pytest

from benchmarks import gpu, gpu_page, measure
from benchmarks.workers import PeerError, Round
from convoy.trainer.doctor.hardware import Driver
from tests.benchmarks.test_bench import ROOT, refused

FACTS = {"training_flops_per_image": 2e9, "peak_flops": 1e12, "peak": "data sheet", "memory_mb": 1500.0}


def row(peer, *seconds, work=100, facts=None):
    return measure.Row(peer, f"label of {peer}", tuple(Round(s, s, work) for s in seconds), facts or {})


def lines(*rows):
    by_name = {row.peer: row for row in rows}
    return {name: gpu._line(row, by_name) for name, row in by_name.items()}


def test_utilization_and_efficiency_are_per_device():
    found = lines(
        row("fit", 1.0, facts=FACTS),
        row("torch", 0.5),
        row("convoy", 0.5, facts=FACTS),
        row("convoy-on-4", 0.625, work=400, facts=FACTS),
    )
    assert found["convoy"]["ratio"] == 2
    assert found["convoy"]["model_flops_utilization"] == pytest.approx(200 * 2e9 / 1e12)
    assert found["torch"]["model_flops_utilization"] == found["convoy"]["model_flops_utilization"]
    assert found["convoy-on-4"]["efficiency"] == pytest.approx(640 / 200 / 4)
    assert found["convoy-on-4"]["model_flops_utilization"] == pytest.approx(640 * 2e9 / 4e12)
    assert found["convoy"]["efficiency"] is None


@pytest.mark.parametrize(("most", "devices"), [(1, []), (2, [2]), (3, [2]), (8, [2, 4, 8])])
def test_scaling_is_measured_on_powers_of_two(most, devices):
    assert [int(name.rpartition("-")[2]) for name in gpu._on_more_devices(most)][::2] == devices


def test_a_machine_without_gpus_is_refused(capsys, monkeypatch):
    monkeypatch.setattr(gpu, "driver_gpus", lambda: Driver(problem="nvidia-smi not found"))
    refused(capsys, "--device=gpu nvidia-smi --device=cpu", "gpu")
    refused(capsys, "--models resnet51 resnet50", "gpu", "--device=cpu", "--models=resnet51")


def test_a_peer_that_fails_is_left_out(monkeypatch):
    def measured(module, peers, options, rounds):
        if "torch" in peers:
            raise PeerError("peer torch ended with exit code 1:\n  CUDA out of memory")
        return measure.Measurement({name: row(name, 1.0) for name in peers}, {})

    monkeypatch.setattr(measure, "measure", measured)
    found = gpu._measure({"fit": "Keras fit", "torch": "PyTorch", "convoy": "Convoy"}, {}, 1)
    assert [*found.rows] == ["fit", "convoy"]
    assert found.skipped == {"torch": "CUDA out of memory"}


@pytest.fixture
def results(tmp_path):
    """What `gpu.sh` leaves on a machine with two GPUs, where one test failed."""
    rows = lines(row("fit", 1.0, facts=FACTS), row("convoy", 0.5, facts=FACTS))
    about = {"date": "2026-12-24", "cpu": "a CPU", "amx": False, "cores": 16, "versions": {"tensorflow": "2.21.0"}}
    about |= {"gpus": ["NVIDIA L4", "NVIDIA L4"], "driver": "570.86"}
    model = {"image_size": 64, "batch_size": 512, "rows": list(rows.values()), "skipped": {"torch": "not installed"}}
    content = {"environment": about, "seconds_to_first_step": 12.5, "models": {"baseline_cnn": model}}
    (tmp_path / "gpu.json").write_text(json.dumps(content))
    reader = {"images": "40 JPEGs of 64x64", "label": "reader", "median": 200.0, "median_per_core": 50.0}
    for size in (64, 224):
        (tmp_path / f"input-{size}.json").write_text(json.dumps({"rows": [reader | {"image_size": size}]}))
    (tmp_path / "tests.xml").write_text(
        "<testsuites><testsuite><testcase name='good'/><testcase name='bad'><failure/></testcase>"
        "<testcase name='left'><skipped/></testcase></testsuite></testsuites>"
    )
    return tmp_path


def cells(page, label):
    (line,) = [line for line in page.splitlines() if line.startswith("|") and label in line]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_page_has_the_machine_the_tests_and_the_measurements(results):
    page = gpu_page.page(results)
    assert "2 x NVIDIA L4" in page and "570.86" in page and "2026-12-24" in page
    assert "1 passed, 1 skipped, 1 failed: `bad`" in page
    convoy = dict(zip(gpu.TABLE_COLUMNS, cells(page, "label of convoy"), strict=True))
    assert (convoy["median"], convoy["to Keras fit"], convoy["MFU"]) == ("200", "2.00x", "40 %")
    assert convoy["memory, MB"] == "1,500"
    assert "torch (not installed)" in page and "12.5 s" in page
    assert cells(page, "64x64 at 64")[-1] == "4.0"  # cores that read 200 images/s at 50 each
    assert cells(page, "64x64 at 224")[-1] == ""  # not the size of the model


def test_the_script_names_unknown_arguments():
    done = subprocess.run([ROOT / "benchmarks/gpu.sh", "--whels=x"], capture_output=True, text=True)
    assert done.returncode == 2 and "--whels=x" in done.stderr and "--wheels=DIR" in done.stderr


@pytest.mark.slow
def test_the_script_runs_on_a_cpu_in_tiny_sizes(tmp_path):
    output = tmp_path / "results"
    command = [ROOT / "benchmarks/gpu.sh", "--tiny", f"--python={sys.executable}", f"--output={output}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=560, env=os.environ)
    assert done.returncode == 0, done.stdout + done.stderr
    content = json.loads((output / "gpu.json").read_text())
    rows = {row["peer"]: row for row in content["models"]["baseline_cnn"]["rows"]}
    assert {"fit", "convoy", "convoy-on-2"} <= rows.keys()
    assert rows["convoy-on-2"]["efficiency"] > 0 and rows["convoy"]["model_flops_utilization"] > 0
    assert content["seconds_to_first_step"] > 0
    assert "torch" in rows or "torch" in content["models"]["baseline_cnn"]["skipped"]
    page = (output / "gpu.md").read_text()
    assert all(row["label"] in page for row in rows.values())
    assert " 0 failed" in page and (output / "doctor.txt").read_text()
