import signal

import pytest

from convoy.launch.policy import (
    Cause,
    Kind,
    RestartPolicy,
    WorkerError,
    WorkerOutcome,
    cause_of,
    exit_code_after_signal,
)


def outcome(rank, returncode, time=100.0, error=None, step=7, at=None, ended_as=None):
    report = WorkerError(at or time, step, returncode, error) if error else None
    return WorkerOutcome(rank, returncode, time, report, ended_as)


def lost(rank, why="host b does not answer"):
    return WorkerOutcome(rank, -9, 105.0, lost=why)


def killed():
    return Cause(Kind.KILLED, 1, "worker 1 was killed (SIGKILL)", 138)


def failed(step):
    return Cause(Kind.FAILED, 0, "worker 0: ValueError: x", 1, step)


def assert_cause(cause, kind, rank, exit_code, *, step=None, named=""):
    """Checks a cause; `named` is a part of its text, besides the worker's rank."""
    assert (cause.kind, cause.rank, cause.exit_code, cause.step) == (kind, rank, exit_code, step)
    assert named in cause.text
    assert rank is None or f"worker {rank}" in cause.text
    assert "\n" not in cause.text


class TestCause:
    @pytest.mark.parametrize(
        ("returncode", "name"),
        [(-9, "SIGKILL"), (137, "SIGKILL"), (143, "SIGTERM"), (-11, "SIGSEGV"), (-40, "signal 40")],
    )
    def test_killed_worker_comes_before_earlier_secondary_failures(self, returncode, name):
        cause = cause_of([outcome(0, 138, 99.0), outcome(1, returncode, 101.0), outcome(2, 138, 102.0)])
        assert_cause(cause, Kind.KILLED, 1, 138, named=name)

    def test_earliest_error_is_the_cause_by_the_time_in_its_error_file(self):
        outcomes = [
            outcome(0, 1, 100.0, "ValueError: late", at=99.0),
            outcome(1, 1, 101.0, "KeyError: early\nmore", at=98.0),
        ]
        assert_cause(cause_of(outcomes), Kind.FAILED, 1, 1, step=7, named="KeyError: early")

    def test_clocks_of_hosts_may_differ_by_minutes(self):
        late = WorkerError(40.0, 7, 1, "ValueError: late, and its host's clock is a minute behind")
        early = WorkerError(188.0, 7, 1, "KeyError: early, and its host's clock is ahead")
        outcomes = [
            WorkerOutcome(0, 1, 100.0, late, host_time=41.0),
            WorkerOutcome(1, 1, 100.5, early, host_time=190.5),
        ]
        assert cause_of(outcomes).rank == 1

    def test_error_time_ahead_of_the_launchers_clock_is_limited_to_the_time_of_exit(self):
        outcomes = [outcome(0, -9, 100.0), outcome(1, 1, 99.0, "ValueError: x", at=190.0)]
        assert cause_of(outcomes).rank == 1

    def test_secondary_failure_with_an_error_file_is_still_secondary(self):
        outcomes = [outcome(0, 138, 90.0, "UnavailableError: reset"), outcome(1, -9, 100.0)]
        assert cause_of(outcomes).rank == 1

    def test_exit_code_1_without_an_error_file_is_the_start_up_deadline(self):
        cause = cause_of([outcome(0, 138, 101.0), outcome(1, 1, 100.0)])
        assert_cause(cause, Kind.PEER_LOST, 1, 138, named="deadline")

    def test_refusal_by_all_workers_is_reported_by_the_chief(self):
        outcomes = [outcome(1, 2, 100.0, "UsageError: x"), outcome(0, 2, 101.0, "UsageError: x")]
        assert_cause(cause_of(outcomes), Kind.REFUSED, 0, 2, step=7, named="UsageError: x")

    def test_refusal_without_an_error_file_explains_the_exit_code(self):
        cause = cause_of([outcome(0, 3)])
        assert_cause(cause, Kind.REFUSED, 0, 3, named="exit code 3")
        assert "checkpoint" in cause.text

    def test_an_error_that_says_so_is_not_restarted(self):
        failed = [WorkerOutcome(1, 1, 100.0, WorkerError(100.0, 7, 1, "callback Mine failed", is_final=True))]
        assert_cause(cause_of([outcome(0, 138, 99.0), *failed]), Kind.REFUSED, 1, 1, step=7, named="Mine")

    def test_lost_host_comes_before_secondary_failures(self):
        cause = cause_of([outcome(0, 138, 99.0), lost(1), outcome(2, 1, 98.0)])
        assert_cause(cause, Kind.HOST_LOST, 1, 138, named="host b does not answer")

    def test_error_comes_before_a_lost_host(self):
        assert cause_of([lost(0), outcome(1, 1, 107.0, "ValueError: x")]).kind is Kind.FAILED

    def test_stopped_worker_comes_before_peers_that_tensorflow_aborted(self):
        outcomes = [outcome(0, -signal.SIGABRT, 99.0), outcome(1, -9, 101.0, ended_as=Kind.STOPPED)]
        assert_cause(cause_of(outcomes), Kind.STOPPED, 1, 138, named="SIGSTOP")

    def test_abort_without_another_failure_is_the_cause(self):
        cause = cause_of([outcome(0, 138, 99.0), outcome(1, -6, 100.0)])
        assert_cause(cause, Kind.KILLED, 1, 138, named="SIGABRT")

    def test_unresponsive_worker_is_the_cause_only_without_an_error(self):
        unresponsive = outcome(0, -15, 150.0, ended_as=Kind.UNRESPONSIVE)
        assert_cause(cause_of([unresponsive, outcome(1, 138)]), Kind.UNRESPONSIVE, 0, 138)
        assert cause_of([unresponsive, outcome(1, 1, error="ValueError: x")]).rank == 1

    def test_retryable_error_that_a_worker_reported_comes_before_peers_without_one(self):
        taken = outcome(0, 138, 100.0, "worker 0 (a:1): port 1 is in use")
        for peer in (outcome(1, -15, 150.0, ended_as=Kind.UNRESPONSIVE), outcome(1, 138, 99.0)):
            assert_cause(cause_of([taken, peer]), Kind.PEER_LOST, 0, 138, named="port 1 is in use")

    def test_preemption_is_taken_from_its_event(self):
        event = {"event": "preempted", "time": 1.0, "step": 12, "worker": 1}
        cause = cause_of([outcome(0, 138), outcome(1, 138)], [{"event": "start", "time": 0.0, "step": 0}, event])
        assert_cause(cause, Kind.PREEMPTED, 1, 138, step=12, named="SIGTERM")

    def test_preemption_comes_before_an_unresponsive_worker(self):
        event = {"event": "preempted", "time": 1.0, "step": 12}
        cause = cause_of([outcome(0, -9, ended_as=Kind.UNRESPONSIVE), outcome(1, 138)], [event])
        assert_cause(cause, Kind.PREEMPTED, None, 138, step=12)

    def test_lost_peer_is_taken_from_its_event(self):
        event = {"event": "peer_lost", "time": 1.0, "message": "heartbeat timeout\nmore"}
        cause = cause_of([outcome(0, 138), outcome(1, 138)], [event])
        assert_cause(cause, Kind.PEER_LOST, None, 138, named="heartbeat timeout")

    def test_first_of_only_secondary_failures_is_the_cause(self):
        assert cause_of([outcome(0, 138, 101.0), outcome(1, 138, 100.0), outcome(2, 0, 99.0)]).rank == 1

    @pytest.mark.parametrize("returncode", [130, -2])
    def test_interrupted_worker_is_not_a_killed_one(self, returncode):
        cause = cause_of([outcome(0, returncode), outcome(1, 138)])
        assert (cause.kind, cause.exit_code) == (Kind.INTERRUPTED, 130)

    def test_unknown_exit_code_is_named_and_retried(self):
        assert_cause(cause_of([outcome(0, 255)]), Kind.KILLED, 0, 138, named="255")


class TestRestarts:
    def sequence(self, max_restarts, *attempts):
        """Returns for each attempt, (cause, new checkpoint), True if it is restarted, otherwise the exit code."""
        policy = RestartPolicy(max_restarts)
        decisions = [policy.decide(cause, new_checkpoint=new) for cause, new in attempts]
        return [True if decision.restart else decision.exit_code for decision in decisions]

    def test_stop_at_the_maximum(self):
        assert self.sequence(2, *[(killed(), False)] * 3) == [True, True, 138]

    def test_can_be_disabled(self):
        assert self.sequence(0, (killed(), True)) == [138]

    def test_new_checkpoint_resets_the_count(self):
        attempts = [(killed(), False), (killed(), False), (killed(), True), (killed(), False), (killed(), False)]
        assert self.sequence(2, *attempts) == [True, True, True, True, 138]

    def test_reason_has_the_count(self):
        policy = RestartPolicy(3)
        reasons = [policy.decide(killed(), new_checkpoint=new).reason for new in (False, False, True)]
        assert ["1 of 3" in reasons[0], "2 of 3" in reasons[1], "1 of 3" in reasons[2]] == [True] * 3

    @pytest.mark.parametrize("step", [5, None])
    def test_stop_at_the_second_error_at_the_same_step(self, step):
        assert self.sequence(9, (failed(step), True), (failed(step), False)) == [True, 1]

    def test_stop_at_the_second_error_at_the_same_step_also_with_a_kill_in_between(self):
        assert self.sequence(9, (failed(5), False), (killed(), False), (failed(5), False)) == [True, True, 1]

    def test_continue_after_an_error_at_the_same_step_with_a_new_checkpoint(self):
        assert self.sequence(9, (failed(5), True), (failed(5), True), (failed(5), False)) == [True, True, 1]

    def test_continue_after_errors_at_different_steps_up_to_the_maximum(self):
        assert self.sequence(2, (failed(5), False), (failed(4), False), (failed(3), False)) == [True, True, 1]

    @pytest.mark.parametrize(("kind", "code"), [(Kind.REFUSED, 2), (Kind.REFUSED, 3), (Kind.INTERRUPTED, 130)])
    def test_do_not_follow_failures_that_a_restart_cannot_fix(self, kind, code):
        assert self.sequence(9, (Cause(kind, 0, "", code), True)) == [code]


class TestExitCodeAfterSignal:
    @pytest.mark.parametrize(
        ("number", "codes", "expected"),
        [
            (signal.SIGTERM, [138, 138], 138),
            (signal.SIGTERM, [138, -15], 138),
            (signal.SIGTERM, [-15, -15], 143),
            (signal.SIGTERM, [0, 0], 0),
            (signal.SIGTERM, [0, 138], 138),
            (signal.SIGINT, [130, 130], 130),
            (signal.SIGINT, [138, 130], 130),
            (signal.SIGINT, [-2, -2], 130),
            (signal.SIGINT, [138, 137], 130),
            (signal.SIGUSR1, [138, 138], 138),
            (signal.SIGUSR1, [-10, -10], 138),
            (signal.SIGTERM, [3, 138], 3),
        ],
    )
    def test_follows_from_the_workers(self, number, codes, expected):
        outcomes = [outcome(rank, code) for rank, code in enumerate(codes)]
        assert exit_code_after_signal(outcomes, number, had_to_kill=False) == expected

    def test_is_that_of_a_workers_error(self):
        outcomes = [outcome(0, 138), outcome(1, 1, error="ValueError: x")]
        assert exit_code_after_signal(outcomes, signal.SIGTERM, had_to_kill=False) == 1

    @pytest.mark.parametrize(("number", "expected"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
    def test_is_that_of_the_signal_if_a_worker_had_to_be_killed(self, number, expected):
        assert exit_code_after_signal([outcome(0, 138), outcome(1, -9)], number, had_to_kill=True) == expected
