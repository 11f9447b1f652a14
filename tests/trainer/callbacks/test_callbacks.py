"""Callbacks in whole runs: stopping, failing, and resuming afterwards."""

import pytest

from tests.trainer import user_models
from tests.trainer.callbacks import user_callbacks
from tests.trainer.run_files import event_names, events_of, json_lines, result_of

FLAGS = (
    *("train", "--config=smoke", f"--config.model.name={user_models.__file__}:normalized", "--deterministic"),
    *("--config.virtual_replicas=2", "--config.steps=12", "--config.eval_every_steps=3", "--config.log_every_steps=2"),
)
MINE = f"--callbacks={user_callbacks.__file__}:"


def journal(result):
    return [line.split()[1:] for line in result.stdout.splitlines() if line.startswith("journal")]


@pytest.fixture(scope="module")
def train(convoy, dataset, tmp_path_factory):
    """Trains in a folder; returns the process' result and the folder."""

    folder = tmp_path_factory.mktemp("callbacks")

    def run(name, *flags, check=True):
        workdir = folder / name
        return convoy(*FLAGS, f"--data={dataset.data}", f"--workdir={workdir}", *flags, check=check), workdir

    return run


@pytest.fixture(scope="module")
def whole(train):
    """A run to the last step: its output and folder."""
    return train("whole", f"{MINE}Journal", "--devices=cpu:2")


@pytest.mark.slow
def test_a_checkpoint_is_reported_when_it_is_written(whole):
    result, workdir = whole
    calls = journal(result)
    assert calls[0] == ["0", "start", "0"]
    assert calls[-1] == ["0", "end", "12", "True"]
    reported = [call[2:] for call in calls[1:-1]]
    saved = [event["step"] for event in events_of(workdir, "checkpoint")]
    assert reported == [[str(step), "True"] for step in saved]


@pytest.mark.slow
def test_a_run_stopped_early_ends_well_and_goes_on_with_more_patience(train, whole):
    never_better = ("--config.early_stopping.patience=1", "--config.early_stopping.min_delta=1.0")
    _, workdir = train("early", *never_better)
    result = result_of(workdir)
    assert (result["step"], result["stop"]["by"], result["stop"]["resumable"]) == (6, "EarlyStopping", False)
    assert event_names(workdir)[-1] == "done"
    _, _ = train("early", *never_better)
    again = result_of(workdir)
    assert (again["step"], again["weights_sha256"]) == (6, result["weights_sha256"])
    train("early")
    assert result_of(workdir)["stop"] is None
    assert result_of(workdir)["weights_sha256"] == result_of(whole[1])["weights_sha256"]


@pytest.mark.slow
def test_a_failed_callback_loses_nothing(train, whole):
    result, workdir = train("failed", f"{MINE}FailsAtStep4", check=False)
    assert result.returncode == 1
    for part in ("FailsAtStep4", "on_step_end", "step 4", "my own fault", user_callbacks.__file__):
        assert part in result.stderr
    (event,) = events_of(workdir, "callback_failed")
    saved = events_of(workdir, "checkpoint")[-1]["step"]
    assert saved == event["step"] < 8
    assert not (workdir / "result.json").exists()
    train("failed")
    assert events_of(workdir, "restored")[0]["step"] == saved
    assert result_of(workdir)["weights_sha256"] == result_of(whole[1])["weights_sha256"]


@pytest.mark.slow
def test_the_time_limit_saves_and_the_same_command_goes_on(train, whole):
    _, workdir = train("limited", "--max_hours=0")
    result = result_of(workdir)
    assert result["step"] < 12
    assert result["stop"]["by"] == "TimeLimit" and result["stop"]["resumable"]
    assert event_names(workdir)[-1] == "stopped"
    train("limited")
    assert result_of(workdir)["weights_sha256"] == result_of(whole[1])["weights_sha256"]
    steps = [line["step"] for line in json_lines(workdir / "metrics.jsonl") if line["split"] == "train"]
    assert steps == [2, 4, 6, 8, 10, 12]


@pytest.mark.parametrize(
    ("name", "named"),
    [("Journl", "Journal"), ("not_a_callback", "str"), ("nothing.py:Journal", "nothing.py"), ("", "NAME")],
)
def test_what_is_no_callback_is_refused_before_training(train, name, named):
    value = name if ":" in name else f"{user_callbacks.__file__}:{name}"
    result, workdir = train(f"refused-{len(name)}", f"--callbacks={value}", check=False)
    assert result.returncode == 2
    assert "--callbacks" in result.stderr and named in result.stderr and "Traceback" not in result.stderr
    assert not workdir.exists()


@pytest.mark.slow
def test_all_workers_stop_at_the_step_that_one_asks_for(cluster, dataset, tmp_path):
    workdir = tmp_path / "run"
    workers = cluster(
        *(
            *FLAGS,
            f"--data={dataset.data}",
            f"--workdir={workdir}",
            f"{MINE}StopsAtStep5,{user_callbacks.__file__}:Journal",
        ),
        output=tmp_path / "logs",
        check=True,
    )
    result = result_of(workdir)
    assert 5 <= result["step"] <= 7
    assert result["stop"] == {"reason": "five are enough", "by": "StopsAtStep5", "resumable": False}
    for rank in (0, 1):
        assert f"journal {rank} end {result['step']} True" in workers.output(rank)


@pytest.mark.slow
def test_the_chief_reports_a_callback_that_fails_at_the_end_of_another_worker(cluster, dataset, tmp_path):
    workdir = tmp_path / "run"
    flags = (*FLAGS, f"--data={dataset.data}", f"--workdir={workdir}", f"{MINE}FailsAtTheEnd", "--nodeterministic")
    workers = cluster(*flags, output=tmp_path / "logs")
    codes = workers.wait(0)
    assert codes[0] == 1 and codes[1] in (1, 138)
    assert result_of(workdir)["step"] == 12
    assert "FailsAtTheEnd" in workers.output(0) and "result.json" in workers.output(0)
