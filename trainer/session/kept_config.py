"""The config of a run with the code that it keeps, to train it again: on other images, without the user's files.

config = kept_config(RunDirectory("run"))
config.model.name                       # run/code/model/models.py:small, as an absolute path
"""

import os
from functools import partial

import ml_collections

from convoy.core.registry import Registry, is_from_file
from convoy.input_pipeline.augment.pipeline import with_user_names
from convoy.input_pipeline.augment.registered import REGISTERED
from convoy.trainer import config as configs
from convoy.trainer.config.schedules import SCHEDULES
from convoy.trainer.models import MODELS
from convoy.trainer.run.directory import RunDirectory
from convoy.trainer.session.kept_code import MODEL, check_trusted, kept_name, run_registering
from convoy.trainer.step.losses import LOSSES
from convoy.trainer.step.more_metrics import METRICS, metric_names
from convoy.trainer.step.optimizers import OPTIMIZERS


def kept_config(run: RunDirectory, *, trust_code: bool = False) -> ml_collections.ConfigDict:
    """Returns the config of a run, in which users' pieces are those kept in RUN/code. Runs the code that registers any.

    Args:
      run: the run directory.
      trust_code: whether the run's code may run although another user owns it.

    Raises:
      UsageError: the code is not trusted, or fails.
      DataError: config.json is damaged.
    """
    if not trust_code:
        check_trusted(run, "", "training")
    config = configs.default_config().unlock()  # runs of earlier versions lack some fields
    config.update(run.read_config())
    for folder, registry in (
        (MODEL, MODELS),
        ("loss", LOSSES),
        ("schedule", SCHEDULES),
        ("optimizer", OPTIMIZERS),
    ):
        config[folder].name = _kept(run, registry, folder, config[folder].name)
    metrics = enumerate(metric_names(config.metrics))
    config.metrics = ",".join(_kept(run, METRICS, f"metric-{number}", name) for number, name in metrics)
    if config.augment.ops.strip():
        config.augment.ops = with_user_names(config.augment.ops, partial(_kept_operation, run))
    return config.lock()


def _kept_operation(run: RunDirectory, number: int, name: str) -> str:
    return _kept(run, REGISTERED, f"operation-{number}", name)


def _kept(run: RunDirectory, registry: Registry, folder: str, name: str) -> str:
    if registry.is_built_in(name):
        return name
    run_registering(run, registry, name, folder)
    kept = kept_name(run, folder, name)
    # The same from every folder, since a run resumes with the same config only.
    return os.path.abspath(kept) if is_from_file(kept) else kept
