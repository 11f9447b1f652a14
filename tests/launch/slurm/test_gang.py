"""A step's workers, with a small program in place of srun."""

import os
import time

import pytest

from launch.gang import Ended
from launch.run_files import RunFiles
from launch.slurm import gang


@pytest.fixture
def files(tmp_path):
    return RunFiles(tmp_path).attempt(1)


@pytest.fixture
def ends_of(files, monkeypatch, wait_until):
    """Runs a shell script as srun with three workers; returns the workers' ends by rank."""

    def run(script):
        monkeypatch.setattr(gang, "_LATE_NOTE_SECONDS", 0.0)
        hosts = ["n1", "n2", "n3"]
        workers = gang.StepWorkers(
            files, ["sh", "-c", script], os.environ, hosts=hosts, job="1", name="convoy-attempt-1"
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
    files.write_end(Ended(0, 138, time.time()))
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


def test_a_step_that_went_well_needs_no_notes(ends_of):
    assert {rank: (end.returncode, end.lost) for rank, end in ends_of("exit 0").items()} == {
        rank: (0, "") for rank in range(3)
    }
