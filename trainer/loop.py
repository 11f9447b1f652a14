"""The story of a run: from wherever its directory says it stands to its last step.

result = train(config, data="data", workdir="run", devices=parse_devices("auto"))

In a cluster every worker tells this story, each with its own share of the images; the chief alone writes it down.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import ml_collections
import numpy as np
import tensorflow as tf

from input_pipeline.crop import Crop
from input_pipeline.errors import DataError
from input_pipeline.reader import Batch, Reader
from trainer import config as configs
from trainer import metrics
from trainer.advice import Advice
from trainer.chronometer import Chronometer
from trainer.cluster.agreement import agree_on_checkpoint
from trainer.cluster.discovery import Cluster
from trainer.cluster.peers import TRAINING, PeerLostError, Peers
from trainer.cluster.stop_request import StopRequest
from trainer.cluster.watchdog import Deadlines, Watchdog
from trainer.config import Plan
from trainer.console import TrainingConsole
from trainer.description import dataset_identity, environment, header_rows, place
from trainer.devices import Devices
from trainer.endings import DivergedError, InterruptedRunError, PreemptedError, as_peer_lost
from trainer.error_file import note_error
from trainer.evaluation import EVALUATION_BATCH_SIZE, Evaluator
from trainer.journal import Journal
from trainer.limits import Limits
from trainer.order_record import OrderRecord
from trainer.preprocess import ColourRanges
from trainer.profiler import StepProfiler
from trainer.restore import load_into
from trainer.resume import what_changed
from trainer.runtime import Runtime
from trainer.saver import CheckpointSaver
from trainer.schedules import learning_rate as learning_rate_at
from trainer.start import Start, prepare
from trainer.step import StepResult, StepSettings, TrainStep
from trainer.substitutions import Substitutions
from trainer.tensorboard.media import EvaluationPages, train_batch, weight_histograms
from trainer.tensorboard.run_pages import pages_of_run
from trainer.tensorboard.summaries import text_of_json
from trainer.training_input import TrainingInput

_STEPS_THAT_TELL = 20  # without the first ones, until a run says what limits it


def train(
    config: ml_collections.ConfigDict,
    *,
    data: str,
    workdir: str,
    devices: Devices,
    strategy_name: str = "auto",
    cluster: Cluster | None = None,
    deadlines: Deadlines | None = None,
    record_order: bool = False,
    interface: str = "",
    profile_steps: tuple[int, int] | None = None,
) -> dict[str, Any]:
    """Trains until the config's last step, from the newest checkpoint in `workdir` or from the start.

    Args:
      config: complete.
      data: the dataset directory, with a split `train`; evaluated on `validation` where it has that.
      workdir: the run directory, one for all workers.
      devices: what this process trains on.
      strategy_name: one of `devices.STRATEGIES`.
      cluster: the workers that train together; None for a process that is alone.
      deadlines: how long to wait for what.
      record_order: whether to write down which images each step trained on (`order_record`).
      interface: which network TensorFlow's traffic takes (`cluster.interface`); that of the addresses where empty.
      profile_steps: the first and the last step that the chief records for TensorBoard (`profiler`); None for none.

    Returns:
      What result.json holds.

    Raises:
      UsageError: config, devices and dataset do not fit together, or the workers' do not.
      DataError: data, checkpoint or run directory cannot be used, the run was started with another config or
        dataset, or its last checkpoint cannot be written.
      DivergedError: the loss became NaN or infinite, other than by float16's overflow.
      PreemptedError: SIGTERM or SIGUSR1 came to any worker.
      PeerLostError: a worker is missing, gone or stuck.
    """
    deadlines = deadlines or Deadlines()
    with Peers(cluster, startup_seconds=deadlines.startup) as peers, StopRequest() as stop:
        try:
            start = prepare(
                config,
                data=data,
                workdir=workdir,
                devices=devices,
                strategy_name=strategy_name,
                cluster=cluster,
                peers=peers,
                deadlines=deadlines,
                stop=stop,
                interface=interface,
            )
            return _Training(start, peers, deadlines, stop, record_order, profile_steps).to_the_end()
        except tf.errors.OpError as error:
            if lost := as_peer_lost(error, peers):
                raise lost from None
            note_error(error, rank=peers.rank, step=peers.status[0])
            raise
        except Exception as error:
            note_error(error, rank=peers.rank, step=peers.status[0])
            raise


class _Training:
    """A run in progress."""

    def __init__(
        self,
        start: Start,
        peers: Peers,
        deadlines: Deadlines,
        stop: StopRequest,
        record_order: bool,
        profile_steps: tuple[int, int] | None,
    ):
        self._config = start.config
        self._plan = plan = start.plan
        self._runtime = start.runtime
        self._dataset = start.dataset
        self._run = start.run
        self._store = start.store
        self._state = start.runtime.state
        self._peers = peers
        self._deadlines = deadlines
        self._before = start.metadata
        self._chronometer = Chronometer(plan.global_batch_size)
        self._settings = _step_settings(self._config, plan, self._runtime)
        self._step = TrainStep(self._state, self._runtime.built, self._runtime.optimizer, self._settings)
        self._input = TrainingInput(self._dataset.split("train"), self._config, plan, self._runtime.strategy, peers)
        self._console = TrainingConsole(plan.total_steps, self._state.step, shows=peers.is_chief)
        self._journal = Journal(self._run, total_steps=plan.total_steps, writes=peers.is_chief, warn=self._console.say)
        self._evaluator = None
        if "validation" in self._dataset.splits:
            reader = Reader(self._dataset.split("validation"), Crop(self._config.image_size))
            self._evaluator = Evaluator(self._state, self._runtime.built, reader, EVALUATION_BATCH_SIZE, peers)
            self._evaluation_pages = EvaluationPages(
                reader,
                self._dataset.class_names,
                peers,
                self._journal,
                every_steps=plan.eval_every_steps,
                total_steps=plan.total_steps,
            )
        self._limits = Limits(self._config, plan, self._runtime, self._dataset, self._step, peers)
        self._advice = Advice(self._config, self._dataset, say=self._console.say)
        self._profiler = StepProfiler(
            self._run.tensorboard,
            profile_steps,
            start_step=self._state.step,
            total_steps=plan.total_steps,
            say=self._console.say,
            records=peers.is_chief,
        )
        self._substitutions = Substitutions(self._run, peers, self._journal, self._console)
        self._saver = CheckpointSaver(self._store, on_failure=self._warn_of_failed_save)
        self._order_record = OrderRecord(self._run, peers.rank) if record_order else None
        self._stop = stop
        self._stop_agreed = False
        self._saved_step: int | None = self._state.step or None
        # Of the steps since the last line: a run that goes on between two lines writes the same next one.
        empty = [0.0] * metrics.sums_size(self._dataset.num_classes)
        self._window_sums = np.array(self._before.get("window_sums", empty), np.float64)
        self._window_last: StepResult | None = None
        # A run that was killed between its last checkpoint and its result reports what it had measured.
        reported = self._before.get("reported", {})
        self._quality: dict[str, dict[str, float]] = reported.get("metrics", {})  # newest by split
        self._images_per_second_before: float | None = reported.get("images_per_second")
        self._measured_limits: dict[str, Any] | None = reported.get("limits")
        self._told_limits = ""
        self._rolled_back_to: int | None = None
        self._rollbacks = self._before.get("rollbacks", 0)

    def to_the_end(self) -> dict[str, Any]:
        if self._state.step >= self._plan.total_steps and self._run.result.exists():
            self._console.say(f"Nothing left to train: {self._run.path} is at its last step, {self._state.step}.")
            self._peers.exchange("end")
            return self._run.read_json(self._run.result)
        watchdog = Watchdog(self._peers, self._deadlines, on_end=self._note_lost_peer)
        try:
            with self._console, watchdog:
                self._begin()
                while self._state.step < self._plan.total_steps:
                    try:
                        self._train_steps()
                    except DivergedError as error:
                        self._roll_back(error)
                return self._finish()
        except KeyboardInterrupt:
            self._end_saving()
            raise InterruptedRunError(
                f"interrupted at step {self._state.step}. The same command goes on from {self._where_it_goes_on()}."
            ) from None
        except (PeerLostError, tf.errors.OpError) as error:
            self._end_saving()
            lost = as_peer_lost(error, self._peers)
            if not lost:
                raise
            self._note_lost_peer(str(lost))
            raise PeerLostError(f"{lost}. The same commands go on from {self._where_it_goes_on()}.") from None
        finally:
            self._profiler.close()
            self._end_saving()

    def _where_it_goes_on(self) -> str:
        newest = self._store.latest()
        return "the start, for want of a checkpoint" if newest is None else f"step {newest}, the newest checkpoint"

    def _note_lost_peer(self, message: str) -> None:
        self._journal.event("peer_lost", step=self._state.step, message=message)

    def _begin(self) -> None:
        state, plan, here = self._state, self._plan, place(self._plan, self._runtime, self._peers)
        self._journal.begin(
            state.step,
            {
                "config": configs.to_json(self._config),
                "environment": environment(),
                "dataset": {
                    "directory": str(self._dataset.directory.resolve()),
                    "class_names": list(self._dataset.class_names),
                    **dataset_identity(self._dataset),
                },
            },
            pages_of_run(self._config, self._runtime.built.model),
        )
        if self._order_record:
            self._order_record.go_back(state.step)
        changed = what_changed(self._before.get("place", {}), here)
        if state.step:
            self._journal.event("restored", step=state.step, replicas=plan.replicas, changed=changed)
        else:
            self._journal.event("start", step=0, replicas=plan.replicas)
        self._console.header(header_rows(self._config, plan, self._runtime, self._dataset, self._run, self._peers))
        if not self._peers.is_chief:
            print(
                f"Worker {self._peers.rank} of {self._peers.num_workers} trains from step {state.step}; "
                f"{self._peers.address(0)} shows progress and writes {self._run.path}.",
                flush=True,
            )
        if state.step:
            self._console.say(
                f"Resumed at step {state.step} of {plan.total_steps}."
                + (f" Changed: {'; '.join(changed)}." if changed else "")
            )
        self._advice.start(plan)
        self._peers.exchange("begin")

    def _train_steps(self) -> None:
        with contextlib.closing(self._input.batches(self._state.step)) as batches:
            self._train_on(batches)

    def _train_on(self, batches: Iterator[Batch]) -> None:
        plan, state = self._plan, self._state
        first_step, pending = state.step + 1, None
        while state.step < plan.total_steps:
            self._peers.report(state.step + 1, "waiting for input")
            self._profiler.begin_step(state.step + 1)
            with self._chronometer.waiting():
                batch = next(batches)
            self._substitutions.note(state.step + 1, self._input.substituted(state.step + 1))
            if self._order_record:
                with self._journal.tolerating("the order record"):
                    self._order_record.write(state.step + 1, batch, self._runtime.strategy)
            if state.step == 0 and self._peers.is_chief:
                with self._chronometer.paused("log"):
                    self._show_first(batch)
            self._peers.report(state.step + 1, TRAINING)
            learning_rate = self._learning_rate(state.step)
            result = self._step(batch, learning_rate, stop_requested=self._stop.is_set)
            self._profiler.end_step(state.step, wait_for=result.gradient_norm)
            if pending:  # results are read one step late, so that a GPU always has the next step waiting
                self._take_in(pending, state.step - 1)
            pending = result
            log, evaluate, checkpoint = (
                state.step == plan.total_steps or state.step % every == 0
                for every in (plan.log_every_steps, plan.eval_every_steps, plan.checkpoint_every_steps)
            )
            if log or evaluate or checkpoint or state.step == first_step or self._stop_agreed:
                self._take_in(pending, state.step)
                pending = None
            self._chronometer.end_step()
            self._console.step(state.step)
            if state.step == first_step:
                self._journal.event("first_step", step=state.step)
            with self._chronometer.paused("probe"):
                if log:
                    self._limits.probe(seconds=self._deadlines.step)
            with self._chronometer.paused("log"):
                if log:
                    self._log(learning_rate)
                if plan.histogram_every_steps and state.step % plan.histogram_every_steps == 0:
                    self._journal.show("train", state.step, weight_histograms(state.weights_by_path()))
            with self._chronometer.paused("evaluation"):
                score, is_best = self._evaluate() if evaluate else (None, False)
            with self._chronometer.paused("checkpoints"):
                if checkpoint or is_best:
                    self._save(score)
                if self._stop_agreed and state.step < plan.total_steps:
                    self._save_and_stop()

    def _learning_rate(self, step: int) -> float:
        schedule, divergence = self._config.schedule, self._config.divergence
        return divergence.learning_rate_factor**self._rollbacks * learning_rate_at(
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
        """Waits for a step's result and adds it up. What it decides is the same on every worker."""
        self._window_sums += result.sums.numpy()
        self._window_last = result
        self._stop_agreed = self._stop_agreed or bool(result.stop_requested.numpy())
        # In float16 an overflow is no news while the loss scale can still be lowered.
        if not result.finite.numpy() and result.loss_scale.numpy() <= 1:
            raise self._diverged(step)

    def _diverged(self, step: int) -> DivergedError:
        self._end_saving()
        images = self._input.images(step)
        self._journal.event("diverged", step=step, images=images)
        return DivergedError(
            step,
            images,
            last_checkpoint=self._store.latest(),
            learning_rate=self._config.optimizer.learning_rate,
            rollbacks=self._rollbacks,
            events=self._run.events,
        )

    def _roll_back(self, error: DivergedError) -> None:
        """Goes on from the last checkpoint with a lower learning rate, where the config allows it once more."""
        checkpoint = None
        if self._rollbacks < self._config.divergence.rollbacks:
            # Where it went back before and got no further, that checkpoint is no good either.
            before = self._rolled_back_to if self._rolled_back_to == self._saved_step else None
            checkpoint = agree_on_checkpoint(self._peers, self._store, before=before)
        if not checkpoint:
            raise error
        load_into(self._state, *checkpoint, self._run)
        self._window_sums[:] = checkpoint[1]["window_sums"]
        self._rollbacks += 1
        step, factor = self._state.step, self._config.divergence.learning_rate_factor**self._rollbacks
        self._saved_step = self._rolled_back_to = step
        self._chronometer.window_dropped()
        self._journal.go_back(step)
        if self._order_record:
            self._order_record.go_back(step)
        self._journal.event("rolled_back", step=step, diverged_step=error.step, learning_rate_factor=factor)
        self._console.say(
            f"The gradient of step {error.step} is NaN or infinite. Going back to step {step} with the learning rate "
            f"times {factor:g} (rollback {self._rollbacks} of {self._config.divergence.rollbacks})."
        )
        self._peers.exchange("rolled back")

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
            **self._limits.values(window),
            "run/epoch": self._epoch(),
        }
        self._journal.metrics("train", state.step, values)
        self._saver.check()
        self._console.progress(state.step, self._epoch(), values)
        self._advice.logged(window.input_wait_pct, self._limits.input_mends(window.cores_busy))
        is_first_time = not self._told_limits and self._chronometer.steady_steps >= _STEPS_THAT_TELL
        if is_first_time or state.step == self._plan.total_steps:
            self._tell_limits()

    def _tell_limits(self) -> None:
        """Says what limits the run, where it has come so far that this is known."""
        if steady := self._chronometer.steady():
            self._measured_limits = self._limits.summary(steady, seconds=self._deadlines.step)
            self._journal.show("train", self._state.step, [text_of_json("run/limits", self._measured_limits)])
            if (sentence := self._measured_limits["sentence"]) != self._told_limits:
                self._told_limits = sentence
                self._console.say(f"Limits: {sentence}.")

    def _show_first(self, batch: Batch) -> None:
        shown = train_batch(batch, self._settings.colours, self._dataset.class_names, self._runtime.strategy)
        self._journal.show("media", 0, [shown])

    def _evaluate(self) -> tuple[float | None, bool]:
        """Evaluates on the validation split, where there is one; returns the score and whether it is the best."""
        if not self._evaluator:
            return None, False
        step = self._state.step
        judgements = self._evaluation_pages.judgements(step)
        quality = self._evaluator.metrics(seconds=self._deadlines.step, each=judgements.add if judgements else None)
        if judgements:
            self._evaluation_pages.show(step, judgements, seconds=self._deadlines.step)
        self._quality["validation"] = quality
        values = {f"quality/{name}": value for name, value in quality.items()} | {"run/epoch": self._epoch()}
        if train := self._quality.get("train"):
            # Above 0 where training images are known better than others.
            values |= {"gap/top1": train["top1"] - quality["top1"], "gap/loss": quality["loss"] - train["loss"]}
        self._journal.metrics("validation", step, values)
        score, best_score = quality["top1"], self._saver.best_score
        is_best = best_score is None or score > best_score
        self._journal.best(step, score if is_best else best_score)
        self._journal.evaluation("validation", step, quality)
        self._console.evaluation(step, self._epoch(), "validation", quality, is_best)
        train_top1 = self._quality.get("train", {}).get("top1")
        self._advice.evaluated(train_top1=train_top1, top1=score, best_top1=best_score)
        return score, is_best

    def _save(self, score: float | None) -> None:
        step = self._saved_step = self._state.step
        if not self._peers.is_chief:
            self._saver.note_score(score)
            return
        self._peers.report(step, "saving")
        self._journal.event("checkpoint", step=step)
        self._saver.save(
            self._state.values(),
            step=step,
            metadata={
                "config": configs.to_json(self._config),
                "dataset": dataset_identity(self._dataset),
                "place": place(self._plan, self._runtime, self._peers),
                "rollbacks": self._rollbacks,
                "window_sums": self._window_sums.tolist(),
                "reported": {
                    "metrics": self._quality,
                    "images_per_second": self._images_per_second(),
                    "limits": self._measured_limits,
                },
            },
            score=score,
        )

    def _end_saving(self) -> None:
        """Waits for the checkpoint that is being written; where that fails, the one before is still there."""
        try:
            self._saver.finish()
        except DataError as error:
            self._warn_of_failed_save(error, "")

    def _warn_of_failed_save(
        self, error: DataError, what_follows: str = " Training goes on; the next checkpoint is tried in its turn."
    ) -> None:
        self._console.say(f"Warning: {error}{what_follows}")
        self._journal.event("checkpoint_failed", message=str(error))

    def _save_and_stop(self) -> None:
        step = self._state.step
        if self._saved_step != step:
            self._save(None)
        self._end_saving()
        asked = self._peers.exchange("stop", [self._stop.signal_name, self._stop.seconds], seconds=self._deadlines.step)
        rank, (name, seconds) = next((rank, own) for rank, own in enumerate(asked) if own[0])
        who = f" to {self._peers.address(rank)}" if self._peers.num_workers > 1 else ""
        seconds = max(self._stop.seconds, seconds)
        self._journal.event("preempted", step=step, signal=name, worker=rank, seconds=seconds)
        raise PreemptedError(
            f"{name}{who}: stopped at step {step} of {self._plan.total_steps}, {seconds:.1f} s after the signal. "
            f"The same command goes on from {self._where_it_goes_on()}."
        )

    def _finish(self) -> dict[str, Any]:
        plan, step = self._plan, self._state.step
        self._peers.report(step, "saving")
        digest = self._state.weights_sha256()
        digests = self._peers.exchange("weights", digest, seconds=self._deadlines.step)
        self._substitutions.note(step, [])  # by now every worker has told all it found
        if len(set(digests)) > 1:
            raise AssertionError(f"the workers' weights differ at the end: {digests}")
        self._saver.finish()
        result = {
            "step": step,
            "epoch": self._epoch(),
            "images_seen": step * plan.global_batch_size,
            "metrics": self._quality,
            "best": {"step": self._store.best(), "top1": self._store.best_score()},
            "images_per_second": self._images_per_second(),
            "seconds": self._chronometer.seconds(),
            "limits": self._measured_limits,
            "weights_sha256": digest,
            "virtual_replicas": plan.virtual_replicas,
            "replicas": plan.replicas,
            "workers": self._peers.num_workers,
            "substituted_records": self._substitutions.count,
        }
        self._journal.finish(result)
        self._console.say(f"Done: step {step}, weights_sha256 {result['weights_sha256'][:16]}.")
        self._console.say(f"Curves: {self._run.curves}")
        self._peers.exchange("end", seconds=self._deadlines.step)
        return result

    def _images_per_second(self) -> float | None:
        return self._chronometer.steady_images_per_second() or self._images_per_second_before

    def _epoch(self) -> float:
        return self._state.step / self._plan.steps_per_epoch


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
        reduce_in_bfloat16=config.reduce_in_bfloat16,
        colours=ColourRanges(augment.flip, augment.brightness, augment.contrast, augment.saturation),
    )
