import json

import pytest

from convoy.launch.history import Attempt, as_json, end_step, goodput, seconds_that_count, start_step, summary


def events(start, *others, at=0.0):
    """Returns an attempt's events: `start` (None where it never began), then (name, time, step)."""
    first = [] if start is None else [{"event": "restored" if start else "start", "time": at, "step": start}]
    return first + [{"event": name, "time": at + time, "step": step} for name, time, step in others]


KILLED = events(0, ("first_step", 10.0, 1), ("checkpoint", 50.0, 20), ("checkpoint", 70.0, 30), at=1000.0)
FAILED = events(30, ("first_step", 5.0, 31), ("checkpoint", 25.0, 40), ("checkpoint", 45.0, 50), at=1100.0)
FINISHED = events(50, ("first_step", 4.0, 51), ("checkpoint", 30.0, 60), ("done", 34.0, 60), at=1200.0)


class TestSteps:
    def test_an_attempt_begins_where_it_started_or_was_restored(self):
        assert [start_step(attempt) for attempt in (KILLED, FAILED, events(None))] == [0, 30, None]

    def test_it_ends_at_the_last_step_that_anything_tells_of(self):
        assert end_step(KILLED) == 30
        assert end_step(KILLED, None, 37) == 37
        assert end_step(events(30)) == 30

    def test_without_a_beginning_there_is_no_end(self):
        assert end_step(events(None), 37) is None


class TestSecondsThatCount:
    def test_run_from_the_first_step_to_the_state_that_the_next_attempt_began_from(self):
        assert seconds_that_count([KILLED, FAILED, FINISHED]) == [60.0, 40.0, 30.0]

    def test_what_had_to_be_done_again_does_not_count(self):
        again = events(20, ("first_step", 5.0, 21), ("done", 25.0, 60), at=1100.0)
        assert seconds_that_count([KILLED, again]) == [40.0, 20.0]

    def test_an_attempt_that_left_no_checkpoint_counts_nothing(self):
        lost = events(30, ("first_step", 5.0, 31), at=1100.0)
        assert seconds_that_count([KILLED, lost, FAILED, FINISHED]) == [60.0, 0.0, 40.0, 30.0]

    def test_an_attempt_that_did_not_begin_changes_nothing(self):
        assert seconds_that_count([KILLED, events(None), FAILED, FINISHED]) == [60.0, 0.0, 40.0, 30.0]

    def test_a_later_fall_back_behind_an_attempts_beginning_takes_its_work_away(self):
        back = events(20, ("first_step", 5.0, 21), ("done", 25.0, 60), at=1300.0)
        assert seconds_that_count([KILLED, FAILED, back]) == [40.0, 0.0, 20.0]

    def test_of_a_run_that_was_given_up_what_is_kept_counts(self):
        assert seconds_that_count([KILLED, FAILED], kept_step=50) == [60.0, 40.0]
        assert seconds_that_count([KILLED, FAILED], kept_step=40) == [60.0, 20.0]
        assert seconds_that_count([KILLED, FAILED], kept_step=None) == [60.0, 0.0]

    def test_there_may_be_none(self):
        assert seconds_that_count([]) == []


@pytest.fixture
def attempts():
    return [
        Attempt(1, 80.0, "worker 1 was killed (SIGKILL)", (138, 137), KILLED, 37, "logs/attempt-1/worker-1.log"),
        Attempt(2, 50.0, "worker 0: ValueError: " + "x" * 100, (1, 138), FAILED, 52),
        Attempt(3, 35.0, "done", (0, 0), FINISHED, 60),
    ]


class TestSummary:
    def test_has_a_row_an_attempt_and_the_share_of_the_time_that_counted(self, attempts):
        cause = "worker 0: ValueError: " + "x" * 65 + "..."
        width = len(cause)
        assert summary(attempts, 173.4).splitlines() == [
            "Attempts: 3 in 2:53",
            f"  1  step 0 -> 37   {'worker 1 was killed (SIGKILL) (logs/attempt-1/worker-1.log)':<{width}}  "
            "went on from step 30",
            f"  2  step 30 -> 52  {cause}  went on from step 50",
            "  3  step 50 -> 60  done",
            "Goodput: 75 % of the time trained steps that count (2:10 of 2:53).",
        ]

    def test_says_where_an_attempt_did_not_get_to_a_step(self):
        rows = summary(
            [Attempt(4, 1.0, "killed", (137,), events(None)), Attempt(5, 9.0, "done", (0,), events(0), 0)], 10.0
        )
        assert rows.splitlines()[1:3] == ["  4  no step      killed  went on from the start", "  5  step 0 -> 0  done"]

    def test_is_there_for_programs_too(self, attempts):
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

    def test_goodput_lies_between_0_and_1(self, attempts):
        assert goodput(attempts, 100.0) == 1.0
        assert goodput([], 0.0) == 0.0
