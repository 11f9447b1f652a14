"""Workers of a cluster as threads of this process; those that are stopped or killed are processes."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from convoy.core.cluster import Cluster
from convoy.core.exit_codes import RETRYABLE
from convoy.trainer.cluster import liveness
from convoy.trainer.cluster.liveness import TRAINING
from convoy.trainer.cluster.watchdog import Deadlines, Watchdog
from convoy.trainer.cluster.worker_group import PeerLostError, WorkerGroup

pytestmark = pytest.mark.usefixtures("quick")

ROOT = Path(__file__).resolve().parents[3]
# A worker that reports until it is killed. Arguments: rank and addresses.
_WORKER = """
import sys, time
from convoy.trainer.cluster import worker_group
from convoy.core.cluster import Cluster
worker_group._TICK_SECONDS = 0.02
rank, *addresses = sys.argv[1:]
jobs = tuple(("worker", number) for number in range(len(addresses)))
with worker_group.WorkerGroup(Cluster(tuple(addresses), int(rank), "flags", jobs), startup_seconds=30) as worker:
    worker.rendezvous()
    worker.report(7, "training step")
    while True:
        time.sleep(60)
"""


@pytest.fixture
def stranger():
    """Starts worker `rank` of a cluster as a process and returns it."""
    started = []

    def start(worker_group, rank):
        command = [sys.executable, "-c", _WORKER, str(rank), *worker_group.cluster.addresses]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        started.append(subprocess.Popen(command, env=environment, start_new_session=True))
        return started[-1]

    yield start
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def together(everyone, function):
    """Calls `function(worker_group)` on all workers at once; returns the results, or the PeerLostErrors."""

    def call(worker_group):
        try:
            return function(worker_group)
        except PeerLostError as error:
            return error

    with ThreadPoolExecutor(len(everyone)) as pool:
        return list(pool.map(call, everyone))


@pytest.fixture
def three(make_workers):
    everyone = make_workers(3)
    assert together(everyone, WorkerGroup.rendezvous) == [None] * 3
    return everyone


class TestExchange:
    def test_single_process_needs_no_connection(self):
        with WorkerGroup(None) as worker_group:
            worker_group.rendezvous()
            assert (worker_group.is_chief, worker_group.num_workers, worker_group.exchange("it", {"a": 1})) == (
                True,
                1,
                [{"a": 1}],
            )
            assert worker_group.liveness.failure_reason() is None

    def test_every_worker_gets_all_values_by_rank(self, three):
        for number in range(20):
            expected = [[rank, number, "Käse"] for rank in range(3)]
            values = together(
                three,
                lambda worker_group, number=number: worker_group.exchange("it", [worker_group.rank, number, "Käse"]),
            )
            assert values == [expected] * 3

    def test_rounds_are_kept_apart_when_workers_run_ahead(self, three):
        def ten(worker_group):
            values = []
            for number in range(10):
                time.sleep(0.003 * ((worker_group.rank + number) % 3))
                values.append(worker_group.exchange("it", number))
            return values

        assert together(three, ten) == [[[number] * 3 for number in range(10)]] * 3

    def test_worker_that_does_not_answer_is_named(self, three):
        of_chief, of_worker = together(three[:2], lambda worker_group: worker_group.exchange("it", seconds=0.3))
        assert "'it'" in str(of_chief) and three[0].address(2) in str(of_chief)
        assert three[0].address(1) not in str(of_chief)
        assert isinstance(of_worker, PeerLostError)

    def test_ends_at_once_when_a_worker_leaves(self, three):
        def leave_or_wait(worker_group):
            if worker_group.rank == 2:
                worker_group.close("its data are bad.")
                return None
            return worker_group.exchange("it")

        for rank, error in enumerate(together(three, leave_or_wait)[:2]):
            assert three[rank].address(2) in str(error) and "its data are bad" in str(error)


class TestFailureReason:
    def test_none_while_all_workers_are_there(self, three):
        assert [worker_group.liveness.failure_reason(seconds=0.1) for worker_group in three] == [None] * 3

    def test_orderly_close_is_not_a_failure(self, three):
        three[2].close()
        assert [worker_group.liveness.failure_reason(seconds=0.3) for worker_group in three[:2]] == [None, None]

    @pytest.mark.parametrize("rank", [0, 2])
    def test_error_of_one_worker_reaches_the_others(self, three, rank):
        with contextlib.suppress(ValueError), three[rank]:
            raise ValueError("the disk is gone.")
        for other in set(range(3)) - {rank}:
            why = three[other].liveness.failure_reason(seconds=10)
            assert three[other].address(rank) in why and "the disk is gone" in why

    def test_killed_worker_is_named_with_its_step(self, make_workers, stranger, wait_until):
        chief, worker, _ = make_workers(3)
        process = stranger(chief, 2)
        assert together([chief, worker], WorkerGroup.rendezvous) == [None, None]
        wait_until(lambda: chief.liveness.table()[2][0] == 7, "the report of worker 2", 20)
        process.kill()
        for worker_group in (chief, worker):
            reason = worker_group.liveness.failure_reason(seconds=10)
            assert reason.startswith(worker_group.address(2)) and reason.endswith("step 7")
            assert worker_group.liveness.seconds_since_failure() > 0

    def test_killed_chief_is_named(self, make_workers, stranger):
        chief, worker = make_workers(2)
        process = stranger(chief, 0)
        worker.rendezvous()
        process.kill()
        assert worker.liveness.failure_reason(seconds=10).startswith(worker.address(0))

    @pytest.mark.parametrize("rank", [0, 1])
    def test_stopped_worker_is_silent_until_it_continues(self, make_workers, stranger, wait_until, rank):
        everyone = make_workers(2)
        process, worker_group = stranger(everyone[0], rank), everyone[1 - rank]
        worker_group.rendezvous()
        wait_until(lambda: worker_group.liveness.table()[rank][0] == 7, "its report", 20)
        assert worker_group.liveness.failure_reason() is None
        process.send_signal(signal.SIGSTOP)
        why = worker_group.liveness.failure_reason(seconds=10)
        assert why.startswith(f"{worker_group.address(rank)} has been silent")
        assert worker_group.liveness.describe_stall().startswith(f"stuck: {worker_group.address(rank)}. ")
        process.send_signal(signal.SIGCONT)
        wait_until(lambda: worker_group.liveness.failure_reason() is None, "its next message", 20)


class TestTable:
    def test_every_worker_sees_the_reports_of_all(self, three, wait_until):
        for worker_group in three:
            worker_group.report(10 + worker_group.rank, f"phase {worker_group.rank}")
        expected = [(10 + rank, f"phase {rank}") for rank in range(3)]
        for worker_group in three:
            wait_until(
                lambda worker_group=worker_group: [row[:2] for row in worker_group.liveness.table()] == expected,
                "the reports",
                10,
            )

    def test_stall_names_the_worker_in_another_phase(self, three, wait_until):
        for worker_group in three:
            worker_group.report(5, "waiting for input" if worker_group.rank == 1 else TRAINING)
        for worker_group in three:
            wait_until(
                lambda worker_group=worker_group: {row[0] for row in worker_group.liveness.table()} == {5},
                "the reports",
                10,
            )
            assert worker_group.liveness.describe_stall().startswith(f"stuck: {worker_group.address(1)}. ")
            assert (
                f"{worker_group.address(1)}: waiting for input, step 5, for 0 s"
                in worker_group.liveness.describe_stall()
            )

    def test_stall_names_the_worker_that_is_a_step_behind(self, three, wait_until):
        for worker_group in three:
            worker_group.report(4 if worker_group.rank == 2 else 5, TRAINING)
        for worker_group in three:
            wait_until(
                lambda worker_group=worker_group: [row[0] for row in worker_group.liveness.table()] == [5, 5, 4],
                "the reports",
                10,
            )
            assert worker_group.liveness.describe_stall().startswith(f"stuck: {worker_group.address(2)}. ")

    def test_stall_names_nobody_if_all_do_the_same(self, three, wait_until):
        for worker_group in three:
            worker_group.report(5, TRAINING)
        wait_until(lambda: {row[0] for row in three[0].liveness.table()} == {5}, "the reports", 10)
        assert not three[0].liveness.describe_stall().startswith("stuck")


class TestWatchdog:
    def test_no_problem_while_training_progresses(self, three):
        for worker_group in three:
            worker_group.report(1, TRAINING)
            assert Watchdog(worker_group, Deadlines()).problem() is None

    def test_stuck_step_names_the_worker_that_others_wait_for(self, three, wait_until):
        chief, stuck, other = three
        stuck.report(3, "waiting for input")
        for worker_group in (chief, other):
            worker_group.report(3, TRAINING)
        watchdog = Watchdog(chief, Deadlines(step=0.3))
        wait_until(lambda: chief.liveness.table()[1][0] == 3 and watchdog.problem(), "the deadline", 10)
        assert re.match(rf".*--step_timeout.* step 3: stuck: {re.escape(chief.address(1))}\. ", watchdog.problem())
        chief.report(4, TRAINING)
        assert watchdog.problem() is None

    def test_single_process_that_is_stuck(self, wait_until):
        worker_group = WorkerGroup(None)
        worker_group.report(9, "saving")
        watchdog = Watchdog(worker_group, Deadlines(step=0.1))
        wait_until(lambda: watchdog.problem() is not None, "the deadline", 10)
        assert re.match(r".*--step_timeout.* step 9: .*saving", watchdog.problem())

    def test_lost_worker(self, three, wait_until):
        chief, worker, lost = three
        for worker_group in (chief, worker):
            worker_group.report(6, TRAINING)
        with contextlib.suppress(ValueError), lost:
            raise ValueError("boom")
        for worker_group in (chief, worker):
            watchdog = Watchdog(worker_group, Deadlines(heartbeat=0.2))
            wait_until(lambda watchdog=watchdog: watchdog.problem() is not None, "the deadline", 10)
            assert re.match(rf"{re.escape(worker_group.address(2))} .*boom.* step 6 ", watchdog.problem())

    def test_silent_worker(self, make_workers, stranger, wait_until):
        chief, _ = make_workers(2)
        process = stranger(chief, 1)
        chief.rendezvous()
        wait_until(lambda: chief.liveness.table()[1][0] == 7, "its report", 20)
        chief.report(7, TRAINING)
        watchdog = Watchdog(chief, Deadlines(heartbeat=0.4))
        assert watchdog.problem() is None
        process.send_signal(signal.SIGSTOP)
        wait_until(lambda: watchdog.problem() is not None, "the deadline", 10)
        assert watchdog.problem().startswith(f"{chief.address(1)} has been silent")

    def test_short_silence_is_no_problem_with_a_shorter_deadline(self, make_workers, monkeypatch):
        monkeypatch.setattr(liveness, "SILENT_SECONDS", 60)
        chief, _ = make_workers(2)
        time.sleep(0.1)  # the other worker sends nothing
        assert Watchdog(chief, Deadlines(heartbeat=0.01)).problem() is None

    def test_process_ends_with_all_stacks_and_the_message_is_recorded(self, capfd):
        worker_group, ended, noted = WorkerGroup(None), threading.Event(), []
        codes = []

        def end(code):
            codes.append(code)
            ended.set()

        worker_group.report(2, TRAINING)
        with Watchdog(worker_group, Deadlines(step=0.01), on_end=noted.append, end=end):
            assert ended.wait(20)
        told = capfd.readouterr().err
        assert codes == [RETRYABLE]
        assert "--step_timeout" in told
        assert "test_process_ends_with_all_stacks_and_the_message_is_recorded" in told  # this thread's
        assert "--step_timeout" in noted[0]

    def test_stops_watching_on_exit(self):
        worker_group, ended = WorkerGroup(None), []
        with Watchdog(worker_group, Deadlines(step=0.01), end=ended.append):
            pass
        time.sleep(0.7)  # longer than its polling interval
        assert not ended


def test_chief_receives_everything_sent_before_an_exchange(make_workers):
    def send(worker):
        worker.rendezvous()
        for number in range(50):
            worker.send_to_chief([worker.rank, number])
        worker.exchange("end")
        return worker.receive() if worker.is_chief else []

    with ThreadPoolExecutor(3) as pool:
        told, *others = pool.map(send, make_workers(3))
    assert sorted(told) == [[rank, number] for rank in range(3) for number in range(50)]
    assert others == [[], []]


def test_single_process_sends_to_itself():
    with WorkerGroup(None) as alone:
        assert alone.processes_here == 1
        alone.send_to_chief({"index": 3})
        assert (alone.receive(), alone.receive()) == ([{"index": 3}], [])


def test_number_of_processes_on_this_host():
    addresses = ("a:1", "b:1", "a:2", "a:3")
    clusters = [Cluster(addresses, rank, "flags", (("worker", 0),) * 4) for rank in range(4)]
    assert [WorkerGroup(cluster).processes_here for cluster in clusters] == [3, 1, 3, 3]
