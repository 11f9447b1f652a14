"""Batch scripts and srun commands, without a SLURM cluster."""

import subprocess
from pathlib import Path

import pytest

from convoy.core.errors import UsageError
from convoy.launch.slurm.client import parse_job
from convoy.launch.slurm.script import JobOptions, job_script
from convoy.launch.slurm.step import (
    Allocation,
    find_allocation,
    requeue_decision,
    step_command,
    step_environment,
    worker_command,
)

TRAIN = ["train", "--data=data", "--workdir=my run"]
JOB = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_JOB_CPUS_PER_NODE": "32(x2)"}


def script(command=TRAIN, variables=None, **options):
    return job_script(
        JobOptions(**{"nodes": 2, **options}),
        command,
        logs=Path("/shared/my run/logs"),
        cwd=Path("/shared"),
        python="/venv/bin/python",
        variables=variables or {},
    )


@pytest.fixture
def scontrol(monkeypatch, tmp_path):
    """Puts a `scontrol` that knows the hosts of `JOB` on the PATH."""
    program = tmp_path / "scontrol"
    program.write_text('#!/bin/sh\ntest "$*" = "show hostnames n[1-2]" && printf "n1\\nn2\\n"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))


class TestJobScript:
    def test_requests_the_resources_and_executes_the_launcher(self):
        assert script(
            gpus_per_node=8, time="1:00:00", sbatch=["--mem=0"], setup=["module load cuda\nulimit -n 4096"]
        ) == (
            "#!/bin/bash\n"
            "# Written by `convoy launch slurm`. Submitted again, it resumes from the newest checkpoint.\n"
            "#SBATCH --job-name='convoy-my run'\n"
            "#SBATCH --nodes=2\n"
            "#SBATCH --ntasks-per-node=1\n"
            "#SBATCH --gpus-per-node=8\n"
            "#SBATCH --time=1:00:00\n"
            "#SBATCH --chdir=/shared\n"
            "#SBATCH --output='/shared/my run/logs/slurm-%j.out'\n"
            "#SBATCH --open-mode=append\n"
            "#SBATCH --requeue\n"
            "#SBATCH --signal=B:USR1@120\n"
            "#SBATCH --mem=0\n"
            "\n"
            "trap '' USR1\n"
            "module load cuda\n"
            "ulimit -n 4096\n"
            "# `exec`: the launcher replaces this script's process, so it receives SLURM's signals.\n"
            "exec /venv/bin/python -m convoy launch srun --processes_per_node=1 --max_restarts=3 --grace_seconds=60 "
            "\\\n"
            "    -- train \\\n"
            "    --data=data \\\n"
            "    '--workdir=my run'\n"
        )

    def test_preserves_special_characters_of_the_command(self, tmp_path):
        command = ["train", "--data=it's $HOME", "--workdir=a\tb", "--config.name=`x`"]
        text = script(command).replace("exec /venv/bin/python", "printf '%s\\n'")
        shown = subprocess.run(["bash", "-c", text], capture_output=True, text=True, check=True).stdout.splitlines()
        assert shown[shown.index("--") + 1 :] == command

    def test_requests_memory_per_node(self):
        assert "#SBATCH --mem=64G\n" in script(mem="64G")
        assert "--mem" not in script()
        with pytest.raises(UsageError, match="--mem=64 GB"):
            script(mem="64 GB")

    def test_sets_variables_verbatim(self):
        text = script(variables={"A": "it's $HOME\nx"}, setup=["B=$A"]).replace("exec /venv/bin/python", "echo")
        shown = subprocess.check_output(["bash", "-c", f'{text}\nprintf "%s" "$A$B"'], text=True)
        assert shown.endswith("it's $HOME\nx" * 2)

    def test_of_an_inspecting_command_is_never_requeued(self):
        text = script(["doctor", "--workdir=run"], requeue=False)
        assert "#SBATCH --no-requeue\n" in text
        assert "USR1" not in text

    @pytest.mark.parametrize("option", ["mem=0", "--mem=0\nrm"])
    def test_refuses_an_invalid_option_of_sbatch(self, option):
        with pytest.raises(UsageError, match="--sbatch=.*mem=0"):
            script(sbatch=[option])

    @pytest.mark.parametrize("option", ["--output=x", "-ox", "--output x"])
    def test_refuses_another_log_file(self, option):
        with pytest.raises(UsageError, match=f"--sbatch={option}.*RUN/logs/slurm-JOB.out"):
            script(sbatch=[option])

    def test_refuses_a_warning_time_too_short_to_save(self):
        with pytest.raises(UsageError, match="--warn_seconds=90 .*--grace_seconds=60 .*105"):
            script(warn_seconds=90)
        assert "--signal=B:USR1@50" in script(warn_seconds=50, grace_seconds=5)

    def test_refuses_a_value_with_a_line_break(self):
        with pytest.raises(UsageError, match="--job-name='a\\\\nb'"):
            script(job_name="a\nb")


class TestCommand:
    def test_dry_run_prints_the_script_and_writes_nothing(self, convoy, tmp_path):
        flags = ("--nodes=2", "--dry_run", "--container=registry#convoy:1")
        result = convoy(
            "launch", "slurm", *flags, "--", "train", "--data=d", f"--workdir={tmp_path / 'run'}", check=True
        )
        assert "#SBATCH --nodes=2\n" in result.stdout
        assert "'--container=registry#convoy:1' \\\n    -- train" in result.stdout
        assert list(tmp_path.iterdir()) == []

    def test_dry_run_sets_the_variables_and_names_the_sent_recipe(self, convoy, tmp_path, monkeypatch):
        (tmp_path / "mine.py").write_text("")
        monkeypatch.setenv("WANDB_API_KEY", "a b")
        train = ("train", f"--config={tmp_path / 'mine.py'}", "--data=d", f"--workdir={tmp_path / 'run'}")
        lines = convoy(
            "launch", "slurm", "--nodes=2", "--dry_run", "--env=WANDB_API_KEY", "--env=B=", "--", *train, check=True
        ).stdout.splitlines()
        variables = dict(line.removeprefix("export ").split("=", 1) for line in lines if line.startswith("export "))
        assert (variables["WANDB_API_KEY"], variables["B"]) == ("'a b'", "''")
        assert variables["CONVOY_CODE"].startswith(f"{tmp_path / 'run' / 'logs'}/code-")
        assert not (tmp_path / "run").exists()

    def test_is_refused_without_slurm_and_writes_nothing(self, convoy, tmp_path, monkeypatch):
        monkeypatch.setenv("PATH", str(tmp_path))
        result = convoy("launch", "slurm", "--nodes=2", "--", "train", f"--workdir={tmp_path / 'run'}")
        assert (result.returncode, result.stdout) == (2, "")
        assert "sbatch is not on the PATH" in result.stderr
        assert list(tmp_path.iterdir()) == []

    def test_gpus_that_cannot_be_divided_evenly_are_refused(self, convoy, tmp_path):
        flags = ("--nodes=2", "--gpus_per_node=8", "--processes_per_node=3")
        result = convoy("launch", "slurm", *flags, "--", "train", f"--workdir={tmp_path / 'run'}")
        assert result.returncode == 2
        assert "--processes_per_node=3" in result.stderr
        assert "--gpus_per_node=8" in result.stderr

    def test_srun_outside_a_job_is_refused_with_the_ways_to_get_one(self, convoy, tmp_path, monkeypatch):
        monkeypatch.delenv("SLURM_JOB_ID", raising=False)
        result = convoy("launch", "srun", "--", "train", f"--workdir={tmp_path / 'run'}")
        assert result.returncode == 2
        assert all(way in result.stderr for way in ("SLURM_JOB_ID", "salloc", "convoy launch slurm"))
        assert list(tmp_path.iterdir()) == []


class TestAllocation:
    def test_has_one_worker_per_node_with_all_its_cores_by_default(self, scontrol):
        assert find_allocation(JOB, None) == Allocation("7", "n[1-2]", ("n1", "n2"), 1, 32, None)

    def test_follows_the_jobs_request(self, scontrol):
        job = {**JOB, "SLURM_NTASKS_PER_NODE": "4", "SLURM_CPUS_PER_TASK": "6", "SLURM_GPUS_ON_NODE": "8"}
        assert find_allocation(job, None)[3:] == (4, 6, 2, False)
        assert find_allocation(job, 8)[3:] == (8, 4, 1, False)  # 32 cores for 8

    def test_of_an_array_task_has_the_number_of_the_task(self, scontrol):
        array = {"SLURM_ARRAY_JOB_ID": "5", "SLURM_ARRAY_TASK_ID": "2"}
        assert find_allocation({**JOB, **array}, None).job == "5_2"

    def test_assigns_no_gpus_to_a_single_worker_per_node(self, scontrol):
        assert find_allocation({**JOB, "SLURM_GPUS_ON_NODE": "8"}, None).gpus_per_task is None

    def test_is_refused_if_gpus_cannot_be_divided_evenly(self, scontrol):
        with pytest.raises(UsageError, match="--processes_per_node=3 .*8 GPUs.*SLURM_GPUS_ON_NODE"):
            find_allocation({**JOB, "SLURM_GPUS_ON_NODE": "8"}, 3)


class TestStepCommand:
    ALLOCATION = Allocation("7", "n[1-2]", ("n1", "n2"), 4, 8, 2)

    def test_starts_all_workers_in_block_distribution(self):
        assert step_command(self.ALLOCATION, "convoy-attempt-3", ["worker"], TRAIN, None) == [
            *("srun", "--job-name=convoy-attempt-3", "--nodes=2", "--ntasks=8", "--ntasks-per-node=4"),
            *("--distribution=block", "--kill-on-bad-exit=0", "--wait=0", "--export=ALL", "--mpi=none", "--label"),
            *("--cpus-per-task=8", "--gpu-bind=none", "worker"),
        ]

    def test_inside_a_step_overlaps_it_and_drops_its_variables(self):
        allocation = self.ALLOCATION._replace(in_step=True)
        assert "--overlap" in step_command(allocation, "name", ["worker"], TRAIN, None)
        environment = {"SLURM_CPU_BIND_LIST": "0x1", "SLURM_STEP_ID": "0", "SLURM_JOB_ID": "7", "TF_CONFIG": "{}"}
        expected = {"CONVOY_SLURM_HOSTS": "n1,n2", "CONVOY_GPUS_PER_TASK": "2", "SLURM_JOB_ID": "7"}
        assert step_environment(allocation, environment) == expected
        outside = step_environment(self.ALLOCATION, environment)
        assert outside == {**expected, "SLURM_CPU_BIND_LIST": "0x1", "SLURM_STEP_ID": "0"}

    def test_mounts_the_folders_of_the_command_in_a_pyxis_container(self, monkeypatch):
        monkeypatch.setattr("os.getcwd", lambda: "/proj")
        train = ["train", "--data=/data", "--workdir=run", "--cache_dir=/local/nvme"]
        worker = worker_command(train, "registry#convoy:1", grace_seconds=9)
        command = step_command(self.ALLOCATION, "name", worker, train, "registry#convoy:1")
        assert command[command.index("--gpu-bind=none") + 1 :] == [
            "--container-image=registry#convoy:1",
            "--container-mounts=/proj:/proj,/proj/run:/proj/run,/data:/data,/local/nvme:/local/nvme",
            "--container-workdir=/proj",
            *("convoy", "launch", "worker", "--noshow", "--grace_seconds=9", "--", *train),
        ]

    def test_runs_an_image_file_with_apptainer(self, monkeypatch):
        monkeypatch.setattr("os.getcwd", lambda: "/proj")
        worker = worker_command(["train", "--data=/data", "--workdir=run"], "/images/convoy.sif", grace_seconds=60)
        assert worker[:8] == [
            *("apptainer", "exec", "--nv", "--bind=/proj,/proj/run,/data", "--pwd=/proj", "/images/convoy.sif"),
            *("convoy", "launch"),
        ]
        assert not [word for word in step_command(self.ALLOCATION, "n", worker, TRAIN, "/c.sif") if "container" in word]


class TestRequeue:
    @pytest.mark.parametrize(
        ("new_checkpoint", "restarts", "wanted"), [(120, 0, True), (120, 99, True), (None, 2, True), (None, 3, False)]
    )
    def test_while_the_run_makes_progress_and_up_to_max_restarts_without(self, new_checkpoint, restarts, wanted):
        assert requeue_decision(new_checkpoint, restarts, 3)[0] is wanted


class TestParseJob:
    def test_reads_a_line_of_scontrol(self):
        line = (
            "JobId=17 JobName=a b UserId=root(0) JobState=FAILED Reason=NonZeroExitCode Dependency=(null) Requeue=1 "
            "Restarts=2 BatchFlag=1 ExitCode=3:0 StartTime=2026-11-22T18:42:33 NodeList=n[1-2] StdOut=/a/JobState=X"
        )
        job = parse_job(line)
        assert (job.state, job.reason, job.nodes, job.restarts, job.exit_code) == (
            "FAILED",
            "NonZeroExitCode",
            "n[1-2]",
            2,
            3,
        )
        assert (job.is_batch, job.has_ended) == (True, True)

    def test_exit_code_of_a_killed_script_is_that_of_a_shell(self):
        assert parse_job("JobState=CANCELLED ExitCode=0:15 NodeList=(null)").exit_code == 143
