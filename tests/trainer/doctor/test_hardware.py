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

ADDRESSES = ("a:2222", "b:2222")
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
    def test_is_asked_for_names_and_version(self, monkeypatch, tmp_path):
        program = tmp_path / "nvidia-smi"
        program.write_text('#!/bin/sh\nprintf "NVIDIA H100 80GB, 550.54\\nNVIDIA H100 80GB, 550.54\\n"\n')
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path))
        assert driver_gpus() == Driver(("NVIDIA H100 80GB",) * 2, "550.54")

    def test_that_fails_is_told_in_its_own_words(self, monkeypatch, tmp_path):
        program = tmp_path / "nvidia-smi"
        program.write_text('#!/bin/sh\necho "Failed to initialize NVML: Driver/library version mismatch"; exit 18\n')
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
        finding = check_driver(driver_gpus(), parse_devices("gpu"), has_device_file=True)
        assert (finding.severity, finding.text) == (
            Severity.ERROR,
            "nvidia-smi fails: Failed to initialize NVML: Driver/library version mismatch",
        )

    def test_that_is_not_there_matters_where_gpus_are_or_are_wanted(self):
        none = Driver(problem="there is no nvidia-smi")
        levels = [
            check_driver(none, parse_devices(flag), has_device_file=file).severity
            for flag, file in (("auto", False), ("auto", True), ("gpu", False), ("cpu:2", True))
        ]
        assert levels == [Severity.SKIPPED, Severity.ERROR, Severity.ERROR, Severity.SKIPPED]


class TestDevices:
    def test_without_gpus_are_the_cpu(self):
        (finding,), count = devices("auto", Driver(), seen())
        assert (finding.severity, count) == (Severity.OK, 1)
        assert devices("cpu:4", Driver(("H100",), "1"), seen(H100))[1] == 4

    def test_that_tensorflow_sees_all_are_counted(self):
        (finding,), count = devices("auto", Driver(("H100", "H100"), "1"), seen(H100, H100))
        assert (finding.severity, finding.text, count) == (Severity.OK, "2 x H100", 2)

    def test_that_tensorflow_does_not_see_fail_and_name_the_package(self):
        (finding, *_), count = devices("auto", Driver(("H100", "H100"), "1"), seen())
        assert (finding.severity, count) == (Severity.ERROR, 0)
        assert finding.text == "TensorFlow sees 0 of the 2 GPUs that nvidia-smi lists."
        assert "pip install 'convoy-train[cuda]'" in finding.fix

    @pytest.mark.parametrize(
        ("visible", "gpus"), [("0", 1), ("1,0", 2), ("0,-1,1", 1), ("GPU-5f,GPU-6a", 2), ("0,NoDevFiles", 1)]
    )
    def test_that_cuda_visible_devices_hides_are_not_missed(self, visible, gpus):
        (finding,), count = devices("auto", Driver(("H100", "H100"), "1"), seen(*[H100] * gpus), visible)
        assert (finding.severity, count) == (Severity.OK, gpus)

    @pytest.mark.parametrize("visible", ["", "-1", "NoDevFiles"])
    def test_that_are_all_hidden_leave_the_cpu(self, visible):
        (finding,), count = devices("auto", Driver(("H100",), "1"), seen(), visible)
        assert (finding.severity, count) == (Severity.OK, 1)

    def test_that_are_asked_for_and_not_there_fail(self):
        findings, count = devices("gpu:0,3", Driver(("H100",), "1"), seen(H100))
        assert (count, [finding.severity for finding in findings]) == (0, [Severity.ERROR])
        assert "--devices=gpu:0,3: TensorFlow sees 1 GPUs" in findings[0].text
        assert devices("gpu", Driver(problem="none"), seen())[1] == 0

    @pytest.mark.parametrize(
        ("capability", "level"),
        [
            ((6, 0), Severity.OK),
            ((7, 5), Severity.OK),
            ((8, 6), Severity.OK),
            ((9, 0), Severity.OK),
            ((12, 0), Severity.OK),
            ((5, 2), Severity.ERROR),
            ((3, 7), Severity.ERROR),
        ],
    )
    def test_that_the_wheel_has_no_code_for_fail(self, capability, level):
        gpu = {"name": "GPU", "capability": capability}
        findings, _ = devices("auto", Driver(("GPU",), "1"), seen(gpu))
        assert [finding.severity for finding in findings] == [level]

    def test_of_a_target_with_a_letter_count_as_its_generation(self):
        gpu = {"name": "GPU", "capability": (9, 0)}
        (finding,), _ = devices("auto", Driver(("GPU",), "1"), {**seen(gpu), "compiled_for": ["sm_80", "sm_90a"]})
        assert finding.severity == Severity.OK

    def test_must_be_as_many_on_each_worker(self):
        assert check_counts({0: 2, 1: 2}, ADDRESSES) == []
        (finding,) = check_counts({0: 2, 1: 1}, ADDRESSES)
        assert finding.text.startswith("2 devices on worker 0 (a:2222), 1 on worker 1 (b:2222)")


class TestVersions:
    SAME = {"convoy": "1", "tensorflow": "2", "keras": "3", "python": "3.11", "numpy": "2.4"}

    def test_that_are_equal_are_told_once(self):
        (finding,) = check_versions({0: self.SAME, 1: self.SAME}, ADDRESSES)
        assert (finding.severity, finding.text) == (
            Severity.OK,
            "convoy 1, tensorflow 2, keras 3, python 3.11, numpy 2.4",
        )

    @pytest.mark.parametrize(
        ("name", "level"), [("convoy", Severity.ERROR), ("keras", Severity.ERROR), ("python", Severity.WARNING)]
    )
    def test_that_differ_fail_where_a_run_would(self, name, level):
        (finding,) = check_versions({0: self.SAME, 1: {**self.SAME, name: "0"}}, ADDRESSES)
        assert finding.severity == level
        assert finding.text == f"{name} {self.SAME[name]} on worker 0 (a:2222), 0 on worker 1 (b:2222)."


class TestLimits:
    def test_are_those_of_the_system(self):
        assert read_limits().open_files > 0

    def test_of_open_files_grow_with_workers_and_shards(self):
        enough = check_limits(ResourceLimits(1024, 2**20), num_workers=4, num_shards=8, gpus=0)
        assert [finding.severity for finding in enough] == [Severity.OK]
        (finding,) = check_limits(ResourceLimits(1024, 2**20), num_workers=64, num_shards=1000, gpus=0)
        assert (finding.severity, finding.text.split()[0]) == (Severity.WARNING, "1024")
        assert "ulimit -n" in finding.fix

    def test_of_shared_memory_matter_to_gpus(self):
        (finding,) = check_limits(ResourceLimits(4096, 64 * 2**20), num_workers=1, num_shards=1, gpus=2)
        assert (finding.severity, "64 MiB" in finding.text) == (Severity.WARNING, True)
        assert "--shm-size=1g" in finding.fix
