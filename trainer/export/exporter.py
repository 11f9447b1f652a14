"""The story of an export: write, load in a new process, compare, and only then give it its name.

    exported = export(Request("run", Path("exported"), ("saved_model", "onnx")))
    exported.largest_differences["onnx"]

The folder is built in `OUTPUT.partial` and renamed as a whole; it replaces an export that is there and nothing else.
Weights are those that evaluation uses, the moving average where the run keeps one. Everything is computed on the CPU in
float32, whatever the run was trained in, and compared with a float32 evaluation of the same weights. How far an
evaluation in the run's own precision lies from that is measured too.
"""

import importlib.metadata
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from convoy.core.devices import Devices
from convoy.core.errors import ConvoyError, DataError
from convoy.trainer.evaluation.split import open_dataset_of
from convoy.trainer.export.check import TOLERANCE, Samples, compare, draw_samples, evaluated
from convoy.trainer.export.folder import contents_of, describe, export_folder
from convoy.trainer.export.formats import LABELS, Deployable, deployable, write
from convoy.trainer.export.loaders import FILES
from convoy.trainer.session.description import versions
from convoy.trainer.session.restore import TrainedRun, open_run

_CPU = Devices("cpu")


@dataclass(frozen=True)
class Request:
    """What to export.

    Attributes:
      workdir: the run.
      output: the folder to make.
      formats: of `loaders.FILES`.
      checkpoint: as in `open_run`.
      data: a dataset to take the images of the comparison from; the run's own where None.
    """

    workdir: str
    output: Path
    formats: tuple[str, ...]
    checkpoint: str = "best"
    data: str | None = None


@dataclass(frozen=True)
class Reference:
    """What evaluation gives for some images.

    Attributes:
      samples: the images.
      probabilities: in float32, [n, num_classes].
      precision: what the run computes in.
      largest_difference: of a probability, between the run's precision and float32.
      same_top1: of how many images the first category is the same in both.
    """

    samples: Samples
    probabilities: np.ndarray
    precision: str
    largest_difference: float
    same_top1: int


@dataclass(frozen=True)
class Exported:
    """What was exported. `bytes` and `largest_differences` are by format."""

    step: int
    reference: Reference
    bytes: dict[str, int]
    largest_differences: dict[str, float]


def export(request: Request) -> Exported:
    """Writes a run's model in each format; every format agrees with evaluation, or nothing is written.

    Raises:
      UsageError: the output is something else than an export, or another process writes it.
      DataError: run, checkpoint or dataset cannot be used; a format cannot express the model, or does not agree with
        evaluation; the output cannot be written.
    """
    with export_folder(request.output) as folder:
        trained, reference = _in_float32(request)
        weights_sha256 = trained.runtime.state.weights_sha256()  # of the checkpoint, before averages replace weights
        model = deployable(trained)
        (folder / LABELS).write_text(model.labels, encoding="utf-8")
        differences = {
            name: _write_and_compare(name, model, folder / FILES[name], reference) for name in request.formats
        }
        files = {name: contents_of(folder / FILES[name]) for name in request.formats}
        describe(
            folder,
            {
                "run": str(trained.run.path.absolute()),
                "step": trained.step,
                "weights": "moving average" if trained.runtime.state.averages else "as trained",
                "weights_sha256": weights_sha256,
                "model": trained.config.model.name,
                "image_size": model.image_size,
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


def _in_float32(request: Request) -> tuple[TrainedRun, Reference]:
    trained = open_run(request.workdir, _CPU, checkpoint=request.checkpoint)
    samples = draw_samples(open_dataset_of(trained, request.data), trained.image_size)
    precision, as_trained = trained.runtime.precision, evaluated(trained, samples)
    probabilities = as_trained
    if precision != "float32":
        trained = open_run(request.workdir, _CPU, checkpoint=str(trained.step), precision="float32")
        probabilities = evaluated(trained, samples)
    difference = float(np.max(np.abs(as_trained - probabilities)))
    same_top1 = int(np.sum(as_trained.argmax(1) == probabilities.argmax(1)))
    return trained, Reference(samples, probabilities, precision, difference, same_top1)


def _write_and_compare(name: str, model: Deployable, path: Path, reference: Reference) -> float:
    try:
        write(name, model, path)
    except (ConvoyError, OSError):
        raise
    except Exception as error:  # whatever a converter throws at a model that it does not know
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(f"--format={name}: the model cannot be written in it: {reason}") from error
    return compare(name, path, reference.samples, reference.probabilities, model.class_names)


def _versions(formats: tuple[str, ...]) -> dict[str, str]:
    libraries = ("numpy", "tf2onnx", "onnxruntime") if "onnx" in formats else ("numpy",)
    return {**versions(), **{name: importlib.metadata.version(name) for name in libraries}}


def _comparison(reference: Reference) -> dict[str, Any]:
    return {
        "with": "evaluation in float32",
        "split": reference.samples.split,
        "images": len(reference.samples.images),
        "tolerance": TOLERANCE,
        "precision_of_run": reference.precision,
        "largest_difference_to_precision_of_run": reference.largest_difference,
        "same_top1_as_in_precision_of_run": reference.same_top1,
    }
