"""Workers in touch with each other, in threads of this process; what is stopped or killed is a process of its own."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from convoy.core.cluster import Cluster
from convoy.launch.ports import reserved_ports
from convoy.trainer.cluster import worker_group as peers_module
from convoy.trainer.cluster.watchdog import Deadlines, Watchdog
from convoy.trainer.cluster.worker_group import RETRYABLE, TRAINING, PeerLostError, WorkerGroup

ROOT = Path(__file__).resolve().parents[3]
# A worker that says what it does until it is ended: rank and addresses are its arguments.
_WORKER = """
import sys, time
from convoy.trainer.cluster import peers
from convoy.core.cluster import Cluster
peers._TICK_SECONDS = 0.02
rank, *addresses = sys.argv[1:]
jobs = tuple(("worker", number) for number in range(len(addresses)))
with peers.WorkerGroup(Cluster(tuple(addresses), int(rank), "flags", jobs), startup_seconds=30) as worker:
    worker.meet()
    worker.report(7, "training step")
    while True:
        time.sleep(60)
"""


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Workers report often, and are called silent early."""
    monkeypatch.setattr(peers_module, "_TICK_SECONDS", 0.02)
    monkeypatch.setattr(peers_module, "_SILENT_SECONDS", 0.5)
    monkeypatch.setattr(peers_module, "_RETRY_SECONDS", 0.02)


@pytest.fixture
def make_peers():
    """Makes so many workers of one cluster, not met yet; ends their connections after the test."""
    with contextlib.ExitStack() as made:

        def make(number, *, startup_seconds=20.0):
            with reserved_ports(number) as ports:
                addresses = tuple(f"127.0.0.1:{port}" for port in ports)
            jobs = tuple(("worker", rank) for rank in range(number))
            clusters = [Cluster(addresses, rank, "flags", jobs) for rank in range(number)]
            return [made.enter_context(WorkerGroup(cluster, startup_seconds=startup_seconds)) for cluster in clusters]

        yield make


@pytest.fixture
def stranger():
    """Starts worker `rank` of the cluster of `peers` as a process of its own; returns it."""
    started = []

    def start(worker_group, rank):
        command = [sys.executable, "-c", _WORKER, str(rank), *worker_group._cluster.addresses]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        started.append(subprocess.Popen(command, env=environment, start_new_session=True))
        return started[-1]

    yield start
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def together(everyone, function):
    """Calls `function(peers)` on all workers at once; returns what each gave, a PeerLostError included."""

    def call(worker_group):
        try:
            return function(worker_group)
        except PeerLostError as error:
            return error

    with ThreadPoolExecutor(len(everyone)) as pool:
        return list(pool.map(call, everyone))


@pytest.fixture
def three(make_peers):
    everyone = make_peers(3)
    assert together(everyone, WorkerGroup.meet) == [None] * 3
    return everyone


class TestMeeting:
    def test_workers_meet_in_whatever_order_they_come(self, make_peers):
        everyone = make_peers(3)
        with ThreadPoolExecutor(3) as pool:
            late = [pool.submit(worker_group.meet) for worker_group in reversed(everyone[1:])]
            with pytest.raises(TimeoutError):  # nobody goes on alone
                late[0].result(0.3)
            everyone[0].meet()
            assert [future.result(20) for future in late] == [None, None]

    def test_the_port_is_free_for_tensorflow_while_the_connections_live(self, three):
        port = int(three[0]._cluster.addresses[0].rpartition(":")[2])
        with socket.create_server(("", port)):
            assert (
                together(three, lambda worker_group: worker_group.exchange("still", worker_group.rank))
                == [[0, 1, 2]] * 3
            )

    def test_a_worker_that_does_not_come_is_named_on_all(self, make_peers):
        first, second, _ = everyone = make_peers(3, startup_seconds=0.5)
        of_chief, of_worker = map(str, together([first, second], WorkerGroup.meet))
        missing = re.escape(everyone[0].address(2))
        assert re.fullmatch(rf"{missing} did not come within 0\.5 s\. Do they run, and do they reach .*\?", of_chief)
        assert re.search(rf"{re.escape(everyone[0].address(0))} says: {missing} did not come within 0\.5 s", of_worker)

    def test_a_chief_that_does_not_come_is_named(self, make_peers):
        _, worker = make_peers(2, startup_seconds=0.2)
        expected = re.escape(worker.address(0)) + r", the chief, could not be reached within 0\.2 s"
        with pytest.raises(PeerLostError, match=expected) as caught:
            worker.meet()
        assert caught.value.exit_code == RETRYABLE

    def test_a_chief_whose_port_is_taken_says_so(self, make_peers):
        chief, _ = make_peers(2, startup_seconds=0.2)
        port = int(chief._cluster.addresses[0].rpartition(":")[2])
        with socket.create_server(("", port)), pytest.raises(PeerLostError, match="worker 0 .*another process has it"):
            chief.meet()

    def test_two_workers_of_the_same_rank_are_told_apart_and_the_first_stays(self, make_peers, wait_until):
        chief, first, third = make_peers(3)
        twin = WorkerGroup(first._cluster, startup_seconds=20)
        with ThreadPoolExecutor(4) as pool:
            meetings = [pool.submit(chief.meet), pool.submit(first.meet)]
            wait_until(lambda: 1 in chief._links, "the first worker 1", 20)
            with pytest.raises(PeerLostError, match="there is a worker 1 already: two processes have the same index"):
                pool.submit(twin.meet).result(20)
            meetings.append(pool.submit(third.meet))
            assert [meeting.result(20) for meeting in meetings] == [None] * 3
        assert (
            together([chief, first, third], lambda worker_group: worker_group.exchange("it", worker_group.rank))
            == [[0, 1, 2]] * 3
        )

    def test_a_worker_of_another_cluster_is_turned_away(self, make_peers):
        chief, worker = make_peers(2)
        addresses = (*worker._cluster.addresses, "127.0.0.1:1")
        jobs = tuple(("worker", rank) for rank in range(3))
        other = WorkerGroup(Cluster(addresses, 2, "flags", jobs), startup_seconds=20)
        with ThreadPoolExecutor(2) as pool:
            meeting = pool.submit(chief.meet)
            with pytest.raises(PeerLostError, match=r"worker 0 .* says: the cluster of worker 0 .* has 2 workers"):
                other.meet()
            worker.meet()
            meeting.result(20)

    def test_something_else_that_connects_does_not_disturb(self, make_peers):
        chief, worker = make_peers(2)
        port = int(chief._cluster.addresses[0].rpartition(":")[2])
        with ThreadPoolExecutor(1) as pool:
            meeting = pool.submit(chief.meet)
            deadline = time.monotonic() + 20
            while True:
                try:
                    visitor = socket.create_connection(("127.0.0.1", port))
                    break
                except OSError:
                    assert time.monotonic() < deadline
            with visitor:
                visitor.sendall(b"GET / HTTP/1.1\r\n\r\n")
                worker.meet()
            meeting.result(20)

    def test_a_process_that_is_alone_meets_and_exchanges_by_itself(self):
        with WorkerGroup(None) as worker_group:
            worker_group.meet()
            assert (worker_group.is_chief, worker_group.num_workers, worker_group.exchange("it", {"a": 1})) == (
                True,
                1,
                [{"a": 1}],
            )
            assert worker_group.why_lost() is None


class TestExchange:
    def test_gives_every_worker_all_values_by_rank_time_after_time(self, three):
        for number in range(20):
            expected = [[rank, number, "Käse"] for rank in range(3)]
            values = together(
                three,
                lambda worker_group, number=number: worker_group.exchange("it", [worker_group.rank, number, "Käse"]),
            )
            assert values == [expected] * 3

    def test_keeps_rounds_apart_when_workers_run_ahead(self, three):
        def ten(worker_group):
            values = []
            for number in range(10):
                time.sleep(0.003 * ((worker_group.rank + number) % 3))
                values.append(worker_group.exchange("it", number))
            return values

        assert together(three, ten) == [[[number] * 3 for number in range(10)]] * 3

    def test_that_a_worker_does_not_answer_names_it(self, three):
        of_chief, of_worker = together(three[:2], lambda worker_group: worker_group.exchange("it", seconds=0.3))
        assert re.search(
            rf"no answer within 0\.3 s to the exchange of 'it' from {re.escape(three[0].address(2))}\.", str(of_chief)
        )
        assert isinstance(of_worker, PeerLostError)

    def test_ends_at_once_where_a_worker_goes_meanwhile(self, three):
        def leave_or_wait(worker_group):
            if worker_group.rank == 2:
                worker_group.leave("its data are bad.")
                return None
            return worker_group.exchange("it")

        for rank, error in enumerate(together(three, leave_or_wait)[:2]):
            assert f"{three[rank].address(2)} is gone: it stopped: its data are bad" in str(error)


class TestWhoIsLost:
    def test_nobody_is_while_all_are_there(self, three):
        assert [worker_group.why_lost(seconds=0.1) for worker_group in three] == [None] * 3

    def test_a_goodbye_without_a_reason_is_no_loss(self, three):
        three[2].leave()
        assert [worker_group.why_lost(seconds=0.3) for worker_group in three[:2]] == [None, None]

    @pytest.mark.parametrize("rank", [0, 2])
    def test_an_error_in_one_worker_is_told_to_the_others(self, three, rank):
        with contextlib.suppress(ValueError), three[rank]:
            raise ValueError("the disk is gone.")
        for other in set(range(3)) - {rank}:
            why = three[other].why_lost(seconds=10)
            assert f"{three[other].address(rank)} is gone: it stopped: the disk is gone" in why

    def test_a_killed_worker_is_named_on_all_with_the_step_it_was_in(self, make_peers, stranger, wait_until):
        chief, worker, _ = make_peers(3)
        process = stranger(chief, 2)
        assert together([chief, worker], WorkerGroup.meet) == [None, None]
        wait_until(lambda: chief.table()[2][0] == 7, "the report of worker 2", 20)
        process.kill()
        for worker_group in (chief, worker):
            expected = f"{worker_group.address(2)} is gone: its connection closed; it was last heard of at step 7"
            assert worker_group.why_lost(seconds=10) == expected
            assert worker_group.lost_for() > 0

    def test_a_killed_chief_is_named(self, make_peers, stranger):
        chief, worker = make_peers(2)
        process = stranger(chief, 0)
        worker.meet()
        process.kill()
        assert worker.why_lost(seconds=10) == f"{worker.address(0)} is gone: its connection closed"

    @pytest.mark.parametrize("rank", [0, 1])
    def test_a_stopped_worker_is_silent_and_no_longer_once_it_goes_on(self, make_peers, stranger, wait_until, rank):
        everyone = make_peers(2)
        process, worker_group = stranger(everyone[0], rank), everyone[1 - rank]
        worker_group.meet()
        wait_until(lambda: worker_group.table()[rank][0] == 7, "its report", 20)
        assert worker_group.why_lost() is None
        process.send_signal(signal.SIGSTOP)
        why = worker_group.why_lost(seconds=10)
        assert re.fullmatch(rf"{re.escape(worker_group.address(rank))} has been silent for \d+ s", why)
        assert worker_group.describe_stall().startswith(f"stuck: {worker_group.address(rank)}. ")
        process.send_signal(signal.SIGCONT)
        wait_until(lambda: worker_group.why_lost() is None, "its next word", 20)


class TestTheTable:
    def test_shows_every_worker_what_all_do(self, three, wait_until):
        for worker_group in three:
            worker_group.report(10 + worker_group.rank, f"phase {worker_group.rank}")
        expected = [(10 + rank, f"phase {rank}") for rank in range(3)]
        for worker_group in three:
            wait_until(
                lambda worker_group=worker_group: [row[:2] for row in worker_group.table()] == expected,
                "the reports",
                10,
            )

    def test_names_the_one_that_is_elsewhere_while_the_others_wait_in_a_step(self, three, wait_until):
        for worker_group in three:
            worker_group.report(5, "waiting for input" if worker_group.rank == 1 else TRAINING)
        for worker_group in three:
            wait_until(
                lambda worker_group=worker_group: {row[0] for row in worker_group.table()} == {5}, "the reports", 10
            )
            assert worker_group.describe_stall().startswith(f"stuck: {worker_group.address(1)}. ")
            assert f"{worker_group.address(1)}: waiting for input, step 5, for 0 s" in worker_group.describe_stall()

    def test_names_the_one_that_is_a_step_behind(self, three, wait_until):
        for worker_group in three:
            worker_group.report(4 if worker_group.rank == 2 else 5, TRAINING)
        for worker_group in three:
            wait_until(
                lambda worker_group=worker_group: [row[0] for row in worker_group.table()] == [5, 5, 4],
                "the reports",
                10,
            )
            assert worker_group.describe_stall().startswith(f"stuck: {worker_group.address(2)}. ")

    def test_names_nobody_where_all_do_the_same(self, three, wait_until):
        for worker_group in three:
            worker_group.report(5, TRAINING)
        wait_until(lambda: {row[0] for row in three[0].table()} == {5}, "the reports", 10)
        assert not three[0].describe_stall().startswith("stuck")


class TestTheWatchdog:
    def test_is_content_while_all_goes_on(self, three):
        for worker_group in three:
            worker_group.report(1, TRAINING)
            assert Watchdog(worker_group, Deadlines()).problem() is None

    def test_finds_a_step_that_does_not_end_and_names_who_holds_it_up(self, three, wait_until):
        chief, stuck, other = three
        stuck.report(3, "waiting for input")
        for worker_group in (chief, other):
            worker_group.report(3, TRAINING)
        watchdog = Watchdog(chief, Deadlines(step=0.3))
        wait_until(lambda: chief.table()[1][0] == 3 and watchdog.problem(), "the deadline", 10)
        expected = rf"no progress for \d+ s \(--step_timeout\) in step 3: stuck: {re.escape(chief.address(1))}\. "
        assert re.match(expected, watchdog.problem())
        chief.report(4, TRAINING)
        assert watchdog.problem() is None

    def test_finds_a_process_alone_that_is_stuck(self, wait_until):
        worker_group = WorkerGroup(None)
        worker_group.report(9, "saving")
        watchdog = Watchdog(worker_group, Deadlines(step=0.1))
        wait_until(lambda: watchdog.problem() is not None, "the deadline", 10)
        assert re.match(r"no progress for 0 s \(--step_timeout\) in step 9: .*saving", watchdog.problem())

    def test_finds_a_worker_that_stays_lost(self, three, wait_until):
        chief, worker, lost = three
        for worker_group in (chief, worker):
            worker_group.report(6, TRAINING)
        with contextlib.suppress(ValueError), lost:
            raise ValueError("boom")
        for worker_group in (chief, worker):
            watchdog = Watchdog(worker_group, Deadlines(heartbeat=0.2))
            wait_until(lambda watchdog=watchdog: watchdog.problem() is not None, "the deadline", 10)
            assert watchdog.problem().startswith(f"{worker_group.address(2)} is gone: it stopped: boom")
            assert watchdog.problem().endswith("step 6 (training step) does not end")

    def test_finds_a_worker_that_stays_silent(self, make_peers, stranger, wait_until):
        chief, _ = make_peers(2)
        process = stranger(chief, 1)
        chief.meet()
        wait_until(lambda: chief.table()[1][0] == 7, "its report", 20)
        chief.report(7, TRAINING)
        watchdog = Watchdog(chief, Deadlines(heartbeat=0.4))
        assert watchdog.problem() is None
        process.send_signal(signal.SIGSTOP)
        wait_until(lambda: watchdog.problem() is not None, "the deadline", 10)
        assert re.match(rf"{re.escape(chief.address(1))} has been silent for \d+ s", watchdog.problem())

    def test_ends_the_process_with_all_stacks_and_the_word_noted(self, capfd):
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
        assert re.search(r"convoy: no progress for .* All stacks:", told)
        assert "test_ends_the_process_with_all_stacks_and_the_word_noted" in told  # this thread's
        assert noted[0].startswith("no progress")

    def test_watches_no_longer_once_it_was_left(self):
        worker_group, ended = WorkerGroup(None), []
        with Watchdog(worker_group, Deadlines(step=0.01), end=ended.append):
            pass
        time.sleep(0.7)  # longer than it waits between two looks
        assert not ended


def test_the_chief_hears_everything_it_was_told_before_an_exchange(make_peers):
    def tell(worker):
        worker.meet()
        for number in range(50):
            worker.tell([worker.rank, number])
        worker.exchange("end")
        return worker.told() if worker.is_chief else []

    with ThreadPoolExecutor(3) as pool:
        told, *others = pool.map(tell, make_peers(3))
    assert sorted(told) == [[rank, number] for rank in range(3) for number in range(50)]
    assert others == [[], []]


def test_a_worker_that_is_alone_tells_itself():
    with WorkerGroup(None) as alone:
        assert alone.processes_here == 1
        alone.tell({"index": 3})
        assert (alone.told(), alone.told()) == ([{"index": 3}], [])


def test_workers_are_of_one_host_by_their_addresses():
    addresses = ("a:1", "b:1", "a:2", "a:3")
    clusters = [Cluster(addresses, rank, "flags", (("worker", 0),) * 4) for rank in range(4)]
    assert [WorkerGroup(cluster).processes_here for cluster in clusters] == [3, 1, 3, 3]
