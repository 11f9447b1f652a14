"""A step's workers, with a small program in place of srun."""

import os
import time

import pytest

from convoy.launch.processes import WorkerExit
from convoy.launch.run_files import RunFiles
from convoy.launch.slurm import step_workers as gang


@pytest.fixture
def files(tmp_path):
    return RunFiles(tmp_path).attempt(1)


@pytest.fixture
def said():
    """Lines that were shown."""
    return []


@pytest.fixture
def ends_of(files, said, monkeypatch, wait_until):
    """Runs a shell script as srun with three workers; returns the workers' ends by rank."""

    def run(script):
        monkeypatch.setattr(gang, "_LATE_NOTE_SECONDS", 0.0)
        hosts = ["n1", "n2", "n3"]
        workers = gang.StepWorkers(
            files, ["sh", "-c", script], os.environ, hosts=hosts, job="1", name="convoy-attempt-1", say=said.append
        )
        ends = []
        try:
            wait_until(lambda: ends.extend(workers.poll()) or not workers.running(), "the end of the step", 20)
        finally:
            workers.kill()
        assert sorted(end.rank for end in ends) == [0, 1, 2]
        return {end.rank: end for end in ends}

    return run


def test_workers_that_left_no_word_are_lost_with_what_srun_says_of_them(files, ends_of):
    files.write_end(WorkerExit(0, 138, time.time()))
    for rank in (0, 1, 2):
        files.log(rank).write_text("trained\n")
    ends = ends_of("echo 'srun: error: n2: tasks 1-2: Killed' >&2; exit 137")
    assert (ends[0].returncode, ends[0].lost) == (138, "")
    assert {ends[rank].lost for rank in (1, 2)} == {"it left no word of its end (srun: n2: tasks 1-2: Killed)"}


def test_workers_that_never_began_have_what_they_wrote_to_srun_in_their_logs(files, ends_of):
    said = "srun: error: n1: tasks 0-1: Exited with exit code 1"
    ends = ends_of(f"echo '1: No module named convoy' >&2; echo '0: No space' >&2; echo '{said}' >&2; exit 1")
    assert [files.last_lines(rank, 9) for rank in (0, 1)] == [["No space"], ["No module named convoy"]]
    assert [(ends[rank].returncode, ends[rank].lost, files.error(rank).error) for rank in (0, 1)] == [
        (1, "", "No space"),
        (1, "", "No module named convoy"),
    ]
    assert ends[2].lost == "it left no word of its end (srun: nothing)"


def test_workers_that_could_leave_no_note_ended_as_srun_says(files, ends_of):
    for rank in (0, 1, 2):
        files.log(rank).write_text("No space left on device\n")
    told = ("n1: task 0: Exited with exit code 3", "n2: task 1: Exited with exit code 138", "n3: task 2: Killed")
    ends = ends_of("".join(f"echo 'srun: error: {line}' >&2; " for line in told) + "exit 3")
    assert {rank: (end.returncode, end.lost) for rank, end in ends.items()} == {
        0: (3, ""),
        1: (138, ""),
        2: (1, "it left no word of its end (srun: n3: task 2: Killed)"),
    }


def test_a_step_that_slurm_will_never_begin_is_the_users_error_and_no_lost_host(files, ends_of):
    why = "Unable to create step for job 7: More processors requested than permitted"
    ends = ends_of(f"echo 'srun: error: {why}' >&2; exit 1")
    assert {(end.returncode, end.lost, files.error(rank).error) for rank, end in ends.items()} == {
        (1, "", f"srun: {why}")
    }


def test_what_a_person_can_mend_is_shown_once(ends_of, said):
    busy = "srun: Job 7 step creation temporarily disabled, retrying (Requested nodes are busy)"
    killed = "slurmstepd: error: Detected 1 oom_kill event in StepId=7.0. Some of the step tasks have been OOM Killed."
    ends_of(f"for i in 1 2; do echo '{busy}' >&2; echo '{killed}' >&2; sleep 1; done; exit 1")
    assert [line.partition(".")[0] for line in said] == [
        "convoy: the workers wait for cores of the job that another step of it has (`squeue --me --steps`)",
        "convoy: SLURM says that the job ran out of memory on a node and a process was killed",
    ]


def test_a_step_that_went_well_needs_no_notes(ends_of):
    assert {rank: (end.returncode, end.lost) for rank, end in ends_of("exit 0").items()} == {
        rank: (0, "") for rank in range(3)
    }
