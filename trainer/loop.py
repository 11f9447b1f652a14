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

from convoy.core.cluster import Cluster
from convoy.core.devices import Devices
from convoy.core.error_file import note_error
from convoy.core.errors import DataError
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
from convoy.trainer.config.schedules import learning_rate as learning_rate_at
from convoy.trainer.run.order_record import OrderRecord
from convoy.trainer.session.agreement import agree_on_checkpoint
from convoy.trainer.session.description import dataset_identity, place
from convoy.trainer.session.errors import DivergedError, InterruptedRunError, PreemptedError, as_peer_lost
from convoy.trainer.session.restore import load_into
from convoy.trainer.session.runtime import make_train_step
from convoy.trainer.session.start import Start, prepare
from convoy.trainer.session.training_input import TrainingInput
from convoy.trainer.step import metrics
from convoy.trainer.step.step import StepResult


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
    with WorkerGroup(cluster, startup_seconds=deadlines.startup) as worker_group, StopRequest() as stop:
        try:
            start = prepare(
                config,
                data=data,
                workdir=workdir,
                devices=devices,
                strategy_name=strategy_name,
                cluster=cluster,
                worker_group=worker_group,
                deadlines=deadlines,
                stop=stop,
                interface=interface,
            )
            return _Training(start, worker_group, deadlines, stop, record_order, profile_steps).run()
        except tf.errors.OpError as error:
            if lost := as_peer_lost(error, worker_group):
                raise lost from None
            note_error(error, rank=worker_group.rank, step=worker_group.status[0])
            raise
        except Exception as error:
            note_error(error, rank=worker_group.rank, step=worker_group.status[0])
            raise


class _Training:
    """A run in progress."""

    def __init__(
        self,
        start: Start,
        worker_group: WorkerGroup,
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
        self._worker_group = worker_group
        self._deadlines = deadlines
        self._before = start.metadata
        self._step = make_train_step(self._config, plan, self._runtime)
        self._input = TrainingInput(
            self._dataset.split("train"), self._config, plan, self._runtime.strategy, worker_group
        )
        self._stages = resolution.stages(self._config, plan.total_steps)
        self._monitor = Monitor(start, self._step, worker_group, deadlines)
        self._step_timer, self._console = self._monitor.step_timer, self._monitor.console
        self._run_logger = self._monitor.run_logger
        self._profiler = StepProfiler(
            self._run.tensorboard,
            profile_steps,
            start_step=self._state.step,
            total_steps=plan.total_steps,
            say=self._console.say,
            records=worker_group.is_chief,
        )
        self._substitutions = Substitutions(self._run, worker_group, self._run_logger, self._console)
        self._saver = CheckpointSaver(self._store, on_failure=self._warn_of_failed_save)
        self._order_record = OrderRecord(self._run, worker_group.rank) if record_order else None
        self._stop = stop
        self._stop_agreed = False
        self._saved_step: int | None = self._state.step or None
        # Of the steps since the last line: a run that goes on between two lines writes the same next one.
        empty = [0.0] * metrics.sums_size(self._dataset.num_classes)
        self._window_sums = np.array(self._before.get("window_sums", empty), np.float64)
        self._window_last: StepResult | None = None
        self._rolled_back_to: int | None = None
        self._rollbacks = self._before.get("rollbacks", 0)

    def run(self) -> dict[str, Any]:
        if self._state.step >= self._plan.total_steps and self._run.result.exists():
            self._console.say(f"Nothing left to train: {self._run.path} is at its last step, {self._state.step}.")
            self._worker_group.exchange("end")
            return self._run.read_json(self._run.result)
        watchdog = Watchdog(self._worker_group, self._deadlines, on_end=self._note_lost_peer)
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
            lost = as_peer_lost(error, self._worker_group)
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
        self._run_logger.event("peer_lost", step=self._state.step, message=message)

    def _begin(self) -> None:
        self._monitor.begin()
        if self._order_record:
            self._order_record.go_back(self._state.step)
        self._worker_group.exchange("begin")

    def _train_steps(self) -> None:
        with contextlib.closing(self._input.batches(self._state.step)) as batches:
            self._train_on(batches)

    def _train_on(self, batches: Iterator[Batch]) -> None:
        plan, state = self._plan, self._state
        first_step, pending = state.step + 1, None
        while state.step < plan.total_steps:
            if state.step == plan.freeze_steps or any(state.step == stage.first_step for stage in self._stages):
                self._step_timer.warm_up()
            self._worker_group.report(state.step + 1, "waiting for input")
            self._profiler.begin_step(state.step + 1)
            with self._step_timer.waiting():
                batch = next(batches)
            self._substitutions.note(state.step + 1, self._input.substituted(state.step + 1))
            if self._order_record:
                with self._run_logger.tolerating("the order record"):
                    self._order_record.write(state.step + 1, batch, self._runtime.strategy)
            if state.step == 0:
                self._monitor.first_batch(batch)
            self._worker_group.report(state.step + 1, TRAINING)
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
            self._step_timer.end_step()
            self._console.step(state.step)
            if state.step == first_step:
                self._run_logger.event("first_step", step=state.step)
            if log:
                self._saver.check()
                self._monitor.log(self._window_sums, self._window_last, learning_rate)
                self._window_sums[:] = 0
            if plan.histogram_every_steps and state.step % plan.histogram_every_steps == 0:
                self._monitor.histograms()
            score, is_best = self._monitor.evaluate(self._saver.best_score) if evaluate else (None, False)
            with self._step_timer.paused("checkpoints"):
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
        self._run_logger.event("diverged", step=step, images=images)
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
            checkpoint = agree_on_checkpoint(self._worker_group, self._store, before=before)
        if not checkpoint:
            raise error
        load_into(self._state, *checkpoint, self._run)
        self._window_sums[:] = checkpoint[1]["window_sums"]
        self._rollbacks += 1
        step, factor = self._state.step, self._config.divergence.learning_rate_factor**self._rollbacks
        self._saved_step = self._rolled_back_to = step
        self._monitor.go_back(step)
        if self._order_record:
            self._order_record.go_back(step)
        self._run_logger.event("rolled_back", step=step, diverged_step=error.step, learning_rate_factor=factor)
        self._console.say(
            f"The gradient of step {error.step} is NaN or infinite. Going back to step {step} with the learning rate "
            f"times {factor:g} (rollback {self._rollbacks} of {self._config.divergence.rollbacks})."
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
                "place": place(self._plan, self._runtime, self._worker_group),
                "rollbacks": self._rollbacks,
                "window_sums": self._window_sums.tolist(),
                "reported": self._monitor.measured(),
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
        self._run_logger.event("checkpoint_failed", message=str(error))

    def _save_and_stop(self) -> None:
        step = self._state.step
        if self._saved_step != step:
            self._save(None)
        self._end_saving()
        asked = self._worker_group.exchange(
            "stop", [self._stop.signal_name, self._stop.seconds], seconds=self._deadlines.step
        )
        rank, (name, seconds) = next((rank, own) for rank, own in enumerate(asked) if own[0])
        who = f" to {self._worker_group.address(rank)}" if self._worker_group.num_workers > 1 else ""
        seconds = max(self._stop.seconds, seconds)
        self._run_logger.event("preempted", step=step, signal=name, worker=rank, seconds=seconds)
        raise PreemptedError(
            f"{name}{who}: stopped at step {step} of {self._plan.total_steps}, {seconds:.1f} s after the signal. "
            f"The same command goes on from {self._where_it_goes_on()}."
        )

    def _finish(self) -> dict[str, Any]:
        plan, step = self._plan, self._state.step
        self._worker_group.report(step, "saving")
        digest = self._state.weights_sha256()
        digests = self._worker_group.exchange("weights", digest, seconds=self._deadlines.step)
        self._substitutions.note(step, [])  # by now every worker has told all it found
        if len(set(digests)) > 1:
            raise AssertionError(f"the workers' weights differ at the end: {digests}")
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
