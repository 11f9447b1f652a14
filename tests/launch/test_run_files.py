import json
import os

import pytest

from convoy.launch.run_files import RunFiles


@pytest.fixture
def run(tmp_path):
    return RunFiles(tmp_path)


def test_attempts_are_numbered_over_the_life_of_the_run(tmp_path, run):
    (tmp_path / "logs" / "attempt-7").mkdir(parents=True)
    (tmp_path / "logs" / "other").mkdir()
    assert [run.new_attempt().number for _ in range(2)] == [8, 9]


def test_checkpoint_step_ignores_incomplete_checkpoints_and_other_files(tmp_path, run):
    assert run.checkpoint_step() is None
    (tmp_path / "checkpoints").mkdir()
    for name in ("step-000000004.npz", "step-000000012.npz", "step-000000020.npz.tmp", "other"):
        (tmp_path / "checkpoints" / name).write_text("")
    assert run.checkpoint_step() == 12


def test_checkpoint_step_of_a_cross_validation_counts_all_folds(tmp_path, run):
    for fold, steps in (("fold-1", (4, 40)), ("fold-2", (8, 12)), ("fold-3", ())):
        (tmp_path / fold / "checkpoints").mkdir(parents=True)
        for step in steps:
            (tmp_path / fold / "checkpoints" / f"step-{step:09}.npz").write_text("")
    assert run.checkpoint_step() == 52
    run.append_restart(2, "killed")
    assert [event["event"] for event in run.events(0)] == ["restart"]


def test_events_start_at_an_offset_and_skip_damaged_lines(tmp_path, run):
    assert (run.events_end(), run.events(0)) == (0, [])
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "events.jsonl").write_text('{"event": "start", "time": 1.0}\n{"event": "first_st')
    run.append_restart(2, "killed")
    end = run.events_end()
    with open(tmp_path / "events.jsonl", "a") as file:
        file.write('[1]\n{"event": "x"}\nnull\n{"event": "restored", "time": 3.0, "step": 4}\n')
    assert [event["event"] for event in run.events(0)] == ["start", "restart", "restored"]
    assert run.events(end) == [{"event": "restored", "time": 3.0, "step": 4}]


def test_restart_is_not_recorded_before_the_trainer_has_accepted_the_folder(tmp_path, run):
    run.append_restart(2, "killed")
    assert os.listdir(tmp_path) == []


def test_logged_step_skips_a_truncated_last_line(tmp_path, run):
    assert run.logged_step() is None
    (tmp_path / "metrics.jsonl").write_text('{"step": 5}\n{"step": 6}\n{"step": 7, "spl')
    assert run.logged_step() == 6


def test_damaged_error_file_still_counts_as_an_error(run):
    files = run.new_attempt()
    assert files.error(0) is None
    content = {"rank": 0, "time": 12.5, "step": 3, "exit_code": 1, "error": "ValueError: x", "traceback": "..."}
    files.error_file(0).write_text(json.dumps(content))
    files.error_file(1).write_text('{"rank": 1, "ti')
    assert (files.error(0).time, files.error(0).step, files.error(0).error) == (12.5, 3, "ValueError: x")
    assert files.error(1).exit_code == 1


def test_traces_are_removed_only_if_the_trainer_never_accepted_the_folder(tmp_path):
    run = RunFiles(tmp_path / "deep" / "run")
    run.new_attempt().log(0).write_text("no")
    run.write_summary({})
    run.remove_traces()
    assert os.listdir(tmp_path) == []
    run = RunFiles(tmp_path / "run")
    run.new_attempt()
    (tmp_path / "run" / "checkpoints").mkdir()
    run.remove_traces()
    assert sorted(os.listdir(tmp_path / "run")) == ["checkpoints", "logs"]
