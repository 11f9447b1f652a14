import os

import pytest

from convoy.core.errors import UsageError
from convoy.launch.devices import cores_by_worker, gpus_by_worker, usable_gpus


@pytest.mark.parametrize(
    ("usable", "processes", "expected"),
    [
        ({3, 5, 7, 9}, 2, [{3, 5}, {7, 9}]),
        ({0, 1, 2, 3, 4}, 2, [{0, 1}, {2, 3}]),
        ({0, 1}, 2, [{0}, {1}]),
        ({0, 1}, 3, [set()] * 3),
        ({0, 1}, 1, [set()]),
    ],
)
def test_cores_are_divided_evenly_without_overlap(monkeypatch, usable, processes, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: usable, raising=False)
    assert cores_by_worker(processes) == expected


@pytest.fixture
def gpus(monkeypatch, tmp_path):
    """Puts an `nvidia-smi` that lists that many GPUs first on the PATH."""

    def install(count):
        program = tmp_path / "nvidia-smi"
        lines = "".join(
            f"echo 'GPU {number}: NVIDIA (UUID: GPU-{number})'; echo '  MIG 1g'\n" for number in range(count)
        )
        program.write_text(f'#!/bin/sh\ntest "$1" = --list-gpus || exit 1\n{lines}')
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return install


class TestGpus:
    def test_are_divided_evenly(self, gpus):
        gpus(4)
        assert gpus_by_worker(2, ["train"], {}) == ["0,1", "2,3"]

    def test_are_limited_to_those_in_the_environment(self, gpus):
        gpus(4)
        assert gpus_by_worker(2, ["train"], {"CUDA_VISIBLE_DEVICES": "3, GPU-1"}) == ["3", "GPU-1"]
        assert usable_gpus(["train"], {"CUDA_VISIBLE_DEVICES": "2,-1,0"}) == ["2"]

    def test_number_of_workers_that_does_not_divide_them_is_refused(self, gpus):
        gpus(3)
        with pytest.raises(UsageError, match=r"--processes=2 .*3 GPUs.*0,1,2.*\(1, 3\)"):
            gpus_by_worker(2, ["train"], {})

    @pytest.mark.parametrize("devices", [["--devices=cpu"], ["--devices", "cpu:2"]])
    def test_are_not_assigned_when_training_on_the_cpu(self, gpus, devices):
        gpus(3)
        assert gpus_by_worker(2, ["train", *devices], {}) is None

    @pytest.mark.parametrize("variable", ["", "-1"])
    def test_are_not_assigned_when_the_environment_hides_them(self, gpus, variable):
        gpus(3)
        assert gpus_by_worker(2, ["train"], {"CUDA_VISIBLE_DEVICES": variable}) is None

    def test_all_belong_to_a_single_worker(self, gpus):
        gpus(3)
        assert gpus_by_worker(1, ["train"], {}) is None

    def test_there_are_none_without_the_driver(self, monkeypatch, tmp_path):
        monkeypatch.setenv("PATH", str(tmp_path))
        assert usable_gpus(["train"], {}) == usable_gpus(["train"], {"CUDA_VISIBLE_DEVICES": "0,1"}) == []
