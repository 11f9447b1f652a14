"""Ways in which a run ends before its last step, each with its exit code."""

from collections.abc import Sequence
from pathlib import Path

import tensorflow as tf

from convoy.core.errors import ConvoyError, UsageError
from convoy.core.exit_codes import INTERRUPTED, RETRYABLE
from convoy.core.text import counted
from convoy.trainer.cluster.worker_group import PeerLostError, WorkerGroup
from convoy.trainer.config import Plan

_MAX_LISTED_IMAGES = 8
_MEMORY_WORDS = ("out of memory", "failed to allocate", "alloc_failed", "resource_exhausted", "bad_alloc")
_DETECTION_SECONDS = 3.0  # TensorFlow may fail this much earlier than the worker group finds the lost worker


class DivergedError(ConvoyError):
    """The gradient is NaN or infinite. The message has the step, its images, the last checkpoint and possible fixes.

    Attributes:
      step: step whose gradient is not finite.
    """

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
        """Composes the message.

        Args:
          step: step whose gradient is not finite.
          images: images of its batch, by index in the training split.
          last_checkpoint: step of the last checkpoint, or None.
          learning_rate: `config.optimizer.learning_rate`.
          rollbacks: number of rollbacks so far.
          events: file with all of `images`.
        """
        super().__init__(
            f"step {step}: the gradient is NaN or infinite. The update was not applied. "
            f"Batch: images {', '.join(map(str, images[:_MAX_LISTED_IMAGES]))}, ... of the training split "
            f"(all {len(images)} in {events}). "
            f"Last checkpoint: {'none' if last_checkpoint is None else f'step {last_checkpoint}'}. "
            f"Lower config.optimizer.learning_rate={learning_rate:g}, clip the gradient with "
            "config.optimizer.clip_norm=1, "
            + (
                f"or inspect those images: {counted(rollbacks, 'rollback')} did not help."
                if rollbacks
                else "or enable automatic rollback with config.divergence.rollbacks=2."
            )
        )
        self.step = step


class InterruptedRunError(ConvoyError):
    """Ctrl-C. The run was saved before it stopped, unless it could not wait for the step."""

    exit_code = INTERRUPTED
    is_secondary = True


class PreemptedError(ConvoyError):
    """SIGTERM, SIGUSR1 or SIGHUP. The run was saved before it stopped."""

    exit_code = RETRYABLE
    is_secondary = True


class OutOfMemoryError(UsageError):
    """A step or an evaluation does not fit into the memory of a device. The message has what to change."""

    def __init__(self, plan: Plan, image_size: int):
        """Composes the message.

        Args:
          plan: plan of the run.
          image_size: `config.image_size`.
        """
        images, virtual_replicas = plan.virtual_batch_size, plan.virtual_replicas
        smaller = f"--config.batch_size={virtual_replicas * (images // 2)}, or --find_batch_size for the largest"
        keep = f"a new run keeps the batch with --config.virtual_replicas={2 * virtual_replicas}"
        super().__init__(
            f"out of memory: {counted(images, 'image')} of {image_size} pixels at a time, config.batch_size="
            f"{plan.global_batch_size} in {counted(virtual_replicas, 'virtual replica')}, do not fit on a device. "
            + (f"Pass {smaller}; {keep}." if images > 1 else "Use a smaller model or config.image_size.")
        )


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error of Python, TensorFlow, XLA or cuDNN means out of memory."""
    words = str(error).lower()
    return isinstance(error, MemoryError | tf.errors.ResourceExhaustedError) or any(
        word in words for word in _MEMORY_WORDS
    )


def as_peer_lost(error: PeerLostError | tf.errors.OpError, worker_group: WorkerGroup) -> PeerLostError | None:
    """Returns an error that names the lost worker, or None if `error` has another cause.

    TensorFlow reports that a worker is gone, but not which one.
    """
    if isinstance(error, PeerLostError):
        return error
    if worker_group.num_workers == 1:
        return None
    why = worker_group.liveness.failure_reason(_DETECTION_SECONDS)
    if not why and not isinstance(error, tf.errors.UnavailableError | tf.errors.DeadlineExceededError):
        return None
    return PeerLostError(why or f"a worker is gone: {error.message.splitlines()[0]}")
