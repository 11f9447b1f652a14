"""Whole commands with data in an S3 server on this machine, and spot machines: runs that resume from their backup."""

import contextlib
import json
import shutil
import signal

import pytest

from convoy.core.remote import RemotePath
from convoy.launch.ports import reserved_ports
from tests.object_stores import (
    FaultyProxy,
    azure_server,
    azure_variables,
    environment,
    gcs_server,
    gcs_variables,
    make_bucket,
    s3_server,
    s3_variables,
    upload_folder,
)

pytestmark = pytest.mark.slow

DATA = "s3://bucket/data"


@pytest.fixture(scope="module")
def server(tmp_path_factory, dataset):
    """An S3 server that has the dataset in `DATA`."""
    with s3_server(tmp_path_factory.mktemp("s3")) as url, environment(s3_variables(url)):
        make_bucket("s3://bucket")
        upload_folder(dataset.data, RemotePath(DATA))
        yield url


def result_of(run):
    return json.loads((run / "result.json").read_text())


def test_training_through_a_failing_network_gives_the_weights_of_local_files(server, finished_run, convoy, tmp_path):
    run = tmp_path / "run"
    with FaultyProxy(server, seed=1, failing=0.3) as proxy:
        flags = (*finished_run.flags, "--devices=cpu:2", f"--data={DATA}", f"--workdir={run}")
        convoy("train", *flags, environment=s3_variables(proxy.url), check=True)
    assert proxy.faults.total() >= 3, proxy.faults
    assert result_of(run)["weights_sha256"] == result_of(finished_run.workdir)["weights_sha256"]


@pytest.mark.parametrize(
    ("bucket", "server", "variables"),
    [("gs://bucket", gcs_server, gcs_variables), ("az://container", azure_server, azure_variables)],
    ids=["google", "azure"],
)
def test_stores_of_others_have_data_and_backup(bucket, server, variables, dataset, finished_run, convoy, tmp_path):
    run, data = tmp_path / "run", RemotePath(f"{bucket}/data")
    with server(tmp_path) as url, environment(variables(url)):
        make_bucket(bucket)
        upload_folder(dataset.data, data)
        flags = (*finished_run.flags, f"--data={data}", f"--workdir={run}", f"--backup={bucket}/run")
        convoy("train", *flags, environment=variables(url), check=True)
        trained = result_of(run)
        shutil.rmtree(run)
        convoy("train", *flags, environment=variables(url), check=True)
    assert result_of(run) == trained
    assert trained["weights_sha256"] == result_of(finished_run.workdir)["weights_sha256"]


def test_evaluation_predictions_and_report_equal_those_of_local_files(server, dataset, copied_run, convoy, tmp_path):
    far = shutil.copytree(copied_run, tmp_path / "far")
    convoy("evaluate", f"--workdir={copied_run}", f"--data={dataset.data}", "--split=test", check=True)
    convoy(
        "evaluate", f"--workdir={far}", f"--data={DATA}", "--split=test", environment=s3_variables(server), check=True
    )
    predictions = [(run / "predictions_test.csv").read_text() for run in (copied_run, far)]
    assert predictions[0] == predictions[1]
    assert (far / "report.html").exists()


def test_verification_finds_a_damaged_shard(server, dataset, convoy, tmp_path):
    with environment(s3_variables(server)):
        damaged = RemotePath("s3://bucket/damaged")
        upload_folder(dataset.data, damaged)
        name = next(name for name in damaged.files() if "-train.tfrecord-" in name and not name.endswith(".idx"))
        content = bytearray((damaged / name).read_bytes())
        content[len(content) // 2] ^= 1
        (damaged / name).write_bytes(bytes(content))
    found = convoy("verify", f"--data={DATA}", "--workers=1", environment=s3_variables(server), check=True)
    assert "no faults" in found.stdout
    flags = (f"--data={damaged}", "--workers=1", f"--json={tmp_path / 'faults.json'}")
    assert convoy("verify", *flags, environment=s3_variables(server)).returncode == 3
    faults = json.loads((tmp_path / "faults.json").read_text())["faults"]
    assert {fault["file"] for fault in faults} == {name} and faults[0]["code"] == "shard-checksum"


@contextlib.contextmanager
def workers(forks, folder, processes, *flags):
    """Starts workers that have a disk each: their --workdir is the same path, and leads to `folder`/disk-RANK/run."""
    with contextlib.ExitStack() as running:
        with reserved_ports(processes) as ports:
            addresses = [f"127.0.0.1:{port}" for port in ports]
        started = []
        for rank in range(processes):
            disk = folder / f"disk-{rank}"
            disk.mkdir()
            task = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": rank}}
            environment = {"TF_CONFIG": json.dumps(task)} if processes > 1 else {}
            command = ("convoy", "train", *flags, "--workdir=/proc/self/cwd/run")
            output = folder / f"worker-{rank}.log"
            started.append(
                running.enter_context(forks.started(*command, output=output, cwd=disk, environment=environment))
            )
        yield started


@pytest.mark.parametrize("processes", [1, 2])
def test_killed_run_resumes_from_its_backup_on_new_machines(
    server, dataset, finished_run, forks, tmp_path, wait_until, processes
):
    """All workers are killed, and their disks, which they do not share, are lost."""
    backup = RemotePath(f"s3://bucket/run-{processes}")
    flags = (*finished_run.flags, f"--devices=cpu:{2 // processes}", f"--data={dataset.data}", f"--backup={backup}")
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()

    def backed_up_step():
        path = backup / "backup.json"
        return json.loads(path.read_text())["step"] if path.is_file() else 0

    with workers(forks, first, processes, *flags) as started:
        wait_until(backed_up_step, "a checkpoint in the backup")
        for process in started:
            process.send_signal(signal.SIGKILL)
            process.wait(60)
    shutil.rmtree(first)
    step = backed_up_step()
    with workers(forks, second, processes, *flags) as started:
        codes = [process.wait(240) for process in started]
    assert codes == [0] * processes, (second / "worker-0.log").read_text()
    run = second / "disk-0" / "run"
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    assert [event["step"] for event in events if event["event"] == "restored"] == [step]
    assert result_of(run)["weights_sha256"] == result_of(finished_run.workdir)["weights_sha256"]
    assert json.loads((backup / "result.json").read_text()) == result_of(run)
    local = {path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()}
    assert set(backup.files()) == local - {".lock"} | {"backup.json"}


def test_preempted_run_is_backed_up_before_it_ends(server, dataset, finished_run, forks, tmp_path, wait_until):
    run, backup = tmp_path / "run", RemotePath("s3://bucket/preempted")
    flags = (*finished_run.flags, "--config.checkpoint_every_steps=1000", "--devices=cpu:2", f"--backup={backup}")
    with forks.started(
        "convoy",
        "train",
        *flags,
        f"--data={dataset.data}",
        f"--workdir={run}",
        output=tmp_path / "log",
        environment=s3_variables(server),
    ) as process:
        wait_until(lambda: "first_step" in _text(run / "events.jsonl"), "the first step")
        process.send_signal(signal.SIGTERM)
        assert process.wait(240) == 138, (tmp_path / "log").read_text()
    saved = {path.name for path in (run / "checkpoints").iterdir()}
    assert saved and {f"checkpoints/{name}" for name in saved} <= set(backup.files())
    assert "preempted" in (backup / "events.jsonl").read_text()


def _text(path):
    return path.read_text() if path.exists() else ""


def test_backup_that_cannot_be_written_is_refused_at_the_start(server, dataset, finished_run, convoy, tmp_path):
    run = tmp_path / "run"
    flags = (*finished_run.flags, f"--data={dataset.data}", f"--workdir={run}", "--backup=s3://nobucket/run")
    refused = convoy("train", *flags, environment=s3_variables(server))
    assert refused.returncode == 3 and "nobucket" in refused.stderr
    assert not run.exists()
