"""How workers meet, and who else calls: port scanners, workers of other jobs, workers that were started wrongly."""

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from convoy.core.errors import ConvoyError, UsageError
from convoy.core.exit_codes import RETRYABLE
from convoy.trainer.cluster import rendezvous, transport
from convoy.trainer.cluster.ports import listening_socket
from convoy.trainer.cluster.transport import Link
from convoy.trainer.cluster.worker_group import PeerLostError, WorkerGroup

pytestmark = pytest.mark.usefixtures("quick")


def meet(*workers):
    """Lets workers meet at once; returns None or the error of each."""

    def call(worker_group):
        try:
            return worker_group.rendezvous()
        except ConvoyError as error:
            return error

    with ThreadPoolExecutor(len(workers)) as pool:
        return list(pool.map(call, workers))


def codes(errors):
    return [error and error.exit_code for error in errors]


def port_of(worker_group):
    return int(worker_group.cluster.addresses[worker_group.rank].rpartition(":")[2])


def with_addresses(worker_group, addresses):
    """Returns another worker with the same rank that was given another list."""
    jobs = tuple(("worker", rank) for rank in range(len(addresses)))
    cluster = replace(worker_group.cluster, addresses=tuple(addresses), jobs=jobs)
    return WorkerGroup(cluster, startup_seconds=20, workdir=worker_group._workdir)


def call(worker_group):
    """Connects to a worker's port as soon as it listens."""
    deadline = time.monotonic() + 20
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port_of(worker_group)))
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.005)


@pytest.fixture
def meeting_chief():
    """Lets a chief wait in a thread; returns the future of its meeting."""
    with ThreadPoolExecutor(4) as pool:
        yield lambda chief: pool.submit(chief.rendezvous)


class TestMeeting:
    def test_workers_connect_in_any_order(self, make_workers):
        everyone = make_workers(3)
        with ThreadPoolExecutor(3) as pool:
            late = [pool.submit(worker_group.rendezvous) for worker_group in reversed(everyone[1:])]
            with pytest.raises(TimeoutError):  # no worker continues alone
                late[0].result(0.3)
            everyone[0].rendezvous()
            assert [future.result(20) for future in late] == [None, None]

    def test_ports_are_free_for_tensorflow_afterwards(self, make_workers):
        everyone = make_workers(3)
        assert meet(*everyone) == [None] * 3
        with contextlib.ExitStack() as stack:
            for worker_group in everyone:
                stack.enter_context(socket.create_server(("", port_of(worker_group))))
            with ThreadPoolExecutor(3) as pool:
                values = list(pool.map(lambda worker_group: worker_group.exchange("it", worker_group.rank), everyone))
        assert values == [[0, 1, 2]] * 3

    @pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="no IPv6 here")
    def test_ipv6_addresses(self, make_workers):
        assert meet(*make_workers(2, host="[::1]")) == [None, None]

    def test_missing_worker_is_named_on_all(self, make_workers):
        first, second, third = make_workers(3, startup_seconds=0.5)
        of_chief, of_worker = meet(first, second)
        assert codes([of_chief, of_worker]) == [RETRYABLE] * 2
        assert str(of_chief).startswith(first.address(2)) and first.address(1) not in str(of_chief)
        assert first.address(0) in str(of_worker) and first.address(2) in str(of_worker)

    def test_missing_chief_is_named(self, make_workers):
        _, worker = make_workers(2, startup_seconds=0.2)
        with pytest.raises(PeerLostError, match=re.escape(worker.address(0))) as caught:
            worker.rendezvous()
        assert caught.value.exit_code == RETRYABLE

    def test_silent_program_on_the_chiefs_port_ends_at_the_deadline(self, make_workers, monkeypatch):
        monkeypatch.setattr(rendezvous, "_GREETING_SECONDS", 0.3)
        _, worker = make_workers(2, startup_seconds=0.5)
        port = int(worker.cluster.addresses[0].rpartition(":")[2])
        with socket.create_server(("127.0.0.1", port)), pytest.raises(PeerLostError, match="did not answer"):
            worker.rendezvous()


class TestTakenPort:
    @pytest.mark.parametrize("rank", [0, 1])
    def test_every_worker_names_port_and_process(self, make_workers, rank):
        workers = make_workers(2, startup_seconds=20 if rank else 0.5)
        with socket.create_server(("", port_of(workers[rank]))):
            errors = meet(*workers)
        assert codes(errors) == [RETRYABLE] * 2, "it may be free at the next attempt"
        assert [error.is_secondary for error in errors] == [worker != rank for worker in (0, 1)]
        for error in errors if rank else errors[:1]:
            assert f"worker {rank} " in str(error) and f"port {port_of(workers[rank])} " in str(error)
            if sys.platform == "linux":
                assert f"(process {os.getpid()})" in str(error)


class TestWorkerThatWasStartedWrongly:
    """Every worker of the run ends at once, with the code that means: not again."""

    def test_addresses_in_another_order(self, make_workers):
        first, second, third = make_workers(3)
        one, two, three = second.cluster.addresses
        errors = meet(first, with_addresses(second, (one, three, two)), third)
        assert codes(errors) == [UsageError.exit_code] * 3
        assert all(two in str(error) and three in str(error) for error in errors)

    def test_another_number_of_workers(self, make_workers):
        chief, worker = make_workers(2)
        other = with_addresses(worker, (*worker.cluster.addresses, "127.0.0.1:1"))
        assert codes(meet(chief, other)) == [UsageError.exit_code] * 2

    def test_another_key_for_a_worker_that_never_comes(self, make_workers):
        chief, worker = make_workers(2, startup_seconds=0.5, keys=["a", "b"])
        assert codes(meet(chief, worker)) == [UsageError.exit_code] * 2

    def test_another_workdir_with_the_same_key(self, make_workers, tmp_path):
        workers = make_workers(2, keys=["a", "a"], workdirs=[str(tmp_path / "a"), str(tmp_path / "b")])
        errors = meet(*workers)
        assert codes(errors) == [UsageError.exit_code] * 2
        assert all(str(tmp_path / name) in str(error) for error in errors for name in "ab")

    def test_workdir_may_be_spelled_differently(self, make_workers, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("PWD", str(tmp_path))
        assert meet(*make_workers(2, workdirs=["run", f"{tmp_path}/x/../run/"])) == [None, None]


class TestOthers:
    """They are refused, and the workers meet all the same."""

    def test_worker_of_another_job_with_the_same_ports(self, make_workers, meeting_chief):
        chief, worker = make_workers(2, workdirs=["a", "a"])
        foreign = WorkerGroup(worker.cluster, startup_seconds=20, workdir="b")
        meeting = meeting_chief(chief)
        with pytest.raises(UsageError, match="--workdir"):
            foreign.rendezvous()
        worker.rendezvous()
        meeting.result(20)

    def test_worker_of_another_job_shortens_the_wait_for_that_worker_alone(
        self, make_workers, meeting_chief, monkeypatch
    ):
        monkeypatch.setattr(rendezvous, "_CORRECTION_SECONDS", 1.0)
        chief, worker, third = make_workers(3, workdirs=["a"] * 3)
        meeting = meeting_chief(chief)
        with pytest.raises(UsageError):
            WorkerGroup(worker.cluster, startup_seconds=20, workdir="b").rendezvous()
        others = [meeting_chief(worker)]
        with pytest.raises(TimeoutError):
            meeting.result(1.5)
        others.append(meeting_chief(third))
        assert [future.result(20) for future in (meeting, *others)] == [None] * 3

    def test_worker_that_alone_came_with_another_workdir_ends_the_start(self, make_workers, monkeypatch):
        monkeypatch.setattr(rendezvous, "_CORRECTION_SECONDS", 0.3)
        errors = meet(*make_workers(2, startup_seconds=60, workdirs=["a", "b"]))
        assert codes(errors) == [UsageError.exit_code] * 2

    @pytest.mark.parametrize("keys", [("a", ""), ("", "a"), ("a", "b")])
    def test_worker_without_the_key(self, make_workers, meeting_chief, keys):
        chief, worker = make_workers(2, keys=[keys[0]] * 2)
        foreign = WorkerGroup(replace(worker.cluster, key=keys[1]), startup_seconds=20)
        meeting = meeting_chief(chief)
        with pytest.raises(UsageError, match="CONVOY_CLUSTER_KEY"):
            foreign.rendezvous()
        worker.rendezvous()
        meeting.result(20)

    def test_second_worker_with_the_same_rank(self, make_workers, meeting_chief, wait_until):
        chief, first, third = make_workers(3)
        twin = WorkerGroup(first.cluster, startup_seconds=20)
        meetings = [meeting_chief(chief), meeting_chief(first)]
        wait_until(lambda: 1 in chief._links, "the first worker 1", 20)
        with pytest.raises(UsageError, match="worker 1 "):
            twin.rendezvous(checks_port=False)
        third.rendezvous()
        assert [meeting.result(20) for meeting in meetings] == [None, None]

    @pytest.mark.parametrize("key", ["", "secret"])
    @pytest.mark.parametrize(
        "said",
        [
            b"",
            b"GET / HTTP/1.1\r\n\r\n",
            b'{"rank": 1, "of": 2}\n',
            b'{"rank": 1, "tasks": [], "run": "", "problem": "", "challenge": ""}\n' * 2,
            b'{"rank": true, "tasks": 3}\n',
            b'{"rank": 1, "tasks": ["\\ud800"], "run": "", "problem": "", "challenge": "", "proof": "\\ud800"}\n',
            b"[" * 100_000 + b"\n",
            b"x" * 2**21,
        ],
    )
    def test_caller_takes_no_workers_place(self, make_workers, meeting_chief, said, key):
        chief, worker = make_workers(2, keys=[key, key], workdirs=["run", "run"])
        meeting = meeting_chief(chief)
        with call(chief) as visitor:
            with contextlib.suppress(OSError):  # it may hang up first
                visitor.sendall(said)
            worker.rendezvous()
            meeting.result(20)

    def test_replayed_proof_is_refused(self, make_workers, meeting_chief):
        chief, worker, third = make_workers(3, keys=["secret"] * 3)
        meeting = meeting_chief(chief)
        heard = []
        send = Link.send
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Link, "send", lambda link, message: (heard.append(message), send(link, message)))
            threading.Thread(target=worker.rendezvous, daemon=True).start()
            with contextlib.suppress(TimeoutError):
                meeting.result(0.5)
        hello = next(message for message in heard if message.get("rank") == 1)
        assert "secret" not in json.dumps(heard)
        link = Link(call(chief))
        link.receive(20)
        link.send({**hello, "rank": 2})
        assert "CONVOY_CLUSTER_KEY" in link.receive(20)["bye"]
        link.close()
        third.rendezvous()
        meeting.result(20)

    def test_callers_that_stall_delay_no_worker(self, make_workers, meeting_chief, monkeypatch):
        monkeypatch.setattr(rendezvous, "_GREETING_SECONDS", 300)
        chief, worker = make_workers(2)
        meeting = meeting_chief(chief)
        with contextlib.ExitStack() as stack:
            visitors = [stack.enter_context(call(chief)) for _ in range(transport._MOST_WAITING + 20)]
            for visitor in visitors[-5:]:
                visitor.sendall(b"{")
            worker.rendezvous()
            meeting.result(20)

    def test_caller_that_drips_is_given_up(self, make_workers, meeting_chief, monkeypatch):
        monkeypatch.setattr(rendezvous, "_GREETING_SECONDS", 0.3)
        chief, worker = make_workers(2)
        meeting = meeting_chief(chief)
        with call(chief) as visitor, pytest.raises(OSError):
            visitor.recv(1000)  # the challenge
            deadline = time.monotonic() + 20
            while time.monotonic() < deadline:
                visitor.sendall(b" ")
                time.sleep(0.01)
        worker.rendezvous()
        meeting.result(20)

    def test_deadline_is_total(self, make_workers, meeting_chief, monkeypatch):
        monkeypatch.setattr(rendezvous, "_GREETING_SECONDS", 300)
        chief, _ = make_workers(2, startup_seconds=0.5)
        meeting = meeting_chief(chief)
        with call(chief), pytest.raises(PeerLostError):
            meeting.result(30)


def test_port_of_a_process_that_has_ended_can_be_listened_on_again():
    program = "import socket; s = socket.create_server(('', 0)); print(s.getsockname()[1])"
    port = int(subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, check=True).stdout)
    listening_socket(port).close()
