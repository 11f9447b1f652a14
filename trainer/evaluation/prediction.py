"""Writes a category for every image of a folder, in the order a CSV asks for.

predict(RunClassifier(trained), request)      # filename,category
"""

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorflow as tf

from convoy.core.errors import DataError, UsageError
from convoy.core.files import write_whole
from convoy.input_pipeline.convert.sources import ImageFile, list_images, match_files
from convoy.input_pipeline.convert.tables import column_indices, read_table
from convoy.input_pipeline.images import pixels
from convoy.input_pipeline.reading.decode import CROP_DRAWS, Crop, decode_and_crop
from convoy.trainer.evaluation.classifier import Classifier

_NAMED = 3  # how many unreadable files an error names


@dataclass(frozen=True)
class Request:
    """What to predict and how to write it.

    Attributes:
      images: the folder.
      output: the CSV to write.
      manifest: a CSV whose column `filename` says which images, in which order; every image by name where None.
      like: a sample submission: its rows say which images in which order, its header what the columns are called.
      top_k: how many categories an image, best first.
      probabilities: whether each category's probability is written too.
      flip_tta: whether an image's probabilities are the mean of its own and of its mirror image's.
    """

    images: Path
    output: Path
    manifest: Path | None = None
    like: Path | None = None
    top_k: int = 1
    probabilities: bool = False
    flip_tta: bool = False


def predict(classifier: Classifier, request: Request) -> int:
    """Writes the predictions as a whole or not at all.

    Returns:
      How many images were predicted.

    Raises:
      UsageError: `top_k` is out of range, or the output's folder is missing.
      DataError: images or CSV cannot be used.
    """
    class_names = classifier.class_names
    if not 1 <= request.top_k <= len(class_names):
        raise UsageError(f"--top_k={request.top_k}: give 1 to {len(class_names)}, the number of categories.")
    if not request.output.parent.is_dir():
        raise UsageError(
            f"--output={request.output}: the folder {request.output.parent} does not exist. Make it first."
        )
    if request.output.is_dir():
        raise UsageError(f"--output={request.output} is a folder. Name the CSV to write in it.")
    for given in (request.like, request.manifest):
        if given and given.exists() and request.output.exists() and given.samefile(request.output):
            raise UsageError(f"--output={request.output} would overwrite the CSV that says what to predict.")
    header, names, files = _asked_for(request)
    columns = [*header]
    for k in range(1, request.top_k + 1):
        suffix = "" if k == 1 else f"_{k}"
        columns += [f"{header[1]}{suffix}"] if k > 1 else []
        columns += [f"probability{suffix}"] if request.probabilities else []
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for name, probabilities in zip(names, _probabilities(classifier, files, request), strict=True):
        row = [name]
        for label in np.argsort(-probabilities, kind="stable")[: request.top_k]:
            row.append(class_names[label])
            row += [f"{probabilities[label]:.6f}"] if request.probabilities else []
        writer.writerow(row)
    try:
        write_whole(request.output, text.getvalue().encode("utf-8"))
    except OSError as error:
        raise DataError(f"--output={request.output} cannot be written ({error.strerror}).") from None
    return len(files)


def _asked_for(request: Request) -> tuple[Sequence[str], list[str], list[ImageFile]]:
    """Returns the first two columns' names, the names to write and the files they stand for, in order."""
    header: Sequence[str] = ("filename", "category")
    if request.like:
        header, rows = read_table(request.like)
        if len(header) < 2:
            raise DataError(
                f"{request.like} has the header {','.join(header)!r}: two columns are needed, name and category."
            )
        header, names = header[:2], [row[0] for _, row in rows]
        if request.manifest:
            _check_same_names(names, _manifest_names(request.manifest), request)
    elif request.manifest:
        names = _manifest_names(request.manifest)
    else:
        files = list_images(request.images)
        return header, [file.name for file in files], files
    return header, names, match_files(request.images, names, request.like or request.manifest)


def _manifest_names(manifest: Path) -> list[str]:
    header, rows = read_table(manifest)
    (column,) = column_indices(manifest, header, ["filename"])
    return [row[column] for _, row in rows]


def _check_same_names(like: list[str], manifest: list[str], request: Request) -> None:
    for names, others, where in ((like, manifest, request.manifest), (manifest, like, request.like)):
        missing = sorted(set(names) - set(others))
        if missing:
            raise DataError(
                f"--like={request.like} and --manifest={request.manifest} differ: {where} lacks {missing[0]!r}."
            )


def _probabilities(classifier: Classifier, files: Sequence[ImageFile], request: Request) -> Iterator[np.ndarray]:
    """Yields each file's class probabilities, [num_classes] float32."""
    unreadable: dict[str, str] = {}

    def load(index: np.ndarray) -> tuple[bytes, bytes, np.int64, np.int64]:
        file = files[int(index)]
        try:
            data = Path(file.path).read_bytes()
            encoded, image_format, (width, height), _ = pixels.encode(data, pixels.Pixels(0, "keep"))
        except Exception as error:  # whatever a decoder throws at a broken image, the image is to blame
            unreadable[file.name] = pixels.reason(error)
            raise
        return encoded, image_format.encode(), np.int64(height), np.int64(width)

    def decode(index: tf.Tensor) -> tf.Tensor:
        values = tf.numpy_function(load, [index], [tf.string, tf.string, tf.int64, tf.int64], stateful=False)
        features = dict(zip(("encoded", "format", "height", "width"), values, strict=True))
        features = {name: tf.ensure_shape(value, []) for name, value in features.items()}
        return decode_and_crop(features, tf.zeros([CROP_DRAWS]), Crop(classifier.image_size))

    try:
        yield from classifier.probabilities(decode, len(files), flip_tta=request.flip_tta)
    except tf.errors.OpError:
        unreadable = unreadable or _undecodable(files)
        if not unreadable:
            raise
        listed = "; ".join(f"{name!r}: {why}" for name, why in list(unreadable.items())[:_NAMED])
        raise DataError(f"{len(unreadable)} or more images cannot be read: {listed}. Mend or remove them.") from None


def _undecodable(files: Sequence[ImageFile]) -> dict[str, str]:
    """Returns the first file that TensorFlow cannot decode, by name, and why; its own error does not say which."""
    for file in files:
        try:
            encoded, *_ = pixels.encode(Path(file.path).read_bytes(), pixels.Pixels(0, "keep"))
            tf.io.decode_image(encoded, channels=3, expand_animations=False)
        except tf.errors.OpError:
            return {file.name: "it is cut short or damaged"}
        except Exception as error:  # as above
            return {file.name: pixels.reason(error)}
    return {}
