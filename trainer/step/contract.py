"""Checks that losses and metrics of users keep their contracts, on random logits, before a run trains.

What a violation does is silent: with a loss that looks at the other images of its batch, or draws random numbers, a run
on two devices is another one than on one device.
"""

import inspect
import numbers
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from convoy.trainer.run.task import SINGLE_LABEL, Task
from convoy.trainer.step.losses import LOSSES, Loss
from convoy.trainer.step.metrics import Metric

_PROBES, _SLICE = 24, 4
_SPREAD = 8.0  # standard deviation of the logits: some images are classified with near certainty
_RANDOM = "Draw no random numbers and keep no state"


def check_loss(loss: Loss, num_classes: int, task: Task = SINGLE_LABEL) -> str:
    """Returns why a loss cannot be trained with, or ""."""
    logits, labels = _probes(num_classes, task)
    return _call_complaint(loss, (logits, labels), [_PROBES]) or _loss_complaint(loss, logits, labels)


def _loss_complaint(loss: Loss, logits: tf.Tensor, labels: tf.Tensor) -> str:
    with tf.GradientTape() as tape:
        tape.watch(logits)
        losses = loss(logits, labels)
    gradient = tape.gradient(losses, logits)
    parts = [loss(logits[part], labels[part]) for part in _slices()]
    for part in parts:
        if part.shape != [_SLICE]:
            return f"returns {_described(part)} for {_SLICE} images"
    if not _close(losses, tf.concat(parts, 0)):
        return (
            "returns other losses for images in a batch of another size. The loss of an image must not depend on the "
            "other images: virtual replicas divide the batch"
        )
    if gradient is None or not np.any(gradient):
        return "has no gradient: it does not depend on the logits, or only through argmax, rounding or the like"
    if not np.isfinite(gradient).all():
        return "has a gradient that is NaN or infinite for ordinary logits"
    return ""


def check_metric(make: Callable[[int], Metric], num_classes: int, task: Task = SINGLE_LABEL) -> str:
    """Returns why a metric cannot be used, or ""."""
    if not callable(make):
        return f"is a {type(make).__name__}. Name a class, or a function that returns a metric"
    metric: Any = make(num_classes)
    for attribute in ("size", "batch_sums", "summarize"):
        if not hasattr(metric, attribute):
            return f"has no {attribute}"
    if not isinstance(metric.size, int) or metric.size < 1:
        return f"has size={metric.size!r}. It must be a whole number of 1 or more"
    logits, labels = _probes(num_classes, task)
    losses, weights = LOSSES.find(task.default_loss).value(logits, labels), tf.ones([_PROBES])
    batch = (logits, labels, losses, weights)
    if complaint := _call_complaint(metric.batch_sums, batch, [metric.size], name="batch_sums "):
        return complaint
    total = metric.batch_sums(*batch).numpy()
    parts = sum(metric.batch_sums(*(column[part] for column in batch)).numpy() for part in _slices())
    if not _close(total, parts):
        return (
            "has sums that do not add up: batch_sums of a batch is not the sum over its parts. Return sums, not means"
        )
    padded = metric.batch_sums(*batch[:3], tf.concat([weights[:_SLICE], tf.zeros([_PROBES - _SLICE])], 0)).numpy()
    if not _close(padded, metric.batch_sums(*(column[:_SLICE] for column in batch)).numpy()):
        return "counts images of weight 0, which are padding. Multiply what each image adds by its weight"
    value = metric.summarize(total.astype(np.float64))
    if not isinstance(value, numbers.Real) or not np.isfinite(float(value)):
        return f"returns {value!r} from summarize. Return a finite number"
    return ""


def _call_complaint(
    function: Callable[..., Any], arguments: tuple[tf.Tensor, ...], shape: list[int], name: str = ""
) -> str:
    """Returns why a function does not return a pure, finite float32 tensor of a shape, or ""."""
    try:
        inspect.signature(function).bind(*arguments)
    except TypeError:
        return f"{name}takes {inspect.signature(function)}, not {len(arguments)} arguments"
    result = function(*arguments)
    if not tf.is_tensor(result) or result.dtype != tf.float32 or result.shape != shape:
        return f"{name}returns {_described(result)}, not {_sizes(shape)} float32"
    if not np.isfinite(result).all():
        return f"{name}returns values that are NaN or infinite for ordinary logits"
    if not np.allclose(result, function(*arguments), rtol=1e-6, atol=0.0):
        return f"{name}returns other values when called again: it is not a pure function. {_RANDOM}"
    # As a step calls it. Each function is traced again, so that what Python draws differs.
    graphs = [tf.function(lambda *given: function(*given), autograph=False) for _ in range(2)]
    for graph in (*graphs, graphs[0]):
        if not _close(result, graph(*arguments)):
            return f"{name}returns other values in a graph: it is not a pure function of tensors. {_RANDOM}"
    return ""


def _probes(num_classes: int, task: Task) -> tuple[tf.Tensor, tf.Tensor]:
    random = np.random.default_rng(0)
    logits = _SPREAD * random.standard_normal((_PROBES, num_classes), np.float32)
    if task.multi_label:
        return tf.constant(logits), tf.constant(np.float32(random.random((_PROBES, num_classes)) < 0.5))
    return tf.constant(logits), tf.constant(random.integers(0, num_classes, _PROBES, np.int32))


def _slices() -> Iterator[slice]:
    for start in range(0, _PROBES, _SLICE):
        yield slice(start, start + _SLICE)


def _close(value: np.ndarray, other: np.ndarray) -> bool:
    """Returns whether values are equal up to rounding."""
    return np.allclose(value, other, rtol=1e-3, atol=1e-4)


def _described(value: object) -> str:
    return f"{_sizes(value.shape)} {value.dtype.name}" if isinstance(value, tf.Tensor) else f"a {type(value).__name__}"


def _sizes(shape: tf.TensorShape | list[int]) -> str:
    return f"[{', '.join(map(str, shape))}]"
