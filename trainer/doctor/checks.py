"""Runs all checks of `convoy doctor` on every worker; the chief prints one table.

passed = run_checks(DoctorOptions(config=..., data="data", workdir="run", ...))

Each worker checks its own host, then all exchange their findings and the chief compares them. Workers that cannot reach
each other continue alone and each print their own table. Imports no TensorFlow: that runs in a subprocess (`tf_probe`).
"""

import contextlib
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ml_collections

from convoy.core.cluster import Cluster, find_cluster, host_and_port
from convoy.core.devices import Devices, check_strategy
from convoy.core.errors import ConvoyError, UsageError
from convoy.core.finding import Severity
from convoy.core.text import counted
from convoy.input_pipeline.dataset.layout import RecordFormat
from convoy.input_pipeline.dataset.open import Dataset, open_dataset
from convoy.trainer import config as configs
from convoy.trainer.cluster.interface import choose, over_interface, own_interfaces
from convoy.trainer.cluster.ports import port_problem
from convoy.trainer.cluster.worker_group import PeerLostError, WorkerGroup
from convoy.trainer.doctor import hardware, network, plan, storage
from convoy.trainer.doctor.file_system import check_file_system
from convoy.trainer.doctor.findings import DoctorFinding, failed, ok, skipped, table
from convoy.trainer.doctor.tf_probe import NoAnswerError, Setup, TfProbe
from convoy.trainer.run.directory import RunDirectory

_TENSORFLOW_SECONDS = 180.0  # for its import, on a slow file system
_MODEL_SECONDS = 60.0
_COLLECTIVE_SECONDS = 120.0  # for the strategy, CUDA's contexts, tracing and NCCL's start


@dataclass(frozen=True)
class DoctorOptions:
    """The flags of `convoy doctor`; empty if not given.

    `devices` is `devices_flag` parsed, `record_format` what is known about records of other tools.
    """

    config: ml_collections.ConfigDict
    data: str
    workdir: str
    devices_flag: str
    devices: Devices
    strategy_name: str
    interface: str
    startup_seconds: float
    heartbeat_seconds: float
    worker_hosts: Sequence[str]
    worker_index: int | None
    record_format: RecordFormat = RecordFormat()
    extend: bool = False
    virtual_replicas: int | None = None


def run_checks(options: DoctorOptions) -> bool:
    """Runs all checks; the chief prints the findings. Returns whether no check failed on any worker."""
    findings: list[DoctorFinding] = []
    try:
        cluster = find_cluster(os.environ, hosts=options.worker_hosts, index=options.worker_index)
        check_strategy(options.strategy_name, cluster)
        findings.append(_describe_cluster(cluster))
    except UsageError as error:
        cluster = None
        findings.append(failed("cluster", "bad-cluster", str(error)))
    with WorkerGroup(cluster, startup_seconds=options.startup_seconds) as worker_group:
        return _DoctorRun(options, cluster, worker_group, findings).run()


def _describe_cluster(cluster: Cluster | None) -> DoctorFinding:
    if not cluster:
        text = "one process: no TF_CONFIG, no SLURM step, no Kubernetes Indexed Job, no --worker_hosts"
        return ok("cluster", "single-process", text)
    listed = ", ".join(f"{rank} {address}" for rank, address in enumerate(cluster.addresses))
    return ok("cluster", "cluster-found", f"{counted(cluster.num_workers, 'worker')}, from {cluster.source}: {listed}")


class _DoctorRun:
    """All checks on one worker."""

    def __init__(
        self, options: DoctorOptions, cluster: Cluster | None, worker_group: WorkerGroup, findings: list[DoctorFinding]
    ):
        self._options = options
        self._cluster = cluster
        self._worker_group = worker_group
        self._findings = findings
        self._ports_are_open = True
        self._together = True  # whether all workers are connected
        self._names = [worker_group.address(rank) for rank in range(worker_group.num_workers)]
        self._config_is_good = self._check_config()
        self._dataset: Dataset | None = None
        self._responders = contextlib.ExitStack()  # while open, this worker answers on its port

    def run(self) -> bool:
        with self._responders:
            self._check_network()
            self._check_data()
            setup = Setup(
                config=self._options.config if self._config_is_good else None,
                data=self._options.data if self._dataset else "",
                record_format=self._dataset.record_format if self._dataset else RecordFormat(),
                workdir=self._options.workdir if self._is_reporter else "",
                devices=self._options.devices,
                strategy_name=self._options.strategy_name,
                heartbeat_seconds=self._options.heartbeat_seconds,
                extend=self._options.extend,
                virtual_replicas=self._options.virtual_replicas,
            )
            with TfProbe(setup) as probe:
                self._check_tensorflow(probe)
                self._check_weights(probe)
                self._check_workdir(probe)
            return self._print_table()

    @property
    def _is_reporter(self) -> bool:
        """Whether this worker reports findings about all workers: the chief, or a worker that continues alone."""
        return self._worker_group.is_chief or not self._together

    def _gather(self, name: str, value: Any = None, seconds: float | None = None) -> dict[int, Any]:  # noqa: ANN401
        """Returns every worker's value by rank; only this worker's if the others are lost."""
        if self._together:
            try:
                seconds = max(seconds or 0.0, self._options.startup_seconds)
                return dict(enumerate(self._worker_group.exchange(name, value, seconds=seconds)))
            except PeerLostError as error:
                self._continue_alone(error)
        return {self._worker_group.rank: value}

    def _continue_alone(self, error: ConvoyError) -> None:
        self._together = False
        self._worker_group.close(str(error))  # so that no worker waits for this one
        self._findings.append(failed("rendezvous", "workers-missing", str(error)))

    def _add(self, *findings: DoctorFinding | None) -> None:
        self._findings += [finding for finding in findings if finding]

    def _check_config(self) -> bool:
        try:
            configs.check(self._options.config)
        except UsageError as error:
            self._add(failed("config", "bad-config", str(error)))
            return False
        return True

    def _check_network(self) -> None:
        """Checks names, rendezvous, interface, ports in both directions, clocks."""
        cluster, rank = self._cluster, self._worker_group.rank
        flag = f"--interface={self._options.interface}"
        if not cluster:
            if self._options.interface:
                self._add(skipped("interface", "no-traffic", f"{flag}: one process has no traffic"))
            return
        self._add(network.check_key(cluster) if self._is_reporter else None, network.check_proxy())
        _, port = host_and_port(cluster.addresses[rank])
        if rank:  # so that the chief can detect a worker that cannot connect to it
            self._respond_on(port)
        with network.Search(self._worker_group, cluster.addresses) as search:
            try:
                self._worker_group.rendezvous(checks_port=False)  # it answers there itself
            except (PeerLostError, UsageError) as error:
                self._continue_alone(error)
        names = network.check_names(cluster)  # after rendezvous: a pod that has not started has no address
        # Many hosts resolve their own name differently: passed rows would differ only by that.
        self._add(*(finding for finding in names if self._is_reporter or finding.severity == Severity.ERROR))
        if not self._together:
            self._add(*search.findings())
            if self._options.interface:
                try:
                    name, address = choose(self._options.interface, own_interfaces())
                    self._add(ok("interface", "interface-found", f"{flag}: {name} {address}"))
                except UsageError as error:
                    self._add(failed("interface", "bad-interface", str(error)))
            return
        if not rank:
            self._respond_on(port)
        try:
            cluster = over_interface(self._worker_group, self._options.interface) or cluster
        except UsageError as error:
            self._add(failed("interface", "bad-interface", str(error), of_all=True))
        except PeerLostError as error:
            self._continue_alone(error)
            return
        else:
            if self._options.interface:
                text = f"{flag}: {', '.join(cluster.addresses)}"
                self._add(ok("interface", "interface-found", text, of_all=True))
        self._cluster = cluster
        self._gather("listening")
        reached = {other: asdict(result) for other, result in network.reach_all(cluster).items()}
        gathered = {
            other: {int(to): network.Reached(**result) for to, result in results.items()}
            for other, results in self._gather("reached", reached).items()
        }
        if not self._together:
            return
        ports = network.check_ports(gathered, cluster.addresses)
        self._ports_are_open = ports.severity != Severity.ERROR
        if self._is_reporter:
            self._add(ports, network.check_clocks(gathered, self._names))

    def _respond_on(self, port: int) -> None:
        try:
            self._responders.enter_context(network.Responder(port, self._worker_group.rank))
        except OSError as error:
            self._add(failed("ports", "port-in-use", f"{port_problem(port, error)}."))

    def _record_format(self) -> RecordFormat:
        given, workdir = self._options.record_format, self._options.workdir
        return RunDirectory(workdir).record_format(given) if workdir else given

    def _check_data(self) -> None:
        """Checks that DATA opens, is the same on all workers, and is large enough."""
        data, seen = self._options.data, None
        if data:
            try:
                dataset = open_dataset(data, self._record_format())
                seen = storage.look_at(dataset)
            except ConvoyError as error:
                self._add(failed("data", "bad-data", str(error)))
            else:
                self._dataset = dataset
                batch_size = self._options.config.batch_size
                workers = self._worker_group.num_workers
                self._add(*storage.check_data(dataset, num_workers=workers, global_batch_size=batch_size))
        gathered = self._gather("data", {"given": data, "seen": seen})
        if self._is_reporter:
            given = {rank: other["given"] for rank, other in gathered.items()}
            opened = {rank: other["seen"] for rank, other in gathered.items() if other["seen"]}
            not_given = storage.check_given("--data", "data", given, self._names)
            self._add(*(not_given or storage.check_same_data(opened, self._names, data)))

    def _check_tensorflow(self, probe: TfProbe) -> None:
        """Checks versions, devices, config, limits, and a sum over all devices."""
        driver = hardware.driver_gpus()
        devices = self._options.devices
        self._add(hardware.check_driver(driver, devices, has_device_file=os.path.exists("/dev/nvidia0")))
        try:
            answer = started = probe.start_up(_TENSORFLOW_SECONDS)
        except NoAnswerError as error:
            fix = (
                "`python -c 'import tensorflow'` shows more; `pip install convoy-train` installs the version it needs."
            )
            self._add(failed("versions", "tensorflow-start-failed", f"TensorFlow does not start: {error}.", fix))
            answer, count = None, 0
        else:
            found, count = hardware.check_devices(
                devices, self._options.devices_flag, driver, started["seen"], os.environ.get("CUDA_VISIBLE_DEVICES")
            )
            self._add(*found)
        shards = len(self._dataset.split("train").shard_paths) if self._dataset else 0
        on_gpu = bool(answer and answer["seen"]["gpus"] and devices.kind != "cpu")
        self._add(
            *hardware.check_limits(
                hardware.read_limits(), num_workers=len(self._names), num_shards=shards, gpus=count if on_gpu else 0
            )
        )
        own = {
            "versions": answer and answer["versions"],
            "count": count,
            "config": configs.to_json(self._options.config),
            "auto": answer and answer["auto"],
        }
        gathered = self._gather("hardware", own, seconds=_TENSORFLOW_SECONDS)
        counts = {rank: other["count"] for rank, other in gathered.items()}
        if self._is_reporter:
            versions = {rank: other["versions"] for rank, other in gathered.items() if other["versions"]}
            self._add(*hardware.check_versions(versions, self._names))
            if all(counts.values()):
                self._add(*hardware.check_counts(counts, self._names))
            if self._config_is_good:
                self._add(
                    *plan.check_plan(
                        self._options.config,
                        gathered,
                        self._worker_group,
                        workdir=self._options.workdir,
                        resume=answer and answer["resume"],
                        num_images=self._dataset.split("train").num_images if self._dataset else None,
                    )
                )
        self._check_collective(probe, gathered, on_gpu=on_gpu)

    def _check_weights(self, probe: TfProbe) -> None:
        with contextlib.suppress(NoAnswerError):
            if found := probe.weights(_MODEL_SECONDS):
                text = f"config.model.weights={self._options.config.model.weights}: {found['path']}"
                if found["problem"]:
                    fix = "Put the file there, or pass the path of a weights file."
                    self._add(failed("weights", "weights-missing", f"{text} ({found['problem']}).", fix))
                else:
                    self._add(ok("weights", "weights-found", text))

    def _check_collective(self, probe: TfProbe, gathered: dict[int, Any], *, on_gpu: bool) -> None:
        counts = [other["count"] for other in gathered.values()]
        reason = ""
        if self._cluster and not self._together:
            reason = "the workers are not connected"
        elif not self._ports_are_open:
            reason = "not all ports are open"
        elif not all(counts) or len(set(counts)) > 1:
            reason = "the workers' devices differ"
        elif sum(counts) == 1:
            reason = "only one device"
        if reason:
            if self._is_reporter:
                self._add(skipped("collective", "collective-not-run", reason, of_all=True))
            return
        seconds = max(self._options.startup_seconds, _COLLECTIVE_SECONDS)
        through = "NCCL" if on_gpu else "gRPC" if self._cluster else "memory"
        try:
            self._responders.close()  # TensorFlow listens on this port now
            answer = probe.reduce(self._cluster, seconds)
        except NoAnswerError as error:
            text = f"a sum over all devices through {through} failed: {error}."
            fix = "TensorFlow opens its own connections between all workers: check the ports above."
            if on_gpu:
                fix = "Set NCCL_DEBUG=INFO to see NCCL's log; --interface selects its network."
            self._add(failed("collective", "collective-failed", text, fix))
        else:
            if answer["sum"] != answer["expected"]:
                text = f"a sum over {answer['replicas']} devices is {answer['sum']:g}, not {answer['expected']:g}."
                fix = "NCCL_P2P_DISABLE=1 shows whether direct copies are at fault."
                self._add(failed("collective", "collective-wrong-sum", text, fix))
            elif self._is_reporter:
                text = f"1 MiB summed over {answer['replicas']} devices through {through} in "
                self._add(ok("collective", "collective-works", f"{text}{answer['milliseconds']:.1f} ms", of_all=True))
        self._gather("after the collective", seconds=seconds + 10)

    def _check_workdir(self, probe: TfProbe) -> None:
        """Checks that RUN is writable, the same directory on all workers, and has free space."""
        workdir = self._options.workdir
        if not self._is_reporter:
            place = self._gather("token").get(0)
            sees = storage.sees(place, workdir) if place and workdir else False
            self._gather("sight", {"workdir": workdir, "sees": sees})
            return
        with storage.written_token(workdir) as (token, seconds, findings):
            self._add(*findings)
            self._gather("token", storage.place_of(token, workdir) if token else None)
            gathered = self._gather("sight", {"workdir": workdir, "sees": True}, seconds=60)
            given = {rank: other["workdir"] for rank, other in gathered.items()}
            self._add(*storage.check_given("--workdir", "run directory", given, self._names))
            if token:
                sights = {rank: other["sees"] for rank, other in gathered.items()}
                self._add(*storage.check_shared(sights, given, self._names))
                self._add(*check_file_system(Path(token).parent))
                size = None
                if self._config_is_good:
                    with contextlib.suppress(NoAnswerError):
                        size = probe.checkpoint_bytes(_MODEL_SECONDS)
                kept = self._options.config.keep_checkpoints
                self._add(storage.check_disk(Path(token).parent, seconds, checkpoint_bytes=size, kept=kept))

    def _print_table(self) -> bool:
        """Prints the table if this worker reports. Returns whether no check failed on any worker."""
        own = [asdict(finding) for finding in self._findings]
        gathered = self._gather("findings", own, seconds=2 * _MODEL_SECONDS)
        findings = {rank: [DoctorFinding.from_json(finding) for finding in other] for rank, other in gathered.items()}
        names = dict(enumerate(self._names))
        if not self._together:
            rank = self._worker_group.rank
            findings, names = {rank: self._findings}, {rank: self._names[rank]}
            print(f"{self._names[rank]}, not connected to the others:")
        if self._is_reporter:
            print(table(findings, names), flush=True)
        return not any(finding.severity == Severity.ERROR for own in findings.values() for finding in own)
