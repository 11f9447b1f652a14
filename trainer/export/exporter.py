"""Exports a run: writes each format, loads it in a new process, compares its predictions, then publishes the folder.

    exported = export(Request("run", Path("exported"), ("saved_model", "onnx")))
    exported.largest_differences["onnx"]

The folder is built in `OUTPUT.partial` and renamed. It replaces an existing export, but nothing else.
The weights are those that evaluation uses: the moving average if the run keeps one. Exports compute in float32,
whatever the run's precision, and are compared with a float32 evaluation on the CPU. The difference between float32 and
the run's own precision is measured and reported as well.
"""

import importlib.metadata
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from convoy.core.devices import Devices
from convoy.core.errors import ConvoyError, DataError
from convoy.trainer.evaluation.split import open_dataset_of
from convoy.trainer.export.check import TOLERANCE, Samples, compare, draw_samples, predict_samples
from convoy.trainer.export.folder import export_folder, file_digests, write_description
from convoy.trainer.export.formats import LABELS, ServingModel, serving_model, write
from convoy.trainer.export.loaders import FILES
from convoy.trainer.session.description import versions
from convoy.trainer.session.restore import TrainedRun, open_run

_CPU = Devices("cpu")


@dataclass(frozen=True)
class Request:
    """What to export.

    Attributes:
      workdir: the run directory.
      output: the folder to create.
      formats: keys of `loaders.FILES`.
      checkpoint: `best`, `last` or a step, as in `open_run`.
      data: dataset directory with the images for the comparison; None for the run's own.
    """

    workdir: str
    output: Path
    formats: tuple[str, ...]
    checkpoint: str = "best"
    data: str | None = None


@dataclass(frozen=True)
class Reference:
    """The run's own predictions, which exports are compared with.

    Attributes:
      samples: the images.
      probabilities: float32 evaluation, [n, num_classes].
      precision: the run's precision.
      largest_difference: largest difference of a probability between the run's precision and float32.
      same_top1: number of images with the same predicted class in both.
    """

    samples: Samples
    probabilities: np.ndarray
    precision: str
    largest_difference: float
    same_top1: int


@dataclass(frozen=True)
class Exported:
    """The result of an export.

    Attributes:
      step: step of the exported weights.
      reference: the predictions that the export was compared with.
      bytes: total file size by format.
      largest_differences: largest difference of a probability by format, in [0, 1].
    """

    step: int
    reference: Reference
    bytes: dict[str, int]
    largest_differences: dict[str, float]


def export(request: Request) -> Exported:
    """Exports a run's model in each format. If one format fails or disagrees with evaluation, nothing is written.

    Raises:
      UsageError: the output exists and is not an export, or another process is exporting to it.
      DataError: run, checkpoint or dataset cannot be used; a format cannot express the model, or disagrees with
        evaluation; the output cannot be written.
    """
    with export_folder(request.output) as folder:
        trained, reference = _open_in_float32(request)
        weights_sha256 = trained.runtime.state.weights_sha256()  # before averages replace the weights
        model = serving_model(trained)
        (folder / LABELS).write_text(model.labels, encoding="utf-8")
        differences = {
            name: _write_and_compare(name, model, folder / FILES[name], reference) for name in request.formats
        }
        files = {name: file_digests(folder / FILES[name]) for name in request.formats}
        write_description(
            folder,
            {
                "run": str(trained.run.path.absolute()),
                "step": trained.step,
                "weights": "moving average" if trained.runtime.state.averages else "as trained",
                "weights_sha256": weights_sha256,
                "model": trained.config.model.name,
                "image_size": model.crop.size,
                "resize": model.crop.resize,
                "flip_tta": trained.flip_tta,
                "class_names": list(model.class_names),
                "versions": _versions(request.formats),
                "comparison": _comparison(reference),
                "formats": {
                    name: {"file": FILES[name], "largest_difference": differences[name], "contents": files[name]}
                    for name in request.formats
                },
            },
        )
    sizes = {name: sum(file["bytes"] for file in entries.values()) for name, entries in files.items()}
    return Exported(trained.step, reference, sizes, differences)


def _open_in_float32(request: Request) -> tuple[TrainedRun, Reference]:
    trained = open_run(request.workdir, _CPU, checkpoint=request.checkpoint)
    samples = draw_samples(open_dataset_of(trained, request.data), trained.crop)
    precision, as_trained = trained.runtime.precision, predict_samples(trained, samples)
    probabilities = as_trained
    if precision != "float32":
        trained = open_run(request.workdir, _CPU, checkpoint=str(trained.step), precision="float32")
        probabilities = predict_samples(trained, samples)
    difference = float(np.max(np.abs(as_trained - probabilities)))
    same_top1 = int(np.sum(as_trained.argmax(1) == probabilities.argmax(1)))
    return trained, Reference(samples, probabilities, precision, difference, same_top1)


def _write_and_compare(name: str, model: ServingModel, path: Path, reference: Reference) -> float:
    try:
        write(name, model, path)
    except (ConvoyError, OSError):
        raise
    except Exception as error:  # converters raise anything for a model that they do not support
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(f"--format={name}: cannot express this model ({reason}).") from error
    return compare(name, path, reference.samples, reference.probabilities, model.class_names)


def _versions(formats: tuple[str, ...]) -> dict[str, str]:
    libraries = ("numpy", "tf2onnx", "onnxruntime") if "onnx" in formats else ("numpy",)
    return {**versions(), **{name: importlib.metadata.version(name) for name in libraries}}


def _comparison(reference: Reference) -> dict[str, Any]:
    return {
        "with": "evaluation in float32",
        "split": reference.samples.split,
        "images": len(reference.samples.images) - reference.samples.others,
        "tolerance": TOLERANCE,
        "precision_of_run": reference.precision,
        "largest_difference_to_precision_of_run": reference.largest_difference,
        "same_top1_as_in_precision_of_run": reference.same_top1,
    }
