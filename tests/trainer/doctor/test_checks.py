"""Parts of the doctor's round by two workers that are threads of this process; TensorFlow's probe is made up."""

import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from convoy.core.cluster import Cluster
from convoy.core.devices import parse_devices
from convoy.core.finding import Severity
from convoy.launch.ports import reserved_ports
from convoy.trainer import config as configs
from convoy.trainer.cluster.worker_group import WorkerGroup
from convoy.trainer.doctor.checks import DoctorOptions, _DoctorRun
from convoy.trainer.doctor.tf_probe import NoAnswerError


class NoTensorFlow:
    """In the place of its process."""

    def __init__(self):
        self.seconds = None

    def checkpoint_bytes(self, seconds):
        raise NoAnswerError("made up")

    def reduce(self, cluster, seconds):
        self.seconds = seconds
        return {"replicas": 2, "sum": 3.0, "expected": 3.0, "milliseconds": 1.0}


def make_options(data="", workdir=""):
    return DoctorOptions(
        config=configs.default_config(),
        data=str(data),
        workdir=str(workdir),
        devices_flag="cpu:1",
        devices=parse_devices("cpu:1"),
        strategy_name="auto",
        interface="",
        startup_seconds=20.0,
        heartbeat_seconds=30.0,
        worker_hosts=(),
        worker_index=None,
    )


@pytest.fixture
def findings_of():
    """Runs a part of the round on two workers; returns each one's findings by check."""

    def run(part, *options, second_host="127.0.0.1"):
        with reserved_ports(2) as ports:
            addresses = (f"127.0.0.1:{ports[0]}", f"{second_host}:{ports[1]}")

        def worker(rank):
            cluster = Cluster(addresses, rank, "flags", (("worker", 0), ("worker", 1)))
            with WorkerGroup(cluster, startup_seconds=20) as worker_group:
                doctor_run = _DoctorRun(options[rank], cluster, worker_group, [])
                with doctor_run._responders:
                    part(doctor_run)
                worker_group.exchange("done")
                return {finding.section: finding for finding in doctor_run._findings}

        with ThreadPoolExecutor(2) as pool:
            return list(pool.map(worker, (0, 1)))

    return run


def met(part):
    def meet_first(doctor_run):
        doctor_run._worker_group.rendezvous()
        part(doctor_run)

    return meet_first


def test_name_resolvable_after_connection(findings_of, monkeypatch):
    rendezvous, resolve, connected = WorkerGroup.rendezvous, socket.getaddrinfo, threading.Event()

    def rendezvous_and_signal(worker_group, **options):
        rendezvous(worker_group, **options)
        connected.set()

    def resolve_late(host, *arguments, **options):
        if host == "late-pod" and not connected.is_set():
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return resolve("127.0.0.1" if host == "late-pod" else host, *arguments, **options)

    monkeypatch.setattr(WorkerGroup, "rendezvous", rendezvous_and_signal)
    monkeypatch.setattr(socket, "getaddrinfo", resolve_late)
    chiefs, _ = findings_of(_DoctorRun._check_network, make_options(), make_options(), second_host="late-pod")
    assert (chiefs["names"].severity, chiefs["ports"].severity) == (Severity.OK, Severity.OK)


@pytest.mark.parametrize("without", [0, 1])
def test_worker_without_flag_is_named(findings_of, dataset, tmp_path, without):
    given = [make_options(dataset.data, tmp_path / "run"), make_options(dataset.data, tmp_path / "run")]
    given[without] = make_options()

    def part(doctor_run):
        doctor_run._check_data()
        doctor_run._check_workdir(NoTensorFlow())

    chiefs, workers = findings_of(met(part), *given)
    for check, flag in (("data", "--data"), ("run directory", "--workdir")):
        assert chiefs[check].severity == Severity.ERROR
        assert f"started without {flag}: worker {without} (" in chiefs[check].text
    assert not any(finding.severity == Severity.ERROR for finding in workers.values())


def test_worker_with_another_workdir_is_named(findings_of, tmp_path, monkeypatch):
    monkeypatch.setattr("convoy.trainer.doctor.storage._VISIBLE_SECONDS", 0.5)
    part = met(lambda doctor_run: doctor_run._check_workdir(NoTensorFlow()))
    chiefs, _ = findings_of(part, make_options(workdir=tmp_path / "run"), make_options(workdir=tmp_path / "run"))
    assert chiefs["run directory"].severity == Severity.OK
    chiefs, _ = findings_of(part, make_options(workdir=tmp_path / "run"), make_options(workdir=tmp_path / "other"))
    assert chiefs["run directory"].severity == Severity.ERROR
    assert f"in --workdir={tmp_path / 'other'}" in chiefs["run directory"].text


def test_collective_ignores_startup_timeout(findings_of):
    probes = []

    def part(doctor_run):
        probes.append(NoTensorFlow())
        doctor_run._check_collective(probes[-1], {0: {"count": 1}, 1: {"count": 1}}, on_gpu=True)

    findings_of(met(part), make_options(), make_options())
    assert [probe.seconds for probe in probes] == [120.0, 120.0]
