"""Predictions for a folder of images as a CSV: `convoy predict`.

predict(classifier_of(trained), request)      # filename,category
"""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from convoy.core.errors import DataError, UsageError
from convoy.core.files import check_output_file, write_whole
from convoy.input_pipeline.convert.folders import ImageFile
from convoy.input_pipeline.convert.sources import list_images, match_files
from convoy.input_pipeline.convert.tables import column_indices, read_table
from convoy.input_pipeline.images import pixels
from convoy.trainer.evaluation.classifier import Classifier, MixedEnsemble
from convoy.trainer.evaluation.loading import image_file, probabilities_of
from convoy.trainer.evaluation.sample_submission import SampleSubmission, read_sample
from convoy.trainer.run.task import Decision


@dataclass(frozen=True)
class Request:
    """What to predict and how to write it.

    Attributes:
      images: one folder, searched recursively, or image files.
      output: the CSV to write; None writes none.
      manifest: CSV whose column `filename` lists the images and their order; None for all images by name.
      like: sample submission, whose form is kept (`sample_submission`).
      top_k: categories per image, the most probable first; only with one label per image.
      probabilities: write each category's probability as well; with several labels per image, that of every class in a
        column of its own.
      flip_tta: average each image's probabilities with those of its mirror image.
      skip_unreadable: leave out images that cannot be read, instead of failing.
      unreadable_label: category that is written for them; a sample submission keeps its own.
      limits: limits of the image files; those beyond them cannot be read.
    """

    images: Sequence[Path]
    output: Path | None = None
    manifest: Path | None = None
    like: Path | None = None
    top_k: int = 1
    probabilities: bool = False
    flip_tta: bool = False
    skip_unreadable: bool = False
    unreadable_label: str = ""
    limits: pixels.Limits = pixels.Limits()


@dataclass(frozen=True)
class Predictions:
    """What `predict` found.

    Attributes:
      names: name of each image, in order.
      best: its most probable category and that one's probability, with several labels per image all its labels and
        their `Decision.certainty`; None if it cannot be read.
      unreadable: reasons by name of the images that cannot be read.
      notes: how names were matched, for the user.
    """

    names: Sequence[str]
    best: Sequence[tuple[str, float] | None]
    unreadable: Mapping[str, str]
    notes: Sequence[str]


def predict(classifier: Classifier | MixedEnsemble, request: Request) -> Predictions:
    """Predicts, and writes the CSV atomically.

    Raises:
      UsageError: options that exclude each other or are out of range, or `output` cannot be a CSV there.
      DataError: an image or a CSV cannot be used.
    """
    decision = classifier.decision
    _check(request, decision)
    sample, header, names, files = _requested_images(request, decision)
    unreadable: dict[int, str] = {}
    columns = [header[0], *_columns(request, decision, header[1])]
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(sample.header if sample else columns)
    best: list[tuple[str, float] | None] = []
    found = probabilities_of(
        files,
        classifier,
        flip_tta=request.flip_tta,
        limits=request.limits,
        unreadable=unreadable if request.skip_unreadable else None,
    )
    for number, probabilities in enumerate(found):
        if number in unreadable:
            best.append(None)
            row = [names[number], request.unreadable_label, *[""] * (len(columns) - 2)]
            writer.writerow(sample.rows[number] if sample else row)
            continue
        best.append((decision.text(probabilities), decision.certainty(probabilities)))
        row = [names[number], *_cells(request, decision, probabilities)]
        writer.writerow(sample.row(number, probabilities) if sample else row)
    if request.output:
        try:
            # Names that are not UTF-8 keep their bytes.
            write_whole(request.output, text.getvalue().encode("utf-8", "surrogateescape"))
        except OSError as error:
            raise DataError(f"--output={request.output} cannot be written ({error.strerror}).") from None
    reasons = {names[number]: reason for number, reason in sorted(unreadable.items())}
    return Predictions(names, best, reasons, sample.notes if sample else ())


def _columns(request: Request, decision: Decision, category: str) -> list[str]:
    """Returns the names of the columns after that of the images."""
    if decision.multi_label:
        return [category, *(decision.class_names if request.probabilities else ())]
    columns = []
    for suffix in ["", *(f"_{k}" for k in range(2, request.top_k + 1))]:
        columns.append(f"{category}{suffix}")
        columns += [f"probability{suffix}"] if request.probabilities else []
    return columns


def _cells(request: Request, decision: Decision, probabilities: np.ndarray) -> list[str]:
    """Returns the cells of these columns for an image."""
    if decision.multi_label:
        shown = probabilities if request.probabilities else ()
        return [decision.text(probabilities), *(f"{value:.6f}" for value in shown)]
    cells = []
    for label in np.argsort(-probabilities, kind="stable")[: request.top_k]:
        cells.append(decision.class_names[label])
        cells += [f"{probabilities[label]:.6f}"] if request.probabilities else []
    return cells


def _check(request: Request, decision: Decision) -> None:
    num_classes = len(decision.class_names)
    if decision.multi_label and request.top_k > 1:
        raise UsageError(
            f"--top_k={request.top_k}: is for one label per image. Pass --probabilities for that of every class."
        )
    if not 1 <= request.top_k <= num_classes:
        raise UsageError(f"--top_k={request.top_k}: pass 1 to {num_classes}, the number of categories.")
    if request.like and (request.top_k > 1 or request.probabilities):
        option = f"--top_k={request.top_k}" if request.top_k > 1 else "--probabilities"
        raise UsageError(
            f"{option} adds columns, and the columns are those of --like={request.like}. Omit one of them."
        )
    if not request.output:
        return
    check_output_file(request.output)
    for option, given in (("like", request.like), ("manifest", request.manifest)):
        if given and given.exists() and request.output.exists() and given.samefile(request.output):
            raise UsageError(f"--output={request.output} would overwrite --{option}={given}. Pass another path.")


def _requested_images(
    request: Request, decision: Decision
) -> tuple[SampleSubmission | None, tuple[str, str], Sequence[str], Sequence[ImageFile]]:
    """Returns the sample submission, if any, names of the first two columns, and names and files of the images."""
    header = ("filename", "category")
    first = request.images[0]
    if len(request.images) > 1 or first.is_file():
        if option := "like" if request.like else "manifest" if request.manifest else "":
            raise UsageError(f"--{option} names images of a folder. Pass it in --images, instead of {first}.")
        files = [image_file(path) for path in request.images]
        return None, header, [file.name for file in files], files
    if request.like:
        sample = read_sample(request.like, first, decision)
        if request.manifest:
            _check_same_names(sample.names, _manifest_names(request.manifest), request)
        return sample, header, sample.names, sample.files
    if request.manifest:
        names = _manifest_names(request.manifest)
        return None, header, names, match_files(first, names, request.manifest)
    files = list_images(first)
    return None, header, [file.name for file in files], files


def _manifest_names(manifest: Path) -> list[str]:
    header, rows = read_table(manifest)
    (column,) = column_indices(manifest, header, ["filename"])
    return [row[column] for _, row in rows]


def _check_same_names(like: Sequence[str], manifest: Sequence[str], request: Request) -> None:
    for names, others, where in ((like, manifest, request.manifest), (manifest, like, request.like)):
        missing = sorted(set(names) - set(others))
        if missing:
            raise DataError(
                f"--like={request.like} and --manifest={request.manifest} list different images: {missing[0]!r} is not "
                f"in {where}. Pass one of the two, or make them match."
            )
