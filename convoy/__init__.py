"""Trains image classifiers with TensorFlow: the same run on one device, all GPUs of a host, or a cluster.

import convoy

convoy.convert("photos", output="data", splits={"train": 0.8, "validation": 0.1, "test": 0.1})
config = convoy.load_config("convnet", batch_size=128)
result = convoy.train(config, data="data", workdir="run")
run = convoy.open_run("run")
run.evaluate("test").top1

The names are imported when they are first used: `import convoy` alone imports nothing else.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from convoy.api.conversion import Conversion, Verification, convert, sample, verify
    from convoy.api.datasets import Dataset, Split, open_dataset
    from convoy.api.exports import ExportedModel, open_export
    from convoy.api.extensions import (
        register_loss,
        register_metric,
        register_model,
        register_optimizer,
        register_schedule,
    )
    from convoy.api.heat_maps import HeatMaps
    from convoy.api.results import Evaluation, Export, Prediction, Predictions
    from convoy.api.runs import Run, Runs, list_runs, open_run
    from convoy.api.shown import Rows
    from convoy.api.training import CrossValidation, TrainingResult, load_config, train
    from convoy.core.errors import ConvoyError, DataError, UsageError
    from convoy.input_pipeline.augment.registered import register_operation
    from convoy.trainer.callbacks.callback import Callback, Training
    from convoy.trainer.callbacks.console import Console
    from convoy.trainer.callbacks.early_stopping import EarlyStopping
    from convoy.trainer.step.optimizers.optimizer import Optimizer

__version__ = "0.1.0"

# In the order in which the examples of their docstrings build on each other.
__all__ = [
    "sample",
    "convert",
    "Conversion",
    "verify",
    "Verification",
    "open_dataset",
    "Dataset",
    "Split",
    "load_config",
    "train",
    "TrainingResult",
    "CrossValidation",
    "open_run",
    "Run",
    "Evaluation",
    "Predictions",
    "Prediction",
    "HeatMaps",
    "Export",
    "open_export",
    "ExportedModel",
    "list_runs",
    "Runs",
    "Rows",
    "Callback",
    "Training",
    "Console",
    "EarlyStopping",
    "register_loss",
    "register_metric",
    "register_schedule",
    "register_model",
    "register_operation",
    "register_optimizer",
    "Optimizer",
    "ConvoyError",
    "UsageError",
    "DataError",
]

_MODULES = {
    "convoy.api.conversion": ("sample", "convert", "Conversion", "verify", "Verification"),
    "convoy.api.datasets": ("open_dataset", "Dataset", "Split"),
    "convoy.api.training": ("load_config", "train", "TrainingResult", "CrossValidation"),
    "convoy.api.runs": ("open_run", "Run", "list_runs", "Runs"),
    "convoy.api.exports": ("open_export", "ExportedModel"),
    "convoy.api.heat_maps": ("HeatMaps",),
    "convoy.api.results": ("Evaluation", "Predictions", "Prediction", "Export"),
    "convoy.api.shown": ("Rows",),
    "convoy.api.extensions": (
        *("register_loss", "register_metric", "register_schedule", "register_model", "register_optimizer"),
    ),
    "convoy.input_pipeline.augment.registered": ("register_operation",),
    "convoy.core.errors": ("ConvoyError", "UsageError", "DataError"),
    "convoy.trainer.callbacks.callback": ("Callback", "Training"),
    "convoy.trainer.callbacks.console": ("Console",),
    "convoy.trainer.callbacks.early_stopping": ("EarlyStopping",),
    "convoy.trainer.step.optimizers.optimizer": ("Optimizer",),
}


if not TYPE_CHECKING:  # a type checker would take any name for one that exists

    def __getattr__(name: str) -> Any:  # noqa: ANN401 (what the name stands for)
        for module, names in _MODULES.items():
            if name in names:
                return getattr(importlib.import_module(module), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
