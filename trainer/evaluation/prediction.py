"""Predictions for a folder of images as a CSV: `convoy predict`.

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
from convoy.core.files import check_output_file, write_whole
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
      images: the folder, searched recursively.
      output: the CSV to write.
      manifest: CSV whose column `filename` lists the images and their order; None for all images by name.
      like: sample submission: its rows list the images and their order, its header names the columns.
      top_k: categories per image, the most probable first.
      probabilities: write each category's probability as well.
      flip_tta: average each image's probabilities with those of its mirror image.
    """

    images: Path
    output: Path
    manifest: Path | None = None
    like: Path | None = None
    top_k: int = 1
    probabilities: bool = False
    flip_tta: bool = False


def predict(classifier: Classifier, request: Request) -> int:
    """Writes the predictions atomically.

    Returns:
      The number of images.

    Raises:
      UsageError: `top_k` is out of range, or `output` cannot be a CSV there.
      DataError: an image or a CSV cannot be used.
    """
    class_names = classifier.class_names
    if not 1 <= request.top_k <= len(class_names):
        raise UsageError(f"--top_k={request.top_k}: pass 1 to {len(class_names)}, the number of categories.")
    check_output_file(request.output)
    for option, given in (("like", request.like), ("manifest", request.manifest)):
        if given and given.exists() and request.output.exists() and given.samefile(request.output):
            raise UsageError(f"--output={request.output} would overwrite --{option}={given}. Pass another path.")
    header, names, files = _requested_images(request)
    image_column, category_column = header
    columns = [image_column]
    for suffix in ["", *(f"_{k}" for k in range(2, request.top_k + 1))]:
        columns.append(f"{category_column}{suffix}")
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


def _requested_images(request: Request) -> tuple[Sequence[str], list[str], list[ImageFile]]:
    """Returns the names of the first two columns, the image names to write and their files, in order."""
    header: Sequence[str] = ("filename", "category")
    if request.like:
        header, rows = read_table(request.like)
        if len(header) < 2:
            raise DataError(
                f"--like={request.like} has the header {','.join(header)!r}: it needs two columns, image and category."
            )
        names = [row[0] for _, row in rows]
        if request.manifest:
            _check_same_names(names, _manifest_names(request.manifest), request)
        return header[:2], names, match_files(request.images, names, request.like)
    if request.manifest:
        names = _manifest_names(request.manifest)
        return header, names, match_files(request.images, names, request.manifest)
    files = list_images(request.images)
    return header, [file.name for file in files], files


def _manifest_names(manifest: Path) -> list[str]:
    header, rows = read_table(manifest)
    (column,) = column_indices(manifest, header, ["filename"])
    return [row[column] for _, row in rows]


def _check_same_names(like: list[str], manifest: list[str], request: Request) -> None:
    for names, others, where in ((like, manifest, request.manifest), (manifest, like, request.like)):
        missing = sorted(set(names) - set(others))
        if missing:
            raise DataError(
                f"--like={request.like} and --manifest={request.manifest} list different images: {missing[0]!r} is not "
                f"in {where}. Pass one of the two, or make them match."
            )


def _probabilities(classifier: Classifier, files: Sequence[ImageFile], request: Request) -> Iterator[np.ndarray]:
    """Yields each file's class probabilities, [num_classes] float32."""
    unreadable: dict[str, str] = {}

    def load(index: np.ndarray) -> tuple[bytes, bytes, np.int64, np.int64]:
        file = files[int(index)]
        try:
            data = Path(file.path).read_bytes()
            encoded, image_format, (width, height), _ = pixels.encode(data, pixels.Pixels(0, "keep"))
        except Exception as error:  # decoders raise anything for a broken image
            unreadable[file.name] = pixels.reason(error)
            raise
        return encoded, image_format.encode(), np.int64(height), np.int64(width)

    @tf.autograph.experimental.do_not_convert
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
        raise DataError(
            f"at least {len(unreadable)} of the images cannot be read: {listed}. Fix or remove them."
        ) from None


def _undecodable(files: Sequence[ImageFile]) -> dict[str, str]:
    """Returns the name of the first file that TensorFlow cannot decode, and the reason; its own error names no file."""
    for file in files:
        try:
            encoded, *_ = pixels.encode(Path(file.path).read_bytes(), pixels.Pixels(0, "keep"))
            tf.io.decode_image(encoded, channels=3, expand_animations=False)
        except tf.errors.OpError:
            return {file.name: "it is truncated or damaged"}
        except Exception as error:  # as above
            return {file.name: pixels.reason(error)}
    return {}
