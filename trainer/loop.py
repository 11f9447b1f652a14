"""The training loop: trains a run from its latest checkpoint, or from step 0, to its last step.

result = train(config, data="data", workdir="run", devices=parse_devices("auto"))

In a cluster every worker runs this loop on its own part of each batch; only the chief writes the run directory.
"""

import contextlib
import dataclasses
import os
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import ml_collections
import tensorflow as tf

from convoy.core.cluster import Cluster
from convoy.core.devices import Devices
from convoy.core.error_file import note_error
from convoy.core.text import is_count
from convoy.core.user_code import UserCode
from convoy.input_pipeline.dataset.layout import RecordFormat
from convoy.input_pipeline.dataset.open import Data
from convoy.input_pipeline.reading.disk_cache import open_disk_cache
from convoy.input_pipeline.reading.pixel_store import DiskSpace
from convoy.input_pipeline.reading.reader import Batch
from convoy.trainer import config as configs
from convoy.trainer.callbacks.advice import Advice
from convoy.trainer.callbacks.backup_writer import BackupWriter
from convoy.trainer.callbacks.callback import Callback, Checkpoint, Evaluation, Stop, Training
from convoy.trainer.callbacks.callback_list import CallbackList
from convoy.trainer.callbacks.early_stopping import EarlyStopping
from convoy.trainer.callbacks.run_writer import RunWriter
from convoy.trainer.callbacks.tensorboard_pages import TensorBoardPages
from convoy.trainer.cluster.liveness import TRAINING
from convoy.trainer.cluster.stop_request import StopRequest
from convoy.trainer.cluster.watchdog import Deadlines, Watchdog
from convoy.trainer.cluster.worker_group import PeerLostError, WorkerGroup
from convoy.trainer.config import resolution
from convoy.trainer.measurement.measurements import Measurements
from convoy.trainer.saving import Saving
from convoy.trainer.session.agreement import agree_on_checkpoint
from convoy.trainer.session.description import hardware_info
from convoy.trainer.session.errors import (
    DivergedError,
    InterruptedRunError,
    OutOfMemoryError,
    as_peer_lost,
    is_out_of_memory,
)
from convoy.trainer.session.prepare import TrainingSession, prepare
from convoy.trainer.session.restore import restore_state
from convoy.trainer.session.resume import changes, effects_of_extension
from convoy.trainer.session.runtime import make_train_step
from convoy.trainer.session.substitutions import SUBSTITUTED, Substitutions
from convoy.trainer.session.training_input import TrainingInput
from convoy.trainer.step.step import StepResult
from convoy.trainer.stopping import Stopping


def train(
    config: ml_collections.ConfigDict,
    *,
    data: Data,
    workdir: str,
    devices: Devices,
    strategy_name: str = "auto",
    cluster: Cluster | None = None,
    worker_group: WorkerGroup | None = None,
    deadlines: Deadlines | None = None,
    interface: str = "",
    callbacks: Sequence[Callback] = (),
    recipe: UserCode | None = None,
    record_format: RecordFormat | None = None,
    extend: bool = False,
    virtual_replicas: int | None = None,
    backup: str = "",
    cache_space: DiskSpace | None = None,
    command: str = "",
    owns_process: bool = False,
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
      worker_group: these workers, if they train several runs; closed by the caller.
      deadlines: how long to wait for other workers and for progress.
      interface: network interface for TensorFlow's traffic (`cluster.interface`); empty for the addresses' own.
      callbacks: observers, in addition to those that write the run directory.
      recipe: the user's file that made the config, kept in `workdir`; None for others.
      record_format: what is known about the records of other tools; a run that resumes remembers the rest.
      extend: whether the run in `workdir` may become longer, if the config is.
      virtual_replicas: number of virtual replicas from the latest checkpoint on, 1 or more; None to change nothing.
      backup: directory in an object store for a copy of `workdir`, which an empty `workdir` is restored from; "" for
        none.
      cache_space: where `config.cache=disk` keeps decoded images; without it, images are not kept.
      command: what started the run, for its records.
      owns_process: whether the process is only for this run: signals stop it, and it is ended if it is stuck.

    Returns:
      The content of result.json.

    Raises:
      UsageError: config, devices and dataset do not match, or the workers' do not.
      DataError: data, checkpoint or run directory cannot be used, the run was started with another config or
        dataset, or the last checkpoint cannot be written.
      DivergedError: the loss became NaN or infinite, other than by an overflow of float16.
      OutOfMemoryError: a step does not fit on a device.
      CallbackError: a callback raised an exception. The run is saved.
      PreemptedError: a worker received SIGTERM, SIGUSR1 or SIGHUP.
      InterruptedRunError: a worker received SIGINT (Ctrl-C); KeyboardInterrupt unless `owns_process`.
      PeerLostError: a worker is missing, gone or stuck.
    """
    deadlines = deadlines or Deadlines()
    with contextlib.ExitStack() as stack:
        if not worker_group:
            worker_group = WorkerGroup(cluster, startup_seconds=deadlines.startup, workdir=workdir)
            stack.enter_context(worker_group)
        stop = stack.enter_context(StopRequest(signals=owns_process))
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
                virtual_replicas=virtual_replicas,
                backup=backup,
            )
            with contextlib.closing(session), contextlib.ExitStack() as at_end:
                if session.backup and worker_group.is_chief:
                    writer = at_end.enter_context(contextlib.closing(BackupWriter(session.backup)))
                    callbacks = [*callbacks, writer]
                training = _Training(
                    session,
                    deadlines,
                    stop,
                    callbacks,
                    cache_space=cache_space,
                    command=command,
                    owns_process=owns_process,
                )
                return training.run()
        except Exception as error:
            if isinstance(error, tf.errors.OpError) and (lost := as_peer_lost(error, worker_group)):
                raise lost from None
            note_error(error, rank=worker_group.rank, step=worker_group.liveness.status[0])
            raise


def _all_callbacks(config: ml_collections.ConfigDict, given: Sequence[Callback]) -> list[Callback]:
    """Returns the callbacks of a run in the order in which they are called: files are written first."""
    run_writer, stopping = RunWriter(), config.early_stopping
    early = [EarlyStopping(**stopping)] if stopping.patience else []
    return [run_writer, *given, TensorBoardPages(run_writer), Advice(), *early]


class _Training:
    """A run in progress."""

    def __init__(
        self,
        session: TrainingSession,
        deadlines: Deadlines,
        stop: StopRequest,
        callbacks: Sequence[Callback],
        *,
        cache_space: DiskSpace | None,
        command: str,
        owns_process: bool,
    ):
        self._config, self._plan, self._runtime = session.config, session.plan, session.runtime
        self._dataset, self._run, self._store = session.dataset, session.run, session.store
        self._model, self._metadata = session.model, session.metadata
        self._state = session.runtime.state
        self._worker_group, self._deadlines, self._stop_request = session.worker_group, deadlines, stop
        self._stopping = Stopping(stop, session.worker_group, seconds=deadlines.step)
        self._owns_process = owns_process
        self._has_ended = False
        self._objective = session.objective
        self._step = make_train_step(session.config, session.plan, session.runtime, session.objective)
        self._input = TrainingInput(
            session.dataset.split("train"),
            session.config,
            session.plan,
            session.runtime.strategy,
            self._worker_group,
            partial(open_disk_cache, session.dataset, "train", space=cache_space) if cache_space else None,
        )
        self._stages = resolution.stages(session.config, session.plan.total_steps)
        self._measurements = Measurements(session, self._step, self._worker_group, deadlines)
        self._step_timer = self._measurements.step_timer
        self._place = hardware_info(session.plan, session.runtime, self._worker_group, session.model["files"])
        self._callbacks = CallbackList(
            _all_callbacks(session.config, callbacks),
            is_chief=self._worker_group.is_chief,
            on_error=self._stopping.fail,
        )
        self._callbacks.restore(session.metadata.get("callbacks", {}), self._state.step)
        self._training = Training(
            session,
            rank=self._worker_group.rank,
            num_workers=self._worker_group.num_workers,
            first_step=self._state.step,
            command=command,
            changed=changes(session.metadata.get("place", {}), self._place),
            paused=self._step_timer.paused,
            _emit=self._emit,
            _request_stop=self._stopping.ask,
            step=self._state.step,
        )
        self._substitutions = Substitutions(self._run, self._worker_group, self._report_substitution)
        self._saving = Saving(session, self._training, self._place, progress=self._progress, on_saved=self._report_save)
        # Sums since the last log line. They are checkpointed, so that a resumed run logs the same next line.
        self._window_sums = self._objective.window_sums(session.metadata, session.config, self._dataset.num_classes)
        self._rollbacks: int = session.metadata.get("rollbacks", 0)
        self._rolled_back_to: int | None = None

    def run(self) -> dict[str, Any]:
        if self._state.step >= self._plan.total_steps and self._run.result.exists():
            self._training.say(
                f"Nothing left to train: {self._run.path} is at its last step, {self._state.step}. "
                "Pass --extend with a longer config.epochs or config.steps to go on."
            )
            self._worker_group.exchange("end")
            return self._run.read_json(self._run.result)
        watchdog = Watchdog(self._worker_group, self._deadlines, on_end=self._record_lost_peer)
        try:
            with watchdog if self._owns_process else contextlib.nullcontext():
                self._begin()
                while self._state.step < self._plan.total_steps and not self._stopping.is_agreed:
                    try:
                        self._train_steps()
                    except DivergedError as error:
                        self._roll_back(error)
                return self._finish()
        except KeyboardInterrupt:
            self._saving.settle()
            message = f"interrupted at step {self._state.step}. {self._how_to_resume('command')}"
            raise (InterruptedRunError if self._owns_process else KeyboardInterrupt)(message) from None
        except (PeerLostError, tf.errors.OpError) as error:
            self._saving.settle()
            lost = as_peer_lost(error, self._worker_group)
            if not lost:
                if is_out_of_memory(error):
                    raise OutOfMemoryError(self._plan, self._config.image_size) from None
                raise
            self._record_lost_peer(str(lost))
            raise PeerLostError(f"{lost}. {self._how_to_resume('commands')}") from None
        finally:
            self._saving.settle()
            self._end(None)

    def _begin(self) -> None:
        """Starts the callbacks, and records what this start changes."""
        step, replicas = self._state.step, self._plan.replicas
        self._emit("on_start")
        attempt = os.environ.get("CONVOY_ATTEMPT", "")
        launched = {"attempt": int(attempt)} if is_count(attempt) else {}
        if step:
            changed = self._training.changed
            self._training.event("restored", step=step, replicas=replicas, changed=changed, **launched)
        else:
            self._training.event("start", step=0, replicas=replicas, **launched)
        recorded = self._metadata.get("config", {}).get("extended", {"steps": ()})["steps"]
        if step and len(self._config.extended.steps) > len(recorded):  # until a checkpoint has recorded it
            before, after = self._config.extended.lengths[-1], self._plan.total_steps
            self._training.event("extended", step=step, before=before, steps=after)
            for line in effects_of_extension(self._config, self._plan, rollbacks=self._rollbacks):
                self._training.say(line)
        if step and self._metadata["config"]["virtual_replicas"] != self._plan.virtual_replicas:
            self._report_virtual_replicas(self._metadata["config"]["virtual_replicas"])
            self._saving.save(self._metadata["score"])  # the same weights: later starts keep the new number
            self._saving.settle()
        self._stopping.agree("begin")
        self._stop_request.listen_to_interrupts()

    def _report_virtual_replicas(self, before: int) -> None:
        step, after = self._state.step, self._plan.virtual_replicas
        self._training.event("virtual_replicas_changed", step=step, before=before, after=after)
        self._training.say(
            f"Virtual replicas: {before} -> {after} from step {step} on. The sample order stays the same; the weights "
            "are no longer those of the run without this change."
        )

    def _train_steps(self) -> None:
        """Trains from the current step to the last one, or until a stop is agreed on; the last step is saved."""
        plan, state = self._plan, self._state
        first_step = state.step + 1
        unread: StepResult | None = None
        with contextlib.closing(self._input.batches(state.step)) as batches:
            while state.step < plan.total_steps and not self._stopping.is_agreed:
                batch = self._next_batch(batches)
                learning_rate = self._learning_rate(state.step)
                result = self._step(batch, learning_rate, stop_requested=self._stopping.is_requested)
                self._emit("on_step_end", result)
                if unread:  # one step late, so that logging does not wait for the step that has just begun
                    self._read_result(unread, state.step - 1)
                unread = result
                log, evaluate, checkpoint = map(
                    self._is_due, (plan.log_every_steps, plan.eval_every_steps, plan.checkpoint_every_steps)
                )
                if log or evaluate or checkpoint or state.step == first_step or self._stopping.is_agreed:
                    self._read_result(unread, state.step)
                    unread = None
                self._step_timer.end_step()
                self._saving.check()
                if state.step == first_step:
                    self._training.event("first_step", step=state.step)
                if log or evaluate or checkpoint:
                    self._measurements.worker_times.pause()
                if log:
                    self._log(result, learning_rate)
                evaluation = self._evaluate() if evaluate else None
                if checkpoint or (evaluation and evaluation.is_best) or self._stopping.is_agreed:
                    with self._step_timer.paused("checkpoints"):
                        self._saving.save(evaluation.metrics[self._objective.task.score] if evaluation else None)

    def _log(self, result: StepResult, learning_rate: float) -> None:
        log = self._measurements.log(self._window_sums, result, learning_rate)
        with self._step_timer.paused("log"):
            self._emit("on_log", log)
        self._window_sums[:] = 0

    def _evaluate(self) -> Evaluation | None:
        evaluation = self._measurements.evaluate(self._saving.best_score)
        if evaluation:
            with self._step_timer.paused("evaluation"):
                self._emit("on_evaluation", evaluation)
            self._stopping.agree("evaluated")
        return evaluation

    def _emit(self, hook: str, *arguments: Any) -> None:  # noqa: ANN401 (the hook's arguments)
        self._training.step = self._state.step
        self._callbacks.emit(hook, self._training, *arguments)

    def _is_due(self, every_steps: int) -> bool:
        return self._state.step == self._plan.total_steps or self._state.step % every_steps == 0

    def _next_batch(self, batches: Iterator[Batch]) -> Batch:
        """Waits for the batch of the next step and records what is known of it before the step runs."""
        done, step = self._state.step, self._state.step + 1
        if done == self._plan.freeze_steps or any(done == stage.first_step for stage in self._stages):
            self._step_timer.warm_up()  # the next step is recompiled
        self._worker_group.report(step, "waiting for input")
        self._emit("on_step_begin")
        with self._step_timer.waiting():
            batch = next(batches)
        self._substitutions.note(step, self._input.substituted(step))
        self._emit("on_batch", batch)
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
        self._measurements.worker_times.add(result)
        self._stopping.noted(bool(result.stop_requested.numpy()))
        # In float16 an overflow is normal as long as the loss scale can still be lowered.
        if result.finite.numpy() or result.loss_scale.numpy() > 1:
            return
        self._saving.settle()
        images = self._input.images(step)
        self._training.event("diverged", step=step, images=images)
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
            before = self._rolled_back_to if self._rolled_back_to == self._saving.step else None
            checkpoint = agree_on_checkpoint(self._worker_group, self._store, before=before)
        if not checkpoint:
            raise error
        restore_state(self._state, *checkpoint, self._run)
        self._window_sums = self._objective.window_sums(checkpoint[1], self._config, self._dataset.num_classes)
        self._rollbacks += 1
        step, factor = self._state.step, divergence.learning_rate_factor**self._rollbacks
        self._saving.step = self._rolled_back_to = step
        self._step_timer.drop_window()
        before = checkpoint[1]["config"]["virtual_replicas"]
        # Before a change, the run trains with the number of now, which suits its devices.
        self._config.update(configs.with_virtual_replicas(self._config, self._plan.virtual_replicas, step=step))
        self._emit("on_rollback")
        self._training.event("rolled_back", step=step, diverged_step=error.step, learning_rate_factor=factor)
        self._training.say(
            f"Rollback {self._rollbacks} of {divergence.rollbacks}: the gradient of step {error.step} is NaN or "
            f"infinite. Resuming from step {step} with the learning rate times {factor:g}."
        )
        if before != self._plan.virtual_replicas:
            self._report_virtual_replicas(before)
        self._worker_group.exchange("rolled back")

    def _progress(self, step: int) -> dict[str, Any]:
        return {
            "rollbacks": self._rollbacks,
            "window_sums": self._window_sums.tolist(),
            "reported": self._measurements.measured(),
            "callbacks": self._callbacks.states(step),
        }

    def _report_save(self, checkpoint: Checkpoint) -> None:
        with self._step_timer.paused("checkpoints"):
            self._emit("on_checkpoint", checkpoint)

    def _reason_to_stop(self) -> Stop:
        """Returns why the run stops before its last step, if that is to be its result; raises as `Stopping.reason`."""
        self._saving.settle()
        return self._stopping.reason(
            self._training, self._saving.resume_point, lambda stop: self._emit("on_stop", stop)
        )

    def _how_to_resume(self, commands: str) -> str:
        return f"Rerun the same {commands} to resume from {self._saving.resume_point}."

    def _report_substitution(self, details: dict[str, Any], sentence: str) -> None:
        self._training.event(SUBSTITUTED, **details)
        self._training.say(sentence)

    def _record_lost_peer(self, message: str) -> None:
        self._training.event("peer_lost", step=self._state.step, message=message)

    def _finish(self) -> dict[str, Any]:
        plan, step = self._plan, self._state.step
        stop = self._reason_to_stop() if step < plan.total_steps else None
        self._worker_group.report(step, "saving")
        digest = self._state.weights_sha256()
        digests = self._worker_group.exchange("weights", digest, seconds=self._deadlines.step)
        self._substitutions.note(step, [])  # after the exchange the chief has every worker's substitutions
        if len(set(digests)) > 1:
            raise AssertionError(f"the workers' final weights differ: {digests}")
        self._saving.finish()
        result = {
            "step": step,
            "epoch": self._measurements.epoch,
            "images_seen": step * plan.global_batch_size,
            **self._measurements.measured(),
            "best": {"step": self._store.best(), self._objective.task.score: self._store.best_score()},
            "seconds": self._step_timer.seconds(),
            "weights_sha256": digest,
            "virtual_replicas": plan.virtual_replicas,
            "virtual_replicas_changes": configs.changes_of_virtual_replicas(self._config),
            "replicas": plan.replicas,
            "workers": self._worker_group.num_workers,
            "substituted_records": self._substitutions.count,
            "stop": dataclasses.asdict(stop) if stop else None,
        }
        self._end(result)
        outcome = f"The run had ended, at step {step}, and is saved: {self._run.result} has its result."
        self._stopping.end(self._training, outcome)
        return result

    def _end(self, result: dict[str, Any] | None) -> None:
        if not self._has_ended:
            self._has_ended = True
            before = self._stopping.error
            self._emit("on_end", result)
            if result is None and self._stopping.error is not before:  # another error is raised
                self._training.say(f"Warning: {self._stopping.error}")
