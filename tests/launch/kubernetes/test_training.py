"""The pods of a rendered JobSet as processes on hosts with the pods' names and environment."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
import yaml

from convoy.launch.kubernetes.manifests import manifests
from convoy.launch.kubernetes.request import Request, checked
from tests.processes import write_foreign_packages

HOSTS = ("a", "b")
NAME = "shelf"
POD_NAMES = {host: [f"{NAME}-worker-0-{index}.{NAME}"] for index, host in enumerate(HOSTS)}


class Pods:
    """The pods of a JobSet, one per host, by index."""

    def __init__(self, network, folder, *flags, data, run):
        command = ("train", *flags, "--devices=cpu:1", f"--data={data}", f"--workdir={run}")
        request = Request(command, 2, "image", NAME, pvc="claim", mount=os.path.commonpath([data, run]))
        (jobset,) = [manifest for manifest in manifests(checked(request)) if manifest["kind"] == "JobSet"]
        jobset = yaml.safe_load(yaml.safe_dump(jobset))
        job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
        self.folder, self.network = folder, network
        self._number, (self._container,) = job["completions"], job["template"]["spec"]["containers"]
        self._programs = folder / "bin"
        self._programs.mkdir()
        (self._programs / "convoy").write_text(f'#!/bin/sh\nexec {sys.executable} -m convoy "$@"\n')
        (self._programs / "convoy").chmod(0o755)
        self._python_path = write_foreign_packages(folder / "foreign")

    @contextlib.contextmanager
    def started(self, restart=0, only=None):
        """Starts the pods with a restart count; kills all their processes on exit."""
        processes = []
        try:
            for index, host in enumerate(HOSTS[: self._number]):
                if only in (None, index):
                    processes.append(self._start(index, host, restart))
            yield processes
        finally:
            for host in HOSTS:
                self.network.kill_all(host)
            for process in processes:
                process.wait()

    def output(self, index, restart=0):
        return (self.folder / f"pod-{index}-{restart}.log").read_text()

    def _start(self, index, host, restart):
        labels = {"jobset.sigs.k8s.io/restart-attempt": str(restart)}
        environment = {
            "PYTHONPATH": self._python_path,
            "CUDA_VISIBLE_DEVICES": "-1",
            "PATH": f"{self._programs}:{os.environ['PATH']}",
            "HOME": str(self.folder),
            "JOB_COMPLETION_INDEX": str(index),
            "HOSTNAME": f"{NAME}-worker-0-{index}",
        }
        for variable in self._container["env"]:
            field = variable.get("valueFrom", {}).get("fieldRef", {}).get("fieldPath", "")
            label = re.fullmatch(r"metadata\.labels\['(.*)'\]", field)
            environment[variable["name"]] = labels[label[1]] if label else variable["value"]
        words = [*self._container["command"], *self._container["args"]]
        assert not any("$" in word for word in words)  # expansion is not implemented here
        with open(self.folder / f"pod-{index}-{restart}.log", "wb") as log:
            return subprocess.Popen(
                self.network.command(host, *words),
                cwd=self.folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )


def events(run):
    path = run / "events.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.mark.slow
def test_after_a_killed_and_an_evicted_pod_the_result_is_that_of_the_reference_run(
    network, reference_run, dataset, tmp_path, wait_until, recovery
):
    run = tmp_path / "run"
    flags = (*reference_run.flags, "--heartbeat_timeout=5")
    pods = Pods(network(*HOSTS, aliases=POD_NAMES), tmp_path, *flags, data=dataset.data, run=run)

    def steps_begun():
        return [event for event in events(run) if event["event"] == "first_step"]

    with pods.started() as (chief, other):
        wait_until(lambda: list((run / "checkpoints").glob("step-*.npz")), "a checkpoint", 120)
        killed = time.time()
        pods.network.kill_all(HOSTS[1])
        assert other.wait(10) == -signal.SIGKILL
        wait_until((run / "logs" / "attempt-1" / "end-0.json").exists, "the exit of the chief's trainer", 30)
        chief.terminate()  # as the Job controller does when a pod has failed
        assert chief.wait(30) == 138, pods.output(0)
    with pods.started(restart=1) as (chief, other):
        wait_until(lambda: len(steps_begun()) == 2, "a step of the second start", 120)
        recovery("Kubernetes: a pod is killed", run, killed)
        evicted = time.time()
        other.terminate()
        assert other.wait(30) == 138, pods.output(1, 1)
        assert chief.poll() is None  # the Job sees the disrupted pod before the secondary failure
        chief.terminate()
        assert chief.wait(30) == 138, pods.output(0, 1)
    (preempted,) = [event for event in events(run) if event["event"] == "preempted"]
    assert preempted["worker"] == 1
    with pods.started(restart=2) as (chief, other):
        assert [chief.wait(180), other.wait(30)] == [0, 0], pods.output(0, 2)
    recovery("Kubernetes: a pod is evicted (SIGTERM)", run, evicted)
    (*_, restored) = [event for event in events(run) if event["event"] == "restored"]
    assert restored["step"] == preempted["step"]
    hashes = [
        json.loads((folder / "result.json").read_text())["weights_sha256"] for folder in (run, reference_run.workdir)
    ]
    assert hashes[0] == hashes[1]
    for attempt in (1, 2, 3):
        logs = run / "logs" / f"attempt-{attempt}"
        assert (logs / "worker-1.log").exists()
        assert pods.output(0, attempt - 1) == (logs / "worker-0.log").read_text()  # the output of `kubectl logs`


@pytest.mark.slow
def test_a_wrong_flag_exits_with_2_and_a_missing_worker_with_138(network, dataset, tmp_path):
    hosts = network(*HOSTS, aliases=POD_NAMES)
    for name, flag, code, named in (
        ("refused", "--config.stepz=3", 2, "stepz"),
        ("waited", "--startup_timeout=3", 138, f"{NAME}-worker-0-1.{NAME}:2222"),
    ):
        folder = tmp_path / name
        folder.mkdir()
        pods = Pods(hosts, folder, "--config=smoke", flag, data=dataset.data, run=folder / "run")
        with pods.started(only=0) as (pod,):
            assert pod.wait(120) == code, pods.output(0)
        assert named in pods.output(0) and "Traceback" not in pods.output(0)
