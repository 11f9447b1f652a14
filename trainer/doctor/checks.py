"""The doctor's round: every check in turn, on every worker, and one table that the chief prints for all.

all_is_well = examine(Question(config=..., data="data", workdir="run", ...))

It runs as a worker among workers. What a worker can look at alone it looks at alone; then all exchange what they found
and the chief compares. Where the workers do not find each other, each goes on by itself and prints a table of its own.
Imports no TensorFlow: that runs in a process beside (`tensorflow_side`).
"""

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_collections

from convoy.core.cluster import Cluster, find_cluster
from convoy.core.devices import Devices, check_strategy
from convoy.core.errors import ConvoyError, UsageError
from convoy.input_pipeline.dataset.open import Dataset, open_dataset
from convoy.trainer import config as configs
from convoy.trainer.cluster.interface import choose, over_interface, own_interfaces
from convoy.trainer.cluster.worker_group import PeerLostError, WorkerGroup
from convoy.trainer.doctor import hardware, network, plan, storage
from convoy.trainer.doctor.findings import FAILED, CheckResult, failed, ok, skipped, table
from convoy.trainer.doctor.tf_probe import NoAnswerError, Setup, TfProbe

_TENSORFLOW_SECONDS = 180.0  # for its import, on a slow file system
_MODEL_SECONDS = 60.0
_COLLECTIVE_SECONDS = 120.0  # for the strategy, CUDA's contexts, tracing and NCCL's start


@dataclass(frozen=True)
class DoctorOptions:
    """What `convoy doctor` was asked; the fields are flags, `devices` is `devices_flag` parsed, empty is not given."""

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


def examine(question: DoctorOptions) -> bool:
    """Checks everything and prints what was found, on the chief; returns whether nothing failed anywhere."""
    findings: list[CheckResult] = []
    try:
        cluster = find_cluster(os.environ, hosts=question.worker_hosts, index=question.worker_index)
        check_strategy(question.strategy_name, cluster)
        findings.append(_of_cluster(cluster))
    except UsageError as error:
        cluster = None
        findings.append(failed("cluster", str(error)))
    with WorkerGroup(cluster, startup_seconds=question.startup_seconds) as worker_group:
        return _Examination(question, cluster, worker_group, findings).run()


def _of_cluster(cluster: Cluster | None) -> CheckResult:
    if not cluster:
        return ok("cluster", "one process: no TF_CONFIG, no SLURM step, no Kubernetes Indexed Job, no --worker_hosts")
    listed = ", ".join(f"{rank} {address}" for rank, address in enumerate(cluster.addresses))
    return ok("cluster", f"{cluster.num_workers} workers, from {cluster.source}: {listed}")


class _Examination:
    """One worker's round."""

    def __init__(
        self, question: DoctorOptions, cluster: Cluster | None, worker_group: WorkerGroup, findings: list[CheckResult]
    ):
        self._question = question
        self._cluster = cluster
        self._worker_group = worker_group
        self._findings = findings
        self._ports_are_open = True
        self._together = True  # whether the workers found each other; alone, this one is all there are
        self._addresses = cluster.addresses if cluster else ("",)
        self._config_is_good = self._check_config()
        self._dataset: Dataset | None = None
        self._responding = contextlib.ExitStack()  # while it is open, this worker answers on its port

    def run(self) -> bool:
        with self._responding:
            self._check_network()
            self._check_data()
            with TfProbe(self._setup()) as side:
                self._check_tensorflow(side)
                self._check_workdir(side)
            return self._tell()

    @property
    def _speaks(self) -> bool:
        """Whether this worker says what concerns all: the chief, or one that is by itself."""
        return self._worker_group.is_chief or not self._together

    def _everyones(self, name: str, value: Any = None, seconds: float | None = None) -> dict[int, Any]:  # noqa: ANN401
        """Returns every worker's value by rank; this one's alone where the others are lost."""
        if self._together:
            try:
                seconds = max(seconds or 0.0, self._question.startup_seconds)
                return dict(enumerate(self._worker_group.exchange(name, value, seconds=seconds)))
            except PeerLostError as error:
                self._lose(error)
        return {self._worker_group.rank: value}

    def _lose(self, error: PeerLostError) -> None:
        self._together = False
        self._worker_group.close(str(error))  # so that no other waits for this one
        self._findings.append(failed("meeting", str(error)))

    def _say(self, *findings: CheckResult | None) -> None:
        self._findings += [finding for finding in findings if finding]

    def _check_config(self) -> bool:
        try:
            configs.check(self._question.config)
        except UsageError as error:
            self._say(failed("config", str(error)))
            return False
        return True

    def _setup(self) -> Setup:
        return Setup(
            config=self._question.config if self._config_is_good else None,
            data=self._question.data if self._dataset else "",
            workdir=self._question.workdir if self._speaks else "",
            devices=self._question.devices,
            strategy_name=self._question.strategy_name,
            heartbeat_seconds=self._question.heartbeat_seconds,
        )

    def _check_network(self) -> None:
        """Names, meeting, interface, ports both ways, clocks."""
        cluster, rank = self._cluster, self._worker_group.rank
        if not cluster:
            if self._question.interface:
                self._say(skipped("interface", f"--interface={self._question.interface}: one process has no traffic"))
            return
        port = int(cluster.addresses[rank].rpartition(":")[2])
        if rank:  # so that the chief can reach for a worker that cannot reach it
            self._answer_on(port)
        with network.Search(self._worker_group, cluster) as search:
            try:
                self._worker_group.rendezvous()
            except PeerLostError as error:
                self._lose(error)
        names = network.check_names(cluster)  # not before: a pod that is not there yet has no address
        # On many hosts a worker's own name means something else than elsewhere: good rows would differ by that alone.
        self._say(*(finding for finding in names if self._speaks or finding.severity == FAILED))
        if not self._together:
            self._say(*search.told())
            self._find_interface()
            return
        if not rank:
            self._answer_on(port)
        try:
            cluster = over_interface(cluster, self._worker_group, self._question.interface)
        except UsageError as error:
            self._say(failed("interface", str(error), of_all=True))
        except PeerLostError as error:
            self._lose(error)
            return
        else:
            if self._question.interface:
                text = f"--interface={self._question.interface}: {', '.join(cluster.addresses)}"
                self._say(ok("interface", text, of_all=True))
        self._cluster, self._addresses = cluster, cluster.addresses
        self._everyones("listening")
        reached = {other: result.as_json() for other, result in network.reach_all(cluster).items()}
        gathered = {
            other: {int(to): network.Reached(**result) for to, result in results.items()}
            for other, results in self._everyones("reached", reached).items()
        }
        if not self._together:
            return
        ports = network.check_ports(gathered, cluster.addresses)
        self._ports_are_open = ports.severity != FAILED
        if self._speaks:
            self._say(ports, network.check_clocks(gathered, cluster.addresses))

    def _answer_on(self, port: int) -> None:
        try:
            self._responding.enter_context(network.Responder(port, self._worker_group.rank))
        except OSError as error:
            fix = "Another process has it: end that one, or give another port."
            self._say(failed("ports", f"port {port} cannot be listened on ({error.strerror}).", fix))

    def _find_interface(self) -> None:
        if self._question.interface:
            try:
                name, address = choose(self._question.interface, own_interfaces())
                self._say(ok("interface", f"--interface={self._question.interface}: {name} {address}"))
            except UsageError as error:
                self._say(failed("interface", str(error)))

    def _check_data(self) -> None:
        """Whether DATA opens here, is the same everywhere, and suffices."""
        data, seen = self._question.data, None
        if data:
            try:
                dataset = open_dataset(data)
                seen = storage.look_at(dataset)
            except ConvoyError as error:
                self._say(failed("data", str(error)))
            else:
                self._dataset = dataset
                batch_size = self._question.config.batch_size
                workers = self._worker_group.num_workers
                self._say(*storage.check_data(dataset, num_workers=workers, global_batch_size=batch_size))
        gathered = self._everyones("data", {"given": data, "seen": seen})
        if self._speaks:
            given = {rank: other["given"] for rank, other in gathered.items()}
            opened = {rank: other["seen"] for rank, other in gathered.items() if other["seen"]}
            not_given = storage.check_given("--data", "data", given, self._addresses)
            self._say(*(not_given or storage.check_same_data(opened, self._addresses, data)))

    def _check_tensorflow(self, side: TfProbe) -> None:
        """Versions, devices, config, limits, and a sum over all devices."""
        driver = hardware.driver_gpus()
        devices = self._question.devices
        self._say(hardware.check_driver(driver, devices, has_device_file=os.path.exists("/dev/nvidia0")))
        try:
            answer = side.start_up(_TENSORFLOW_SECONDS)
        except NoAnswerError as error:
            fix = "`python -c 'import tensorflow'` shows more; `pip install convoy` installs the version it needs."
            self._say(failed("versions", f"TensorFlow does not start: {error}.", fix))
            answer, count = None, 0
        else:
            found, count = hardware.check_devices(
                devices, self._question.devices_flag, driver, answer["seen"], os.environ.get("CUDA_VISIBLE_DEVICES")
            )
            self._say(*found)
        shards = len(self._dataset.split("train").shard_paths) if self._dataset else 0
        on_gpu = bool(answer and answer["seen"]["gpus"] and devices.kind != "cpu")
        self._say(
            *hardware.check_limits(
                hardware.read_limits(),
                num_workers=self._worker_group.num_workers,
                num_shards=shards,
                gpus=count if on_gpu else 0,
            )
        )
        own = {
            "versions": answer and answer["versions"],
            "count": count,
            "config": configs.to_json(self._question.config),
            "auto": answer and answer["auto"],
        }
        gathered = self._everyones("hardware", own, seconds=_TENSORFLOW_SECONDS)
        counts = {rank: other["count"] for rank, other in gathered.items()}
        if self._speaks:
            versions = {rank: other["versions"] for rank, other in gathered.items() if other["versions"]}
            self._say(*hardware.check_versions(versions, self._addresses))
            if all(counts.values()):
                self._say(*hardware.check_counts(counts, self._addresses))
            if self._config_is_good:
                self._say(
                    *plan.check_plan(
                        self._question.config,
                        gathered,
                        self._worker_group,
                        workdir=self._question.workdir,
                        resume=answer and answer["resume"],
                        num_images=self._dataset.split("train").num_images if self._dataset else None,
                    )
                )
        self._check_collective(side, gathered, on_gpu=on_gpu)

    def _check_collective(self, side: TfProbe, gathered: dict[int, Any], *, on_gpu: bool) -> None:
        counts = [other["count"] for other in gathered.values()]
        reason = ""
        if self._cluster and not self._together:
            reason = "the workers did not find each other"
        elif not self._ports_are_open:
            reason = "not all ports are open"
        elif not all(counts) or len(set(counts)) > 1:
            reason = "the workers' devices do not fit"
        elif sum(counts) == 1:
            reason = "one device: nothing to add up"
        if reason:
            if self._speaks:
                self._say(skipped("collective", reason, of_all=True))
            return
        seconds = max(self._question.startup_seconds, _COLLECTIVE_SECONDS)
        through = "NCCL" if on_gpu else "gRPC" if self._cluster else "memory"
        try:
            self._responding.close()  # TensorFlow listens on this port now
            answer = side.reduce(self._cluster, seconds)
        except NoAnswerError as error:
            fix = "NCCL_DEBUG=INFO shows what NCCL does; --interface chooses its network." if on_gpu else ""
            fix = fix or "TensorFlow opens connections of its own between all workers: look at the ports above."
            self._say(failed("collective", f"a sum over all devices through {through} failed: {error}.", fix))
        else:
            if answer["sum"] != answer["expected"]:
                text = f"a sum over {answer['replicas']} devices is {answer['sum']:g}, not {answer['expected']:g}."
                self._say(failed("collective", text, "NCCL_P2P_DISABLE=1 shows whether direct copies are at fault."))
            elif self._speaks:
                text = f"1 MiB summed over {answer['replicas']} devices through {through} in "
                self._say(ok("collective", f"{text}{answer['milliseconds']:.1f} ms", of_all=True))
        self._everyones("after the collective", seconds=seconds + 10)

    def _check_workdir(self, side: TfProbe) -> None:
        """Whether RUN can be written, is the same folder everywhere, and has room."""
        workdir = self._question.workdir
        if not self._speaks:
            place = self._everyones("token").get(0)
            sees = bool(place and workdir) and storage.sees(place, workdir)
            self._everyones("sight", {"workdir": workdir, "sees": sees})
            return
        with storage.written_token(workdir) as (token, seconds, findings):
            self._say(*findings)
            self._everyones("token", storage.place_of(token, workdir) if token else None)
            gathered = self._everyones("sight", {"workdir": workdir, "sees": True}, seconds=60)
            given = {rank: other["workdir"] for rank, other in gathered.items()}
            self._say(*storage.check_given("--workdir", "run directory", given, self._addresses))
            if token:
                sights = {rank: other["sees"] for rank, other in gathered.items()}
                self._say(*storage.check_shared(sights, given, self._addresses))
                size = None
                if self._config_is_good:
                    with contextlib.suppress(NoAnswerError):
                        size = side.checkpoint_bytes(_MODEL_SECONDS)
                kept = self._question.config.keep_checkpoints
                self._say(storage.check_disk(Path(token).parent, seconds, checkpoint_bytes=size, kept=kept))

    def _tell(self) -> bool:
        """Prints the table where this worker speaks; returns whether nothing failed anywhere."""
        own = [finding.as_json() for finding in self._findings]
        gathered = self._everyones("findings", own, seconds=2 * _MODEL_SECONDS)
        findings = {rank: [CheckResult.from_json(finding) for finding in other] for rank, other in gathered.items()}
        if not self._together:
            findings = {self._worker_group.rank: self._findings}
        if self._speaks:
            by_itself = self._cluster and not self._together
            names = {rank: self._worker_group.address(rank) for rank in range(self._worker_group.num_workers)}
            if by_itself:
                print(f"{self._worker_group.address(self._worker_group.rank)}, by itself:")
                names = {self._worker_group.rank: names[self._worker_group.rank]}
            print(table(findings, names), flush=True)
        return not any(finding.severity == FAILED for own in findings.values() for finding in own)
