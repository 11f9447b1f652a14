"""TensorBoard values that describe a run: layout of its curves, its row on the HParams page, its model graph."""

import time

import keras
import ml_collections
from tensorboard.compat.proto.summary_pb2 import Summary

from convoy.trainer import config as configs
from convoy.trainer.callbacks.tensorboard import summaries
from convoy.trainer.callbacks.tensorboard.model_graph import layers_of
from convoy.trainer.run.task import SINGLE_LABEL, Task

_SHOWN_FIRST = ("augment.ops", "batch_size", "model.name", "optimizer.learning_rate", "optimizer.name")


def pages_of_run(
    config: ml_collections.ConfigDict, model: keras.Model, task: Task = SINGLE_LABEL
) -> dict[str, list[Summary.Value]]:
    """Returns values by TensorBoard run; the name of the run in RUN/tensorboard itself is empty.

    `task` decides which metrics there are, and by which the HParams page compares runs.
    """
    hyperparameters = {
        name: value for name, value in configs.fields(config) if not name.startswith(configs.OPERATIONAL_FIELDS)
    }
    root = [
        summaries.layout(multi_label=task.multi_label),
        summaries.experiment(hyperparameters, first=_SHOWN_FIRST, metrics=(f"best/{task.score}",)),
        summaries.session_start(hyperparameters, time.time()),
    ]
    layers = layers_of(model)
    return {"": root, "train": summaries.layer_graph(layers) if layers else []}
