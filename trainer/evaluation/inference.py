"""The forward pass of evaluation and prediction.

logits = infer(state, built, images)                 # in replica context
for batch in distributed_batches(dataset, reader):   # records that cannot be read raise a DataError
    ...
"""

import contextlib
from collections.abc import Generator

import tensorflow as tf

from convoy.input_pipeline.reading.reader import Reader
from convoy.trainer.models import ModelBundle
from convoy.trainer.step.state import TrainState
from convoy.trainer.tf_compat.internals import iterate

# Images per batch on each device.
_BATCH_SIZE = 256
_DETERMINISTIC_BATCH_SIZE = 64


def evaluation_batch_size(num_images: int, replicas: int, *, deterministic: bool) -> int:
    """Returns the number of images per batch over all devices, a multiple of their number.

    Roundings depend on the size of a device's batch and on the place of an image in it. Neither depends on the number
    of devices in a deterministic run.
    """
    if deterministic:
        return min(_DETERMINISTIC_BATCH_SIZE, num_images) * replicas
    return min(_BATCH_SIZE, -(-num_images // replicas)) * replicas


def infer(state: TrainState, built: ModelBundle, images: tf.Tensor) -> tf.Tensor:
    """Returns the logits of a batch, in replica context.

    Args:
      state: weights to use: their average where the run keeps one.
      built: the model for images of this size.
      images: [batch, size, size, 3] uint8.

    Returns:
      [batch, num_classes] float32.
    """
    weights = [tf.convert_to_tensor(w) for w in state.evaluated_weights]
    # From the trained model: `built` may be a copy for another image size, whose statistics were never trained.
    others = [tf.convert_to_tensor(v.value) for v in state.model.non_trainable_variables]
    logits, _ = built.model.stateless_call(weights, others, built.inputs(images), training=False)
    return tf.cast(logits, tf.float32)


def distributed_batches(
    dataset: tf.distribute.DistributedDataset, reader: Reader
) -> Generator[dict[str, tf.Tensor], None, None]:
    """Yields the batches of a distributed dataset.

    Raises:
      DataError: a record cannot be used; the message names it.
    """
    with contextlib.closing(iterate(dataset)) as batches:
        try:
            yield from batches
        except tf.errors.OpError:
            if cause := reader.explain():
                raise cause from None
            raise
