"""Predictions for a folder of images as a CSV: `convoy predict`.

predict(RunClassifier(trained), request)      # filename,category
"""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorflow as tf
from PIL import Image

from convoy.core.errors import DataError, UsageError
from convoy.core.files import check_output_file, write_whole
from convoy.input_pipeline.convert.folders import ImageFile
from convoy.input_pipeline.convert.sources import list_images, match_files
from convoy.input_pipeline.convert.tables import column_indices, read_table
from convoy.input_pipeline.images import pixels
from convoy.input_pipeline.images.kinds import unsupported_jpeg
from convoy.input_pipeline.reading.decode import CROP_DRAWS, decode_and_crop
from convoy.trainer.evaluation.classifier import Classifier
from convoy.trainer.evaluation.sample_submission import SampleSubmission, read_sample

_NAMED = 3  # how many unreadable files an error names
_DAMAGED = "it is truncated or damaged"


@dataclass(frozen=True)
class Request:
    """What to predict and how to write it.

    Attributes:
      images: one folder, searched recursively, or image files.
      output: the CSV to write; None writes none.
      manifest: CSV whose column `filename` lists the images and their order; None for all images by name.
      like: sample submission, whose form is kept (`sample_submission`).
      top_k: categories per image, the most probable first.
      probabilities: write each category's probability as well.
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
      best: its most probable category and that one's probability; None if it cannot be read.
      unreadable: reasons by name of the images that cannot be read.
      notes: how names were matched, for the user.
    """

    names: Sequence[str]
    best: Sequence[tuple[str, float] | None]
    unreadable: Mapping[str, str]
    notes: Sequence[str]


def predict(classifier: Classifier, request: Request) -> Predictions:
    """Predicts, and writes the CSV atomically.

    Raises:
      UsageError: options that exclude each other or are out of range, or `output` cannot be a CSV there.
      DataError: an image or a CSV cannot be used.
    """
    class_names = classifier.class_names
    _check(request, len(class_names))
    sample, header, names, files = _requested_images(request, class_names)
    unreadable: dict[int, str] = {}
    columns = [header[0]]
    for suffix in ["", *(f"_{k}" for k in range(2, request.top_k + 1))]:
        columns.append(f"{header[1]}{suffix}")
        columns += [f"probability{suffix}"] if request.probabilities else []
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(sample.header if sample else columns)
    best: list[tuple[str, float] | None] = []
    for number, probabilities in enumerate(_probabilities(classifier, files, request, unreadable)):
        if number in unreadable:
            best.append(None)
            row = [names[number], request.unreadable_label, *[""] * (len(columns) - 2)]
            writer.writerow(sample.rows[number] if sample else row)
            continue
        order = np.argsort(-probabilities, kind="stable")
        best.append((class_names[order[0]], float(probabilities[order[0]])))
        row = [names[number]]
        for label in order[: request.top_k]:
            row.append(class_names[label])
            row += [f"{probabilities[label]:.6f}"] if request.probabilities else []
        writer.writerow(sample.row(number, probabilities) if sample else row)
    if request.output:
        try:
            # Names that are not UTF-8 keep their bytes.
            write_whole(request.output, text.getvalue().encode("utf-8", "surrogateescape"))
        except OSError as error:
            raise DataError(f"--output={request.output} cannot be written ({error.strerror}).") from None
    reasons = {names[number]: reason for number, reason in sorted(unreadable.items())}
    return Predictions(names, best, reasons, sample.notes if sample else ())


def _check(request: Request, num_classes: int) -> None:
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
    request: Request, class_names: Sequence[str]
) -> tuple[SampleSubmission | None, tuple[str, str], Sequence[str], Sequence[ImageFile]]:
    """Returns the sample submission, if any, names of the first two columns, and names and files of the images."""
    header = ("filename", "category")
    first = request.images[0]
    if len(request.images) > 1 or first.is_file():
        if option := "like" if request.like else "manifest" if request.manifest else "":
            raise UsageError(f"--{option} names images of a folder. Pass it in --images, instead of {first}.")
        for path in request.images:
            if not path.is_file():
                raise DataError(f"image {path} {'is a folder among files' if path.is_dir() else 'does not exist'}.")
        return None, header, [str(path) for path in request.images], [_file(path) for path in request.images]
    if request.like:
        sample = read_sample(request.like, first, class_names)
        if request.manifest:
            _check_same_names(sample.names, _manifest_names(request.manifest), request)
        return sample, header, sample.names, sample.files
    if request.manifest:
        names = _manifest_names(request.manifest)
        return None, header, names, match_files(first, names, request.manifest)
    files = list_images(first)
    return None, header, [file.name for file in files], files


def _file(path: Path) -> ImageFile:
    return ImageFile(str(path), str(path), path.stat().st_size)


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


def _probabilities(
    classifier: Classifier, files: Sequence[ImageFile], request: Request, unreadable: dict[int, str]
) -> Iterator[np.ndarray]:
    """Yields each file's class probabilities, [num_classes] float32; adds the reasons of unreadable ones by number.

    Raises:
      DataError: a file cannot be read, and those are not skipped.
    """
    buffer = io.BytesIO()
    Image.new("RGB", (1, 1)).save(buffer, "PNG")
    one_pixel = buffer.getvalue()  # in place of an image that is skipped

    def load(index: np.ndarray) -> tuple[bytes, bytes, np.int64, np.int64]:
        data = b""
        try:
            data = _read(files[int(index)], request.limits)
            encoded, image_format, (width, height), _ = pixels.encode(data, pixels.Pixels(0, "keep", request.limits))
            if request.skip_unreadable:
                tf.io.decode_image(encoded, channels=3, expand_animations=False)
        except Exception as error:  # decoders raise anything for a broken image
            unreadable[int(index)] = _reason(error, data)
            if not request.skip_unreadable:
                raise
            encoded, image_format, (width, height), _ = pixels.encode(one_pixel, pixels.Pixels(0, "keep"))
        return encoded, image_format.encode(), np.int64(height), np.int64(width)

    @tf.autograph.experimental.do_not_convert
    def decode(index: tf.Tensor) -> tf.Tensor:
        values = tf.numpy_function(load, [index], [tf.string, tf.string, tf.int64, tf.int64], stateful=False)
        features = dict(zip(("encoded", "format", "height", "width"), values, strict=True))
        features = {name: tf.ensure_shape(value, []) for name, value in features.items()}
        return decode_and_crop(features, tf.zeros([CROP_DRAWS]), classifier.crop, any_viewed=False)

    try:
        yield from classifier.probabilities(decode, len(files), flip_tta=request.flip_tta)
    except tf.errors.OpError:
        found = {files[number].name: reason for number, reason in unreadable.items()}
        found = found or _undecodable(files, request.limits)
        if not found:
            raise
        listed = "; ".join(f"{name!r}: {why}" for name, why in list(found.items())[:_NAMED])
        raise DataError(
            f"at least {len(found)} of the images cannot be read: {listed}. Fix or remove them, or pass "
            "--on_corrupt=skip."
        ) from None


def _read(file: ImageFile, limits: pixels.Limits) -> bytes:
    limits.check_file(file.size)
    return Path(file.path).read_bytes()


def _undecodable(files: Sequence[ImageFile], limits: pixels.Limits) -> dict[str, str]:
    """Returns the name of the first file that TensorFlow cannot decode, and the reason; its own error names no file."""
    for file in files:
        data = b""
        try:
            data = _read(file, limits)
            encoded, *_ = pixels.encode(data, pixels.Pixels(0, "keep", limits))
            tf.io.decode_image(encoded, channels=3, expand_animations=False)
        except Exception as error:  # as above
            return {file.name: _reason(error, data)}
    return {}


def _reason(error: Exception, data: bytes) -> str:
    """Returns why a file with these bytes cannot be read."""
    if isinstance(error, tf.errors.OpError):
        return unsupported_jpeg(data) or _DAMAGED
    return pixels.reason(error)
