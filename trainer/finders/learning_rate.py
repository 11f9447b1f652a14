"""The learning-rate range test (Smith 2017; Smith and Topin 2019): one short run whose rate rises with every step.

    test = find_learning_rate(config, data="data", workdir="run", devices=parse_devices("auto"))
    test.suggestion.rate, test.suggestion.reason

It trains the whole model from the run's initial weights, on its images with its augmentation and on its devices, until
the loss blows up; a frozen backbone and smaller images come at a run's start, not here. However few steps an epoch has
there are up to 100 of them, since the curve wants some in each power of ten. Of the run directory it writes
RUN/find_lr.csv and RUN/find_lr.png alone: a run that starts there later knows nothing of it. With the same virtual
replicas the step is the same on any hardware, so one process finds the rate of a whole cluster.
"""

import contextlib
import csv
import io
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass

import ml_collections
import numpy as np

from convoy.core.devices import Devices
from convoy.core.errors import DataError
from convoy.core.files import write_whole, written_whole
from convoy.trainer.finders.trial import STEPS, prepare_trial
from convoy.trainer.run.directory import RunDirectory
from convoy.trainer.step.metrics import summarize

# The lowest and the highest rate of a step: for each optimizer from where it hardly moves to where it cannot stay.
_RANGES = {"adam": (1e-6, 1.0), "adamw": (1e-6, 1.0), "lamb": (1e-5, 10.0), "sgd": (1e-5, 10.0), "lars": (1e-2, 1e3)}
_BLOWN_UP = 4.0  # times the best loss so far
_FIRST = STEPS // 10  # steps whose rates are too low to change the loss
# Standard deviations of the first losses: by more a smoothed curve of nothing but noise hardly ever falls (1 in 100).
_BEYOND_NOISE = 2.0
_SMOOTHED_OVER = 0.03  # standard deviation of the weights, as a share of STEPS
_LINE_EVERY = 10


@dataclass(frozen=True)
class Suggestion:
    """What the curve says.

    Attributes:
      rate: of a step: that of the steepest descent, but at most a tenth of the one that diverges.
      steepest: where the smoothed loss falls fastest for a growing rate.
      diverging: the lowest rate from which on the smoothed loss stays above where it began, or the one at which it had
        blown up; None where neither is.
      reason: which of the two it is, in words.
    """

    rate: float
    steepest: float
    diverging: float | None
    reason: str


@dataclass(frozen=True)
class RangeTest:
    """What was measured.

    Attributes:
      rates: [steps] of each step, rising.
      losses: [steps] of each step's batch before its update, in nats.
      smoothed: [steps] the same as a running mean.
      suggestion: None where the loss fell at no rate, beyond its noise.
      flag: what makes the run take the suggested rate, scaling with the batch included; empty without a suggestion.
    """

    rates: np.ndarray
    losses: np.ndarray
    smoothed: np.ndarray
    suggestion: Suggestion | None
    flag: str


def find_learning_rate(
    config: ml_collections.ConfigDict, *, data: str, workdir: str, devices: Devices, strategy_name: str = "auto"
) -> RangeTest:
    """Runs the test, prints what it finds, and writes RUN/find_lr.csv and RUN/find_lr.png.

    Args:
      config: complete. Its schedule and learning rate are not used.
      data: the dataset directory, with a split `train`.
      workdir: the run directory, of a run or not yet.
      devices: what to train on.
      strategy_name: one of `devices.STRATEGIES`.

    Raises:
      UsageError: config, devices and dataset do not fit together, or `workdir` can hold no run.
      DataError: the dataset cannot be used, or `workdir` cannot be written.
    """
    run = RunDirectory(workdir)
    run.check()
    trial = prepare_trial(config, data=data, devices=devices, strategy_name=strategy_name)
    _make_folder(run)
    rates = swept_rates(config.optimizer.name)
    print(
        f"Learning rates from {rates[0]:.0e} to {rates[-1]:.0e} in up to {STEPS} steps of "
        f"{trial.plan.global_batch_size} images, with {config.optimizer.name}.",
        flush=True,
    )
    losses: list[float] = []
    with contextlib.closing(trial.batches()) as batches:
        for rate in rates:
            result = trial.step(next(batches), rate)
            loss = summarize(result.sums.numpy())["loss"]
            # In float16 an overflow only lowers the loss scale.
            overflowed = not result.finite.numpy() and result.loss_scale.numpy() <= 1
            losses.append(math.nan if overflowed else loss)
            if len(losses) % _LINE_EVERY == 0:
                print(f"step {len(losses)}/{STEPS}  lr {rate:.1e}  loss {loss:.4f}", flush=True)
            if has_blown_up(losses):
                break
    rates = rates[: len(losses)]
    suggestion = suggest(rates, losses)
    scale = trial.plan.peak_learning_rate / config.optimizer.learning_rate
    flag = f"--config.optimizer.learning_rate={suggestion.rate / scale:.2g}" if suggestion else ""
    test = RangeTest(rates, np.array(losses), smoothed(losses), suggestion, flag)
    _write(run, test)
    print("\n".join([*_told(test, config), f"Curve: {run.learning_rate_plot}, {run.learning_rates}"]))
    return test


def swept_rates(optimizer: str) -> np.ndarray:
    """Returns the learning rates of the test's steps, [STEPS], rising exponentially over what suits the optimizer."""
    lowest, highest = _RANGES[optimizer]
    return np.geomspace(lowest, highest, STEPS)


def smoothed(losses: Sequence[float]) -> np.ndarray:
    """Returns the mean of each loss and its neighbours with Gaussian weights; NaN where the loss itself is no number.

    Unlike an average over the steps before, it does not lag: it falls and rises at the rates at which the loss does.
    """
    values = np.asarray(losses, np.float64)
    numbers = np.isfinite(values)
    place = np.arange(len(values))
    weights = np.exp(-0.5 * ((place[:, None] - place) / (_SMOOTHED_OVER * STEPS)) ** 2) * numbers
    means = (weights * np.where(numbers, values, 0.0)).sum(1) / np.maximum(weights.sum(1), 1e-300)
    return np.where(numbers, means, np.nan)


def has_blown_up(losses: Sequence[float]) -> bool:
    """Whether the newest loss is no number, or the smoothed loss stands above four times its best."""
    curve = smoothed(losses)
    return not math.isfinite(curve[-1]) or curve[-1] > _BLOWN_UP * np.nanmin(curve)


def suggest(rates: Sequence[float], losses: Sequence[float]) -> Suggestion | None:
    """Returns what a curve says; None where the loss has not fallen at any rate, beyond its noise.

    Args:
      rates: [steps] rising.
      losses: [steps] in nats; the last one may be no number.
    """
    rates, curve = np.asarray(rates, np.float64), smoothed(losses)
    if len(curve) <= _FIRST:
        return None
    start, noise = float(np.mean(losses[:_FIRST])), float(np.std(losses[:_FIRST]))
    best = int(np.nanargmin(curve))
    if best == 0 or start - curve[best] <= _BEYOND_NOISE * noise:
        return None
    slopes = np.gradient(curve[: best + 1], np.log10(rates[: best + 1]))
    steepest = float(rates[np.argmin(slopes)])
    first_above = int(np.flatnonzero(curve <= start)[-1]) + 1
    if first_above == len(curve):
        if not has_blown_up(losses):
            reason = "where the loss falls fastest; at no rate of the test it diverges"
            return Suggestion(steepest, steepest, None, reason)
        first_above -= 1
    diverging = float(rates[first_above])
    if steepest <= diverging / 10:
        reason = f"where the loss falls fastest; it diverges at {diverging:.2g}"
        return Suggestion(steepest, steepest, diverging, reason)
    reason = f"a tenth of where the loss diverges, {diverging:.2g}; it falls fastest at {steepest:.2g}, close to that"
    return Suggestion(diverging / 10, steepest, diverging, reason)


def _told(test: RangeTest, config: ml_collections.ConfigDict) -> list[str]:
    if not test.suggestion and len(test.rates) <= _FIRST:
        return [
            f"No suggestion: after {len(test.rates)} steps, at a learning rate of only {test.rates[-1]:.2g}, the loss "
            f"was {test.losses[-1]:.4g}. Look at the data and the model; with config.precision=float16, try bfloat16."
        ]
    if not test.suggestion:
        return [
            f"No suggestion: at no learning rate up to {test.rates[-1]:.2g} the loss fell by more than its noise. "
            "A larger config.batch_size has less of it; else look at the data and the model."
        ]
    scaled = "" if config.schedule.scaling == "none" else f", which config.schedule.scaling={config.schedule.scaling}"
    return [
        f"Suggested: {test.flag}",
        f"That is {test.suggestion.rate:.2g} in a step{scaled and f'{scaled} makes of it'}: {test.suggestion.reason}.",
    ]


def _make_folder(run: RunDirectory) -> None:
    try:
        run.path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _not_written(run, error.strerror) from None
    if not os.access(run.path, os.W_OK):
        raise _not_written(run, "no permission")


def _not_written(run: RunDirectory, why: str) -> DataError:
    return DataError(f"--workdir={run.path}: cannot be written ({why}). Give a folder that can.")


def _write(run: RunDirectory, test: RangeTest) -> None:
    rows = io.StringIO(newline="")
    writer = csv.writer(rows, lineterminator="\n")
    writer.writerow(("learning_rate", "loss", "smoothed_loss"))
    for values in zip(test.rates, test.losses, test.smoothed, strict=True):
        writer.writerow(f"{value:.6g}" for value in values)
    try:
        write_whole(run.learning_rates, rows.getvalue().encode())
        _draw(run, test)
    except OSError as error:
        raise _not_written(run, error.strerror) from None


def _draw(run: RunDirectory, test: RangeTest) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.semilogx(test.rates, test.losses, ".", color="tab:gray", alpha=0.5, label="loss of a batch")
    axes.semilogx(test.rates, test.smoothed, color="tab:blue", label="smoothed")
    if found := test.suggestion:
        axes.axvline(found.rate, color="tab:green", label=f"suggested: {found.rate:.2g}")
        if found.diverging:
            axes.axvline(found.diverging, color="tab:red", linestyle="--", label=f"diverges: {found.diverging:.2g}")
    if np.isfinite(test.losses).any():  # what blows up would press the rest flat
        most = min(1.1 * np.nanmax(test.losses), 2.0 * np.nanmax(test.losses[:_FIRST]))
        axes.set_ylim(0.9 * np.nanmin(test.losses), most)
    axes.set_xlabel("learning rate of a step")
    axes.set_ylabel("training loss (nats)")
    axes.grid(alpha=0.3)
    axes.legend()
    with written_whole(run.learning_rate_plot) as file:
        figure.savefig(file, format="png", dpi=110)
