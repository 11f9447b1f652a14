"""Devices, versions and limits: what is said of made-up machines."""

import pytest

from convoy.core.devices import parse_devices
from convoy.core.finding import Severity
from convoy.trainer.doctor.hardware import (
    Driver,
    ResourceLimits,
    check_counts,
    check_devices,
    check_driver,
    check_limits,
    check_versions,
    driver_gpus,
    read_limits,
)

NAMES = ("worker 0 (a:2222)", "worker 1 (b:2222)")
H100, P100, K80 = (
    {"name": name, "capability": capability}
    for name, capability in (("H100", (9, 0)), ("P100", (6, 0)), ("K80", (3, 7)))
)
WHEEL = ["sm_60", "sm_70", "sm_80", "sm_89", "compute_90"]


def seen(*gpus, cuda=True):
    return {"gpus": list(gpus), "built_with_cuda": cuda, "compiled_for": WHEEL, "cpu_bfloat16": True}


def devices(flag, driver, seen, visible=None):
    return check_devices(parse_devices(flag), flag, driver, seen, visible)


class TestDriver:
    def test_names_and_version(self, monkeypatch, tmp_path):
        program = tmp_path / "nvidia-smi"
        program.write_text('#!/bin/sh\nprintf "NVIDIA H100 80GB, 550.54\\nNVIDIA H100 80GB, 550.54\\n"\n')
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path))
        assert driver_gpus() == Driver(("NVIDIA H100 80GB",) * 2, "550.54")

    def test_failure_output_is_reported(self, monkeypatch, tmp_path):
        program = tmp_path / "nvidia-smi"
        program.write_text('#!/bin/sh\necho "Failed to initialize NVML: Driver/library version mismatch"; exit 18\n')
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
        finding = check_driver(driver_gpus(), parse_devices("gpu"), has_device_file=True)
        assert (finding.severity, finding.code) == (Severity.ERROR, "driver-missing")
        assert "Failed to initialize NVML: Driver/library version mismatch" in finding.text

    def test_missing_driver_matters_only_with_gpus(self):
        none = Driver(problem="nvidia-smi not found")
        levels = [
            check_driver(none, parse_devices(flag), has_device_file=file).severity
            for flag, file in (("auto", False), ("auto", True), ("gpu", False), ("cpu:2", True))
        ]
        assert levels == [Severity.SKIPPED, Severity.ERROR, Severity.ERROR, Severity.SKIPPED]


class TestDevices:
    def test_cpu_without_gpus(self):
        (finding,), count = devices("auto", Driver(), seen())
        assert (finding.severity, count) == (Severity.OK, 1)
        assert devices("cpu:4", Driver(("H100",), "1"), seen(H100))[1] == 4

    def test_visible_gpus_are_counted(self):
        (finding,), count = devices("auto", Driver(("H100", "H100"), "1"), seen(H100, H100))
        assert (finding.severity, finding.text, count) == (Severity.OK, "2 x H100", 2)

    def test_gpus_not_visible_to_tensorflow(self):
        (finding, *_), count = devices("auto", Driver(("H100", "H100"), "1"), seen())
        assert (finding.severity, count) == (Severity.ERROR, 0)
        assert finding.code == "gpus-not-visible"
        assert "0 of 2 GPUs" in finding.text
        assert "pip install 'convoy-train[cuda]'" in finding.fix

    @pytest.mark.parametrize(
        ("visible", "gpus"), [("0", 1), ("1,0", 2), ("0,-1,1", 1), ("GPU-5f,GPU-6a", 2), ("0,NoDevFiles", 1)]
    )
    def test_hidden_gpus_are_not_missing(self, visible, gpus):
        (finding,), count = devices("auto", Driver(("H100", "H100"), "1"), seen(*[H100] * gpus), visible)
        assert (finding.severity, count) == (Severity.OK, gpus)

    @pytest.mark.parametrize("visible", ["", "-1", "NoDevFiles"])
    def test_all_gpus_hidden(self, visible):
        (finding,), count = devices("auto", Driver(("H100",), "1"), seen(), visible)
        assert (finding.severity, count) == (Severity.OK, 1)

    def test_missing_gpu_index(self):
        findings, count = devices("gpu:0,3", Driver(("H100",), "1"), seen(H100))
        assert (count, [finding.severity for finding in findings]) == (0, [Severity.ERROR])
        assert findings[0].code == "gpu-index-out-of-range"
        assert "--devices=gpu:0,3: TensorFlow sees 1 GPU," in findings[0].text
        assert devices("gpu", Driver(problem="none"), seen())[1] == 0

    @pytest.mark.parametrize(
        ("capability", "code"),
        [
            ((6, 0), "gpu-devices"),
            ((7, 5), "gpu-devices"),
            ((8, 6), "gpu-devices"),
            ((9, 0), "gpu-devices"),
            ((10, 0), "gpu-too-new"),
            ((12, 0), "gpu-too-new"),
            ((5, 2), "gpu-too-old"),
            ((3, 7), "gpu-too-old"),
        ],
    )
    def test_unsupported_compute_capability(self, capability, code):
        gpu = {"name": "GPU", "capability": capability}
        findings, _ = devices("auto", Driver(("GPU",), "1"), seen(gpu))
        assert [finding.code for finding in findings] == [code]
        assert (findings[0].severity == Severity.OK) == (code == "gpu-devices")

    def test_target_with_letter_suffix(self):
        gpu = {"name": "GPU", "capability": (9, 0)}
        (finding,), _ = devices("auto", Driver(("GPU",), "1"), {**seen(gpu), "compiled_for": ["sm_80", "sm_90a"]})
        assert finding.severity == Severity.OK

    def test_different_device_counts(self):
        assert check_counts({0: 2, 1: 2}, NAMES) == []
        (finding,) = check_counts({0: 2, 1: 1}, NAMES)
        assert finding.code == "device-counts-differ"
        assert "2 devices on worker 0 (a:2222), 1 on worker 1 (b:2222)" in finding.text


class TestVersions:
    SAME = {"convoy": "1", "tensorflow": "2", "keras": "3", "python": "3.11", "numpy": "2.4"}

    def test_equal_versions(self):
        (finding,) = check_versions({0: self.SAME, 1: self.SAME}, NAMES)
        assert (finding.severity, finding.text) == (
            Severity.OK,
            "convoy 1, tensorflow 2, keras 3, python 3.11, numpy 2.4",
        )

    @pytest.mark.parametrize(
        ("name", "level"), [("convoy", Severity.ERROR), ("keras", Severity.ERROR), ("python", Severity.WARNING)]
    )
    def test_different_versions(self, name, level):
        (finding,) = check_versions({0: self.SAME, 1: {**self.SAME, name: "0"}}, NAMES)
        assert finding.severity == level
        assert finding.text == f"{name} {self.SAME[name]} on worker 0 (a:2222), 0 on worker 1 (b:2222)."


class TestLimits:
    def test_system_limits(self):
        assert read_limits().open_files > 0

    def test_open_files_scale_with_workers_and_shards(self):
        enough = check_limits(ResourceLimits(1024, 2**20), num_workers=4, num_shards=8, gpus=0)
        assert [finding.severity for finding in enough] == [Severity.OK]
        (finding,) = check_limits(ResourceLimits(1024, 2**20), num_workers=64, num_shards=1000, gpus=0)
        assert (finding.severity, finding.code) == (Severity.WARNING, "too-few-open-files")
        assert "1024" in finding.text
        assert "ulimit -n" in finding.fix

    def test_shared_memory_only_for_gpus(self):
        (finding,) = check_limits(ResourceLimits(4096, 64 * 2**20), num_workers=1, num_shards=1, gpus=2)
        assert (finding.severity, finding.code) == (Severity.WARNING, "small-shared-memory")
        assert "64 MiB" in finding.text
        assert "--shm-size=1g" in finding.fix
