import json

import pytest

from convoy.launch.history import Attempt, as_json, end_step, goodput, retained_seconds, start_step, summary


def events(start, *others, at=0.0):
    """Returns an attempt's events: `start` (None: it never started training), then (name, time, step)."""
    first = [] if start is None else [{"event": "restored" if start else "start", "time": at, "step": start}]
    return first + [{"event": name, "time": at + time, "step": step} for name, time, step in others]


KILLED = events(0, ("first_step", 10.0, 1), ("checkpoint", 50.0, 20), ("checkpoint", 70.0, 30), at=1000.0)
FAILED = events(30, ("first_step", 5.0, 31), ("checkpoint", 25.0, 40), ("checkpoint", 45.0, 50), at=1100.0)
FINISHED = events(50, ("first_step", 4.0, 51), ("checkpoint", 30.0, 60), ("done", 34.0, 60), at=1200.0)


class TestSteps:
    def test_start_step_is_that_of_the_start_or_of_the_restored_checkpoint(self):
        assert [start_step(attempt) for attempt in (KILLED, FAILED, events(None))] == [0, 30, None]

    def test_end_step_is_the_last_step_from_any_source(self):
        assert end_step(KILLED) == 30
        assert end_step(KILLED, None, 37) == 37
        assert end_step(events(30)) == 30

    def test_attempt_that_never_started_training_has_no_end_step(self):
        assert end_step(events(None), 37) is None


class TestRetainedSeconds:
    def test_run_from_the_first_step_to_the_checkpoint_of_the_next_attempt(self):
        assert retained_seconds([KILLED, FAILED, FINISHED]) == [60.0, 40.0, 30.0]

    def test_exclude_repeated_steps(self):
        again = events(20, ("first_step", 5.0, 21), ("done", 25.0, 60), at=1100.0)
        assert retained_seconds([KILLED, again]) == [40.0, 20.0]

    def test_are_zero_for_an_attempt_without_a_checkpoint(self):
        lost = events(30, ("first_step", 5.0, 31), at=1100.0)
        assert retained_seconds([KILLED, lost, FAILED, FINISHED]) == [60.0, 0.0, 40.0, 30.0]

    def test_are_zero_for_an_attempt_that_never_started_training(self):
        assert retained_seconds([KILLED, events(None), FAILED, FINISHED]) == [60.0, 0.0, 40.0, 30.0]

    def test_are_lost_when_a_later_attempt_resumes_from_an_earlier_checkpoint(self):
        back = events(20, ("first_step", 5.0, 21), ("done", 25.0, 60), at=1300.0)
        assert retained_seconds([KILLED, FAILED, back]) == [40.0, 0.0, 20.0]

    @pytest.mark.parametrize(("kept_step", "last"), [(50, 40.0), (40, 20.0), (None, 0.0)])
    def test_of_an_unfinished_run_end_at_the_kept_checkpoint(self, kept_step, last):
        assert retained_seconds([KILLED, FAILED], kept_step) == [60.0, last]

    def test_of_no_attempts_are_empty(self):
        assert retained_seconds([]) == []


@pytest.fixture
def attempts():
    return [
        Attempt(1, 80.0, "worker 1 was killed (SIGKILL)", (138, 137), KILLED, 37, "logs/attempt-1/worker-1.log"),
        Attempt(2, 50.0, "worker 0: ValueError: " + "x" * 100, (1, 138), FAILED, 52),
        Attempt(3, 35.0, "done", (0, 0), FINISHED, 60),
    ]


class TestSummary:
    def test_has_one_aligned_row_per_attempt_and_the_goodput(self, attempts):
        heading, *rows, share = summary(attempts, 173.4).splitlines()
        assert "3" in heading
        assert "2:53" in heading
        assert "75 %" in share
        assert [row.split()[:5] for row in rows] == [
            ["1", "step", "0", "->", "37"],
            ["2", "step", "30", "->", "52"],
            ["3", "step", "50", "->", "60"],
        ]
        assert "logs/attempt-1/worker-1.log" in rows[0]
        assert rows[0].endswith("step 30")
        assert rows[1].endswith("step 50")
        assert rows[0].index("worker 1") == rows[1].index("worker 0") == rows[2].index("done")

    def test_long_cause_is_shortened(self, attempts):
        row = summary(attempts, 173.4).splitlines()[2]
        assert "x" * 65 + "..." in row
        assert "x" * 66 not in row

    def test_shows_attempts_that_never_started_training(self):
        rows = summary(
            [Attempt(4, 1.0, "killed", (137,), events(None)), Attempt(5, 9.0, "done", (0,), events(0), 0)], 10.0
        ).splitlines()
        assert "no step" in rows[1]
        assert rows[1].endswith("step 0")
        assert "step 0 -> 0" in rows[2]

    def test_as_json_has_the_same_content(self, attempts):
        value = json.loads(json.dumps(as_json(attempts, 200.0)))
        assert value["goodput"] == 0.65
        assert value["seconds"] == 200.0
        assert value["attempts"][0] == {
            "attempt": 1,
            "start_step": 0,
            "end_step": 37,
            "cause": "worker 1 was killed (SIGKILL)",
            "log": "logs/attempt-1/worker-1.log",
            "exit_codes": [138, 137],
            "seconds": 80.0,
            "seconds_that_count": 60.0,
        }

    def test_goodput_is_between_0_and_1(self, attempts):
        assert goodput(attempts, 100.0) == 1.0
        assert goodput([], 0.0) == 0.0
