"""The batch size finder: search, conclusions, and trials that run out of memory."""

import json
import os
import re
import subprocess
import sys

import pytest

from convoy.trainer.finders.batch_size import Attempt, Scale, Search, conclusion, row, search
from convoy.trainer.finders.batch_size_trial import ORPHANED, TOO_LARGE


class Machine:
    """Fits a number of images, takes a time for each, and records what was tried."""

    def __init__(self, fits, seconds_per_image=0.001):
        self.fits, self.seconds_per_image, self.tried = fits, seconds_per_image, []

    def attempt(self, size):
        self.tried.append(size)
        return Attempt(size, size <= self.fits, size * self.seconds_per_image, size * 10**6)


@pytest.mark.parametrize("fits", [1, 2, 7, 63, 64, 100, 1000, 5000])
@pytest.mark.parametrize("first", [1, 16, 64, 3000])
def test_largest_size_is_found_within_an_eighth(fits, first):
    machine = Machine(fits)
    found = search(machine.attempt, first=first, most=10**6, longest_step_seconds=1e9)
    assert found.end == "memory"
    assert fits * 8 / 9 - 1 <= found.largest.size <= fits
    assert fits < found.too_large <= found.largest.size + max(1, found.largest.size // 8)
    assert len(set(machine.tried)) == len(machine.tried) <= 22


def test_model_too_large_for_one_image():
    found = search(Machine(0).attempt, first=8, most=100)
    assert (found.largest, found.too_large) == (None, 1)
    assert " 4 images" in conclusion(found, scale(virtual_replicas=8))[0]


def test_mixing_needs_two_images():
    machine = Machine(1)
    found = search(machine.attempt, first=9, most=100, smallest=2)
    assert (found.largest, found.too_large, machine.tried) == (None, 2, [9, 4, 2])
    assert " 8 images" in conclusion(found, scale(virtual_replicas=8))[0]


def test_sizes_are_limited_by_the_dataset():
    machine = Machine(10**9)
    found = search(machine.attempt, first=16, most=100)
    assert (found.end, found.largest.size, machine.tried) == ("dataset", 100, [16, 32, 64, 100])
    assert search(machine.attempt, first=512, most=100).largest.size == 100


def test_sizes_are_limited_by_the_step_time():
    machine = Machine(10**9, seconds_per_image=0.1)
    found = search(machine.attempt, first=16, most=10**6, longest_step_seconds=10)
    assert (found.end, machine.tried) == ("speed", [16, 32, 64])


def scale(**other):
    return Scale(**{"replicas": 2, "virtual_replicas": 2, "num_images": 5000, "on_gpu": True, "first_size": 16} | other)


def found(end, *, too_large=None, sizes=(16, 32, 64), seconds_per_image=0.001):
    attempts = [Attempt(size, True, size * seconds_per_image, size * 10**6) for size in sizes]
    return Search(attempts, attempts[-1], too_large, end)


@pytest.mark.parametrize(("virtual_replicas", "per_device", "batch"), [(2, 64, 128), (8, 256, 512)])
def test_suggestion_is_a_multiple_of_the_virtual_replicas(virtual_replicas, per_device, batch):
    text = conclusion(found("memory", too_large=68), scale(virtual_replicas=virtual_replicas))
    assert f"--config.batch_size={batch}:" in text[0] and f" {per_device} images on each of 2 GPUs" in text[0]
    assert batch % virtual_replicas == 0
    assert "Memory" in text[1] and f" {68 * virtual_replicas // 2} per device" in text[1]


def test_other_limits_than_memory_are_named():
    assert "dataset is the limit" in conclusion(found("dataset"), scale())[1]
    assert "time is the limit" in conclusion(found("speed"), scale())[1]


def test_smallest_batch_that_is_as_fast():
    same_speed = conclusion(found("dataset"), scale())
    assert "--config.batch_size=32 " in same_speed[2]
    attempts = [Attempt(16, True, 0.16, 1), Attempt(32, True, 0.2, 1)]
    assert not any("as fast" in line for line in conclusion(Search(attempts, attempts[-1], 64, "memory"), scale()))


def test_row_has_sizes_speed_and_memory():
    assert row(Attempt(64, True, 0.5, 3 * 10**9), scale()).split() == ["64", "128", "256", "500", "3,000.0", "MB"]
    assert row(Attempt(64, False), scale()).split()[2:] == ["does", "not", "fit"]


def trial(**options):
    config = {"config": {}, "data": "none", "devices": "cpu:1", "strategy_name": "auto", "virtual_batch_size": 0}
    options = json.dumps(config | {"files": [], "memory_limit": 2**60, "parent": os.getpid()} | options)
    return subprocess.run(
        [sys.executable, "-m", "convoy.trainer.finders.batch_size_trial", options], capture_output=True, text=True
    )


def test_trial_exits_at_its_memory_limit():
    assert trial(memory_limit=10**7).returncode == TOO_LARGE


def test_trial_exits_with_its_parent():
    assert trial(parent=1).returncode == ORPHANED


@pytest.mark.slow
def test_smoke_recipe_is_limited_by_the_small_dataset(dataset, convoy):
    flags = ("--config=smoke", f"--data={dataset.data}", "--devices=cpu:2", "--config.virtual_replicas=4")
    done = convoy("train", "--find_batch_size", *flags, "--config.batch_size=40", check=True)
    table = re.findall(r"^ +(\d+) +(\d+) +[\d,]+ +[\d,]+ +[\d.,]+ [MG]B$", done.stdout, re.MULTILINE)
    assert table == [("20", "40"), ("40", "80")]
    assert "--config.batch_size=80: 40 images on each of 2 CPU devices" in done.stdout
    assert " 82 images" in done.stdout
