"""The story of a run: from wherever its directory says it stands to its last step.

result = train(config, data="data", workdir="run", devices=parse_devices("auto"))
"""

import contextlib
import shlex
import sys
from collections.abc import Iterator
from typing import Any

import ml_collections
import numpy as np

from input_pipeline.crop import Crop
from input_pipeline.dataset import Dataset, open_dataset
from input_pipeline.errors import ConvoyError, DataError, UsageError
from input_pipeline.reader import Batch, Reader, Slices
from trainer import config as configs
from trainer import metrics
from trainer.checkpoints import CheckpointStore, DamagedError
from trainer.chronometer import Chronometer
from trainer.config import Plan
from trainer.console import TrainingConsole
from trainer.curves import draw_curves
from trainer.description import dataset_identity, environment, header_rows
from trainer.devices import Devices, make_strategy
from trainer.evaluation import EVALUATION_BATCH_SIZE, Evaluator, read_all
from trainer.preprocess import DRAWS, ColourRanges
from trainer.results import append_result, truncate_results
from trainer.run_directory import RunDirectory, truncate_json_lines
from trainer.runtime import Runtime, make_runtime
from trainer.schedules import learning_rate as learning_rate_at
from trainer.step import StepResult, StepSettings, TrainStep
from trainer.writers import MetricWriters


class DivergedError(ConvoyError):
    """The loss is no number any more. The message names the step, the last checkpoint and the mend."""


class InterruptedRunError(ConvoyError):
    """Ctrl-C."""

    exit_code = 130


def train(
    config: ml_collections.ConfigDict, *, data: str, workdir: str, devices: Devices, strategy_name: str = "auto"
) -> dict[str, Any]:
    """Trains until the config's last step, from the newest checkpoint in `workdir` or from the start.

    Args:
      config: complete.
      data: the dataset directory, with a split `train`; evaluated on `validation` where it has that.
      workdir: the run directory.
      devices: what to train on.
      strategy_name: one of `devices.STRATEGIES`.

    Returns:
      What result.json holds.

    Raises:
      UsageError: config, devices and dataset do not fit together.
      DataError: data, checkpoint or run directory cannot be used, or the run was started with another config or
        dataset.
      DivergedError: the loss became NaN or infinite, other than by float16's overflow.
    """
    configs.check(config)
    dataset = open_dataset(data)
    split = dataset.split("train")
    if dataset.num_classes < 2:
        raise UsageError(
            f"--data={data} has the one class {dataset.class_names[0]!r}: there is nothing to tell apart. "
            "`convoy convert --images` wants the folder that holds a folder a class."
        )
    run = RunDirectory(workdir)
    store = CheckpointStore(run.checkpoints, config.keep_checkpoints)
    checkpoint = _newest_checkpoint(store)
    if checkpoint:
        config = configs.with_choices_of(config, checkpoint[1]["config"])
        _check_same_run(checkpoint[1], config, dataset, run)
    strategy = make_strategy(devices, strategy_name)
    plan = configs.resolve(config, num_images=split.num_images, replicas=strategy.num_replicas_in_sync)
    runtime = make_runtime(config, strategy, num_classes=dataset.num_classes)
    config = configs.with_choices_of(
        config, {"virtual_replicas": plan.virtual_replicas, "precision": runtime.precision}
    )
    run.create()
    if checkpoint:
        values, metadata = checkpoint
        try:
            runtime.state.assign(values, metadata["step"])
        except DataError as error:
            raise DataError(f"checkpoint of step {metadata['step']} in {run.checkpoints}: {error}") from None
    reported = checkpoint[1]["reported"] if checkpoint else {}
    return _Training(config, plan, runtime, dataset, run, store, reported).to_the_end()


class _Training:
    """A run in progress."""

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        plan: Plan,
        runtime: Runtime,
        dataset: Dataset,
        run: RunDirectory,
        store: CheckpointStore,
        reported: dict[str, Any],
    ):
        self._config = config
        self._plan = plan
        self._runtime = runtime
        self._dataset = dataset
        self._run = run
        self._store = store
        self._state = runtime.state
        self._chronometer = Chronometer(plan.global_batch_size)
        self._writers = MetricWriters(run)
        self._step = TrainStep(runtime.state, runtime.built, runtime.optimizer, _step_settings(config, plan, runtime))
        crop = Crop(config.image_size, config.augment.crop_area)
        self._reader = Reader(dataset.split("train"), crop, draws=DRAWS)
        self._evaluator = None
        if "validation" in dataset.splits:
            reader = Reader(dataset.split("validation"), crop)
            self._evaluator = Evaluator(self._state, runtime.built, reader, EVALUATION_BATCH_SIZE)
        self._console = TrainingConsole(plan.total_steps, runtime.state.step)
        self._window_sums = np.zeros(metrics.sums_size(dataset.num_classes))
        self._window_last: StepResult | None = None
        # A run that was killed between its last checkpoint and its result reports what it had measured.
        self._quality: dict[str, dict[str, float]] = reported.get("metrics", {})  # newest by split
        self._images_per_second_before: float | None = reported.get("images_per_second")

    def to_the_end(self) -> dict[str, Any]:
        if self._state.step >= self._plan.total_steps and self._run.result.exists():
            self._console.say(f"Nothing left to train: {self._run.path} is at its last step, {self._state.step}.")
            return self._run.read_json(self._run.result)
        with self._console:
            self._begin()
            try:
                self._train_steps()
            except KeyboardInterrupt:
                raise InterruptedRunError(self._where_it_goes_on()) from None
            return self._finish()

    def _where_it_goes_on(self) -> str:
        newest = self._store.latest()
        start = "the start, for want of a checkpoint" if newest is None else f"step {newest}, the newest checkpoint"
        return f"interrupted at step {self._state.step}. The same command goes on from {start}."

    def _begin(self) -> None:
        run, step = self._run, self._state.step
        truncate_json_lines(run.metrics, step)
        truncate_results(run, step)
        files = {
            "config": configs.to_json(self._config),
            "environment": environment(),
            "dataset": {
                "directory": str(self._dataset.directory.resolve()),
                "class_names": list(self._dataset.class_names),
                **dataset_identity(self._dataset),
            },
        }
        for name, value in files.items():
            run.write_json(run.path / f"{name}.json", value)
            self._writers.write_text(f"run/{name}", value)
        command = shlex.join(sys.argv)
        (run.path / "command.txt").write_text(command + "\n", encoding="utf-8")
        self._writers.write_text("run/command", command)
        run.append_event("restored" if step else "start", step=step, replicas=self._plan.replicas)
        self._console.header(header_rows(self._config, self._plan, self._runtime, self._dataset, run))
        if step:
            self._console.say(f"Resumed at step {step} of {self._plan.total_steps}.")

    def _train_steps(self) -> None:
        plan, state = self._plan, self._state
        slices = Slices(plan.global_batch_size, plan.replicas)
        dataset = self._runtime.strategy.distribute_datasets_from_function(
            lambda context: self._reader.training(slices, seed=self._config.seed, start_step=state.step)
        )
        with contextlib.closing(read_all(dataset, self._reader)) as batches:
            self._train_on(batches)

    def _train_on(self, batches: Iterator[Batch]) -> None:
        plan, state = self._plan, self._state
        first_step, pending = state.step + 1, None
        while state.step < plan.total_steps:
            with self._chronometer.waiting():
                batch = next(batches)
            learning_rate = self._learning_rate(state.step)
            result = self._step(batch, learning_rate)
            if pending:  # results are read one step late, so that a GPU always has the next step waiting
                self._take_in(pending, state.step - 1)
            pending = result
            log, evaluate, checkpoint = (
                state.step == plan.total_steps or state.step % every == 0
                for every in (plan.log_every_steps, plan.eval_every_steps, plan.checkpoint_every_steps)
            )
            if log or evaluate or checkpoint or state.step == first_step:
                self._take_in(pending, state.step)
                pending = None
            self._chronometer.end_step()
            self._console.step(state.step)
            if state.step == first_step:
                self._run.append_event("first_step", step=state.step)
            with self._chronometer.paused():
                if log:
                    self._log(learning_rate)
                score, is_best = self._evaluate() if evaluate else (None, False)
                if checkpoint or is_best:
                    self._save(score)

    def _learning_rate(self, step: int) -> float:
        schedule = self._config.schedule
        return learning_rate_at(
            step,
            total_steps=self._plan.total_steps,
            peak=self._plan.peak_learning_rate,
            name=schedule.name,
            warmup_steps=self._plan.warmup_steps,
            final_fraction=schedule.final_fraction,
            boundaries=schedule.boundaries,
            factor=schedule.factor,
        )

    def _take_in(self, result: StepResult, step: int) -> None:
        """Waits for a step's result and adds it up."""
        self._window_sums += result.sums.numpy()
        self._window_last = result
        # In float16 an overflow is no news while the loss scale can still be lowered.
        if not result.finite.numpy() and result.loss_scale.numpy() <= 1:
            last = self._store.latest()
            raise DivergedError(
                f"the gradient of step {step} is NaN or infinite; that update was not applied. "
                f"Last checkpoint: {'none' if last is None else f'step {last}'}. "
                f"Lower config.optimizer.learning_rate={self._config.optimizer.learning_rate:g}, "
                "or limit the gradient with config.optimizer.clip_norm=1."
            )

    def _log(self, learning_rate: float) -> None:
        window, state = self._chronometer.window(), self._state
        self._quality["train"] = metrics.summarize(self._window_sums)
        self._window_sums[:] = 0
        values = {f"quality/{name}": value for name, value in self._quality["train"].items()} | {
            "optim/lr": learning_rate,
            "optim/grad_norm": float(self._window_last.gradient_norm),
            "optim/weight_norm": state.weight_norm(),
            "optim/loss_scale": float(self._window_last.loss_scale),
            "perf/images_per_s": window.images_per_second,
            "perf/images_per_s_per_replica": window.images_per_second / self._plan.replicas,
            "perf/step_ms_p50": window.step_ms_p50,
            "perf/step_ms_p95": window.step_ms_p95,
            "perf/input_wait_pct": window.input_wait_pct,
            "run/epoch": self._epoch(),
        }
        self._writers.write("train", state.step, values)
        self._console.progress(state.step, self._epoch(), values)

    def _evaluate(self) -> tuple[float | None, bool]:
        """Evaluates on the validation split, where there is one; returns the score and whether it is the best."""
        if not self._evaluator:
            return None, False
        step, quality = self._state.step, self._evaluator.metrics()
        self._quality["validation"] = quality
        self._writers.write(
            "validation",
            step,
            {f"quality/{name}": value for name, value in quality.items()} | {"run/epoch": self._epoch()},
        )
        self._writers.flush()
        score, best_score = quality["top1"], self._store.best_score()
        is_best = best_score is None or score > best_score
        append_result(self._run, step=step, split="validation", quality=quality)
        self._console.evaluation(step, self._epoch(), "validation", quality, is_best)
        return score, is_best

    def _save(self, score: float | None) -> None:
        self._writers.flush()
        self._store.save(
            self._state.values(),
            step=self._state.step,
            metadata={
                "config": configs.to_json(self._config),
                "dataset": dataset_identity(self._dataset),
                "weights_sha256": self._state.weights_sha256(),
                "reported": {"metrics": self._quality, "images_per_second": self._images_per_second()},
            },
            score=score,
        )

    def _finish(self) -> dict[str, Any]:
        plan, step = self._plan, self._state.step
        result = {
            "step": step,
            "epoch": self._epoch(),
            "images_seen": step * plan.global_batch_size,
            "metrics": self._quality,
            "best": {"step": self._store.best(), "top1": self._store.best_score()},
            "images_per_second": self._images_per_second(),
            "weights_sha256": self._state.weights_sha256(),
            "virtual_replicas": plan.virtual_replicas,
            "replicas": plan.replicas,
        }
        self._writers.close()
        draw_curves(self._run)
        self._run.write_json(self._run.result, result)
        self._run.append_event("done", step=step)
        self._console.say(f"Done: step {step}, weights_sha256 {result['weights_sha256'][:16]}.")
        self._console.say(f"Curves: {self._run.curves}")
        return result

    def _images_per_second(self) -> float | None:
        return self._chronometer.steady_images_per_second() or self._images_per_second_before

    def _epoch(self) -> float:
        return self._state.step / self._plan.steps_per_epoch


def _newest_checkpoint(store: CheckpointStore) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
    """Returns the newest checkpoint that is whole, as values and metadata; says which ones are not."""
    damaged: DamagedError | None = None
    for step in reversed(store.steps()):
        try:
            return store.load(step)
        except DamagedError as error:
            damaged = error
            print(f"convoy: {error}", file=sys.stderr)
    if damaged:
        raise DataError(f"no checkpoint in {store.folder} is whole. Restore one, or start anew in another --workdir.")
    return None


def _check_same_run(
    metadata: dict[str, Any], config: ml_collections.ConfigDict, dataset: Dataset, run: RunDirectory
) -> None:
    """Raises a UsageError where a checkpoint belongs to another config, a DataError where to another dataset."""
    changed = configs.differences(metadata["config"], configs.to_json(config))
    if changed:
        raise UsageError(
            f"--workdir={run.path} holds step {metadata['step']} of a run with another config: {'; '.join(changed)}. "
            "Give the same config to go on with it, or another --workdir."
        )
    before, now = metadata["dataset"], dataset_identity(dataset)
    changed = [f"{name}: {before[name]} -> {now[name]}" for name in now if before.get(name, now[name]) != now[name]]
    if changed:
        raise DataError(
            f"--workdir={run.path} holds step {metadata['step']} of a run on another dataset than {dataset.directory}: "
            f"{'; '.join(changed)}. Give the same --data to go on with it, or another --workdir."
        )


def _step_settings(config: ml_collections.ConfigDict, plan: Plan, runtime: Runtime) -> StepSettings:
    augment = config.augment
    return StepSettings(
        seed=config.seed,
        global_batch_size=plan.global_batch_size,
        virtual_replicas=plan.virtual_replicas,
        label_smoothing=config.label_smoothing,
        clip_norm=config.optimizer.clip_norm,
        average_decay=config.ema.decay,
        float16=runtime.precision == "float16",
        use_xla=runtime.use_xla,
        deterministic=config.deterministic,
        colours=ColourRanges(augment.flip, augment.brightness, augment.contrast, augment.saturation),
    )
