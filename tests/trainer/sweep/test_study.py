"""The trials of a sweep: taken, reported, recorded, resumed. No training: the tests report in its place."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from convoy.core.errors import ConvoyError, DataError, UsageError
from convoy.trainer.callbacks.callback import Evaluation
from convoy.trainer.sweep.space import Space
from convoy.trainer.sweep.storage import Settings
from convoy.trainer.sweep.study import Sweep
from convoy.trainer.sweep.trial import TrialReporter, trial_callbacks, trial_variable


def learning_rates(trial):
    return {"optimizer.learning_rate": trial.suggest_float("rate", 1e-4, 1e-1, log=True)}


@pytest.fixture
def opened(tmp_path):
    """Opens the sweep in a folder, as a process does; by default the same folder."""

    def open_sweep(
        name="sweep", *, space=learning_rates, trials=3, metric="top1", direction="maximize", pruner="none", seed=0
    ):
        settings = Settings(metric, direction, pruner)
        return Sweep(tmp_path / name, Space("space.py", space), trials=trials, settings=settings, seed=seed)

    return open_sweep


class FakeTraining:
    def __init__(self, splits=("train", "validation")):
        self.session = SimpleNamespace(dataset=SimpleNamespace(splits=splits))
        self.stops = []

    def request_stop(self, reason, *, resumable):
        self.stops.append((reason, resumable))


def train(sweep, trial, values, *, metric="top1", reporter=None, first=1):
    """Reports evaluations as the process of a trial does; returns it and whether it was to stop."""
    reporter = reporter or TrialReporter(sweep.state_folder, trial.number)
    training = FakeTraining()
    reporter.on_start(training)
    for number, value in enumerate(values, first):
        reporter.on_evaluation(training, Evaluation(10 * number, 0.0, "validation", {metric: value}, {}, False, value))
    return reporter, training.stops


def write_result(trial, stop=None):
    trial.workdir.mkdir(parents=True, exist_ok=True)
    (trial.workdir / "result.json").write_text(json.dumps({"step": 10, "stop": stop}))


def run(sweep, *values, exit_code=0, error="", metric="top1"):
    """Takes a trial, trains and records it."""
    trial = sweep.take()
    train(sweep, trial, values, metric=metric)
    return sweep.record(trial, exit_code=exit_code, error=error, checkpoint=None)


def summary(sweep_folder):
    return json.loads((Path(sweep_folder) / "sweep.json").read_text())


def test_trials_are_recorded_and_the_best_comes_first(opened, tmp_path):
    sweep = opened()
    assert [run(sweep, *values).value for values in ((0.1, 0.3), (0.8, 0.4), (0.5,))] == [0.3, 0.8, 0.5]
    assert sweep.take() is None
    assert [trial.number for trial in sweep.best_first()] == [1, 2, 0]
    content = summary(tmp_path / "sweep")
    assert content["best"] == 1
    first = content["trials"][0]
    assert (first["state"], first["value"], first["evaluations"]) == ("complete", 0.3, 2)
    assert first["fields"]["optimizer.learning_rate"] == first["params"]["rate"]
    assert first["workdir"] == "trial-0000"


def test_a_lower_loss_is_better(opened):
    sweep = opened(metric="loss", direction="minimize", trials=2)
    run(sweep, 2.0, 1.5, metric="loss")
    run(sweep, 1.0, float("nan"), metric="loss")
    assert [(trial.number, trial.value) for trial in sweep.best_first()] == [(1, 1.0), (0, 1.5)]


def test_suggestions_depend_on_seed_and_history_alone(opened):
    def rates(name, *, trials, interrupted=False, **options):
        sweep = opened(name, trials=trials, **options)
        for number in range(trials):
            if interrupted and number % 4 == 3:
                sweep.close()
                sweep = opened(name, trials=trials, **options)
            run(sweep, number / 20)
        return [trial.fields["optimizer.learning_rate"] for trial in sweep.trials()]

    expected = rates("first", trials=12)  # the sampler learns from the eleventh on
    assert rates("second", trials=12, interrupted=True) == expected
    assert not set(rates("third", trials=2, seed=1)) & set(expected)


def test_a_trial_that_was_left_is_resumed_with_its_fields_and_reports_nothing_twice(opened):
    first = opened()
    run(first, 0.5)
    trial = first.take()
    train(first, trial, (0.1, 0.2, 0.3))
    assert opened().take().number == 2  # trial 1 is running elsewhere
    first.close()  # as when its process is killed: the kernel releases its locks

    second = opened()
    resumed = second.take()
    assert (resumed.number, resumed.fields) == (1, trial.fields)
    # From a checkpoint after the first evaluation: the second and third come again, with one more.
    reporter = TrialReporter(second.state_folder, 1)
    reporter.restore([10])
    train(second, resumed, (0.9, 0.9, 0.4), reporter=reporter, first=2)
    ended = second.record(resumed, exit_code=0, error="", checkpoint=10)
    assert (ended.value, ended.evaluations) == (0.4, 4)


def test_a_trial_that_ended_unrecorded_is_not_repeated(opened):
    first = opened(trials=2)
    trial = first.take()
    train(first, trial, (0.4,))
    write_result(trial)
    first.close()
    second = opened(trials=2)
    assert second.take().number == 1
    assert (second.trials()[0].state, second.trials()[0].value) == ("complete", 0.4)


def test_a_trial_that_a_time_limit_stopped_before_the_sweep_died_is_resumed(opened):
    first = opened()
    write_result(first.take(), stop={"reason": "time", "by": "TimeLimit", "resumable": True})
    first.close()
    assert opened().take().number == 0


def test_poor_trials_are_pruned(opened):
    sweep = opened(trials=7, pruner="median")
    for _ in range(5):  # the median pruner wants as many
        run(sweep, 0.5, 0.6)
    trial = sweep.take()
    reporter, stops = train(sweep, trial, (0.7,))
    assert not stops
    _, stops = train(sweep, trial, (0.4,), reporter=reporter, first=2)
    assert not stops  # its best so far counts
    pruned = sweep.take()
    _, [(reason, resumable)] = train(sweep, pruned, (0.1,))
    assert not resumable and "top1" in reason
    write_result(pruned, stop={"reason": reason, "by": TrialReporter.__name__, "resumable": False})
    assert sweep.record(pruned, exit_code=0, error="", checkpoint=None).state == "pruned"
    assert pruned.number not in [trial.number for trial in sweep.best_first()]


def test_a_run_that_goes_back_counts_its_evaluations_again(opened):
    sweep = opened()
    trial = sweep.take()
    reporter, _ = train(sweep, trial, (0.1, 0.2, 0.3))
    train(sweep, trial, (0.9, 0.9), reporter=reporter, first=2)
    assert reporter.state() == [10, 20, 30]
    assert sweep.record(trial, exit_code=0, error="", checkpoint=None).value == 0.3


def test_failed_trials_count_and_the_sweep_goes_on(opened):
    sweep = opened()
    failed = run(sweep, exit_code=3, error="data is damaged")
    assert (failed.state, failed.error, failed.value) == ("failed", "data is damaged", None)
    assert run(sweep, 0.5).state == "complete"
    assert run(sweep).state == "failed"  # without an evaluation
    assert sweep.take() is None


def test_a_failure_that_the_first_trials_share_ends_the_sweep(opened):
    sweep = opened(trials=10)
    run(sweep, exit_code=2, error="--data=x: no such folder")
    run(sweep, exit_code=2, error="--data=x: no such folder")
    with pytest.raises(ConvoyError, match="no such folder") as refusal:
        run(sweep, exit_code=2, error="--data=x: no such folder")
    assert refusal.value.exit_code == 2


def test_failures_after_a_success_do_not_end_the_sweep(opened):
    sweep = opened(trials=10)
    run(sweep, 0.5)
    assert [run(sweep, exit_code=2, error="same").state for _ in range(4)] == ["failed"] * 4


def test_a_killed_trial_is_tried_again_while_it_gets_on(opened):
    sweep = opened(trials=1)
    for checkpoint in (None, 10, 10, 20, 20, 20):
        trial = sweep.take()
        assert sweep.record(trial, exit_code=137, error="killed", checkpoint=checkpoint).state == "unfinished"
    ended = sweep.record(sweep.take(), exit_code=137, error="killed", checkpoint=20)
    assert (ended.state, ended.error) == ("failed", "killed")


def test_another_metric_in_the_same_folder_is_refused(opened):
    opened()
    with pytest.raises(UsageError, match="top1"):
        opened(metric="loss", direction="minimize")


def test_a_line_that_a_crash_cut_short_is_dropped_and_a_damaged_journal_is_named(opened):
    sweep = opened()
    run(sweep, 0.5)
    journal = sweep.state_folder / "journal.log"
    content = journal.read_bytes()
    journal.write_bytes(content + b'{"op_code": 5, "wor')
    assert run(opened(), 0.6).number == 1
    journal.write_bytes(b"damaged\n" + content)
    with pytest.raises(DataError, match="journal"):
        opened()


def test_workdir_that_is_a_file_is_refused(opened, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="file"):
        opened("file")


def test_a_space_that_fails_later_ends_that_trial(opened):
    sweep = opened(space=lambda trial: {"epochs": [1, 2][trial.number]}, trials=4)
    assert [run(sweep, 0.5).fields["epochs"] for _ in range(2)] == [1, 2]
    with pytest.raises(UsageError, match="IndexError"):
        sweep.take()
    assert [trial.state for trial in sweep.trials()] == ["complete", "complete", "failed"]


def test_the_trial_of_a_process_comes_from_its_environment(opened):
    sweep = opened()
    trial = sweep.take()
    assert trial_callbacks({}) == []
    (reporter,) = trial_callbacks(trial_variable(sweep.state_folder, trial.number))
    train(sweep, trial, (0.7,), reporter=reporter)
    assert sweep.trials()[0].value == 0.7


def test_what_cannot_be_compared_is_refused(opened):
    sweep = opened(metric="top2")
    trial = sweep.take()
    with pytest.raises(UsageError, match="'top1'"):
        train(sweep, trial, (0.5,), metric="top1")
    with pytest.raises(UsageError, match="validation"):
        TrialReporter(sweep.state_folder, trial.number).on_start(FakeTraining(splits=("train",)))
