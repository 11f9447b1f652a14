"""The learning-rate range test (Smith 2017; Smith and Topin 2019): a short run with an increasing learning rate.

    test = find_learning_rate(config, data="data", workdir="run", devices=parse_devices("auto"))
    test.suggestion.rate, test.suggestion.reason

It trains the whole model from the run's initial weights, on its devices, images and augmentation, until the loss
diverges, without freezing and progressive resizing. The test has up to 100 steps even if an epoch has fewer, since the
curve needs several per power of ten. It only writes RUN/find_lr.csv and RUN/find_lr.png, which do not affect a later
run. With the same virtual replicas the step is the same on any hardware, so one process finds the rate for a cluster.
"""

import contextlib
import csv
import io
import logging
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import ml_collections
import numpy as np

from convoy.core.devices import Devices
from convoy.core.errors import DataError
from convoy.core.files import write_whole, written_whole
from convoy.core.text import counted
from convoy.input_pipeline.dataset.layout import RecordFormat
from convoy.trainer.finders.trial import STEPS, prepare_trial
from convoy.trainer.run.directory import RunDirectory
from convoy.trainer.tf_compat.keras_state import global_state_kept

_logger = logging.getLogger("convoy")
# Lowest and highest rate per optimizer: from hardly any effect to certain divergence.
_RANGES = {
    "adam": (1e-6, 1.0),
    "adamw": (1e-6, 1.0),
    "lamb": (1e-5, 10.0),
    "sgd": (1e-5, 10.0),
    "lars": (1e-2, 1e3),
    "lion": (1e-7, 0.1),
    "muon": (1e-5, 10.0),
    "schedule_free_adamw": (1e-6, 10.0),
}
_RANGE_OF_OTHERS = (1e-6, 10.0)
_DIVERGED = 4.0  # times the best loss so far
_FIRST = STEPS // 10  # steps with rates too low to change the loss
# Standard deviations of the first losses: a smoothed curve of pure noise falls by more in 1 of 100 cases.
_BEYOND_NOISE = 2.0
_SMOOTHED_OVER = 0.03  # standard deviation of the weights, as a share of STEPS
_LINE_EVERY = 10


@dataclass(frozen=True)
class Suggestion:
    """The suggested learning rate.

    Attributes:
      rate: per step: the rate of the steepest descent, but at most a tenth of the diverging one.
      steepest: the rate at which the smoothed loss falls fastest.
      diverging: the lowest rate from which on the smoothed loss stays above its start, or at which it diverged; None
        if there is none.
      reason: explanation, for messages.
    """

    rate: float
    steepest: float
    diverging: float | None
    reason: str


@dataclass(frozen=True)
class RangeTest:
    """The result of a range test.

    Attributes:
      rates: [steps] rate of each step, increasing.
      losses: [steps] loss of each batch before its update.
      smoothed: [steps] smoothed losses.
      suggestion: None if the loss fell at no rate by more than its noise.
      flag: the flag that sets the suggested rate, corrected for scaling with the batch; empty without a suggestion.
    """

    rates: np.ndarray
    losses: np.ndarray
    smoothed: np.ndarray
    suggestion: Suggestion | None
    flag: str


@global_state_kept()
def find_learning_rate(
    config: ml_collections.ConfigDict,
    *,
    data: str,
    workdir: str,
    devices: Devices,
    strategy_name: str = "auto",
    record_format: RecordFormat | None = None,
    say: Callable[[str], None] = _logger.info,
) -> RangeTest:
    """Runs the test, reports the result, and writes RUN/find_lr.csv and RUN/find_lr.png.

    Args:
      config: complete. Its schedule and learning rate are not used.
      data: dataset directory with a split `train`.
      workdir: run directory, new or existing.
      devices: devices to train on.
      strategy_name: one of `devices.STRATEGIES`.
      record_format: what is known about the records of other tools.
      say: called with each line of progress and result.

    Raises:
      UsageError: config, devices and dataset do not fit together, or `workdir` cannot be a run directory.
      DataError: the dataset cannot be used, or `workdir` cannot be written.
    """
    run = RunDirectory(workdir)
    run.check()
    trial = prepare_trial(config, data=data, devices=devices, strategy_name=strategy_name, record_format=record_format)
    _make_folder(run)
    rates = swept_rates(config.optimizer.name)
    say(
        f"Learning rates from {rates[0]:.0e} to {rates[-1]:.0e} in up to {STEPS} steps of "
        f"{counted(trial.plan.global_batch_size, 'image')}, with {config.optimizer.name}.",
    )
    losses: list[float] = []
    with contextlib.closing(trial.training_input.batches(0)) as batches:
        for rate in rates:
            result = trial.step(next(batches), rate)
            loss = trial.objective.metrics.summarize(result.sums.numpy())["loss"]
            # In float16 an overflow just lowers the loss scale.
            overflowed = not result.finite.numpy() and result.loss_scale.numpy() <= 1
            losses.append(math.nan if overflowed else loss)
            if len(losses) % _LINE_EVERY == 0:
                say(f"step {len(losses)}/{STEPS}  lr {rate:.1e}  loss {loss:.4f}")
            if has_diverged(losses):
                break
    rates = rates[: len(losses)]
    suggestion = suggest(rates, losses)
    scale = trial.plan.peak_learning_rate / config.optimizer.learning_rate
    flag = f"--config.optimizer.learning_rate={suggestion.rate / scale:.2g}" if suggestion else ""
    test = RangeTest(rates, np.array(losses), smoothed(losses), suggestion, flag)
    _write(run, test)
    say("\n".join([*_conclusion(test, config), f"Curve: {run.learning_rate_plot}, {run.learning_rates}"]))
    return test


def swept_rates(optimizer: str) -> np.ndarray:
    """Returns the learning rates of the steps, [STEPS], exponentially spaced over the optimizer's range."""
    lowest, highest = _RANGES.get(optimizer, _RANGE_OF_OTHERS)
    return np.geomspace(lowest, highest, STEPS)


def smoothed(losses: Sequence[float]) -> np.ndarray:
    """Returns the losses smoothed with a Gaussian, [steps]; NaN where the loss itself is NaN.

    Unlike a moving average of earlier steps, it does not lag behind the loss.
    """
    values = np.asarray(losses, np.float64)
    numbers = np.isfinite(values)
    place = np.arange(len(values))
    weights = np.exp(-0.5 * ((place[:, None] - place) / (_SMOOTHED_OVER * STEPS)) ** 2) * numbers
    means = (weights * np.where(numbers, values, 0.0)).sum(1) / np.maximum(weights.sum(1), 1e-300)
    return np.where(numbers, means, np.nan)


def has_diverged(losses: Sequence[float]) -> bool:
    """Whether the latest loss is not finite, or the smoothed loss is above four times its best."""
    curve = smoothed(losses)
    return not math.isfinite(curve[-1]) or curve[-1] > _DIVERGED * np.nanmin(curve)


def suggest(rates: Sequence[float] | np.ndarray, losses: Sequence[float]) -> Suggestion | None:
    """Returns the suggestion of a curve; None if the loss fell at no rate by more than its noise.

    Args:
      rates: [steps] increasing.
      losses: [steps] per image; the last one may be NaN.
    """
    swept, curve = np.asarray(rates, np.float64), smoothed(losses)
    if len(curve) <= _FIRST:
        return None
    start, noise = float(np.mean(losses[:_FIRST])), float(np.std(losses[:_FIRST]))
    best = int(np.nanargmin(curve))
    if best == 0 or start - curve[best] <= _BEYOND_NOISE * noise:
        return None
    slopes = np.gradient(curve[: best + 1], np.log10(swept[: best + 1]))
    steepest = float(swept[np.argmin(slopes)])
    first_above = int(np.flatnonzero(curve <= start)[-1]) + 1
    if first_above == len(curve):
        if not has_diverged(losses):
            reason = "where the loss falls fastest; it does not diverge within the test"
            return Suggestion(steepest, steepest, None, reason)
        first_above -= 1
    diverging = float(swept[first_above])
    if steepest <= diverging / 10:
        reason = f"where the loss falls fastest; it diverges at {diverging:.2g}"
        return Suggestion(steepest, steepest, diverging, reason)
    reason = f"a tenth of {diverging:.2g}, where the loss diverges; it falls fastest at {steepest:.2g}, close to that"
    return Suggestion(diverging / 10, steepest, diverging, reason)


def _conclusion(test: RangeTest, config: ml_collections.ConfigDict) -> list[str]:
    if not test.suggestion and len(test.rates) <= _FIRST:
        return [
            f"No suggestion: after {counted(len(test.rates), 'step')}, at a learning rate of only "
            f"{test.rates[-1]:.2g}, the loss was {test.losses[-1]:.4g}. Check the data and the model; with "
            "config.precision=float16, try bfloat16."
        ]
    if not test.suggestion:
        return [
            f"No suggestion: the loss did not fall by more than its noise at any learning rate up to "
            f"{test.rates[-1]:.2g}. Increase config.batch_size to reduce the noise, or check the data and the model."
        ]
    scaling = config.schedule.scaling
    scaled = "" if scaling == "none" else f" after config.schedule.scaling={scaling}"
    return [
        f"Suggested: {test.flag}",
        f"That is {test.suggestion.rate:.2g} per step{scaled}: {test.suggestion.reason}.",
    ]


def _make_folder(run: RunDirectory) -> None:
    try:
        run.path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _not_written(run, error.strerror) from None
    if not os.access(run.path, os.W_OK):
        raise _not_written(run, "no permission")


def _not_written(run: RunDirectory, why: str | None) -> DataError:
    return DataError(f"--workdir={run.path}: cannot be written ({why}). Pass a writable folder.")


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
    axes.semilogx(test.rates, test.losses, ".", color="tab:gray", alpha=0.5, label="loss per batch")
    axes.semilogx(test.rates, test.smoothed, color="tab:blue", label="smoothed")
    if found := test.suggestion:
        axes.axvline(found.rate, color="tab:green", label=f"suggested: {found.rate:.2g}")
        if found.diverging:
            axes.axvline(found.diverging, color="tab:red", linestyle="--", label=f"diverges: {found.diverging:.2g}")
    if np.isfinite(test.losses).any():  # a diverging loss would flatten the rest
        most = min(1.1 * np.nanmax(test.losses), 2.0 * np.nanmax(test.losses[:_FIRST]))
        axes.set_ylim(0.9 * np.nanmin(test.losses), most)
    axes.set_xlabel("learning rate")
    axes.set_ylabel("training loss")
    axes.grid(alpha=0.3)
    axes.legend()
    with written_whole(run.learning_rate_plot) as file:
        figure.savefig(file, format="png", dpi=110)
