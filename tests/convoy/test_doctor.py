"""`convoy doctor` as a person types it, alone and behind a launcher."""

import pytest

from tests.trainer.run_files import fingerprints


@pytest.fixture
def flags(finished_run, dataset):
    return (*finished_run.flags, f"--data={dataset.data}")


def rows(output):
    """Returns the level and text of each check; of several rows of one the last."""
    found = {}
    for line in output.splitlines():
        level, _, rest = line.partition(" ")
        if level in ("ok", "skipped", "warning", "FAILED"):
            check, _, text = rest.strip().partition("  ")
            found[check] = (level, text.strip())
    return found


def test_resumable_run_is_unchanged(convoy, flags, finished_run):
    before = fingerprints(finished_run.workdir)
    result = convoy("doctor", *flags, "--devices=cpu:2", f"--workdir={finished_run.workdir}")
    assert result.returncode == 0, result.stdout + result.stderr
    found = rows(result.stdout)
    assert found["resume"][1].endswith("step 40")
    assert found["config"][1].startswith("batch 16, replicas 2, virtual replicas 4: 8 images per device, 4 per virtual")
    assert found["devices"][1].startswith("2 logical CPU devices")
    assert found["collective"][1].startswith("1 MiB summed over 2 devices through memory in ")
    assert found["data"][1].startswith("82 training images, 7 classes")
    assert result.stdout.endswith("Nothing failed.\n")
    assert fingerprints(finished_run.workdir) == before


def test_all_problems_are_reported_with_fixes(convoy, tmp_path, dataset):
    (tmp_path / "file").touch()
    result = convoy(
        "doctor",
        "--config.batch_size=0",
        "--devices=gpu:1",
        f"--data={dataset.data}x",
        f"--workdir={tmp_path / 'file'}",
        "--worker_index=3",
    )
    assert result.returncode == 2
    assert "Traceback" not in result.stdout + result.stderr
    found = rows(result.stdout)
    for check, text in {
        "cluster": "--worker_index=3 needs --worker_hosts",
        "config": "config.batch_size=0",
        "devices": "--devices=gpu:1: TensorFlow sees 0 GPUs",
        "data": "(did you mean 'data'?)",
        "run directory": "is a file",
    }.items():
        assert found[check][0] == "FAILED"
        assert text in found[check][1]
    assert found["versions"][0] == "ok"


def test_different_config_is_reported(convoy, flags, finished_run):
    result = convoy("doctor", *flags, "--config.batch_size=12", f"--workdir={finished_run.workdir}")
    assert result.returncode == 2
    level, text = rows(result.stdout)["resume"]
    assert (level, "batch_size: 16 -> 12" in text) == ("FAILED", True)


@pytest.mark.slow
def test_launched_doctor_leaves_no_run_directory(convoy, flags, finished_run, tmp_path):
    doctor = ("launch", "local", "--processes=2", "--", "doctor", *flags)
    result = convoy(*doctor, f"--workdir={tmp_path / 'deep' / 'run'}", check=True)
    assert "[0] ok       cluster        2 workers, from TF_CONFIG: 0 127.0.0.1:" in result.stdout
    assert "1 MiB summed over 2 devices through gRPC" in result.stdout
    assert result.stdout.endswith("[0] Nothing failed.\n")
    assert not list(tmp_path.iterdir())
    before = fingerprints(finished_run.workdir)
    result = convoy(*doctor, f"--workdir={finished_run.workdir}", "--devices=cpu:3")
    assert result.returncode == 2
    assert "virtual_replicas=4" in result.stdout and "6 devices" in result.stdout
    assert fingerprints(finished_run.workdir) == before
    assert not (finished_run.workdir / "logs").exists()
