"""The loss and the metrics of a run, found by the names in its config and tried before it trains.

    objective = find_objective(config, num_classes=42)
    objective.evaluated_loss(logits, labels)    # [batch]
    objective.metrics.summarize(sums)           # {"loss": ..., "top1": ..., ..., and those of config.metrics}

What the run predicts, one label per image or several, decides which losses and metrics there are (`run.task`).

The loss that a run reports, in training and evaluation, has no class weights, so that runs with other weights can be
compared. Evaluation also leaves out label smoothing.
"""

import dataclasses
import functools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ml_collections
import numpy as np

from convoy.core.errors import UsageError, did_you_mean, failure
from convoy.core.registry import Found, Registry, short_name
from convoy.input_pipeline.convert.metadata import class_weights as inverse_frequencies
from convoy.input_pipeline.convert.metadata import positive_weights
from convoy.input_pipeline.dataset.open import Dataset
from convoy.trainer.run.task import MULTI_LABEL, SINGLE_LABEL, Task
from convoy.trainer.step import contract
from convoy.trainer.step.losses import LOSSES, Loss, check_for_task, cross_entropy, make_loss
from convoy.trainer.step.metrics import Metric, MetricSet
from convoy.trainer.step.more_metrics import METRICS, metric_names
from convoy.trainer.step.multi_label_metrics import MultiLabelMetrics

_WEIGHTINGS = ("none", "balanced", "inverse_sqrt")


@dataclass(frozen=True)
class Objective:
    """The loss and the metrics of a run.

    Attributes:
      loss: the loss of training, with label smoothing.
      evaluated_loss: that of evaluation.
      metrics: the metrics.
      class_weights: weight of each class in the loss of training (`losses.losses_of`); empty for equal weights.
      found: where they come from, by the folder of RUN/code that keeps their code.
    """

    loss: Loss = cross_entropy
    evaluated_loss: Loss = cross_entropy
    metrics: MetricSet = field(default_factory=MetricSet)
    class_weights: Sequence[float] = ()
    found: Mapping[str, Found] = field(default_factory=dict)

    @property
    def task(self) -> Task:
        """What the run predicts."""
        return self.metrics.task

    def window_sums(
        self, metadata: Mapping[str, Any], config: ml_collections.ConfigDict, num_classes: int
    ) -> np.ndarray:
        """Returns the metric sums since the last log line, [MetricSet.sums_size(num_classes)] float64.

        Args:
          metadata: of the checkpoint that is resumed; empty for none.
          config: the run's config; `config.metrics` may be another than the checkpoint's.
          num_classes: number of classes.
        """
        same_metrics = metadata.get("config", {}).get("metrics", "") == config.metrics
        return self.metrics.restored(metadata.get("window_sums", ()), num_classes, same_metrics=same_metrics)


def find_objective(
    config: ml_collections.ConfigDict,
    num_classes: int,
    find: Callable[[Registry, str, str], Found] = lambda registry, name, folder: registry.find(name),
    task: Task = SINGLE_LABEL,
) -> Objective:
    """Finds the loss and the metrics of a config, and checks that those of users keep their contracts.

    Args:
      config: complete, or of an earlier version.
      num_classes: number of classes.
      find: finds a piece in a registry, by its name and the folder of RUN/code that keeps its code.
      task: what the run predicts.

    Raises:
      UsageError: there is no such piece, or it breaks its contract.
    """
    fields = dict(config.get("loss", {"name": "cross_entropy"}))
    found = find(LOSSES, fields.pop("name"), "loss")
    is_weighted = fields.pop("class_weights", "none") != "none"
    check_for_task(found, task, weighted=is_weighted)
    evaluated_loss = make_loss(found, fields)
    loss = make_loss(found, fields, config.label_smoothing)
    _require_contract(LOSSES, found, loss, functools.partial(contract.check_loss, task=task), num_classes)
    pieces, metrics = {"loss": found}, dict[str, Metric]()
    for number, name in enumerate(metric_names(config.get("metrics", ""))):
        found = pieces[f"metric-{number}"] = find(METRICS, name, f"metric-{number}")
        short = short_name(name)
        if short in (*task.metrics, *metrics):
            raise UsageError(
                f"config.metrics={config.metrics!r}: there is more than one metric {short!r}. Rename yours."
            )
        if task.multi_label and METRICS.is_built_in(name):
            raise UsageError(
                f"config.metrics={config.metrics!r}: {name!r} is for one label per image. Leave it out for several "
                "labels per image."
            )
        check = functools.partial(contract.check_metric, task=task)
        _require_contract(METRICS, found, found.value, check, num_classes)
        metrics[short] = found.value(num_classes)
    base = MultiLabelMetrics() if task.multi_label else None
    return Objective(loss, evaluated_loss, MetricSet(metrics, base), found=pieces)


def config_for(config: ml_collections.ConfigDict, dataset: Dataset) -> ml_collections.ConfigDict:
    """Returns a config with the defaults for what a dataset is to predict, where it has those for one label per image.

    With several labels per image the loss `cross_entropy` becomes `bce`, and early stopping watches
    `mean_average_precision` instead of `top1`.
    """
    if not dataset.multi_label:
        return config
    config = config.copy_and_resolve_references()
    if config.loss.name == SINGLE_LABEL.default_loss:
        config.loss.name = MULTI_LABEL.default_loss
    if config.early_stopping.metric == SINGLE_LABEL.score:
        config.early_stopping.metric = MULTI_LABEL.score
    return config


def training_objective(config: ml_collections.ConfigDict, dataset: Dataset) -> Objective:
    """As `find_objective`, with the class weights for a dataset, for which it also raises a UsageError."""
    weights = class_weights(config.loss.class_weights, dataset)
    task = MULTI_LABEL if dataset.multi_label else SINGLE_LABEL
    return dataclasses.replace(find_objective(config, dataset.num_classes, task=task), class_weights=weights)


def class_weights(text: str, dataset: Dataset) -> tuple[float, ...]:
    """Returns the weight of each class in the training loss; empty for equal weights.

    Args:
      text: `config.loss.class_weights`: `none`; `balanced`, inversely to the number of images of a class in the
        training split, as in the manifest; `inverse_sqrt`, inversely to its square root; or JSON, `{"CLASS": WEIGHT}`,
        with 1 for the classes that it leaves out. The mean of the first two over the images is 1. With several labels
        per image the weight is that of the images with the class against those without it: `balanced` is the number
        of the latter over that of the former (as `pos_weight` in PyTorch's documentation), `inverse_sqrt` its root.
      dataset: the training dataset.

    Raises:
      UsageError: another text, an unknown class, or a weight that is no number of 0 or more.
    """
    if text == "none":
        return ()
    if text in _WEIGHTINGS:
        split = dataset.split("train")
        counts = split.class_counts(dataset.num_classes)
        if dataset.multi_label:
            of_present = np.array(positive_weights(counts.tolist(), split.num_images))
            return tuple((of_present if text == "balanced" else np.sqrt(of_present)).tolist())
        balanced = np.array(inverse_frequencies(counts.tolist()))
        if text == "balanced":
            return tuple(balanced.tolist())
        return tuple((np.sqrt(balanced) * counts.sum() / (np.sqrt(balanced) @ counts)).tolist())
    try:
        given = json.loads(text)
    except ValueError:
        given = None
    if not isinstance(given, dict):
        raise UsageError(
            f"config.loss.class_weights={text!r}{did_you_mean(text, _WEIGHTINGS)}: must be one of "
            f"{', '.join(_WEIGHTINGS)}, or a JSON object such as "
            '{"CLASS": 2.5}.'
        )
    for name, weight in given.items():
        if name not in dataset.class_names:
            raise UsageError(
                f"config.loss.class_weights={text!r}: {dataset.directory} has no class "
                f"{name!r}{did_you_mean(name, dataset.class_names)}."
            )
        if not isinstance(weight, int | float) or isinstance(weight, bool) or not 0 <= weight < math.inf:
            raise UsageError(
                f"config.loss.class_weights={text!r}: the weight of class {name!r} is {weight!r}. Pass a number of 0 "
                "or more."
            )
    weights = tuple(float(given.get(name, 1.0)) for name in dataset.class_names)
    if not any(weights):
        raise UsageError(f"config.loss.class_weights={text!r}: all weights are 0. Pass a positive one.")
    return weights


def _require_contract(
    registry: Registry, found: Found, value: Callable, complaint_about: Callable[[Callable, int], str], num_classes: int
) -> None:
    """Raises a UsageError if a user's piece breaks its contract or fails."""
    if registry.is_built_in(found.name):
        return
    try:
        complaint = complaint_about(value, num_classes)
    except Exception as error:
        raise registry.breach(found.name, f"fails: {failure(error)}") from error
    if complaint:
        raise registry.breach(found.name, complaint)
