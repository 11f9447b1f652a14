"""`convoy launch local` with the real trainer."""

import json
import os
import signal
import time
from pathlib import Path

import pytest

from tests.trainer import user_models


@pytest.mark.slow
def test_killed_worker_is_restarted_and_the_run_resumes(convoy_started, dataset, tmp_path, wait_until, recovery):
    run, output = tmp_path / "run", tmp_path / "output"
    model = f"--config.model.name={user_models.__file__}:small"
    trainer = ("train", "--config=smoke", model, f"--data={dataset.data}", f"--workdir={run}", "--devices=cpu:1")
    steps = ("--config.steps=400", "--config.eval_every_steps=400", "--config.checkpoint_every_steps=10")
    with convoy_started("launch", "local", "--processes=1", "--", *trainer, *steps, output=output) as launcher:
        wait_until(lambda: len(list((run / "checkpoints").glob("step-*.npz"))) > 0, "a checkpoint")
        (worker,) = (int(pid) for pid in Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split())
        time_of_kill = time.time()
        os.kill(worker, signal.SIGKILL)
        assert launcher.wait(240) == 0, output.read_text()
    recovery("local: a worker is killed", run, time_of_kill)
    first, second = json.loads((run / "launch.json").read_text())["attempts"]
    assert "worker 0" in first["cause"]
    assert "SIGKILL" in first["cause"]
    assert (first["start_step"], second["end_step"], second["cause"]) == (0, 400, "done")
    assert 0 < second["start_step"] <= first["end_step"]
    assert "weights_sha256 " in output.read_text()
    events = [json.loads(line)["event"] for line in (run / "events.jsonl").read_text().splitlines()]
    others = [event for event in events if event != "checkpoint"]
    assert others == ["start", "first_step", "restart", "restored", "first_step", "done"]
    assert json.loads((run / "result.json").read_text())["step"] == 400


@pytest.mark.slow
def test_workers_reach_each_other_past_a_proxy(convoy_started, dataset, tmp_path, monkeypatch):
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    run, output = tmp_path / "run", tmp_path / "output"
    model = f"--config.model.name={user_models.__file__}:small"
    trainer = ("train", "--config=smoke", model, f"--data={dataset.data}", f"--workdir={run}", "--devices=cpu:1")
    launch = ("launch", "local", "--processes=2", "--max_restarts=0", "--")
    with convoy_started(*launch, *trainer, "--config.steps=2", output=output) as launcher:
        assert launcher.wait(240) == 0, output.read_text()
    assert json.loads((run / "result.json").read_text())["workers"] == 2


@pytest.mark.slow
def test_ctrl_c_of_the_launcher_saves_the_run(convoy_started, dataset, tmp_path, wait_until):
    run, output = tmp_path / "run", tmp_path / "output"
    model = f"--config.model.name={user_models.__file__}:small"
    trainer = ("train", "--config=smoke", model, f"--data={dataset.data}", f"--workdir={run}", "--devices=cpu:1")
    steps = ("--config.steps=1000000", "--config.eval_every_steps=1000000", "--config.checkpoint_every_steps=50")
    with convoy_started("launch", "local", "--processes=2", "--", *trainer, *steps, output=output) as launcher:
        wait_until(
            lambda: list((run / "checkpoints").glob("step-*.npz")) or launcher.poll() is not None, "a checkpoint"
        )
        launcher.send_signal(signal.SIGINT)
        assert launcher.wait(60) == 130, output.read_text()
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    (preempted,) = [event for event in events if event["event"] == "preempted"]
    assert (run / "checkpoints" / f"step-{preempted['step']:09}.npz").exists()
    assert "Traceback" not in output.read_text()


@pytest.mark.slow
def test_refusal_by_the_trainer_is_shown_once(convoy, tmp_path):
    result = convoy(
        "launch", "local", "--processes=2", "--", "train", f"--data={tmp_path}", f"--workdir={tmp_path}/run"
    )
    assert result.returncode == 3
    assert (result.stdout.count("convoy: "), result.stderr) == (1, "")
    assert os.listdir(tmp_path) == []
