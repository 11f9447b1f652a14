"""The learning-rate range test: what it reads from a curve, and that the run after it is as if it had never been."""

import csv
import math

import numpy as np
import pytest

from convoy import cli
from convoy.trainer.finders.learning_rate import STEPS, has_diverged, smoothed, suggest, swept_rates
from tests.trainer import user_models
from tests.trainer.run_files import event_names, result_of

RATES = np.geomspace(1e-5, 10.0, STEPS)


def curve(*, falls_at, diverges_at, start=4.0, lowest=2.0, noise=0.0):
    """A loss that goes from `start` to `lowest` around one rate, and from another on grows with the rate."""
    places = np.log10(RATES)
    losses = start - (start - lowest) / (1 + np.exp(-6 * (places - math.log10(falls_at))))
    losses += np.maximum(0.0, places - math.log10(diverges_at)) * 20
    return losses + noise * np.random.default_rng(0).standard_normal(STEPS)


@pytest.mark.parametrize("optimizer", ["lion", "muon", "schedule_free_adamw", "mine.py:own"])
def test_every_optimizer_has_a_range(optimizer):
    rates = swept_rates(optimizer)
    assert len(rates) == STEPS and (np.diff(rates) > 0).all() and rates[-1] / rates[0] >= 1e5


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_steepest_descent_is_suggested(noise):
    found = suggest(RATES, curve(falls_at=1e-3, diverges_at=1.0, noise=noise))
    assert found.rate == found.steepest == pytest.approx(1e-3, rel=0.5)
    assert found.diverging == pytest.approx(1.3, rel=0.3)  # where the loss is back at 4
    assert "falls fastest" in found.reason


def test_a_rate_close_to_divergence_is_never_suggested():
    found = suggest(RATES, curve(falls_at=0.3, diverges_at=0.5))
    assert found.rate == pytest.approx(found.diverging / 10)
    assert found.rate < found.steepest


def test_temporary_peak_is_not_divergence():
    losses = curve(falls_at=1e-3, diverges_at=1.0)
    losses[65:67] += 20
    assert suggest(RATES, losses).diverging == pytest.approx(1.3, rel=0.3)


def test_low_loss_never_diverges():
    found = suggest(RATES, curve(falls_at=1e-3, diverges_at=1e3))
    assert found.diverging is None
    assert found.rate == found.steepest


def test_divergence_is_relative_to_the_best_loss():
    losses = np.concatenate([curve(falls_at=1e-3, diverges_at=1e3, lowest=0.2)[:90], np.full(5, 2.0)])
    assert has_diverged(losses) and losses[-1] < losses[0]
    found = suggest(RATES[:95], losses)
    assert found.diverging == RATES[94]
    assert "diverges at" in found.reason


def test_nan_loss_diverges():
    losses = curve(falls_at=1e-3, diverges_at=1e3)[:80]
    losses[-1] = math.nan
    assert suggest(RATES[:80], losses).diverging == RATES[79]


@pytest.mark.parametrize("noise", [0.0, 0.1, 1.0])
def test_no_suggestion_without_a_decrease(noise):
    assert suggest(RATES, curve(falls_at=1e-3, diverges_at=1.0, lowest=4.0, noise=noise)) is None


def test_no_suggestion_for_nan_loss():
    assert has_diverged([math.nan])
    assert suggest(RATES[:1], [math.nan]) is None


def test_smoothing_has_no_lag():
    assert smoothed([3.0] * 20) == pytest.approx([3.0] * 20)
    step = smoothed([4.0] * 50 + [2.0] * 50)
    assert (step[48] > 3 > step[51]) and step[0] == 4 and step[-1] == 2


def test_the_test_ends_where_the_smoothed_loss_is_four_times_its_best():
    assert not has_diverged([4.0] * 20 + [2.0] * 20 + [7.9] * 20)
    assert has_diverged([4.0] * 20 + [2.0] * 20 + [8.1] * 20)
    assert not has_diverged([2.0] * 20 + [16.0])  # one batch


def test_rates_rise_by_the_same_factor_over_the_range_of_the_optimizer():
    for optimizer, (lowest, highest) in {"adamw": (1e-6, 1.0), "sgd": (1e-5, 10.0)}.items():
        rates = swept_rates(optimizer)
        assert (len(rates), rates[0], rates[-1]) == (STEPS, pytest.approx(lowest), pytest.approx(highest))
        assert np.diff(np.log(rates)) == pytest.approx(np.log(highest / lowest) / (STEPS - 1))


def refused(capsys, message, *arguments):
    assert cli.main(["convoy", "train", "--data=data", "--workdir=run", *arguments]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert len(error.splitlines()) <= 2


@pytest.mark.parametrize("finder", ["find_lr", "find_batch_size"])
def test_cluster_is_refused_with_a_fix(capsys, finder):
    hosts = ("--worker_hosts=10.0.0.1:1,10.0.0.2:1", "--worker_index=0")
    refused(capsys, f"--{finder} runs in one process, not on the 2 workers", f"--{finder}", *hosts)


def test_both_finders_at_once_are_refused(capsys):
    refused(capsys, "--find_lr and --find_batch_size", "--find_lr", "--find_batch_size")


@pytest.mark.slow
def test_finder_does_not_change_the_run(dataset, tmp_path, convoy):
    flags = ("--config=smoke", f"--data={dataset.data}", "--devices=cpu:2", "--deterministic", "--config.steps=2")
    flags += ("--config.precision=float32", "--config.eval_every_steps=2")
    flags += (f"--config.model.name={user_models.__file__}:small",)
    run, undisturbed = tmp_path / "run", tmp_path / "undisturbed"
    found, trained, alone = (
        convoy("train", *flags, f"--workdir={run}", "--find_lr"),
        convoy("train", *flags, f"--workdir={run}"),
        convoy("train", *flags, f"--workdir={undisturbed}"),
    )
    assert [answer.returncode for answer in (found, trained, alone)] == [0, 0, 0], found.output
    assert "Suggested: --config.optimizer.learning_rate=" in found.output or "No suggestion" in found.output
    assert "Resumed" not in trained.output
    assert event_names(run)[:2] == ["start", "first_step"]
    assert result_of(run)["weights_sha256"] == result_of(undisturbed)["weights_sha256"]
    names, undisturbed_names = ({path.name for path in folder.iterdir()} for folder in (run, undisturbed))
    assert names - undisturbed_names == {"find_lr.csv", "find_lr.png"}
    with open(run / "find_lr.csv", newline="") as file:
        rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    assert 10 <= len(rows) <= STEPS
    assert [row["learning_rate"] for row in rows] == pytest.approx(swept_rates("adamw")[: len(rows)], rel=1e-4)
    losses = [row["loss"] for row in rows]
    assert [row["smoothed_loss"] for row in rows] == pytest.approx(smoothed(losses), rel=1e-4, nan_ok=True)
    assert (run / "find_lr.png").read_bytes().startswith(b"\x89PNG")
