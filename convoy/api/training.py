"""`load_config`, `train` and the result of a training."""

import copy
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections

from convoy.api.datasets import path_text
from convoy.api.shown import Shown
from convoy.api.spelling import spelled_for_python
from convoy.core.cluster import find_cluster
from convoy.core.devices import parse_devices
from convoy.core.errors import UsageError
from convoy.core.run_layout import MOST_FOLDS
from convoy.core.text import counted
from convoy.core.user_code import code_of
from convoy.input_pipeline.dataset.open import Data, stated_format
from convoy.trainer import config as configs
from convoy.trainer.callbacks.callback import Callback

_Path = str | os.PathLike[str]

_logger = logging.getLogger("convoy")


@spelled_for_python()
def load_config(recipe: _Path = configs.DEFAULT_RECIPE, **fields: Any) -> ml_collections.ConfigDict:  # noqa: ANN401
    """Returns the config of a recipe with other values of some fields.

    The config is locked: fields can be set, new ones cannot be added. `convoy train --print_config` lists all fields.

    Args:
      recipe: name of a shipped recipe, such as `convnet`, or a Python file with `get_config()`.
      **fields: values by name. Fields of a section are given as a dict, or by dotted name:
        `optimizer={"learning_rate": 0.1}`, `**{"optimizer.learning_rate": 0.1}`. As on the command line, `epochs`
        overrides a recipe's `steps`, and a duration its other units.

    Raises:
      UsageError: there is no such recipe or field, or a value is of the wrong type or out of range.

    Example:
      config = convoy.load_config("smoke", steps=8, optimizer={"learning_rate": 3e-4})
      config.batch_size = 8
      config.optimizer.learning_rate
    """
    return configs.configured(_recipe_name(recipe), fields)


def _recipe_name(recipe: _Path) -> str:
    if not isinstance(recipe, str | os.PathLike):
        raise UsageError(
            f"config={recipe!r:.50}: pass what convoy.load_config() returns, or the name or file of a recipe."
        )
    return os.fspath(recipe)


class TrainingResult(Shown):
    """The result of a training run: each field of RUN/result.json is an attribute.

    Attributes:
      workdir: the run directory.
      step: steps done.
      epoch: epochs done.
      images_seen: images trained on, with repetitions.
      metrics: the newest metrics, by split (`train`, `validation`) and name: loss in nats, others in [0, 1].
      images_per_second: steady speed over all devices, without first steps, evaluation and checkpoints.
      limits: the bottleneck analysis: what bounds the speed (`bound`), a `sentence` with suggested fixes, step time,
        input wait, reduction, memory and utilization; None in a run that is too short.
      best: `step` and `top1` (with several labels per image `mean_average_precision`) of the best evaluation on the
        validation split; None without one.
      seconds: seconds spent on `steps` and on each kind of pause, such as `evaluation` and `checkpoints`.
      weights_sha256: SHA-256 over all weights, equal for equal runs (with `deterministic`) on any devices.
      virtual_replicas: number of virtual replicas.
      virtual_replicas_changes: per change of this number in the course of the run `step`, `before` and `after`.
      replicas: number of devices.
      workers: number of workers.
      substituted_records: unusable records in whose place others were used.
      thresholds: with several labels per image, smallest probability of each class that counts as a label, chosen at
        the last evaluation; missing otherwise.
      temperature: what the logits are divided by for calibrated probabilities, fitted at the last evaluation; missing
        without a validation split.
      stop: `reason`, `by` and `resumable`, if the run stopped before its last step by request; else None.

    Example:
      result = convoy.open_run("run").result
      result.weights_sha256[:16], result.step, result.metrics["validation"]["top1"]
      result
    """

    workdir: Path
    step: int
    epoch: float
    images_seen: int
    metrics: dict[str, dict[str, float]]
    images_per_second: float | None
    limits: dict[str, Any] | None
    best: dict[str, Any]
    seconds: dict[str, float]
    weights_sha256: str
    virtual_replicas: int
    virtual_replicas_changes: list[dict[str, int]]
    replicas: int
    workers: int
    substituted_records: int
    stop: dict[str, Any] | None
    thresholds: list[float]
    temperature: float

    def __init__(self, workdir: Path, content: Mapping[str, Any]):
        """Takes the content of result.json."""
        self.workdir = workdir
        self._content = dict(content)
        self.__dict__.update(self._content)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 (a field that other versions of Convoy have)
        """Raises an AttributeError that lists the fields."""
        fields = ", ".join(self.__dict__.get("_content", {}))
        raise AttributeError(f"the result of a training has no field {name!r}. It has {fields}.")

    def as_dict(self) -> dict[str, Any]:
        """Returns the content of result.json.

        Example:
          convoy.open_run("run").result.as_dict()["weights_sha256"]
        """
        return dict(self._content)

    def _title(self) -> str:
        return f"Training in {self.workdir}: step {self.step:,}"

    def _facts(self) -> Mapping[str, object]:
        metrics = {
            f"{split} {name}": value for split, values in (self.metrics or {}).items() for name, value in values.items()
        }
        shown = ("epoch", "images_seen", "images_per_second", "replicas", "virtual_replicas", "weights_sha256")
        stopped = {"stopped": self.stop["reason"]} if self.stop else {}
        return {**stopped, **{name: self._content.get(name) for name in shown}, **metrics}


class CrossValidation(TrainingResult):
    """The result of `train(folds=K)`: each field of RUN/result.json is an attribute.

    Attributes:
      workdir: the folder with the runs of the folds: `fold-1`, `fold-2`, ...
      folds: per fold `fold`, its number; `result`, that of its run; and once all are trained, `images`, `checkpoint`,
        the step of the evaluated weights, and `metrics`.
      mean: mean of each metric over the folds; None before all are trained.
      sd: standard deviation of each metric over the folds, with K - 1 as divisor; None before all are trained.
      out_of_fold: metrics over all images, each predicted by the run that was not trained on it.
      label_errors: number of images in label_errors.csv, whose label is probably wrong.
      stop: as in `TrainingResult`, of the fold that was stopped; else None.

    Example:
      config = convoy.load_config("smoke", steps=4)
      result = convoy.train(config, data="data", workdir="folds", folds=2)
      result.mean["top1"], result.sd["top1"], result.label_errors
      convoy.open_run("folds").predict("photos/test").labels[:3]
    """

    folds: list[dict[str, Any]]
    mean: dict[str, float] | None
    sd: dict[str, float] | None
    out_of_fold: dict[str, float] | None
    label_errors: int | None

    def _title(self) -> str:
        return f"Cross-validation in {self.workdir}: {counted(len(self.folds), 'fold')}"

    def _facts(self) -> Mapping[str, object]:
        stopped = {"stopped": self.stop["reason"]} if self.stop else {}
        mean, sd = self.mean or {}, self.sd or {}
        texts = {name: value if value is None else f"{value:.4g} ± {sd[name]:.2g}" for name, value in mean.items()}
        return {**stopped, **texts}


@spelled_for_python()
def train(
    config: ml_collections.ConfigDict | _Path,
    *,
    data: Data,
    workdir: _Path,
    devices: str = "auto",
    callbacks: Sequence[Callback | str] = (),
    max_hours: float = 0.0,
    folds: int = 0,
    strategy: str = "auto",
    extend: bool = False,
    virtual_replicas: int | None = None,
    backup: str = "",
    cache_dir: _Path = "",
    cache_gib: float = 0.0,
    record_order: bool = False,
    profile_steps: tuple[int, int] | None = None,
    image_key: str = "",
    label_key: str = "",
    class_names: Sequence[str] = (),
) -> TrainingResult:
    """Trains a model on all chosen devices of this process, or resumes an interrupted run.

    The same as `convoy train`, with the same weights. Several processes are started by `convoy launch`.

    Args:
      config: from `load_config`, or the name or file of a recipe, which is then kept in the run directory; or `auto`,
        which chooses one for the data, the devices and `max_hours`, logs the reasons, and writes it to
        `workdir`/recipe.py.
      data: dataset directory: from `convert` or TFDS, or a folder of TFRecords; or sources, as in `open_dataset`. Needs
        a split `train`; a split `validation` is evaluated.
      workdir: run directory; an interrupted run in it is resumed.
      devices: `auto` (all GPUs, else the CPU), `cpu:N` (N logical devices) or `gpu:0,1`. The first use of TensorFlow in
        a process fixes its devices; afterwards only those can be chosen.
      callbacks: observers of the run, in addition to those that write the run directory: objects, or names as
        `--callbacks` takes them, such as `wandb` and `mlflow`.
      max_hours: stop after this time, above 0: the run is saved, and the same call trains on.
      folds: cross-validation: divide the images of `train` and `validation` into this many folds, 2 or more, and train
        a run without each. The result is a `CrossValidation`. Each run gets a shallow copy of the callbacks.
      strategy: `auto`, `one_device` or `mirrored`.
      extend: continue the run to a longer `config.epochs` or `config.steps`.
      virtual_replicas: continue the run in `workdir` with another number of virtual replicas, for devices that do not
        divide its present one. A new run has `config.virtual_replicas`.
      backup: directory in an object store, such as `s3://bucket/run`, for a copy of `workdir`, kept up to date in the
        background; an empty `workdir` is restored from it.
      cache_dir: folder on a local disk for the images of `config.cache="disk"`; by default in the cache folder.
      cache_gib: most GiB of images there, 0 or more; 0 for half of the free space.
      record_order: write the images of each step to RUN/order.
      profile_steps: first and last step to profile for TensorBoard.
      image_key: feature of the encoded image in TFRecords of other tools.
      label_key: feature of the label in them.
      class_names: class of each label in them.

    Raises:
      UsageError: config, devices and dataset do not match, or the run in `workdir` has another config.
      DataError: data, checkpoint or run directory cannot be used.
      ConvoyError: the loss became NaN or infinite, or a callback raised an exception; the run can be resumed.
      KeyboardInterrupt: it was interrupted; called again, it resumes from its last checkpoint.

    Example:
      config = convoy.load_config("smoke", steps=4, eval_every_steps=2, precision="float32")
      result = convoy.train(config, data="data", workdir="run", devices="cpu:1")
      result.step, result.weights_sha256
    """
    recipe = None
    if not isinstance(config, ml_collections.ConfigDict):
        config = _recipe_name(config)
        if config != configs.AUTO_RECIPE:
            recipe = code_of(configs.recipe_path(config))
            config = configs.load_recipe(config)
    if cluster := find_cluster(os.environ):
        raise UsageError(
            f"convoy.train() runs in one process, not on the {cluster.num_workers} workers of {cluster.source}: start "
            f"these with `convoy launch`. {cluster.how_to_train_alone}"
        )
    workdir, parsed_devices = os.fspath(workdir), parse_devices(str(devices))
    name = path_text(data) or type(data).__name__
    record_format = stated_format(path_text(data), image_key, label_key, class_names=class_names)
    if not isinstance(max_hours, int | float) or not max_hours >= 0:
        raise UsageError(f"max_hours={max_hours!r}: pass a number of hours above 0.")
    if profile_steps is not None and not _is_range(profile_steps):
        raise UsageError(
            f"profile_steps={profile_steps!r}: pass (FIRST, LAST) with 1 <= FIRST <= LAST, such as (20, 30)."
        )
    if not isinstance(folds, int) or not (folds == 0 or 2 <= folds <= MOST_FOLDS):
        raise UsageError(f"folds={folds!r}: pass 2 to {MOST_FOLDS}, or 0 for a single run.")
    if virtual_replicas is not None and not (isinstance(virtual_replicas, int) and virtual_replicas > 0):
        raise UsageError(f"virtual_replicas={virtual_replicas!r}: pass an integer above 0, or None to change nothing.")
    from convoy.input_pipeline.reading.pixel_store import chosen_space
    from convoy.trainer.auto.choosing import Request, auto_config
    from convoy.trainer.auto.rules import Choice
    from convoy.trainer.callbacks.log_messages import LogMessages
    from convoy.trainer.callbacks.named import chosen_callbacks
    from convoy.trainer.callbacks.time_limit import TimeLimit
    from convoy.trainer.cross_validation.training import train_folds
    from convoy.trainer.loop import train as train_loop
    from convoy.trainer.tf_compat.keras_state import global_state_kept

    def log(headline: str, choices: list[Choice]) -> None:
        for line in (headline, *(f"config.{choice.field} = {choice.value!r}: {choice.reason}" for choice in choices)):
            _logger.info("%s", line)

    time_limit = TimeLimit(max_hours) if max_hours else None
    if config == configs.AUTO_RECIPE:
        opened = path_text(data) or data
        request = Request(
            opened, workdir, str(devices), strategy, record_format, folds=folds, max_hours=max_hours, backup=backup
        )
        config, recipe = auto_config(request, log)
    assert isinstance(config, ml_collections.ConfigDict)
    chosen = chosen_callbacks(callbacks, record_order=record_order, profile_steps=profile_steps, time_limit=time_limit)
    common: dict[str, Any] = {
        "data": path_text(data) or data,
        "workdir": workdir,
        "devices": parsed_devices,
        "strategy_name": strategy,
        "recipe": recipe,
        "record_format": record_format,
        "extend": extend,
        "virtual_replicas": virtual_replicas,
        "backup": backup,
        "cache_space": chosen_space(config.cache, os.fspath(cache_dir), cache_gib),
        "command": f"convoy.train(data={name!r}, workdir={workdir!r}, devices={devices!r}"
        + (f", folds={folds})" if folds else ")"),
    }

    def copied_callbacks() -> list[Callback]:
        return [LogMessages(), *map(copy.copy, chosen)]

    with global_state_kept():
        if folds:
            content = train_folds(config, folds=folds, make_callbacks=copied_callbacks, say=_logger.info, **common)
            return CrossValidation(Path(workdir), content)
        return TrainingResult(Path(workdir), train_loop(config, callbacks=[LogMessages(), *chosen], **common))


def _is_range(steps: object) -> bool:
    if not isinstance(steps, Sequence) or len(steps) != 2 or not all(isinstance(step, int) for step in steps):
        return False
    return 1 <= steps[0] <= steps[1]
