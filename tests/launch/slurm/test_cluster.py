"""Jobs on a real SLURM cluster of two nodes, with faults."""

import json
import os
import re
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest

from tests.processes import REPOSITORY, command_line, environment_of, write_foreign_packages
from tests.trainer import user_models

LAUNCH = ("launch", "slurm", "--nodes=2", "--grace_seconds=5")


def train(reference_run, dataset, run):
    flags = (*reference_run.flags, "--devices=cpu:1", "--heartbeat_timeout=5")
    return ("train", *flags, f"--data={dataset.data}", f"--workdir={run}")


def weights(run):
    return json.loads((run / "result.json").read_text())["weights_sha256"]


def has_checkpoint(run, step):
    return any(int(path.stem.partition("-")[2]) >= step for path in (run / "checkpoints").glob("step-*.npz"))


def trainers(slurm, node):
    """Returns the processes on a node that train."""
    return [pid for pid in slurm.network.processes(node) if command_line(pid)[1:4] == ["-m", "convoy", "train"]]


@pytest.mark.slow
def test_job_with_a_killed_worker_a_network_failure_and_a_time_limit_gives_the_reference_weights(
    slurm, convoy_started, reference_run, dataset, tmp_path, wait_until, recovery
):
    run, output = tmp_path / "run", tmp_path / "output"
    command = (*LAUNCH, "--", *train(reference_run, dataset, run))
    faults = {}
    with convoy_started(*command, output=output, prefix=tuple(slurm.command())) as client:
        wait_until(lambda: has_checkpoint(run, 20), "step 20")
        (trainer,) = trainers(slurm, "n2")
        (key,) = {environment_of(pid)["CONVOY_CLUSTER_KEY"] for node in ("n1", "n2") for pid in trainers(slurm, node)}
        faults["SLURM: a worker is killed"] = time.time()
        os.kill(trainer, signal.SIGKILL)

        wait_until(lambda: has_checkpoint(run, 60), "step 60")
        faults["SLURM: a node is unreachable until the workers have noticed (--heartbeat_timeout=5)"] = time.time()
        slurm.network.unplug("n2")
        noted = run / "logs" / "attempt-2" / "end-0.json"
        wait_until(lambda: noted.exists() or slurm.job("1", "Restarts") != "0", "the end of a worker", 60)
        slurm.network.plug_in("n2")

        wait_until(lambda: has_checkpoint(run, 100), "step 100")
        faults["SLURM: the warning before the time limit, the job is requeued"] = time.time()
        slurm.run("scancel", "--signal=USR1", "--batch", "1")
        assert client.wait(300) == 0, output.read_text()
    shown = output.read_text()
    assert weights(run) == weights(reference_run.workdir), shown
    # If the workers are slow to notice the failure, SLURM is faster and requeues the job by itself.
    assert (slurm.job("1"), slurm.job("1", "Restarts")) in (("COMPLETED", "1"), ("COMPLETED", "2"))
    first = next(line for line in shown.splitlines() if "attempt 1 ended" in line)
    assert "worker 1" in first
    assert "SIGKILL" in first
    assert "requeueing job 1" in shown
    assert shown.endswith("convoy: job 1 is done.\n")
    assert not any(key.encode() in path.read_bytes() for path in run.rglob("*") if path.is_file())
    for fault, when in faults.items():
        recovery(fault, run, when)


@pytest.mark.slow
def test_template_trains_and_its_job_is_requeued_when_a_node_dies(
    slurm, reference_run, dataset, tmp_path, wait_until, recovery
):
    run, log = tmp_path / "run", tmp_path / "slurm-1.out"
    _, *flags = train(reference_run, dataset, run)
    variables = {"CONVOY": f"{sys.executable} -m convoy", "RUN": str(run), "DATA": str(dataset.data)}
    variables |= {"PYTHONPATH": write_foreign_packages(tmp_path), "CUDA_VISIBLE_DEVICES": "-1"}
    submit = ["sbatch", REPOSITORY / "launch/slurm/train.sbatch", *flags]
    slurm.run("env", "-C", tmp_path, *(f"{name}={value}" for name, value in variables.items()), *submit)
    wait_until(lambda: has_checkpoint(run, 20), "step 20")
    died = time.time()
    slurm.stop_node("n2")
    wait_until(lambda: slurm.node_state("n2") == "DOWN", "the failure of n2", 60)
    slurm.start_node("n2")
    wait_until(lambda: slurm.job("1") in ("COMPLETED", "FAILED", "CANCELLED"), "the end of the job")
    shown = log.read_text()
    assert (slurm.job("1"), slurm.job("1", "Restarts")) == ("COMPLETED", "1"), shown
    assert weights(run) == weights(reference_run.workdir), shown
    recovery("SLURM: a node dies, and is back once SLURM has noticed", run, died)


@pytest.mark.slow
def test_only_the_warned_task_of_a_job_array_is_requeued(slurm, reference_run, dataset, tmp_path, wait_until):
    runs = {task: tmp_path / f"run-{task}" for task in (1, 2)}
    words = " ".join(train(reference_run, dataset, tmp_path / "run"))
    script = tmp_path / "job"
    script.write_text(
        f"#!/bin/sh\nexec {sys.executable} -m convoy launch srun --grace_seconds=5 -- {words}-$SLURM_ARRAY_TASK_ID\n"
    )
    submit = [
        "sbatch",
        "--array=1-2",
        "--nodes=1",
        "--requeue",
        "--open-mode=append",
        f"--output={tmp_path}/%a",
        script,
    ]
    slurm.run("env", f"PYTHONPATH={REPOSITORY}", "CUDA_VISIBLE_DEVICES=-1", *submit)
    wait_until(lambda: all(has_checkpoint(run, 20) for run in runs.values()), "step 20 of both")
    slurm.run("scancel", "--signal=USR1", "--batch", "1_2")
    wait_until(lambda: all(slurm.job(f"1_{task}") == "COMPLETED" for task in runs), "the end of both", 240)
    shown = (tmp_path / "1").read_text() + (tmp_path / "2").read_text()
    assert [slurm.job(f"1_{task}", "Restarts") for task in runs] == ["0", "1"], shown
    assert {weights(run) for run in runs.values()} == {weights(reference_run.workdir)}, shown


@pytest.mark.slow
def test_workers_started_from_a_shell_inside_a_step_get_all_nodes(slurm, dataset, tmp_path):
    launch = (sys.executable, "-m", "convoy", "launch", "srun", "--", "doctor")
    flags = ("--config=smoke", f"--data={dataset.data}", f"--workdir={tmp_path / 'run'}", "--devices=cpu:1")
    shell = ("salloc", "--nodes=2", "srun", "--nodes=1", "--ntasks=1", "--unbuffered")
    output = slurm.run("env", f"PYTHONPATH={REPOSITORY}", *shell, *launch, *flags).stdout
    assert "2 workers" in output
    assert all(re.search(rf"\b{node}:\d+", output) for node in ("n1", "n2"))


@pytest.mark.slow
def test_invalid_config_or_data_ends_the_job_at_once(slurm, convoy_started, tmp_path):
    cases = (
        ("--config.batch_sie=3", 2, "batch_sie"),
        ("--data=nodata", 3, "nodata"),
    )
    for number, (flag, code, named) in enumerate(cases, 1):
        run, output = tmp_path / f"run-{number}", tmp_path / f"output-{number}"
        command = (*LAUNCH, "--", "train", "--config=smoke", "--data=data", flag, f"--workdir={run}")
        with convoy_started(*command, output=output, prefix=tuple(slurm.command())) as client:
            assert client.wait(120) == code, output.read_text()
        assert len([line for line in output.read_text().splitlines() if named in line]) == 1
        assert (slurm.job(str(number)), slurm.job(str(number), "Restarts")) == ("FAILED", "0")
        assert sorted(path.name for path in run.rglob("*")) == ["job.sbatch", "logs", f"slurm-{number}.out"]


@pytest.mark.slow
def test_program_that_does_not_start_is_tried_twice_and_not_requeued(slurm, convoy_started, tmp_path, monkeypatch):
    run, output, image = tmp_path / "run", tmp_path / "output", tmp_path / "image.sif"
    image.touch()
    apptainer = tmp_path / "apptainer"
    apptainer.write_text("#!/bin/sh\necho FATAL: no such image >&2\nexit 255\n")
    apptainer.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    command = (*LAUNCH, f"--container={image}", "--", "train", f"--workdir={run}")
    with convoy_started(*command, output=output, prefix=tuple(slurm.command())) as client:
        assert client.wait(120) == 1, output.read_text()
    attempts = json.loads((run / "launch.json").read_text())["attempts"]
    assert [attempt["cause"] for attempt in attempts] == ["worker 0: FATAL: no such image"] * 2
    assert (slurm.job("1"), slurm.job("1", "Restarts")) == ("FAILED", "0")


@pytest.mark.slow
def test_job_trains_the_model_as_submitted_ctrl_c_stops_following_and_scancel_ends_it(
    slurm, convoy_started, dataset, tmp_path, wait_until
):
    run, output = tmp_path / "run", tmp_path / "output"
    (tmp_path / "mine.py").write_text("from beside import small\n")
    shutil.copy(user_models.__file__, tmp_path / "beside.py")
    model = f"--config.model.name={tmp_path / 'mine.py'}:small"
    command = (
        *LAUNCH,
        "--mem=500M",
        "--env=ODD=it's",
        "--sbatch=--hold",
        "--",
        "train",
        "--config=smoke",
        model,
        f"--data={dataset.data}",
        f"--workdir={run}",
    )
    many = ("--config.steps=100000", "--config.checkpoint_every_steps=100000", "--config.eval_every_steps=100000")
    with convoy_started(*command, *many, output=output, prefix=tuple(slurm.command())) as client:
        wait_until(lambda: "job 1 is pending" in output.read_text(), "the job")
        (tmp_path / "beside.py").write_text("")  # edited while the job waits
        slurm.run("scontrol", "release", "1")
        wait_until(lambda: "step 10/" in output.read_text(), "a step")
        assert slurm.job("1", "MinMemoryNode") == "500M"
        assert {environment_of(pid)["ODD"] for node in ("n1", "n2") for pid in trainers(slurm, node)} == {"it's"}
        assert (run / "code" / "model" / "beside.py").read_bytes() == Path(user_models.__file__).read_bytes()
        client.send_signal(signal.SIGINT)
        assert client.wait(30) == 130
    assert "scancel 1" in output.read_text().splitlines()[-1]
    assert slurm.job("1") == "RUNNING"
    slurm.run("scancel", "1")
    wait_until(lambda: slurm.job("1") == "CANCELLED", "the end of the job", 60)
    assert not any(trainers(slurm, node) for node in ("n1", "n2"))
    assert has_checkpoint(run, 10), "nothing was saved"


@pytest.mark.slow
def test_ranks_of_a_step_find_the_addresses_of_their_hosts(slurm):
    find = (
        "import os, socket; from convoy.core.cluster import find_cluster; cluster = find_cluster(os.environ); "
        "print(cluster.index, socket.gethostname(), *cluster.addresses)"
    )
    program = ["env", f"PYTHONPATH={REPOSITORY}", sys.executable, "-c", find]
    layouts = ("--ntasks=4 --distribution=block", "--ntasks=4 --distribution=cyclic", "--ntasks=3")
    for layout in (*layouts, "--ntasks=4 --distribution=plane=2"):
        output = slurm.run("srun", "--nodes=2", *layout.split(), *program).stdout
        lines = sorted(line.split() for line in output.splitlines())
        assert [line[0] for line in lines] == [str(rank) for rank in range(len(lines))]
        assert len({tuple(addresses) for _, _, *addresses in lines}) == 1
        assert [address.partition(":")[0] for address in lines[0][2:]] == [host for _, host, *_ in lines], layout
    result = slurm.run("srun", "--ntasks=2", "--distribution=arbitrary", "--nodelist=n2,n1", *program, check=False)
    assert "SLURM_DISTRIBUTION=arbitrary" in result.stderr


@pytest.mark.slow
def test_command_typed_in_the_terminal_of_a_step_is_not_one_of_its_workers(slurm, tmp_path):
    program = tmp_path / "find.py"
    program.write_text(
        "import os\nfrom convoy.core.cluster import find_cluster\ncluster = find_cluster(os.environ)\n"
        "print('workers', cluster.num_workers if cluster else 1)\n"
    )
    find = f"env PYTHONPATH={REPOSITORY} {sys.executable} {program}"
    for command, workers in ((find, 2), (f"sh -c '{find}; :'", 1)):
        step = f"srun --nodes=2 --ntasks=2 --pty {command}"
        output = slurm.run("script", "--quiet", "--return", "--command", step, "/dev/null").stdout
        assert f"workers {workers}" in output


@pytest.mark.slow
def test_template_of_a_sweep_shares_its_trials_among_the_tasks_of_an_array(slurm, dataset, tmp_path, wait_until):
    """One task gets the warning before its time limit: its trial saves, it is requeued, and the other task goes on."""
    sweep, space = tmp_path / "sweep", tmp_path / "space.py"
    space.write_text("def space(trial): return {'optimizer.learning_rate': trial.suggest_float('rate', 1e-4, 1e-2)}\n")
    model = f"--config.model.name={user_models.__file__}:small"
    flags = ("--config=smoke", model, "--devices=cpu", "--config.steps=1500", "--config.eval_every_steps=500")
    variables = {"CONVOY": f"{sys.executable} -m convoy", "SWEEP": sweep, "SPACE": space, "DATA": dataset.data}
    variables |= {"TRIALS": 3, "PYTHONPATH": write_foreign_packages(tmp_path), "CUDA_VISIBLE_DEVICES": "-1"}
    submit = ["sbatch", "--array=0-1", REPOSITORY / "launch/slurm/sweep.sbatch", *flags]
    slurm.run("env", "-C", tmp_path, *(f"{name}={value}" for name, value in variables.items()), *submit)
    wait_until(lambda: has_checkpoint(sweep / "trial-0000", 500), "step 500")
    slurm.run("scancel", "--signal=USR1", "--batch", "1_0")
    wait_until(lambda: slurm.job("1_0", "Restarts") == "1", "the requeue")
    wait_until(lambda: slurm.job("1_1") == "COMPLETED", "the end of the other task")
    content = json.loads((sweep / "sweep.json").read_text())
    assert [trial["state"] for trial in content["trials"]] == ["complete"] * 3
