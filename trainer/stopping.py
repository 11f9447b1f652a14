"""Stops of a run before its last step: by a signal, by request of a callback, or because a callback failed.

All workers stop after the same step. A worker's wish travels with the reduction of a step (`noted`), or is exchanged
where the workers meet in any case (`agree`).
"""

import dataclasses
import signal
from collections.abc import Callable, Sequence

from convoy.trainer.callbacks.callback import Stop, Training
from convoy.trainer.callbacks.callback_list import CallbackError
from convoy.trainer.cluster.stop_request import StopRequest
from convoy.trainer.cluster.worker_group import WorkerGroup
from convoy.trainer.session.errors import InterruptedRunError, PreemptedError

Failure = tuple[str, str]  # callback and text


class Stopping:
    """What this worker is asked for, and what all workers have agreed on.

    Attributes:
      is_agreed: whether the run stops after the current step.
      error: the first failure of a callback of this worker; None without one.
    """

    def __init__(self, request: StopRequest, worker_group: WorkerGroup, *, seconds: float):
        """Args: seconds: how long to wait for the other workers."""
        self._request = request
        self._worker_group = worker_group
        self._seconds = seconds
        self.is_agreed = False
        self.error: CallbackError | None = None

    @property
    def is_requested(self) -> bool:
        """Whether this worker was asked to stop."""
        return self._request.is_set

    def ask(self, stop: Stop) -> None:
        """Asks all workers to stop; only the first request counts."""
        self._request.ask(dataclasses.asdict(stop))

    def fail(self, error: CallbackError) -> None:
        """Asks all workers to stop because a callback has failed."""
        self.error = self.error or error
        self.ask(Stop("a callback failed", error.callback))

    def agree(self, moment: str) -> None:
        """Stops at this step if a callback of any worker asks for it. All workers must call it at the same step."""
        asks = self._worker_group.exchange(moment, self._request.asked is not None, seconds=self._seconds)
        self.is_agreed = self.is_agreed or any(asks)

    def noted(self, stop_requested: bool) -> None:
        """Takes what a step's reduction says: whether any worker was asked to stop."""
        self.is_agreed = self.is_agreed or stop_requested

    def reason(self, training: Training, resume_point: str, on_stop: Callable[[Stop], None]) -> Stop:
        """Returns why the run stops, if that is to be its result. All workers must call it, after the last save.

        Args:
          training: the run.
          resume_point: the checkpoint that a rerun starts from, as text. That of the chief counts: it has written it.
          on_stop: called with the reason, whatever it is.

        Raises:
          PreemptedError: a worker received a signal.
          InterruptedRunError: a worker received SIGINT.
          CallbackError: a callback of a worker failed.
        """
        step, group, request = training.step, self._worker_group, self._request
        own = [request.signal_name, request.seconds, request.asked, self._failure(), resume_point]
        everyone = group.exchange("stop", own, seconds=self._seconds)
        signals, seconds, asked, failures, (resume_point, *_) = zip(*everyone, strict=True)
        if any(signals):
            rank, name = next((rank, name) for rank, name in enumerate(signals) if name)
            on_stop(Stop("a signal", name))
            waited = max(request.seconds, seconds[rank])
            training.event("preempted", step=step, signal=name, worker=rank, seconds=waited)
            receiver = f" to {group.address(rank)}" if group.num_workers > 1 else ""
            raise (InterruptedRunError if name == signal.SIGINT.name else PreemptedError)(
                f"{name}{receiver}: stopped at step {step} of {training.total_steps}, {waited:.1f} s after the "
                f"signal. Rerun the same command to resume from {resume_point}."
            )
        stop = Stop(**next(request for request in asked if request))
        on_stop(stop)
        self._require_no_failure(
            training,
            failures,
            f"The run stopped at step {step}. Fix the callback and rerun the same command to resume from "
            f"{resume_point}.",
        )
        return stop

    def end(self, training: Training, outcome: str) -> None:
        """Ends the run together with the other workers.

        Args:
          training: the run.
          outcome: what is known of the run, behind the error.

        Raises:
          CallbackError: a callback of a worker failed at the end.
        """
        failures = self._worker_group.exchange("end", self._failure(), seconds=self._seconds)
        self._require_no_failure(training, failures, outcome)

    def _failure(self) -> Failure | None:
        return (self.error.callback, str(self.error)) if self.error else None

    def _require_no_failure(self, training: Training, failures: Sequence[Failure | None], outcome: str) -> None:
        """Raises the CallbackError of the first worker of which a callback has failed, with `outcome` behind it."""
        group = self._worker_group
        for rank, failure in enumerate(failures):
            if failure:
                callback, text = failure
                place = f"{group.address(rank)}: " if group.num_workers > 1 else ""
                training.event("callback_failed", step=training.step, worker=rank, callback=callback)
                raise CallbackError(f"{place}{text}\n{outcome}", callback)
