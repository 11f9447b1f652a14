"""A step's workers, with a shell script in place of srun."""

import os
import time

import pytest

from convoy.launch.processes import WorkerExit
from convoy.launch.run_files import RunFiles
from convoy.launch.slurm import step_workers


@pytest.fixture
def files(tmp_path):
    return RunFiles(tmp_path).attempt(1)


@pytest.fixture
def shown():
    """Log lines that were shown."""
    return []


@pytest.fixture
def ends_of(files, shown, monkeypatch, wait_until):
    """Runs a shell script as srun with three workers; returns the workers' ends by rank."""

    def run(script):
        monkeypatch.setattr(step_workers, "_LATE_RECORD_SECONDS", 0.0)
        hosts = ["n1", "n2", "n3"]
        workers = step_workers.StepWorkers(
            files, ["sh", "-c", script], os.environ, hosts=hosts, job="1", name="convoy-attempt-1", show=shown.append
        )
        ends = []
        try:
            wait_until(lambda: ends.extend(workers.poll()) or not workers.running(), "the end of the step", 20)
        finally:
            workers.kill()
        assert sorted(end.rank for end in ends) == [0, 1, 2]
        return {end.rank: end for end in ends}

    return run


def test_workers_without_a_record_are_lost_for_the_reason_that_srun_gives(files, ends_of):
    files.write_end(WorkerExit(0, 138, time.time()))
    for rank in (0, 1, 2):
        files.log(rank).write_text("trained\n")
    ends = ends_of("echo 'srun: error: n2: tasks 1-2: Killed' >&2; exit 137")
    assert (ends[0].returncode, ends[0].lost) == (138, "")
    assert ["n2: tasks 1-2: Killed" in ends[rank].lost for rank in (1, 2)] == [True, True]


def test_output_of_workers_that_never_started_is_moved_from_srun_to_their_logs(files, ends_of):
    message = "srun: error: n1: tasks 0-1: Exited with exit code 1"
    ends = ends_of(f"echo '1: No module named convoy' >&2; echo '0: No space' >&2; echo '{message}' >&2; exit 1")
    assert [files.last_lines(rank, 9) for rank in (0, 1)] == [["No space"], ["No module named convoy"]]
    assert [(ends[rank].returncode, ends[rank].lost, files.error(rank).error) for rank in (0, 1)] == [
        (1, "", "No space"),
        (1, "", "No module named convoy"),
    ]
    assert ends[2].lost


def test_workers_that_could_not_write_their_record_have_the_exit_code_that_srun_reports(files, ends_of):
    for rank in (0, 1, 2):
        files.log(rank).write_text("No space left on device\n")
    messages = ("n1: task 0: Exited with exit code 3", "n2: task 1: Exited with exit code 138", "n3: task 2: Killed")
    ends = ends_of("".join(f"echo 'srun: error: {line}' >&2; " for line in messages) + "exit 3")
    assert {rank: end.returncode for rank, end in ends.items()} == {0: 3, 1: 138, 2: 1}
    assert (ends[0].lost, ends[1].lost) == ("", "")
    assert "n3: task 2: Killed" in ends[2].lost


def test_step_that_slurm_will_never_start_is_an_error_and_not_a_lost_host(files, ends_of):
    reason = "Unable to create step for job 7: More processors requested than permitted"
    ends = ends_of(f"echo 'srun: error: {reason}' >&2; exit 1")
    assert {(end.returncode, end.lost, files.error(rank).error) for rank, end in ends.items()} == {
        (1, "", f"srun: {reason}")
    }


def test_hints_for_the_user_are_shown_once(ends_of, shown):
    busy = "srun: Job 7 step creation temporarily disabled, retrying (Requested nodes are busy)"
    killed = "slurmstepd: error: Detected 1 oom_kill event in StepId=7.0. Some of the step tasks have been OOM Killed."
    ends_of(f"for i in 1 2; do echo '{busy}' >&2; echo '{killed}' >&2; sleep 1; done; exit 1")
    assert len(shown) == 2
    assert "squeue --me --steps" in shown[0]
    assert "--mem=0" in shown[1]


def test_successful_step_needs_no_records(ends_of):
    assert {rank: (end.returncode, end.lost) for rank, end in ends_of("exit 0").items()} == {
        rank: (0, "") for rank in range(3)
    }
