"""`convoy doctor` as workers on hosts of their own, and training over the second network of such hosts."""

import contextlib
import json
import shutil
import sys

import pytest

from tests.processes import REPOSITORY
from tests.trainer import user_models
from tests.trainer.run_files import result_of

pytestmark = pytest.mark.slow
PORT = 2222
needs_a_firewall = pytest.mark.skipif(not shutil.which("iptables"), reason="iptables not installed")


@pytest.fixture
def workers_on(tmp_path, convoy_started):
    """Runs `convoy *arguments` on some hosts of a network, as that cluster's workers; returns codes and outputs."""

    def run(network, *arguments, hosts=("a", "b"), runs_on=None, only=None, variables=None, seconds=120):
        outputs, processes = {}, {}
        with contextlib.ExitStack() as stack:
            for rank, host in enumerate(hosts):
                if host not in (runs_on or hosts):
                    continue
                cluster = {"worker": [f"{name}:{PORT}" for name in hosts]}
                task = json.dumps({"cluster": cluster, "task": {"type": "worker", "index": rank}})
                given = {"TF_CONFIG": task, **(variables or {}).get(host, {})}
                prefix = network.command(host, "env", *(f"{name}={value}" for name, value in given.items()))
                outputs[host] = tmp_path / f"{host}.log"
                words = (*arguments, *(only or {}).get(host, ()))
                processes[host] = stack.enter_context(
                    convoy_started(*words, output=outputs[host], prefix=tuple(prefix))
                )
            codes = {host: process.wait(seconds) for host, process in processes.items()}
            return codes, {host: output.read_text() for host, output in outputs.items()}

    return run


def test_training_and_the_doctor_go_over_the_network_that_is_chosen(network, workers_on, dataset, tmp_path):
    hosts = network("a", "b")
    second = hosts.add_second()
    run = tmp_path / "run"
    flags = (
        "--config=smoke",
        f"--config.model.name={user_models.__file__}:wide",
        f"--data={dataset.data}",
        f"--workdir={run}",
        "--devices=cpu:1",
    )
    codes, outputs = workers_on(hosts, "doctor", *flags, "--interface=eth1")
    assert codes == {"a": 0, "b": 0}, outputs
    assert outputs["b"] == ""
    assert f"--interface=eth1: {second['a']}:{PORT}, {second['b']}:{PORT}" in outputs["a"]
    for text in ("a is 10.213.7.2, b is 10.213.7.3", "all 2 connections", "summed over 2 devices"):
        assert text in outputs["a"]
    assert "Nothing failed" in outputs["a"]
    assert not run.exists()

    before = {name: hosts.received("b", name) for name in ("eth0", "eth1")}
    codes, outputs = workers_on(hosts, "train", *flags, "--interface=10.213.8.0/24")
    assert codes == {"a": 0, "b": 0}, outputs
    assert result_of(run)["replicas"] == 2
    came = {name: hosts.received("b", name) - before[name] for name in before}
    assert came["eth1"] > 10_000_000  # 20 steps with gradients of 0.8 MB
    assert came["eth0"] < 1_000_000  # the rendezvous


@needs_a_firewall
def test_differences_and_closed_ports_name_the_workers(network, workers_on, dataset, tmp_path):
    hosts = network("a", "b")
    hosts.drop("b", PORT)
    other = shutil.copytree(dataset.data, tmp_path / "other")
    manifest = json.loads((other / "manifest.json").read_text())
    manifest["splits"]["train"]["shards"][0]["sha256"] = "0" * 64
    (other / "manifest.json").write_text(json.dumps(manifest))
    old = tmp_path / "old" / "convoy"
    old.mkdir(parents=True)
    for path in (REPOSITORY / "convoy").iterdir():
        (old / path.name).symlink_to(path)
    (old / "__init__.py").unlink()
    (old / "__init__.py").write_text('__version__ = "0.0.9"\n')
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    codes, outputs = workers_on(
        hosts,
        "doctor",
        f"--workdir={tmp_path / 'run'}",
        "--devices=cpu:1",
        only={
            "a": (f"--data={dataset.data}",),
            "b": (f"--data={other}", f"--workdir={elsewhere / 'run'}", "--config.batch_size=96"),
        },
        variables={"b": {"PYTHONPATH": f"{old.parent}:{':'.join(sys.path)}", "PYTHONSAFEPATH": "1"}},
    )
    assert codes == {"a": 2, "b": 2}, outputs
    output = outputs["a"]
    assert f"worker 0 (a:{PORT}) cannot reach worker 1 (b:{PORT}): timed out" in output
    assert f"worker 1 (b:{PORT}) cannot reach" not in output
    assert f"--data={dataset.data} differs between worker 0 (a:{PORT}) and worker 1 (b:{PORT}): digest" in output
    assert f"convoy 0.1.0 on worker 0 (a:{PORT}), 0.0.9 on worker 1 (b:{PORT})" in output
    assert f"config.batch_size: 64 on worker 0 (a:{PORT}), 96 on worker 1 (b:{PORT})" in output
    assert f"not visible on worker 1 (b:{PORT}) in --workdir={elsewhere / 'run'}" in output
    assert "skipped  collective" in output
    assert outputs["b"] == ""
    assert not list(tmp_path.glob(".convoy*"))


@needs_a_firewall
def test_unconnected_workers_report_from_both_sides(network, workers_on, tmp_path):
    hosts = network("a", "b", "c")
    hosts.drop("a", PORT)
    codes, outputs = workers_on(
        hosts,
        "doctor",
        "--devices=cpu:1",
        "--startup_timeout=8",
        f"--workdir={tmp_path / 'run'}",
        hosts=("a", "b", "c"),
        runs_on=("a", "b"),
    )
    assert codes == {"a": 2, "b": 2}, outputs
    of_chief, of_worker = outputs["a"], outputs["b"]
    here, there, absent = (f"worker {rank} ({host}:{PORT})" for rank, host in enumerate("abc"))
    assert f"{there} and {absent} did not connect within 8 s" in of_chief
    assert f"{here} reaches {there}, but {there} cannot reach {here}" in of_chief
    assert f"{here} cannot reach {absent}: connection refused" in of_chief
    assert f"{there}, not connected to the others:" in of_worker
    assert f"{here}, the chief, could not be reached within 8 s" in of_worker
    for output in outputs.values():  # local checks still run
        assert "ok       devices" in output
        assert "ok       run directory" in output
