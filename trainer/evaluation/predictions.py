"""What an evaluation leaves in RUN for the report, and for a person: every image's prediction, and what was measured.

    save(run, evaluation, predictions, class_names)      # predictions_SPLIT.csv and evaluation_SPLIT.json
    evaluation = newest(run)                             # None where nothing was evaluated yet
    predictions = load(run, evaluation, class_names)

The CSV is for spreadsheets too, where a cell that begins with `=`, `+`, `-` or `@` is a formula that runs. As OWASP
advises (CSV Injection, https://owasp.org/www-community/attacks/CSV_Injection), texts are quoted and such a cell gets an
apostrophe in front. So does one that begins with an apostrophe: taking one away always gives the name itself.
"""

import contextlib
import csv
import dataclasses
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from convoy.core.errors import DataError
from convoy.core.files import write_whole
from convoy.input_pipeline.dataset.examples import from_file, read_features
from convoy.input_pipeline.dataset.open import Split
from convoy.input_pipeline.dataset.records import HEADER_BYTES
from convoy.input_pipeline.dataset.storage import is_remote
from convoy.trainer.run.directory import RunDirectory

COLUMNS = ("index", "filename", "label", "predicted", "label_probability", "predicted_probability", "correct")
_FORMULA_STARTS = tuple("=+-@\uff1d\uff0b\uff0d\uff20")  # the wide ones of East Asian keyboards too
_OTHER_STARTS = tuple("'\t\r\n\0")
_FILENAME = "image/filename"


@dataclass(frozen=True)
class Evaluation:
    """What was evaluated, and the outcome.

    Attributes:
      split: of the dataset.
      step: of the weights.
      images: how many.
      quality: from `metrics.summarize`.
      data: the dataset directory.
      digest: of the split's content.
      parameters: how many the model has.
      time: seconds since 1970.
      flip_tta: whether each image's mirror image was classified with it.
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


@dataclass(frozen=True)
class Predictions:
    """Every image of a split as it was classified, in the split's order.

    Attributes:
      filename: as the records have it; empty where they name none.
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
        """Which are right, [n] bool."""
        return self.label == self.predicted


class Collector:
    """Keeps of each image's probabilities what the report needs; for `Evaluator.metrics(each=...)`."""

    def __init__(self) -> None:
        """Has seen nothing yet."""
        self._batches: list[tuple[np.ndarray, ...]] = []

    def __call__(self, index: np.ndarray, label: np.ndarray, probabilities: np.ndarray) -> None:
        """Takes in a batch: numbers in the split and labels, each [batch], and probabilities [batch, num_classes]."""
        rows, predicted = np.arange(len(label)), probabilities.argmax(-1).astype(np.int32)
        self._batches.append((index, label, predicted, probabilities[rows, label], probabilities[rows, predicted]))

    def predictions(self, filename: Sequence[str]) -> Predictions:
        """Returns the predictions of a split, all of whose images have been seen; `filename` is theirs, in order."""
        index, *columns = (np.concatenate(column) for column in zip(*self._batches, strict=True))
        order = np.argsort(index)
        return Predictions(filename, *(column[order] for column in columns))


def filenames(split: Split) -> list[str]:
    """Returns the file name in each record of a split; empty where it has none, and where it lies on a remote store.

    There each name would be a request of its own.
    """
    names = [""] * split.num_images
    for shard in np.unique(split.shard).tolist():
        if is_remote(split.shard_paths[shard]):
            continue
        with open(split.shard_paths[shard], "rb", buffering=0) as file:
            for i in np.flatnonzero(split.shard == shard).tolist():
                length = int(split.length[i])
                source = from_file(file.fileno(), int(split.offset[i]) + HEADER_BYTES, length)
                values = read_features(source, length, {_FILENAME}).get(_FILENAME)
                if values and isinstance(values[0], bytes):
                    names[i] = os.fsdecode(values[0])
    return names


def save(run: RunDirectory, evaluation: Evaluation, predictions: Predictions, class_names: Sequence[str]) -> None:
    """Writes RUN/predictions_SPLIT.csv, then RUN/evaluation_SPLIT.json, which says that the CSV is there.

    Raises:
      OSError: one cannot be written.
    """
    written = io.StringIO(newline="")
    writer = csv.writer(written, quoting=csv.QUOTE_NONNUMERIC)
    writer.writerow(COLUMNS)
    columns = dataclasses.asdict(predictions) | {"correct": predictions.correct.astype(int)}
    names = [_cell(name) for name in class_names]
    columns |= {"index": range(len(predictions.label)), "filename": map(_cell, predictions.filename)}
    columns |= {name: [names[label] for label in columns[name]] for name in ("label", "predicted")}
    writer.writerows(zip(*(columns[name] for name in COLUMNS), strict=True))
    run.evaluation(evaluation.split).unlink(missing_ok=True)  # it speaks of the CSV that goes now
    write_whole(run.predictions(evaluation.split), _encoded(written.getvalue()))
    run.write_json(run.evaluation(evaluation.split), dataclasses.asdict(evaluation))


def newest(run: RunDirectory) -> Evaluation | None:
    """Returns the newest evaluation that can be read and whose predictions are there."""
    found = []
    for path in run.path.glob("evaluation_*.json"):
        with contextlib.suppress(DataError, TypeError):  # damaged, or of a later version
            content = run.read_json(path)
            if "mirrored_too" in content:  # its name before version 0.2
                content["flip_tta"] = content.pop("mirrored_too")
            evaluation = Evaluation(**content)
            if run.predictions(evaluation.split).exists():
                found.append(evaluation)
    return max(found, key=lambda evaluation: evaluation.time, default=None)


def load(run: RunDirectory, evaluation: Evaluation, class_names: Sequence[str]) -> Predictions:
    """Reads RUN/predictions_SPLIT.csv, also after a spreadsheet has sorted it.

    Raises:
      DataError: it cannot be read, or is not what the evaluation wrote.
    """
    path = run.predictions(evaluation.split)
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = sorted(csv.DictReader(file), key=lambda row: int(row["index"]))
        if [int(row["index"]) for row in rows] != list(range(evaluation.images)):
            raise ValueError(f"it has {len(rows):,} rows for {evaluation.images:,} images")
        labels = {_encoded(_cell(name)).decode(): label for label, name in enumerate(class_names)}
        return Predictions(
            [row["filename"].removeprefix("'") for row in rows],
            *(np.array([labels[row[name]] for row in rows], np.int32) for name in ("label", "predicted")),
            *(np.array([row[f"{name}_probability"] for row in rows], np.float32) for name in ("label", "predicted")),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, csv.Error) as error:
        raise DataError(
            f"{path} is not what the evaluation wrote ({error}). "
            f"`convoy evaluate --workdir={run.path} --split={evaluation.split}` writes it anew."
        ) from None


def _cell(text: str) -> str:
    """Returns a text that no spreadsheet takes for a formula."""
    return f"'{text}" if text.startswith(_OTHER_STARTS) or text.lstrip().startswith(_FORMULA_STARTS) else text


def _encoded(text: str) -> bytes:
    """Returns UTF-8; a byte of a file name that is no character stays as its code."""
    return text.encode("utf-8", "backslashreplace")
