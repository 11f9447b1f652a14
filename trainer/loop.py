"""The training loop: trains a run from its latest checkpoint, or from step 0, to its last step.

result = train(config, data="data", workdir="run", devices=parse_devices("auto"))

In a cluster every worker runs this loop on its own part of each batch; only the chief writes the run directory.
"""

import contextlib
import signal
from collections.abc import Iterator
from typing import Any, NoReturn

import ml_collections
import numpy as np
import tensorflow as tf

from convoy.core.cluster import Cluster
from convoy.core.devices import Devices
from convoy.core.error_file import note_error
from convoy.core.errors import DataError
from convoy.core.user_code import UserCode
from convoy.input_pipeline.dataset.layout import RecordFormat
from convoy.input_pipeline.dataset.open import Data
from convoy.input_pipeline.reading.reader import Batch
from convoy.trainer import config as configs
from convoy.trainer.callbacks.monitor import Monitor
from convoy.trainer.callbacks.profiler import StepProfiler
from convoy.trainer.callbacks.substitutions import Substitutions
from convoy.trainer.checkpoint.saver import CheckpointSaver
from convoy.trainer.cluster.liveness import TRAINING
from convoy.trainer.cluster.stop_request import StopRequest
from convoy.trainer.cluster.watchdog import Deadlines, Watchdog
from convoy.trainer.cluster.worker_group import PeerLostError, WorkerGroup
from convoy.trainer.config import resolution
from convoy.trainer.run.order_record import OrderRecord
from convoy.trainer.session.agreement import agree_on_checkpoint
from convoy.trainer.session.description import dataset_identity, hardware_info
from convoy.trainer.session.errors import DivergedError, InterruptedRunError, PreemptedError, as_peer_lost
from convoy.trainer.session.prepare import TrainingSession, prepare
from convoy.trainer.session.restore import restore_state
from convoy.trainer.session.runtime import make_train_step
from convoy.trainer.session.training_input import TrainingInput
from convoy.trainer.step import metrics
from convoy.trainer.step.step import StepResult


def train(
    config: ml_collections.ConfigDict,
    *,
    data: Data,
    workdir: str,
    devices: Devices,
    strategy_name: str = "auto",
    cluster: Cluster | None = None,
    deadlines: Deadlines | None = None,
    record_order: bool = False,
    interface: str = "",
    profile_steps: tuple[int, int] | None = None,
    recipe: UserCode | None = None,
    record_format: RecordFormat | None = None,
    extend: bool = False,
) -> dict[str, Any]:
    """Trains to the config's last step, from the latest checkpoint in `workdir` or from step 0.

    Args:
      config: complete.
      data: the dataset directory or the sources (`open_dataset`), with a split `train`; the split `validation`, if any,
        is evaluated.
      workdir: the run directory, shared by all workers.
      devices: the devices of this process.
      strategy_name: one of `devices.STRATEGIES`.
      cluster: the workers that train together; None for a single process.
      deadlines: how long to wait for other workers and for progress.
      record_order: whether to record which images each step trained on (`order_record`).
      interface: network interface for TensorFlow's traffic (`cluster.interface`); empty for the addresses' own.
      profile_steps: first and last step that the chief profiles for TensorBoard (`profiler`); None for none.
      recipe: the user's file that made the config, kept in `workdir`; None for others.
      record_format: what is known about the records of other tools; a run that resumes remembers the rest.
      extend: whether the run in `workdir` may become longer, if the config is.

    Returns:
      The content of result.json.

    Raises:
      UsageError: config, devices and dataset do not match, or the workers' do not.
      DataError: data, checkpoint or run directory cannot be used, the run was started with another config or
        dataset, or the last checkpoint cannot be written.
      DivergedError: the loss became NaN or infinite, other than by an overflow of float16.
      PreemptedError: a worker received SIGTERM, SIGUSR1 or SIGHUP.
      InterruptedRunError: a worker received SIGINT (Ctrl-C).
      PeerLostError: a worker is missing, gone or stuck.
    """
    deadlines = deadlines or Deadlines()
    with (
        WorkerGroup(cluster, startup_seconds=deadlines.startup, workdir=workdir) as worker_group,
        StopRequest() as stop,
    ):
        try:
            session = prepare(
                config,
                data=data,
                workdir=workdir,
                devices=devices,
                strategy_name=strategy_name,
                worker_group=worker_group,
                deadlines=deadlines,
                stop=stop,
                interface=interface,
                recipe=recipe,
                record_format=record_format,
                extend=extend,
            )
            return _Training(
                session, worker_group, deadlines, stop, record_order=record_order, profile_steps=profile_steps
            ).run()
        except Exception as error:
            if isinstance(error, tf.errors.OpError) and (lost := as_peer_lost(error, worker_group)):
                raise lost from None
            note_error(error, rank=worker_group.rank, step=worker_group.liveness.status[0])
            raise


class _Training:
    """A run in progress."""

    def __init__(
        self,
        session: TrainingSession,
        worker_group: WorkerGroup,
        deadlines: Deadlines,
        stop: StopRequest,
        *,
        record_order: bool,
        profile_steps: tuple[int, int] | None,
    ):
        self._config, self._plan, self._runtime = session.config, session.plan, session.runtime
        self._dataset, self._run, self._store = session.dataset, session.run, session.store
        self._model = session.model
        self._state = session.runtime.state
        self._worker_group, self._deadlines, self._stop = worker_group, deadlines, stop
        self._stop_agreed = False
        self._step = make_train_step(session.config, session.plan, session.runtime)
        self._input = TrainingInput(
            session.dataset.split("train"), session.config, session.plan, session.runtime.strategy, worker_group
        )
        self._stages = resolution.stages(session.config, session.plan.total_steps)
        self._monitor = Monitor(session, self._step, worker_group, deadlines)
        self._step_timer, self._console = self._monitor.step_timer, self._monitor.console
        self._run_logger = self._monitor.run_logger
        self._profiler = StepProfiler(
            self._run.tensorboard,
            profile_steps,
            start_step=self._state.step,
            total_steps=session.plan.total_steps,
            say=self._console.say,
            records=worker_group.is_chief,
        )
        self._substitutions = Substitutions(self._run, worker_group, self._run_logger, self._console)
        self._saver = CheckpointSaver(self._store, on_failure=self._warn_of_failed_save)
        self._order_record = OrderRecord(self._run, worker_group.rank) if record_order else None
        self._saved_step: int | None = self._state.step or None
        # Sums since the last log line. They are checkpointed, so that a resumed run logs the same next line.
        empty = [0.0] * metrics.sums_size(self._dataset.num_classes)
        self._window_sums = np.array(session.metadata.get("window_sums", empty), np.float64)
        self._rollbacks: int = session.metadata.get("rollbacks", 0)
        self._rolled_back_to: int | None = None

    def run(self) -> dict[str, Any]:
        if self._state.step >= self._plan.total_steps and self._run.result.exists():
            self._console.say(
                f"Nothing left to train: {self._run.path} is at its last step, {self._state.step}. "
                "Pass --extend with a longer config.epochs or config.steps to go on."
            )
            self._worker_group.exchange("end")
            return self._run.read_json(self._run.result)
        watchdog = Watchdog(self._worker_group, self._deadlines, on_end=self._record_lost_peer)
        try:
            with self._console, watchdog:
                self._monitor.begin()
                if self._order_record:
                    self._order_record.truncate(self._state.step)
                self._worker_group.exchange("begin")
                self._stop.listen_to_interrupts()
                while self._state.step < self._plan.total_steps:
                    try:
                        self._train_steps()
                    except DivergedError as error:
                        self._roll_back(error)
                return self._finish()
        except KeyboardInterrupt:
            self._finish_saving()
            raise InterruptedRunError(
                f"interrupted at step {self._state.step}. Rerun the same command to resume from {self._resume_point()}."
            ) from None
        except (PeerLostError, tf.errors.OpError) as error:
            self._finish_saving()
            lost = as_peer_lost(error, self._worker_group)
            if not lost:
                raise
            self._record_lost_peer(str(lost))
            raise PeerLostError(f"{lost}. Rerun the same commands to resume from {self._resume_point()}.") from None
        finally:
            self._profiler.close()
            self._finish_saving()

    def _train_steps(self) -> None:
        """Trains from the current step to the last one."""
        plan, state = self._plan, self._state
        first_step = state.step + 1
        unread: StepResult | None = None
        with contextlib.closing(self._input.batches(state.step)) as batches:
            while state.step < plan.total_steps:
                batch = self._next_batch(batches)
                learning_rate = self._learning_rate(state.step)
                result = self._step(batch, learning_rate, stop_requested=self._stop.is_set)
                self._profiler.end_step(state.step, wait_for=result.gradient_norm)
                if unread:  # results are read one step late, so that a GPU always has the next step queued
                    self._read_result(unread, state.step - 1)
                unread = result
                log, evaluate, checkpoint = map(
                    self._is_due, (plan.log_every_steps, plan.eval_every_steps, plan.checkpoint_every_steps)
                )
                if log or evaluate or checkpoint or state.step == first_step or self._stop_agreed:
                    self._read_result(unread, state.step)
                    unread = None
                self._step_timer.end_step()
                self._console.step(state.step)
                if state.step == first_step:
                    self._run_logger.event("first_step", step=state.step)
                if log:
                    self._saver.check()
                    self._monitor.log(self._window_sums, result, learning_rate)
                    self._window_sums[:] = 0
                if plan.histogram_every_steps and state.step % plan.histogram_every_steps == 0:
                    self._monitor.histograms()
                score, is_best = self._monitor.evaluate(self._saver.best_score) if evaluate else (None, False)
                with self._step_timer.paused("checkpoints"):
                    if checkpoint or is_best:
                        self._save(score)
                    if self._stop_agreed and state.step < plan.total_steps:
                        self._save_and_stop()

    def _is_due(self, every_steps: int) -> bool:
        return self._state.step == self._plan.total_steps or self._state.step % every_steps == 0

    def _next_batch(self, batches: Iterator[Batch]) -> Batch:
        """Waits for the batch of the next step and records what is known of it before the step runs."""
        done, step = self._state.step, self._state.step + 1
        if done == self._plan.freeze_steps or any(done == stage.first_step for stage in self._stages):
            self._step_timer.warm_up()  # the next step is recompiled
        self._worker_group.report(step, "waiting for input")
        self._profiler.begin_step(step)
        with self._step_timer.waiting():
            batch = next(batches)
        self._substitutions.note(step, self._input.substituted(step))
        if self._order_record:
            with self._run_logger.tolerating("the order record"):
                self._order_record.write(step, batch, self._runtime.strategy)
        if done == 0:
            self._monitor.first_batch(batch)
        self._worker_group.report(step, TRAINING)
        return batch

    def _learning_rate(self, step: int) -> float:
        factor = self._config.divergence.learning_rate_factor**self._rollbacks
        return factor * configs.learning_rate_of(self._config, self._plan, step)

    def _read_result(self, result: StepResult, step: int) -> None:
        """Waits for a step's result and accumulates it. The result is reduced, so all workers decide alike.

        Raises:
          DivergedError: the gradient is NaN or infinite.
        """
        self._window_sums += result.sums.numpy()
        self._stop_agreed = self._stop_agreed or bool(result.stop_requested.numpy())
        # In float16 an overflow is normal as long as the loss scale can still be lowered.
        if result.finite.numpy() or result.loss_scale.numpy() > 1:
            return
        self._finish_saving()
        images = self._input.images(step)
        self._run_logger.event("diverged", step=step, images=images)
        raise DivergedError(
            step,
            images,
            last_checkpoint=self._store.latest(),
            learning_rate=self._config.optimizer.learning_rate,
            rollbacks=self._rollbacks,
            events=self._run.events,
        )

    def _roll_back(self, error: DivergedError) -> None:
        """Restores the last checkpoint and lowers the learning rate, or raises `error` if no rollbacks are left."""
        divergence, checkpoint = self._config.divergence, None
        if self._rollbacks < divergence.rollbacks:
            # If the last rollback went to the latest checkpoint and did not help, go further back.
            before = self._rolled_back_to if self._rolled_back_to == self._saved_step else None
            checkpoint = agree_on_checkpoint(self._worker_group, self._store, before=before)
        if not checkpoint:
            raise error
        restore_state(self._state, *checkpoint, self._run)
        self._window_sums[:] = checkpoint[1]["window_sums"]
        self._rollbacks += 1
        step, factor = self._state.step, divergence.learning_rate_factor**self._rollbacks
        self._saved_step = self._rolled_back_to = step
        self._monitor.go_back(step)
        if self._order_record:
            self._order_record.truncate(step)
        self._run_logger.event("rolled_back", step=step, diverged_step=error.step, learning_rate_factor=factor)
        self._console.say(
            f"Rollback {self._rollbacks} of {divergence.rollbacks}: the gradient of step {error.step} is NaN or "
            f"infinite. Resuming from step {step} with the learning rate times {factor:g}."
        )
        self._worker_group.exchange("rolled back")

    def _save(self, score: float | None) -> None:
        step = self._saved_step = self._state.step
        if not self._worker_group.is_chief:
            self._saver.note_score(score)
            return
        self._worker_group.report(step, "saving")
        self._run_logger.event("checkpoint", step=step)
        self._saver.save(
            self._state.values(),
            step=step,
            metadata={
                "config": configs.to_json(self._config),
                "dataset": dataset_identity(self._dataset),
                "model": self._model,
                "place": hardware_info(self._plan, self._runtime, self._worker_group, self._model["files"]),
                "rollbacks": self._rollbacks,
                "window_sums": self._window_sums.tolist(),
                "reported": self._monitor.measured(),
            },
            score=score,
        )

    def _finish_saving(self) -> None:
        """Waits for the checkpoint being written. If that fails, the previous one is still there."""
        try:
            self._saver.finish()
        except DataError as error:
            self._warn_of_failed_save(error, "")

    def _warn_of_failed_save(
        self, error: DataError, outlook: str = " Training continues; the next checkpoint is written as scheduled."
    ) -> None:
        self._console.say(f"Warning: {error}{outlook}")
        self._run_logger.event("checkpoint_failed", message=str(error))

    def _save_and_stop(self) -> NoReturn:
        step = self._state.step
        if self._saved_step != step:
            self._save(None)
        self._finish_saving()
        signals = self._worker_group.exchange(
            "stop", [self._stop.signal_name, self._stop.seconds], seconds=self._deadlines.step
        )
        rank, (name, seconds) = next((rank, own) for rank, own in enumerate(signals) if own[0])
        receiver = f" to {self._worker_group.address(rank)}" if self._worker_group.num_workers > 1 else ""
        seconds = max(self._stop.seconds, seconds)
        self._run_logger.event("preempted", step=step, signal=name, worker=rank, seconds=seconds)
        error = InterruptedRunError if name == signal.SIGINT.name else PreemptedError
        raise error(
            f"{name}{receiver}: stopped at step {step} of {self._plan.total_steps}, {seconds:.1f} s after the signal. "
            f"Rerun the same command to resume from {self._resume_point()}."
        )

    def _resume_point(self) -> str:
        latest = self._store.latest()
        return "step 0 (no checkpoint found)" if latest is None else f"step {latest}"

    def _record_lost_peer(self, message: str) -> None:
        self._run_logger.event("peer_lost", step=self._state.step, message=message)

    def _finish(self) -> dict[str, Any]:
        plan, step = self._plan, self._state.step
        self._worker_group.report(step, "saving")
        digest = self._state.weights_sha256()
        digests = self._worker_group.exchange("weights", digest, seconds=self._deadlines.step)
        self._substitutions.note(step, [])  # after the exchange the chief has every worker's substitutions
        if len(set(digests)) > 1:
            raise AssertionError(f"the workers' final weights differ: {digests}")
        self._saver.finish()
        result = {
            "step": step,
            "epoch": self._monitor.epoch,
            "images_seen": step * plan.global_batch_size,
            **self._monitor.measured(),
            "best": {"step": self._store.best(), "top1": self._store.best_score()},
            "seconds": self._step_timer.seconds(),
            "weights_sha256": digest,
            "virtual_replicas": plan.virtual_replicas,
            "replicas": plan.replicas,
            "workers": self._worker_group.num_workers,
            "substituted_records": self._substitutions.count,
        }
        self._monitor.finish(result)
        self._worker_group.exchange("end", seconds=self._deadlines.step)
        return result
