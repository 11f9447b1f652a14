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


def end(rank, returncode, time=100.0, error=None, step=7, at=None, ended_as=None):
    said = WorkerError(at or time, step, returncode, error) if error else None
    return WorkerOutcome(rank, returncode, time, said, ended_as)


def lost(rank, why="host b does not answer"):
    return WorkerOutcome(rank, -9, 105.0, lost=why)


def killed():
    return Cause(Kind.KILLED, 1, "worker 1 was killed (SIGKILL)", 138)


def failed(step):
    return Cause(Kind.FAILED, 0, "worker 0: ValueError: x", 1, step)


class TestCause:
    @pytest.mark.parametrize(
        ("returncode", "name"),
        [(-9, "SIGKILL"), (137, "SIGKILL"), (143, "SIGTERM"), (-11, "SIGSEGV"), (-40, "signal 40")],
    )
    def test_a_worker_that_was_killed_is_the_cause_and_its_peers_are_echoes(self, returncode, name):
        cause = cause_of([end(0, 138, 99.0), end(1, returncode, 101.0), end(2, 138, 102.0)])
        assert cause == Cause(Kind.KILLED, 1, f"worker 1 was killed ({name})", 138)

    def test_the_earliest_own_error_counts_by_the_time_it_was_written_down(self):
        ends = [end(0, 1, 100.0, "ValueError: late", at=99.0), end(1, 1, 101.0, "KeyError: early\nmore", at=98.0)]
        assert cause_of(ends) == Cause(Kind.FAILED, 1, "worker 1: KeyError: early", 1, 7)

    def test_a_hosts_clock_that_is_ahead_makes_its_error_no_later(self):
        ends = [end(0, -9, 100.0), end(1, 1, 99.0, "ValueError: x", at=190.0)]
        assert cause_of(ends).rank == 1

    def test_an_echo_that_wrote_a_file_stays_an_echo(self):
        ends = [end(0, 138, 90.0, "UnavailableError: reset"), end(1, -9, 100.0)]
        assert cause_of(ends).rank == 1

    def test_exit_code_1_without_a_word_is_the_start_up_deadline(self):
        cause = cause_of([end(0, 138, 101.0), end(1, 1, 100.0)])
        assert (cause.kind, cause.rank, cause.exit_code) == (Kind.PEER_LOST, 1, 138)
        assert "start-up deadline" in cause.text

    def test_what_all_refuse_is_told_by_the_chief(self):
        ends = [end(1, 2, 100.0, "UsageError: x"), end(0, 2, 101.0, "UsageError: x")]
        assert cause_of(ends) == Cause(Kind.REFUSED, 0, "worker 0: UsageError: x", 2, 7)

    def test_a_refusal_without_a_file_says_what_its_code_means(self):
        assert cause_of([end(0, 3)]).text == "worker 0: exit code 3, data or checkpoint that cannot be used"

    def test_a_lost_host_is_the_cause_and_its_peers_are_echoes(self):
        cause = cause_of([end(0, 138, 99.0), lost(1), end(2, 1, 98.0)])
        assert cause == Cause(Kind.HOST_LOST, 1, "worker 1 is lost: host b does not answer", 138)

    def test_an_error_of_a_workers_own_comes_before_a_host_that_was_lost_meanwhile(self):
        assert cause_of([lost(0), end(1, 1, 107.0, "ValueError: x")]).kind is Kind.FAILED

    def test_a_stopped_worker_comes_before_its_peers_that_tensorflow_aborted(self):
        ends = [end(0, -signal.SIGABRT, 99.0), end(1, -9, 101.0, ended_as=Kind.STOPPED)]
        assert cause_of(ends) == Cause(Kind.STOPPED, 1, "worker 1 was stopped (SIGSTOP)", 138)

    def test_an_abort_with_nothing_else_is_a_cause(self):
        assert cause_of([end(0, 138, 99.0), end(1, -6, 100.0)]).text == "worker 1 was killed (SIGABRT)"

    def test_a_worker_that_had_to_be_ended_is_the_cause_only_without_an_own_error(self):
        silent = end(0, -15, 150.0, ended_as=Kind.UNRESPONSIVE)
        assert cause_of([silent, end(1, 138)]).text == "worker 0 did not end with its peers and was killed"
        assert cause_of([silent, end(1, 1, error="ValueError: x")]).rank == 1

    def test_a_preemption_is_named_by_its_event(self):
        event = {"event": "preempted", "time": 1.0, "step": 12, "worker": 1}
        cause = cause_of([end(0, 138), end(1, 138)], [{"event": "start", "time": 0.0, "step": 0}, event])
        assert cause == Cause(Kind.PREEMPTED, 1, "preempted at step 12 (SIGTERM to worker 1)", 138, 12)

    def test_a_preemption_that_somebody_was_slow_to_follow_stays_one(self):
        event = {"event": "preempted", "time": 1.0, "step": 12}
        cause = cause_of([end(0, -9, ended_as=Kind.UNRESPONSIVE), end(1, 138)], [event])
        assert cause.text == "preempted at step 12"

    def test_a_lost_peer_is_told_in_the_trainers_words(self):
        event = {"event": "peer_lost", "time": 1.0, "message": "heartbeat timeout\nmore"}
        assert cause_of([end(0, 138), end(1, 138)], [event]).text == "a peer was lost: heartbeat timeout"

    def test_with_echoes_alone_it_is_the_first(self):
        assert cause_of([end(0, 138, 101.0), end(1, 138, 100.0), end(2, 0, 99.0)]).rank == 1

    @pytest.mark.parametrize("returncode", [130, -2])
    def test_an_interrupted_worker_is_told_apart_from_a_killed_one(self, returncode):
        cause = cause_of([end(0, returncode), end(1, 138)])
        assert (cause.kind, cause.exit_code) == (Kind.INTERRUPTED, 130)

    def test_a_code_that_nobody_knows_is_named_and_retried(self):
        assert cause_of([end(0, 255)]) == Cause(Kind.KILLED, 0, "worker 0 ended with exit code 255", 138)


class TestRestarts:
    def sequence(self, max_restarts, *attempts):
        """Returns of each attempt, (cause, new checkpoint), whether a restart follows and with which exit code not."""
        policy = RestartPolicy(max_restarts)
        decisions = [policy.after(cause, new_checkpoint=new) for cause, new in attempts]
        return [True if decision.restart else decision.exit_code for decision in decisions]

    def test_there_are_as_many_as_allowed(self):
        assert self.sequence(2, *[(killed(), False)] * 3) == [True, True, 138]

    def test_none_are_allowed(self):
        assert self.sequence(0, (killed(), True)) == [138]

    def test_a_new_checkpoint_allows_as_many_again(self):
        attempts = [(killed(), False), (killed(), False), (killed(), True), (killed(), False), (killed(), False)]
        assert self.sequence(2, *attempts) == [True, True, True, True, 138]

    def test_each_is_counted_in_words(self):
        policy = RestartPolicy(3)
        reasons = [policy.after(killed(), new_checkpoint=new).reason for new in (False, False, True)]
        assert reasons == [f"restart {number} of 3 without a new checkpoint" for number in (1, 2, 1)]

    @pytest.mark.parametrize("step", [5, None])
    def test_the_same_error_at_the_same_step_twice_is_the_end(self, step):
        assert self.sequence(9, (failed(step), True), (failed(step), False)) == [True, 1]

    def test_also_with_a_kill_between(self):
        assert self.sequence(9, (failed(5), False), (killed(), False), (failed(5), False)) == [True, True, 1]

    def test_not_with_a_new_checkpoint_between(self):
        assert self.sequence(9, (failed(5), True), (failed(5), True), (failed(5), False)) == [True, True, 1]

    def test_errors_at_other_steps_are_restarted_until_the_restarts_are_spent(self):
        assert self.sequence(2, (failed(5), False), (failed(4), False), (failed(3), False)) == [True, True, 1]

    @pytest.mark.parametrize(("kind", "code"), [(Kind.REFUSED, 2), (Kind.REFUSED, 3), (Kind.INTERRUPTED, 130)])
    def test_what_a_restart_does_not_mend_is_the_end(self, kind, code):
        assert self.sequence(9, (Cause(kind, 0, "", code), True)) == [code]


class TestExitCodeAfterASignal:
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
    def test_is_that_of_the_workers(self, number, codes, expected):
        ends = [end(rank, code) for rank, code in enumerate(codes)]
        assert exit_code_after_signal(ends, number, had_to_kill=False) == expected

    def test_is_the_workers_own_error_where_it_had_one(self):
        ends = [end(0, 138), end(1, 1, error="ValueError: x")]
        assert exit_code_after_signal(ends, signal.SIGTERM, had_to_kill=False) == 1

    @pytest.mark.parametrize(("number", "expected"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
    def test_is_the_signals_where_a_worker_had_to_be_killed(self, number, expected):
        assert exit_code_after_signal([end(0, 138), end(1, -9)], number, had_to_kill=True) == expected
