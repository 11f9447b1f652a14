"""The processes that `convoy bench scaling` measures: training steps and reductions.

A peer is called `LAYOUT-WHAT[-apart]`. The layout is `one` (one process with one device), `devices` (one process with
two) or `processes` (two processes with one device each). `fast` and `deterministic` are whole steps; `apart` omits the
reduction, so that each device trains independently. `bare` is the reduction of as many values without a step, `tiny`
that of a single value.
"""

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any
from unittest import mock

from benchmarks.step import LEARNING_RATE, convoy_step
from benchmarks.workers import Prepared, serve, timed
from convoy.core.cluster import Cluster
from convoy.input_pipeline.tf_startup import start_tensorflow

if TYPE_CHECKING:
    import tensorflow as tf

DEVICES = {"one": 1, "devices": 2, "processes": 2}
_TINY_REPEATS = 20


def prepare(name: str, options: dict[str, Any]) -> Prepared:
    """Prepares a peer, or the part of it that this process runs.

    Args:
      name: as described above.
      options: batch_size (images per device), image_size, steps_per_round, precision, model, cores (CPU affinity of
        this process); for one of two processes also addresses (of both) and rank.
    """
    # Must come before TensorFlow counts the cores.
    os.sched_setaffinity(0, options["cores"])
    start_tensorflow()
    layout, what, *rest = name.split("-")
    cluster, devices = None, DEVICES[layout]
    if layout == "processes":
        jobs = tuple(("worker", rank) for rank in range(devices))
        cluster = Cluster(tuple(options["addresses"]), options["rank"], "convoy bench", jobs)
    step = convoy_step(
        options["precision"],
        devices * options["batch_size"],
        options["image_size"],
        model=options["model"],
        virtual_replicas=devices,
        devices=1 if cluster else devices,
        cluster=cluster,
        # A thread without its own core costs an eighth of the step; a core without a thread is idle.
        deterministic_threads=len(options["cores"]) if what == "deterministic" else 0,
    )
    shapes = [*(w.shape for w in step.state.weights), *(v.shape for v in step.state.statistics)]
    facts = {
        "parameters": sum(w.shape.num_elements() for w in step.state.weights),
        "reduced_bytes": 4 * sum(shape.num_elements() for shape in shapes),
    }
    steps, images = options["steps_per_round"], options["batch_size"] * (1 if cluster else devices)
    if what in ("bare", "tiny"):
        repeats = steps if what == "bare" else steps * _TINY_REPEATS
        # Both processes take part in the same reductions, which count once.
        counted = 0 if options["rank"] else repeats
        reduce = _reduction(step.state.strategy, shapes if what == "bare" else [[1]])
        return Prepared(timed(reduce, counted, times=repeats), facts)

    def train() -> None:
        with _without_reduction() if rest else contextlib.nullcontext():  # takes effect when the step is traced
            result = step.train_step(step.batch, LEARNING_RATE)
        float(result.gradient_norm)

    return Prepared(timed(train, steps * images, times=steps), facts)


@contextlib.contextmanager
def _without_reduction() -> Iterator[None]:
    """Replaces the reduction by a sum over the device's own virtual replicas, for steps traced inside."""
    import tensorflow as tf

    from convoy.trainer.step.reduction import Terms, sum_block

    def own_sum(
        term: Callable[[tf.Tensor], Terms],
        *,
        virtual_replicas: int,
        before_exchange: Callable[[Terms], None],
        **_: Any,  # noqa: ANN401
    ) -> Terms:
        context = tf.distribute.get_replica_context()
        share = virtual_replicas // context.num_replicas_in_sync
        own = sum_block(term, tf.get_static_value(context.replica_id_in_sync_group) * share, share)
        before_exchange(own)
        return own

    with mock.patch("convoy.trainer.step.step.reduce_over_virtual_replicas", own_sum):
        yield


def _reduction(strategy: "tf.distribute.Strategy", shapes: Sequence[Any]) -> Callable[[], None]:
    """Returns a function that sums float32 tensors of these shapes over the devices, as the step's reduction does."""
    import tensorflow as tf

    from convoy.trainer.step.reduction import reduce_over_virtual_replicas

    values = [tf.random.stateless_normal(shape, seed=[0, 0]) for shape in shapes]
    devices = strategy.num_replicas_in_sync

    def reduced(values: list[tf.Tensor]) -> list[tf.Tensor]:
        values = [tf.identity(value) for value in values]  # a copy per replica
        return reduce_over_virtual_replicas(lambda _: values, virtual_replicas=devices, deterministic=False)

    run = tf.function(lambda values: strategy.run(reduced, (values,)), autograph=False)
    return lambda: run(values)


if __name__ == "__main__":
    serve(prepare)
