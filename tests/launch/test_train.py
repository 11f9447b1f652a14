"""The launcher with the real trainer."""

import json
import os
import re
import signal
import time
from pathlib import Path

import pytest


def events(run):
    path = run / "events.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.mark.slow
def test_a_worker_that_is_killed_is_started_again_and_the_run_goes_on(
    convoy_started, dataset, tmp_path, wait_until, recovery
):
    run, output = tmp_path / "run", tmp_path / "output"
    trainer = ("train", "--config=smoke", f"--data={dataset.data}", f"--workdir={run}", "--devices=cpu:1")
    steps = ("--config.steps=150", "--config.checkpoint_every_steps=10")
    with convoy_started("launch", "local", "--processes=1", "--", *trainer, *steps, output=output) as launcher:
        wait_until(lambda: len(list((run / "checkpoints").glob("step-*.npz"))) > 0, "a checkpoint")
        (worker,) = (int(pid) for pid in Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split())
        time_of_kill = time.time()
        os.kill(worker, signal.SIGKILL)
        assert launcher.wait(240) == 0, output.read_text()
    recovery("local: a worker is killed", run, time_of_kill)
    shown = output.read_text()
    assert re.search(
        r"convoy: attempt 1 ended at step \d+: worker 0 was killed \(SIGKILL\)\. Restarting from step", shown
    )
    assert "[0] Done: step 150, weights_sha256 " in shown
    assert re.search(r"  1  step 0 -> \d+ .* went on from step \d+\n  2  step \d+ -> 150  done\n", shown)
    names = [event["event"] for event in events(run) if event["event"] != "checkpoint"]
    assert names == ["start", "first_step", "restart", "restored", "first_step", "done"]
    assert json.loads((run / "result.json").read_text())["step"] == 150


@pytest.mark.slow
def test_what_the_trainer_refuses_is_told_once(convoy, tmp_path):
    result = convoy(
        "launch", "local", "--processes=2", "--", "train", f"--data={tmp_path}", f"--workdir={tmp_path}/run"
    )
    assert result.returncode == 3
    assert (result.stdout.count("convoy: "), result.stderr) == (1, "")
    assert os.listdir(tmp_path) == []
