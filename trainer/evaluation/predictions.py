"""Saved results of an evaluation: RUN/predictions_SPLIT.csv, one row per image, and RUN/evaluation_SPLIT.json.

    save(run, evaluation, predictions, class_names)
    evaluation, *others = evaluations(run)               # one per split, the newest first; may be empty
    predictions = load(run, evaluation, class_names)

The predictions of several labels per image are those of `label_predictions`.

Spreadsheets run a cell that begins with `=`, `+`, `-` or `@` as a formula. As OWASP recommends (CSV Injection,
https://owasp.org/www-community/attacks/CSV_Injection), texts are quoted and such a cell gets a leading apostrophe. So
does a cell that begins with an apostrophe: removing one apostrophe always restores the name.
"""

import base64
import contextlib
import csv
import dataclasses
import io
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from convoy.core.errors import DataError
from convoy.core.files import write_whole
from convoy.core.reading import open_file, read_table
from convoy.core.text import counted, weights_text
from convoy.input_pipeline.dataset.examples import from_file, read_features
from convoy.input_pipeline.dataset.open import Split
from convoy.input_pipeline.dataset.records import HEADER_BYTES
from convoy.input_pipeline.dataset.storage import local_copy
from convoy.trainer.cluster.worker_group import WorkerGroup
from convoy.trainer.run.directory import RunDirectory
from convoy.trainer.run.task import Decision

Table = tuple[Sequence[str], Iterable[Sequence[Any]]]  # header and rows
COLUMNS = ("index", "filename", "label", "predicted", "label_probability", "predicted_probability", "correct")
_FORMULA_STARTS = tuple("=+-@\uff1d\uff0b\uff0d\uff20")  # with their full-width forms
_OTHER_STARTS = tuple("'\t\r\n\0")
_FILENAME = "image/filename"
_COLLECTED = ("<i8", "<i4", "<i4", "<f4", "<f4")  # index, then the arrays of `Predictions`


@dataclass(frozen=True)
class Evaluation:
    """What was evaluated, and the metrics.

    Attributes:
      split: name of the split.
      step: last step of the weights.
      images: number of images.
      quality: metrics by name: `loss`, `top1`, `top5`, `macro_f1`, `ece`, and those of `config.metrics`.
      data: dataset directory.
      digest: digest of the split's content.
      parameters: number of parameters of the model.
      time: seconds since 1970.
      flip_tta: whether probabilities are averaged with those of the mirror image.
      record_format: feature names and classes by which records of other tools were read.
      checkpoint: which checkpoints were used, such as `mean:3 (steps 80-100)` or `2 models (step 90, step 60)`; empty
        for a single one.
      models: number of models whose probabilities are averaged.
      thresholds: with several labels per image, smallest probability of each class that counts as a label.
      temperature: what the logits were divided by; None if none was fitted, or with several models.
      ece_before: expected calibration error without it, in [0, 1]; with several labels per image, over every pair of an
        image and a class. None if not measured.
      ece_after: with it.
    """

    split: str
    step: int
    images: int
    quality: dict[str, float]
    data: str
    digest: str
    parameters: int
    time: float
    flip_tta: bool = False
    record_format: dict[str, Any] = field(default_factory=dict)
    checkpoint: str = ""
    models: int = 1
    thresholds: list[float] = field(default_factory=list)
    temperature: float | None = None
    ece_before: float | None = None
    ece_after: float | None = None

    @property
    def weights(self) -> str:
        """Which weights were evaluated, as text."""
        return weights_text(self.step, self.checkpoint)


@dataclass(frozen=True)
class Predictions:
    """The predictions for every image of a split, in the split's order.

    Attributes:
      filename: file name in the record; empty if it has none.
      label: [n] int32.
      predicted: [n] int32: the most probable class.
      label_probability, predicted_probability: [n] float32.
    """

    filename: Sequence[str]
    label: np.ndarray
    predicted: np.ndarray
    label_probability: np.ndarray
    predicted_probability: np.ndarray

    @property
    def correct(self) -> np.ndarray:
        """Whether each prediction is right, [n] bool."""
        return self.label == self.predicted

    @property
    def confidence(self) -> np.ndarray:
        """Probability of each prediction, [n] float32; 0 for NaN, as after divergence."""
        return np.nan_to_num(self.predicted_probability)

    def mistakes(self) -> np.ndarray:
        """Returns the misclassified images, the most confident first: [n] int64."""
        wrong = np.flatnonzero(~self.correct)
        return wrong[np.argsort(-self.confidence[wrong], kind="stable")]

    def table(self, decision: Decision) -> Table:
        """Returns header and rows of RUN/predictions_SPLIT.csv."""
        columns = dataclasses.asdict(self) | {"correct": self.correct.astype(int)}
        names = [cell(name) for name in decision.class_names]
        columns |= {"index": range(len(self.label)), "filename": map(cell, self.filename)}
        columns |= {name: [names[label] for label in columns[name]] for name in ("label", "predicted")}
        return COLUMNS, zip(*(columns[name] for name in COLUMNS), strict=True)


class Tabular(Protocol):
    """Predictions that can be saved."""

    def table(self, decision: Decision) -> Table:
        """Returns header and rows of RUN/predictions_SPLIT.csv."""


class Collector:
    """Collects the predictions of an evaluation: pass it as `Evaluator.metrics(each=...)`."""

    def __init__(self) -> None:
        """Starts with no images."""
        self._batches: list[tuple[np.ndarray, ...]] = []

    def __call__(self, index: np.ndarray, label: np.ndarray, probabilities: np.ndarray) -> None:
        """Adds a batch: indices in the split and labels, each [batch], and probabilities [batch, num_classes]."""
        rows, predicted = np.arange(len(label)), probabilities.argmax(-1).astype(np.int32)
        self._batches.append((index, label, predicted, probabilities[rows, label], probabilities[rows, predicted]))

    def predictions(self, filename: Sequence[str], worker_group: WorkerGroup | None = None) -> Predictions:
        """Returns the predictions once all images were added.

        Args:
          filename: the images' file names, in order.
          worker_group: workers that evaluated together, all of which must call it; None for this process alone.

        Raises:
          PeerLostError: a worker is gone.
        """
        worker_group = worker_group or WorkerGroup(None)
        parts = zip(*self._batches, strict=True) if self._batches else [()] * len(_COLLECTED)
        own = [
            base64.b64encode(np.concatenate([np.zeros(0, dtype), *part]).astype(dtype).tobytes()).decode()
            for part, dtype in zip(parts, _COLLECTED, strict=True)
        ]
        gathered = zip(*worker_group.exchange("predictions", own), strict=True)
        index, *columns = (
            np.concatenate([np.frombuffer(base64.b64decode(text), dtype) for text in texts])
            for texts, dtype in zip(gathered, _COLLECTED, strict=True)
        )
        order = np.argsort(index)
        return Predictions(filename, *(column[order] for column in columns))


def filenames(split: Split) -> list[str]:
    """Returns the file name of each record of a split; empty if it has none."""
    names = [""] * split.num_images
    for shard in np.unique(split.shard).tolist() if split.shard_paths else ():
        with local_copy(split.shard_paths[shard]) as local, open_file(local, buffering=0) as file:
            for i in np.flatnonzero(split.shard == shard).tolist():
                length = int(split.length[i])
                source = from_file(file.fileno(), int(split.offset[i]) + HEADER_BYTES, length)
                values = read_features(source, length, {_FILENAME}).get(_FILENAME)
                if values and isinstance(values[0], bytes):
                    names[i] = os.fsdecode(values[0])
    return names


def save(
    run: RunDirectory,
    evaluation: Evaluation,
    predictions: Tabular,
    class_names: Sequence[str],
    *,
    label_delimiter: str = "",
) -> None:
    """Writes RUN/predictions_SPLIT.csv, then RUN/evaluation_SPLIT.json, which marks the CSV as complete.

    The evaluation becomes the newest one of the run, even if the clock was set back.

    Args:
      run: the run directory.
      evaluation: what was evaluated.
      predictions: the predictions, of one label per image or several.
      class_names: class names by label.
      label_delimiter: what separates several labels of an image.

    Raises:
      OSError: a file cannot be written.
    """
    if (before := evaluations(run)) and before[0].time >= evaluation.time:  # the clock was set back
        evaluation = dataclasses.replace(evaluation, time=before[0].time + 1e-3)
    run.evaluation(evaluation.split).unlink(missing_ok=True)  # it describes the CSV that is replaced now
    decision = Decision(class_names, evaluation.thresholds or None, label_delimiter)
    write_table(run.predictions(evaluation.split), predictions, decision)
    run.write_json(run.evaluation(evaluation.split), dataclasses.asdict(evaluation))


def write_table(path: Path, predictions: Tabular, decision: Decision, images: np.ndarray | None = None) -> None:
    """Writes predictions as a CSV. Raises OSError if it cannot be written.

    Args:
      path: the CSV.
      predictions: of a split.
      decision: class names, and how probabilities become labels.
      images: which images, in this order, [n] int64; None for all.
    """
    written = io.StringIO(newline="")
    writer = csv.writer(written, quoting=csv.QUOTE_NONNUMERIC)
    header, rows = predictions.table(decision)
    if images is not None:
        all_rows = list(rows)
        rows = [all_rows[i] for i in images.tolist()]
    writer.writerow(header)
    writer.writerows(rows)
    write_whole(path, _encoded(written.getvalue()))


def evaluations(run: RunDirectory) -> list[Evaluation]:
    """Returns the last evaluation of each split, the newest first: those that are readable and have predictions."""
    found = []
    for path in run.path.glob("evaluation_*.json"):
        with contextlib.suppress(DataError, TypeError):  # damaged, or of a later version
            content = run.read_json(path)
            if "mirrored_too" in content:  # the field's name before version 0.2
                content["flip_tta"] = content.pop("mirrored_too")
            evaluation = Evaluation(**content)
            if (
                _is_sound(evaluation)
                and path == run.evaluation(evaluation.split)
                and run.predictions(evaluation.split).exists()
            ):
                found.append(evaluation)
    return sorted(found, key=lambda evaluation: -evaluation.time)


def _is_sound(evaluation: Evaluation) -> bool:
    numbers = (evaluation.step, evaluation.images, evaluation.parameters, evaluation.time, evaluation.models)
    return (
        all(
            isinstance(text, str)
            for text in (evaluation.split, evaluation.data, evaluation.digest, evaluation.checkpoint)
        )
        and all(isinstance(number, int | float) and math.isfinite(number) for number in numbers)
        and isinstance(evaluation.quality, dict)
        and all(value is None or isinstance(value, int | float) for value in evaluation.quality.values())
        and isinstance(evaluation.record_format, dict)
        and isinstance(evaluation.thresholds, list)
        and all(isinstance(threshold, int | float) for threshold in evaluation.thresholds)
        and all(
            value is None or isinstance(value, int | float)
            for value in (evaluation.temperature, evaluation.ece_before, evaluation.ece_after)
        )
    )


def load(run: RunDirectory, evaluation: Evaluation, class_names: Sequence[str]) -> Predictions:
    """Reads RUN/predictions_SPLIT.csv, even if a spreadsheet has sorted it.

    Raises:
      DataError: it cannot be read, or does not match the evaluation.
    """
    path = run.predictions(evaluation.split)
    try:
        rows = sorted(read_table(path), key=lambda row: int(row["index"]))
        if len(rows) != evaluation.images or [int(row["index"]) for row in rows] != list(range(len(rows))):
            raise ValueError(f"it has {counted(len(rows), 'row')} for {counted(evaluation.images, 'image')}")
        labels = {_encoded(cell(name)).decode(): label for label, name in enumerate(class_names)}
        return Predictions(
            [row["filename"].removeprefix("'") for row in rows],
            *(np.array([labels[row[name]] for row in rows], np.int32) for name in ("label", "predicted")),
            *(np.array([row[f"{name}_probability"] for row in rows], np.float32) for name in ("label", "predicted")),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, csv.Error) as error:
        raise mismatch(run, evaluation, error) from None


def mismatch(run: RunDirectory, evaluation: Evaluation, problem: Exception) -> DataError:
    """Returns the error of a CSV that does not match its evaluation."""
    return DataError(
        f"{run.predictions(evaluation.split)} does not match {run.evaluation(evaluation.split).name} ({problem}). "
        f"Run `convoy evaluate --workdir={run.path} --split={evaluation.split}` to rewrite it."
    )


def cell(text: str) -> str:
    """Returns a text that no spreadsheet runs as a formula."""
    return f"'{text}" if text.startswith(_OTHER_STARTS) or text.lstrip().startswith(_FORMULA_STARTS) else text


def _encoded(text: str) -> bytes:
    """Returns UTF-8; a byte of a file name that is not text is written as its escape code."""
    return text.encode("utf-8", "backslashreplace")
