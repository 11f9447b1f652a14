"""The ImageNet weights that Keras publishes for the models of `keras.applications`.

    file = published_file("MobileNetV2", image_size=96)
    file.url, file.digest

Keras' constructors know address and hash: one of them is called, up to its request for the file.
"""

import contextlib
import functools
import inspect
import warnings
from pathlib import Path
from typing import Any
from unittest import mock

import h5py
import keras
from keras.src.utils import file_utils

from convoy.core.downloads import RemoteFile, cache_folder, cached, fetched
from convoy.core.errors import UsageError
from convoy.trainer.models.applications import constructor_of

IMAGENET = "imagenet"  # the value of config.model.weights


class _RequestedError(Exception):
    """Keras asks for a file."""

    def __init__(self, request: dict[str, Any]):
        super().__init__()
        self.request = request


@functools.cache
def published_file(name: str, image_size: int) -> RemoteFile:
    """Returns the published weights without top of a model.

    Resets Keras' session: layers that are created afterwards are named as in a new process.

    Args:
      name: name of a constructor in `keras.applications`.
      image_size: side of the images in pixels. MobileNetV2 has other weights for some sizes.

    Raises:
      UsageError: there is no such constructor, or Keras publishes no weights for it.
    """
    signature = inspect.signature(file_utils.get_file)

    def request(*arguments: Any, **options: Any) -> None:  # noqa: ANN401
        raise _RequestedError(signature.bind(*arguments, **options).arguments)

    constructor = constructor_of(name)
    with mock.patch.object(file_utils, "get_file", request), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one for a size without weights of its own
        # An image that is too small for the model is refused when that is built.
        for options in ({"input_shape": (image_size, image_size, 3)}, {}):
            try:
                # In this scope, variables are described but not made: a sixth of the time.
                with keras.StatelessScope(initialize_variables=False):
                    constructor(weights=IMAGENET, include_top=False, **options)
            except _RequestedError as error:
                return _remote_file(error.request)
            except ValueError:
                continue
            finally:
                keras.utils.clear_session()
    raise UsageError(
        f"config.model.weights={IMAGENET}: Keras {keras.__version__} publishes no weights for {name}. Pass a file."
    )


def _remote_file(request: dict[str, Any]) -> RemoteFile:
    digest = request.get("file_hash") or request.get("md5_hash") or ""
    return RemoteFile(request["origin"], request["fname"], digest)


def cached_weights(file: RemoteFile) -> Path | None:
    """Returns the path of published weights that are on this machine already, or None. Downloads nothing."""
    return cached(file, [_folder(), _folder_of_keras()], _is_hdf5)


def fetched_weights(file: RemoteFile) -> Path:
    """Returns the path of published weights, which are downloaded if they are not there yet.

    Raises:
      DataError: they cannot be downloaded.
    """
    needed_by = f"config.model.weights={IMAGENET}"
    return fetched(file, _folder(), needed_by=needed_by, is_whole=_is_hdf5, also_in=[_folder_of_keras()])


def cached_path(file: RemoteFile) -> Path:
    """Returns where published weights are kept after they were downloaded."""
    return _folder() / file.name


def _folder() -> Path:
    return cache_folder() / "weights"


def _folder_of_keras() -> Path:
    return Path(file_utils.config.keras_home()) / "models"


def _is_hdf5(path: Path) -> bool:
    """Returns whether an HDF5 file opens, which it does not if it was cut short."""
    with contextlib.suppress(OSError), h5py.File(path):
        return True
    return False
