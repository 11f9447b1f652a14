"""Checks that users' operations keep the promise of the same run: pure functions of an image's pixels and draws.

check_operations(pipeline, [64], exact=config.deterministic)      # raises a UsageError with the reason

They are tried on a few images: noise, and black, white and gray ones, in batches of several sizes.
"""

import itertools
import re
from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import tensorflow as tf

from convoy.core.errors import UsageError, failure
from convoy.input_pipeline.augment.apply import applied
from convoy.input_pipeline.augment.pipeline import AugmentPipeline, Operation

_IMAGES = 8
_PLAIN = (0.0, 255.0, 128.0)  # images of one value, at which divisions by a deviation fail
_SLICES = (slice(0, 4), slice(2, 5), slice(7, 8))
_TOLERANCE = 0.01  # of 255; the last bits may depend on the batch size where a run need not be bit-identical
_RANDOM = re.compile(r"Random\w*|Stateful\w*(Uniform|Normal|Int|Binomial)\w*|Multinomial|\w*TruncatedNormal|Rng\w*")


def check_operations(pipeline: AugmentPipeline, sizes: Sequence[int], *, exact: bool) -> None:
    """Checks the operations of users in a pipeline.

    Args:
      pipeline: the pipeline.
      sizes: sides of the training images, pixels.
      exact: whether results must be bit-identical in batches of any size, as in a deterministic run.

    Raises:
      UsageError: an operation fails, is not a pure function, or returns something else than finite pixels.
    """
    for operation in (*pipeline.host, *pipeline.device):
        for size in sizes if operation.added else ():
            with tf.device("/CPU:0"):
                _check(operation, *_samples(operation, size), exact=exact)


def _samples(operation: Operation, size: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns images, and their random numbers, of which the first are the smallest and the largest possible."""
    generator = np.random.default_rng(0)
    pixels = generator.uniform(0, 255, (_IMAGES, size, size, 3)).astype(np.float32)
    pixels[: len(_PLAIN)] = np.reshape(_PLAIN, (-1, 1, 1, 1))
    draws = generator.integers(0, 2**24, (_IMAGES, operation.draws)).astype(np.float32) * np.float32(2**-24)
    draws[0], draws[1] = 0, 1 - 2**-24
    return tf.constant(pixels), tf.constant(draws)


def _check(operation: Operation, pixels: tf.Tensor, draws: tf.Tensor, *, exact: bool) -> None:
    def traced(*inputs: tf.Tensor) -> tf.types.experimental.ConcreteFunction:
        return tf.function(partial(applied, operation), autograph=False).get_concrete_function(*inputs)

    try:
        first, second = (traced(pixels, draws) for _ in range(2))
        _refuse(operation, next(_impurities(first), ""))
        whole = first(pixels, draws).numpy()
        repeated = [function(pixels, draws).numpy() for function in (first, second)]
        inputs = [(part, (pixels[part], draws[part])) for part in _SLICES]
        parts = [(part, traced(*batch)(*batch).numpy()) for part, batch in inputs]
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(f"config.augment.ops: {operation.name} fails: {failure(error)}.") from error
    if not np.isfinite(whole).all():
        worst = int(np.argmin(np.isfinite(whole).all((1, 2, 3))))
        kind = f"an image of {_PLAIN[worst]:g} everywhere" if worst < len(_PLAIN) else "some images"
        _refuse(operation, f"returns NaN or infinity for {kind}")
    if any(not np.array_equal(whole, other) for other in repeated):
        _refuse(operation, "returns other pixels when it is called again with the same pixels and draws")
    difference = max(float(np.abs(whole[part] - result).max()) for part, result in parts)
    if difference > (0.0 if exact else _TOLERANCE):
        last_bits = " Run without --deterministic, or sum integers." if difference <= _TOLERANCE else ""
        _refuse(operation, f"changes an image by {difference:.3g} with the other images of its batch", last_bits)


def _refuse(operation: Operation, reason: str, fix: str = "") -> None:
    if reason:
        raise UsageError(
            f"config.augment.ops: {operation.name} {reason}. The result for an image must depend on its pixels, draws "
            f"and arguments only.{fix}"
        )


def _impurities(function: tf.types.experimental.ConcreteFunction) -> Iterator[str]:
    """Yields what else than its arguments a function reads."""
    graph = function.graph.as_graph_def()
    inner_nodes = itertools.chain.from_iterable(inner.node_def for inner in graph.library.function)
    for operation in (node.op for node in itertools.chain(graph.node, inner_nodes)):
        if _RANDOM.fullmatch(operation):
            yield f"draws its own random numbers ({operation}): use those in draws, such as draws[:, 0]"
    if any(value.dtype == tf.resource for value in function.captured_inputs):
        yield "reads a variable"
