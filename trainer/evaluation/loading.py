"""Loads images, files or arrays, for a model.

unreadable: dict[int, str] = {}
for probabilities in probabilities_of(images, classifier, unreadable=unreadable):
    ...
"""

import functools
import io
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import cast

import numpy as np
import tensorflow as tf
from PIL import Image

from convoy.core.errors import DataError, UsageError
from convoy.core.processes import usable_cores
from convoy.input_pipeline.convert.folders import ImageFile
from convoy.input_pipeline.convert.sources import list_images
from convoy.input_pipeline.images import pixels
from convoy.input_pipeline.images.kinds import unsupported_jpeg
from convoy.input_pipeline.images.rgb import as_rgb
from convoy.input_pipeline.reading.decode import CROP_DRAWS, Crop, decode_and_crop
from convoy.trainer.evaluation.classifier import Classifier, MixedEnsemble

_NAMED = 3  # how many unreadable files an error names
_DAMAGED = "it is truncated or damaged"
_DEFAULT_LIMITS = pixels.Limits()
_ImageOf = Callable[[tf.Tensor], tf.Tensor]


def image_file(path: Path) -> ImageFile:
    """Returns a file by its path; raises a DataError if there is none."""
    if not path.is_file():
        raise DataError(f"image {path} {'is a folder among files' if path.is_dir() else 'does not exist'}.")
    return ImageFile(str(path), str(path), path.stat().st_size)


def sources_of(images: object) -> tuple[list[str], list[ImageFile | np.ndarray]]:
    """Returns names and images for `probabilities_of`: of files their paths, of others their numbers.

    Args:
      images: one image or any number of them: paths of files, PIL images, or pixels [height, width, 3] uint8; also a
        folder, which is searched recursively, or pixels [n, height, width, 3].

    Raises:
      UsageError: there is none, or one is something else.
      DataError: a path does not exist, the folder has no images, or a PIL image is damaged.
    """
    if isinstance(images, str | os.PathLike) and Path(images).is_dir():
        files = list_images(Path(images))
        return [file.name for file in files], [*files]
    is_one = isinstance(images, str | os.PathLike | Image.Image) or not isinstance(images, Iterable)
    is_one |= isinstance(images, np.ndarray) and images.ndim != 4
    listed = [images] if is_one else list(cast("Iterable[object]", images))
    if not listed:
        raise UsageError("images: there are none. Pass at least one path, PIL image or array.")
    found = [_source(number, image) for number, image in enumerate(listed)]
    names = [image.name if isinstance(image, ImageFile) else str(number) for number, image in enumerate(found)]
    return names, found


def _source(number: int, image: object) -> ImageFile | np.ndarray:
    if isinstance(image, str | os.PathLike):
        return image_file(Path(image))
    if isinstance(image, Image.Image):
        try:
            return np.asarray(as_rgb(image))
        except Exception as error:  # decoders raise anything for a broken image
            raise DataError(f"image {number} cannot be read: {pixels.reason(error)}.") from error
    if not isinstance(image, np.ndarray):
        kind = type(image).__name__
        raise UsageError(f"image {number} is of type {kind}. Pass a path, a PIL image or an array [height, width, 3].")
    if image.ndim != 3 or image.shape[2] != 3 or not image.size or image.dtype != np.uint8:
        raise UsageError(
            f"image {number} is an array of shape {list(image.shape)} and dtype {image.dtype}. Pass RGB pixels "
            "[height, width, 3] of dtype uint8, from 0 to 255."
        )
    return image


def probabilities_of(
    images: Sequence[ImageFile | np.ndarray],
    classifier: Classifier | MixedEnsemble,
    *,
    flip_tta: bool = False,
    limits: pixels.Limits = _DEFAULT_LIMITS,
    unreadable: dict[int, str] | None = None,
) -> Iterator[np.ndarray]:
    """Yields each image's class probabilities, [num_classes] float32.

    Args:
      images: one or more files, or pixels [height, width, 3] uint8.
      classifier: the model.
      flip_tta: average with the probabilities of the mirror image.
      limits: limits of the files; those beyond them cannot be read.
      unreadable: receives the reasons by number of the files that cannot be read, whose probabilities mean nothing;
        None to fail.

    Raises:
      DataError: a file cannot be read, and `unreadable` is None.
    """
    if isinstance(classifier, MixedEnsemble):
        each = [
            probabilities_of(images, part, flip_tta=flip_tta, limits=limits, unreadable=unreadable)
            for part in classifier.parts
        ]
        weights = np.array([part.models for part in classifier.parts], np.float32)
        yield from (weights @ np.stack(found) / weights.sum() for found in zip(*each, strict=True))
        return
    classify = functools.partial(classifier.probabilities, flip_tta=flip_tta)
    fix = "Fix or remove them, or pass --on_corrupt=skip."
    yield from _results(images, classifier.crop, classify, fix, limits, unreadable)


def pixels_of(images: Sequence[ImageFile | np.ndarray], crop: Crop) -> Iterator[np.ndarray]:
    """Yields each image as the model sees it, [size, size, 3] uint8; arguments and errors as `probabilities_of`."""

    def pixels_as_seen(image_of: _ImageOf, num_images: int) -> Iterator[np.ndarray]:
        return tf.data.Dataset.range(num_images).map(image_of, num_parallel_calls=usable_cores()).as_numpy_iterator()

    yield from _results(images, crop, pixels_as_seen, "Fix or remove them.")


def _results(
    images: Sequence[ImageFile | np.ndarray],
    crop: Crop,
    results: Callable[[_ImageOf, int], Iterator[np.ndarray]],
    fix: str,
    limits: pixels.Limits = _DEFAULT_LIMITS,
    unreadable: dict[int, str] | None = None,
) -> Iterator[np.ndarray]:
    """Yields a result per image; `results` takes what `Classifier.probabilities` takes."""
    buffer = io.BytesIO()
    Image.new("RGB", (1, 1)).save(buffer, "PNG")
    one_pixel = buffer.getvalue()  # in place of an image that cannot be read
    reasons = {} if unreadable is None else unreadable

    def load(index: np.ndarray) -> tuple[bytes, bytes, np.int64, np.int64]:
        image, data = images[int(index)], b""
        if isinstance(image, np.ndarray):
            return image.tobytes(), b"raw", np.int64(image.shape[0]), np.int64(image.shape[1])
        try:
            data = _read(image, limits)
            encoded, image_format, (width, height), _ = pixels.encode(data, pixels.Pixels(0, "keep", limits))
            if unreadable is not None:
                tf.io.decode_image(encoded, channels=3, expand_animations=False)
        except Exception as error:  # decoders raise anything for a broken image
            reasons[int(index)] = _reason(error, data)
            # Not raised again: TensorFlow would log the traceback.
            encoded, image_format, (width, height), _ = pixels.encode(one_pixel, pixels.Pixels(0, "keep"))
        return encoded, image_format.encode(), np.int64(height), np.int64(width)

    @tf.autograph.experimental.do_not_convert
    def decode(index: tf.Tensor) -> tf.Tensor:
        values = tf.numpy_function(load, [index], [tf.string, tf.string, tf.int64, tf.int64], stateful=False)
        features = dict(zip(("encoded", "format", "height", "width"), values, strict=True))
        features = {name: tf.ensure_shape(value, []) for name, value in features.items()}
        return decode_and_crop(features, tf.zeros([CROP_DRAWS]), crop, any_viewed=False)

    files = {number: image for number, image in enumerate(images) if isinstance(image, ImageFile)}
    found: dict[str, str] = {}
    try:
        for result in results(decode, len(images)):
            if unreadable is None and reasons:
                found = {files[number].name: reason for number, reason in sorted(reasons.copy().items())}
                break
            yield result
    except tf.errors.OpError:
        found = _undecodable(files.values(), limits)
        if not found:
            raise
    if found:
        listed = "; ".join(f"{name!r}: {why}" for name, why in list(found.items())[:_NAMED])
        raise DataError(f"at least {len(found)} of the images cannot be read: {listed}. {fix}")


def _read(file: ImageFile, limits: pixels.Limits) -> bytes:
    limits.check_file(file.size)
    return Path(file.path).read_bytes()


def _undecodable(files: Iterable[ImageFile], limits: pixels.Limits) -> dict[str, str]:
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
