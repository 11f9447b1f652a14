"""Short runs of the fuzzer; `python -m tests.fuzz` is the long one."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz import runner

ROOT = Path(__file__).parents[2]


def fuzzed(tmp_path, seed=0, **cases):
    """Returns the results by subject; subjects are named with their number of cases."""
    numbers = [f"--{name}={cases.get(name, 0)}" for name in ("images", "tables", "shards", "recipes", "environments")]
    process = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", *numbers, f"--seed={seed}", f"--json={tmp_path / 'counts.json'}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=550,
    )
    assert process.returncode == 0, process.stderr[-5000:]
    results = json.loads((tmp_path / "counts.json").read_text())
    assert {name: sum(result["kinds"].values()) for name, result in results.items()} == cases
    return results


def test_tables_recipes_and_environments(tmp_path):
    for result in fuzzed(tmp_path, tables=200, recipes=60, environments=300).values():
        # Both outcomes must be frequent, otherwise the damage is too small or too large for a useful test.
        refused = result["kinds"]["refused"]
        assert min(refused, sum(result["kinds"].values()) - refused) >= 10, result


@pytest.mark.slow
def test_images(tmp_path):
    result = fuzzed(tmp_path, images=5_000)["images"]
    details = result["details"]
    assert result["kinds"]["refused"] > 1_500 and details["made exactly"] > 500
    assert details["passed exactly"] > 25 and details["passed jpeg, as Pillow"] > 50
    # A JPEG has no checksum: Pillow also decodes damage that libjpeg cannot detect, mostly to the same pixels.
    assert details.get("passed jpeg, out of range", 0) < 0.1 * details["passed jpeg, as Pillow"]
    assert result["peak_megabytes"] < 2_000, result


@pytest.mark.slow
def test_shards(tmp_path):
    kinds = fuzzed(tmp_path, shards=500)["shards"]["kinds"]
    assert min(kinds["unharmed"], kinds["announced"], kinds["refused"]) > 50, kinds


class Subject:
    """A subject with one fault of each kind, used by the test below under the name `test_fuzz`."""

    def __init__(self, folder):
        pass

    def make(self, rng, number):
        return number

    def check(self, case):
        match case:
            case 1:
                raise KeyError("traceback")
            case 2:
                os.kill(os.getpid(), signal.SIGKILL)
            case 3:
                signal.pause()
            case 4:
                return runner.refused("one line\nand another")
            case 5:
                return runner.refused("names nothing", "file")
        return runner.Outcome(runner.UNHARMED)


def test_runner_finds_tracebacks_crashes_hangs_and_messages_of_several_lines(monkeypatch):
    monkeypatch.setattr(runner, "CASE_SECONDS", 1)
    result = runner.run("test_fuzz", 7, seed=0)
    assert result.kinds == {"unharmed": 2, "fault": 5}
    words = {1: "KeyError", 2: "SIGKILL", 3: "SIGALRM", 4: "another", 5: "file"}
    assert result.faults.keys() == words.keys()
    assert all(word in result.faults[number] for number, word in words.items())
