import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import link, measure, scaling
from benchmarks.cost_model import Link
from benchmarks.workers import Member, PeerError, Round
from convoy.core.errors import UsageError
from tests.benchmarks.test_bench import ROOT, bench, mark, processes, refused, wait_until  # noqa: F401 (fixtures)

FAKE = "tests.benchmarks.fake_peers"
TINY = ("--image_size=20", "--batch_size=4", "--rounds=2", "--steps_per_round=2")


@pytest.fixture
def options(tmp_path):
    return {"threads": 0, "seconds": 0.02, "log": str(tmp_path / "log")}


def no_link():
    """Returns why this machine lets this process make no link, or nothing."""
    try:
        with link.rate_limited_link(100):
            return ""
    except UsageError as error:
        return str(error)


# A peer of several processes.


def test_round_of_two_processes_adds_their_work(options, mark):  # noqa: F811
    members = {"pair": [Member({"seconds": 0.05}), Member({"seconds": 0.2})]}
    measured = measure.measure(FAKE, {"pair": "Pair", "steady": "Steady"}, options, rounds=2, members=members)
    for one_round in measured.rows["pair"].rounds:
        assert one_round.work == 20
        assert 0.2 <= one_round.seconds < 1.0
    assert measured.rows["steady"].rounds[0].work == 10
    assert processes(mark, FAKE) == []


def test_failing_process_of_a_pair_is_reported_at_once(options, mark):  # noqa: F811
    for name, words in (("dying", "exit code 7"), ("broken", "ValueError: cannot be prepared")):
        members = {name: [Member({"healthy": True, "seconds": 60}), Member({})]}
        started = time.monotonic()
        with pytest.raises(PeerError, match=words):
            measure.measure(FAKE, {name: name}, options, rounds=1, members=members)
        assert time.monotonic() - started < 30
        assert processes(mark, FAKE) == []


# What is made of the rounds.


def row(peer, *seconds, work=100):
    return measure.Row(peer, peer, tuple(Round(s, s, work) for s in seconds), {})


def test_efficiency_and_share_of_the_reduction():
    rows = {
        "one-fast": row("one-fast", 1.0, 2.0, work=64),
        "processes-fast": row("processes-fast", 1.25, 2.5, work=128),
        "processes-fast-apart": row("processes-fast-apart", 1.0, 2.0, work=128),
        "processes-deterministic": row("processes-deterministic", 1.25, 2.5, work=124),
    }
    facts, options = {"reduced_bytes": 1e8}, {"batch_size": 64}
    here = Link(1e9, 0.0)

    def line(peer):
        return scaling._line(rows[peer], rows, facts, here, options)

    assert line("processes-fast")["efficiency"] == pytest.approx(0.8)
    assert line("processes-fast")["reduction_share"] == pytest.approx(0.2)
    # The median rate of one is 48 images a second: a step of 64 takes 4/3 s, the reduction another 0.1 s.
    assert line("processes-fast")["predicted_efficiency"] == pytest.approx((4 / 3) / (4 / 3 + 0.1))
    assert line("processes-fast-apart")["efficiency"] == pytest.approx(1.0)
    assert line("processes-deterministic")["to_fast"] == pytest.approx(124 / 128)
    assert line("processes-deterministic")["efficiency"] is None  # nothing of its mode to compare with


def test_copying_is_the_unlimited_reduction_minus_its_messages():
    limited = {"megabits_per_second": 100, "predicted_seconds": 0.4, "in_step_seconds": 0.42, "alone_seconds": 0.84}
    free = {"megabits_per_second": None, "latency_seconds": 0.001, "alone_seconds": 0.022, "in_step_seconds": 0.03}
    line, last = scaling._with_copying([limited, free])
    assert line["predicted_with_copying_seconds"] == pytest.approx(0.42)
    assert line["in_step_to_predicted_with_copying"] == pytest.approx(1.0)
    assert line["alone_to_predicted_with_copying"] == pytest.approx(2.0)
    assert last == free


# The command.


def test_usage_errors_come_first(capsys, monkeypatch):
    refused(capsys, "--link=fast Mbit/s", "scaling", "--link=fast")
    refused(capsys, "--link=100,0 Mbit/s", "scaling", "--link=100,0")
    refused(capsys, "--threads", "scaling", "--threads=1")
    refused(capsys, "--peers 'one-fats'", "scaling", "--peers=one-fats")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    refused(capsys, "--link root", "scaling", "--link=100")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setenv("PATH", "")
    refused(capsys, "--link `ip` iproute2", "scaling", "--link=100")
    monkeypatch.setattr(scaling, "processor_numbers", lambda: [0])
    refused(capsys, "cores", "scaling")


@pytest.mark.slow
def test_bench_scaling_measures_devices_and_processes(bench):  # noqa: F811
    peers = [name for name in scaling.PEERS if "deterministic" not in name] + ["devices-deterministic"]
    result, output, _ = bench("scaling", *TINY, f"--peers={','.join(peers)}")
    rows = {row["peer"]: row for row in result["rows"]}
    assert set(rows) == set(peers)
    for name, line in rows.items():
        assert line["label"] in output or name in ("processes-bare", "processes-tiny")
        rates = [r["work"] / r["seconds"] for r in line["rounds"]]
        assert line["median"] == statistics.median(rates)
        images = {"one": 4, "devices": 8, "processes": 8}[name.split("-")[0]]
        if name not in ("processes-bare", "processes-tiny"):
            assert [r["work"] for r in line["rounds"]] == [2 * images] * 2
    assert [r["work"] for r in rows["processes-bare"]["rounds"]] == [2, 2]
    one, two = ([r["work"] / r["seconds"] for r in rows[name]["rounds"]] for name in ("one-fast", "processes-fast"))
    ratios = [b / a / 2 for a, b in zip(one, two, strict=True)]
    assert rows["processes-fast"]["efficiency"] == pytest.approx(statistics.median(ratios))
    assert rows["processes-fast"]["reduction_share"] < 1
    assert rows["devices-deterministic"]["to_fast"] > 0
    assert result["facts"]["parameters"] > 1e6
    assert result["link_here"]["bytes_per_second"] > 1e6
    assert len(result["prediction"]["rows"]) == 36
    assert "A prediction, not a measurement" in output
    assert result["links"] == []


@pytest.mark.slow
def test_cost_model_is_validated_on_a_rate_limited_link(bench):  # noqa: F811
    if reason := no_link():
        pytest.skip(reason)
    result, *_ = bench("scaling", *TINY, "--link=50", "--peers=one-fast")
    limited, free = result["links"]
    assert (limited["megabits_per_second"], free["megabits_per_second"]) == (50, None)
    # 4.7 MB at 50 Mbit/s: no reduction can be faster, and this one waits for little else.
    assert 0.75 < limited["predicted_seconds"] < 1.0
    assert 0.95 < limited["alone_to_predicted"] < 2
    assert free["alone_seconds"] < limited["alone_seconds"]


# The link.


def test_link_connects_two_namespaces_and_is_removed():
    if reason := no_link():
        pytest.skip(reason)
    with link.rate_limited_link(100) as (near, far):
        namespaces = {_namespace_of(end.prefix) for end in (near, far)}
        assert len(namespaces) == 2
        assert os.readlink("/proc/self/ns/net") not in namespaces
        listener = subprocess.Popen(
            [*far.prefix, sys.executable, "-c", _LISTEN], stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        port = listener.stdout.readline().strip()
        talk = f"import socket; socket.create_connection(({far.address!r}, {port})).sendall(bytes(2**21))"
        subprocess.run([*near.prefix, sys.executable, "-c", talk], check=True, timeout=60)
        seconds = float(listener.communicate(timeout=60)[0])
    # 2 MiB at 100 Mbit/s, and 5 % of headers.
    assert 0.16 < seconds < 1.0
    assert not _processes_in(namespaces)


def test_link_is_removed_when_its_process_is_killed():
    if reason := no_link():
        pytest.skip(reason)
    code = (
        "import subprocess, time; from benchmarks.link import rate_limited_link\n"
        "with rate_limited_link(100) as ends:\n"
        "    for end in ends: subprocess.run([*end.prefix, 'readlink', '/proc/self/ns/net'])\n"
        "    time.sleep(60)"
    )
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    namespaces = {process.stdout.readline().strip() for _ in range(2)}
    assert len(_processes_in(namespaces)) >= 2  # the last readlink may still be ending
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)
    wait_until(lambda: not _processes_in(namespaces), 10)


_LISTEN = """
import socket, time
with socket.create_server(("", 0)) as server:
    print(server.getsockname()[1], flush=True)
    connection, _ = server.accept()
    started = time.monotonic()
    while connection.recv(2**20):
        pass
    print(time.monotonic() - started)
"""


def _namespace_of(prefix):
    command = [*prefix, "readlink", "/proc/self/ns/net"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def _processes_in(namespaces):
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            found += [int(entry.name)] if os.readlink(entry / "ns/net") in namespaces else []
        except OSError:
            continue
    return found
