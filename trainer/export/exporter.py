"""Exports a run: writes each format, loads it in a new process, compares its predictions, then publishes the folder.

A format that cannot express the model is left out, before the work if that can be known. With `quantize`, each file is
written in float32 too, to measure how many images of the validation split int8 costs.

    exported = export(Request("run", Path("exported"), ("saved_model", "onnx")), on_failure=print)
    exported.largest_differences["onnx"]

The folder is built in `OUTPUT.partial` and renamed. It replaces an existing export, but nothing else.
The weights are those that evaluation uses: their average if the run keeps one. Exports compute in float32,
whatever the run's precision, and are compared with a float32 evaluation on the CPU. The difference between float32 and
the run's own precision is measured and reported as well.
"""

import importlib.metadata
import importlib.util
import logging
import shutil
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from convoy.core.devices import Devices
from convoy.core.errors import ConvoyError, DataError, UsageError
from convoy.input_pipeline.dataset.open import Dataset, Split
from convoy.trainer.export.accuracy import Int8Accuracy, count_correct, split_to_measure
from convoy.trainer.export.check import TOLERANCE, Samples, compare, compare_int8, draw_samples, predict_samples
from convoy.trainer.export.folder import export_folder, file_digests, write_description
from convoy.trainer.export.formats import LABELS, ServingModel, obstacle, serving_model, without_output, write
from convoy.trainer.export.int8 import CalibrationImages, calibration_images, write_int8
from convoy.trainer.export.loaders import FILES, load
from convoy.trainer.export.request import Request
from convoy.trainer.run.directory import RunDirectory
from convoy.trainer.run.task import Decision
from convoy.trainer.session.description import versions
from convoy.trainer.session.restore import TrainedRun, in_float32, open_dataset_of, open_run

_CPU = Devices("cpu")
_FLOAT32 = "float32"  # folder of the file that an int8 one is compared with, until that is done
_logger = logging.getLogger("convoy")


@dataclass(frozen=True)
class Reference:
    """The run's own predictions, which exports are compared with.

    Attributes:
      samples: the images.
      probabilities: float32 evaluation, [n, num_classes].
      precision: the run's precision.
      largest_difference: largest difference of a probability between the run's precision and float32.
      same_top1: number of images of the split with the same predicted class, or the same labels, in both.
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
      int8: accuracy by format, if the export is in int8.
      calibration_images: number of training images that determined the ranges of int8.
      checkpoint: as `TrainedRun.checkpoint`.
    """

    step: int
    reference: Reference
    bytes: dict[str, int]
    largest_differences: dict[str, float]
    int8: dict[str, Int8Accuracy]
    calibration_images: int
    checkpoint: str = ""


def export(request: Request, on_failure: Callable[[ConvoyError], None]) -> Exported:
    """Exports a run's model in each format that can express it and agrees with evaluation.

    Args:
      request: what to export.
      on_failure: called for each format that is left out, as soon as that is known.

    Raises:
      UsageError: the library of the only format is not installed; the run is a cross-validation; int8 with several
        labels per image; the output exists and is not an export, or another process is exporting to it.
      DataError: run, checkpoint or dataset cannot be used; every format is left out, for the reason of the last one;
        the output cannot be written.
    """
    formats = list(dict.fromkeys(request.formats))

    def leave_out(name: str, error: ConvoyError) -> None:
        formats.remove(name)
        if not formats:
            raise error
        on_failure(error)

    missing = [name for name in ("tf2onnx", "onnxruntime") if not importlib.util.find_spec(name)]
    if "onnx" in formats and missing:
        needed = f"--format=onnx: needs {' and '.join(missing)}. Run `pip install 'convoy-train[onnx]'`."
        leave_out("onnx", UsageError(needed))
    if (run := RunDirectory(request.workdir)).folds:
        raise UsageError(
            f"--workdir={run.path}: has {run.folds} models, and an export has one. Pass that of a fold: "
            f"--workdir={run.fold(1)}."
        )
    with tf.device("/CPU:0"), export_folder(request.output) as folder:
        trained = open_run(request.workdir, _CPU, checkpoint=request.checkpoint, trust_code=request.trust_code)
        if request.quantize == "int8" and trained.task.multi_label:
            raise UsageError(
                f"--quantize=int8: its accuracy is measured with one label per image, and {run.path} has any number. "
                "Export it without --quantize."
            )
        for name in tuple(formats):
            if reason := obstacle(name, trained.runtime.built.model):
                leave_out(name, DataError(f"--format={name}: {reason}"))
        dataset = open_dataset_of(trained, request.data)
        calibration = calibration_images(trained, dataset) if request.quantize == "int8" else None
        trained, reference = _in_float32(trained, request, dataset)
        weights_sha256 = trained.runtime.state.weights_sha256()  # before averages replace the weights
        model = serving_model(trained)
        (folder / LABELS).write_text(model.labels, encoding="utf-8")
        differences: dict[str, float] = {}
        int8: dict[str, Int8Accuracy] = {}
        for name in tuple(formats):
            path = folder / FILES[name]
            try:
                if calibration:
                    differences[name], int8[name] = _write_int8_and_compare(
                        name, model, path, reference, calibration, split_to_measure(dataset)
                    )
                else:
                    differences[name] = _write_and_compare(name, model, path, reference)
            except DataError as error:
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
                leave_out(name, error)
        files = {name: file_digests(folder / FILES[name]) for name in formats}
        write_description(
            folder,
            {
                "run": str(trained.run.path.absolute()),
                "step": trained.step,
                "checkpoint": trained.checkpoint,
                "weights": _weights_text(trained),
                "weights_sha256": weights_sha256,
                "model": trained.config.model.name,
                "image_size": model.crop.size,
                "resize": model.crop.resize,
                "flip_tta": trained.flip_tta,
                "temperature": model.temperature,
                "class_names": list(model.class_names),
                **_decision_facts(model.decision),
                "versions": _versions(formats),
                "comparison": _comparison(reference, None if calibration else TOLERANCE),
                "quantization": _quantization(request, calibration),
                "formats": {
                    name: {
                        "file": FILES[name],
                        "largest_difference": differences[name],
                        **(int8[name].as_dict() if name in int8 else {}),
                        "contents": files[name],
                    }
                    for name in formats
                },
            },
        )
    sizes = {name: sum(file["bytes"] for file in entries.values()) for name, entries in files.items()}
    return Exported(
        trained.step, reference, sizes, differences, int8, len(calibration or ()), checkpoint=trained.checkpoint
    )


def _decision_facts(decision: Decision) -> dict[str, Any]:
    """Returns what a recipient needs to know about the probabilities of several labels per image."""
    if decision.thresholds is None:
        return {}
    thresholds = list(decision.thresholds)
    return {"multi_label": True, "label_delimiter": decision.delimiter, "thresholds": thresholds}


def _weights_text(trained: TrainedRun) -> str:
    if not trained.runtime.state.averages:
        return "as trained"
    return "moving average" if trained.config.ema.decay else f"average of {trained.config.optimizer.name}"


def _in_float32(trained: TrainedRun, request: Request, dataset: Dataset) -> tuple[TrainedRun, Reference]:
    samples = draw_samples(dataset, trained.crop)
    precision, as_trained = trained.runtime.precision, predict_samples(trained, samples)
    probabilities = as_trained
    if precision != "float32":
        trained = in_float32(trained)
        probabilities = predict_samples(trained, samples)
    difference = float(np.max(np.abs(as_trained - probabilities)))
    predicted = (trained.decision.predicted(values) for values in (as_trained, probabilities))
    same_class = np.array([first == second for first, second in zip(*predicted, strict=True)])
    same_top1 = int(np.sum(same_class[: len(same_class) - samples.others]))
    return trained, Reference(samples, probabilities, precision, difference, same_top1)


def _write_and_compare(name: str, model: ServingModel, path: Path, reference: Reference) -> float:
    _convert(name, "cannot express this model", lambda: write(name, model, path))
    return compare(name, path, reference.samples, reference.probabilities, model.decision)


def _write_int8_and_compare(
    name: str, model: ServingModel, path: Path, reference: Reference, calibration: CalibrationImages, split: Split
) -> tuple[float, Int8Accuracy]:
    float32 = path.parent / _FLOAT32 / path.name
    float32.parent.mkdir()
    try:
        _convert(name, "cannot express this model", lambda: write(name, model, float32))
        cannot = "this model cannot be quantized to int8: export it without --quantize"
        _convert(name, cannot, lambda: write_int8(name, model, float32, calibration, path))
        difference, same = compare_int8(name, path, reference.samples, reference.probabilities)
        before, after = without_output(
            lambda: count_correct([load(name, file) for file in (float32, path)], split, model.crop)
        )
        accuracy = Int8Accuracy(split.name, split.num_images, after, before, float32.stat().st_size, same)
    finally:
        shutil.rmtree(float32.parent)
    if warning := accuracy.warning():
        _logger.warning("%s: %s", name, warning)
    return difference, accuracy


def _convert(name: str, cannot: str, convert: Callable[[], None]) -> None:
    try:
        convert()
    except (ConvoyError, OSError):
        raise
    except Exception as error:  # converters raise anything for a model that they do not support
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(f"--format={name}: {cannot} ({textwrap.shorten(reason, 200)}).") from error


def _versions(formats: Sequence[str]) -> dict[str, str]:
    libraries = ("numpy", "tf2onnx", "onnxruntime") if "onnx" in formats else ("numpy",)
    return {**versions(), **{name: importlib.metadata.version(name) for name in libraries}}


def _comparison(reference: Reference, tolerance: float | None) -> dict[str, Any]:
    return {
        "with": "evaluation in float32",
        "split": reference.samples.split,
        "images": len(reference.samples.images) - reference.samples.others,
        "tolerance": tolerance,
        "precision_of_run": reference.precision,
        "largest_difference_to_precision_of_run": reference.largest_difference,
        "same_top1_as_in_precision_of_run": reference.same_top1,
    }


def _quantization(request: Request, calibration: CalibrationImages | None) -> dict[str, Any] | None:
    if not calibration:
        return None
    return {
        "type": request.quantize,
        "calibration_split": calibration.split.name,
        "calibration_images": len(calibration),
    }
