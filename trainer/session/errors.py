"""How a run ends before its last step: each way with its exit code and its words."""

from collections.abc import Sequence
from pathlib import Path

import tensorflow as tf

from convoy.core.errors import ConvoyError
from convoy.core.exit_codes import INTERRUPTED, RETRYABLE
from convoy.trainer.cluster.worker_group import PeerLostError, WorkerGroup

_NAMED_IMAGES = 8
_LOSS_SECONDS = 3.0  # how long it takes at most until the peers know whom TensorFlow misses


class DivergedError(ConvoyError):
    """The loss is no number any more. The message names the step, the images, the last checkpoint and the mend."""

    def __init__(
        self,
        step: int,
        images: Sequence[int],
        *,
        last_checkpoint: int | None,
        learning_rate: float,
        rollbacks: int,
        events: Path,
    ):
        """Makes the message.

        Args:
          step: whose gradient it was.
          images: of its batch, by index in the training split.
          last_checkpoint: its step, or None.
          learning_rate: of the config.
          rollbacks: how often the run had gone back already.
          events: the file that holds all of `images`.
        """
        super().__init__(
            f"the gradient of step {step} is NaN or infinite; that update was not applied. "
            f"Its batch: images {', '.join(map(str, images[:_NAMED_IMAGES]))}, ... of the training split "
            f"(all {len(images)} in {events}). "
            f"Last checkpoint: {'none' if last_checkpoint is None else f'step {last_checkpoint}'}. "
            f"Lower config.optimizer.learning_rate={learning_rate:g}, "
            "limit the gradient with config.optimizer.clip_norm=1, "
            + (
                f"or look at those images: {rollbacks} rollbacks did not help."
                if rollbacks
                else "or let it go back by itself with config.divergence.rollbacks=2."
            )
        )
        self.step = step


class InterruptedRunError(ConvoyError):
    """Ctrl-C."""

    exit_code = INTERRUPTED


class PreemptedError(ConvoyError):
    """SIGTERM or SIGUSR1: saved and stopped."""

    exit_code = RETRYABLE


def as_peer_lost(error: PeerLostError | tf.errors.OpError, worker_group: WorkerGroup) -> PeerLostError | None:
    """Returns what names the worker that TensorFlow only says is gone; None where the error is another one."""
    if isinstance(error, PeerLostError):
        return error
    if worker_group.num_workers == 1:
        return None
    why = worker_group.why_lost(seconds=_LOSS_SECONDS)
    if not why and not isinstance(error, tf.errors.UnavailableError | tf.errors.DeadlineExceededError):
        return None
    return PeerLostError(why or f"a worker is gone: {error.message.splitlines()[0]}")
