"""Preparation of a dataset by TFDS, which downloads its files and writes TFRecords.

    directory = prepare("cifar10", default_folder(), log=print)

It runs in a process of its own: TFDS uses TensorFlow, which would take all GPUs, and threads that download on after
Ctrl-C. Only that process imports either.
"""

import importlib
import logging
import multiprocessing
import os
import re
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from convoy.core.errors import ConvoyError, DataError, UsageError, did_you_mean, failure
from convoy.core.files import locked
from convoy.core.processes import follow_parent, helper_starting, main_module_hidden
from convoy.core.registry import is_from_file
from convoy.core.text import megabytes
from convoy.input_pipeline.dataset.layout import RecordFormat
from convoy.input_pipeline.dataset.tfds_layout import find_keys

_Log = Callable[[str], None]

_LISTED = 5  # configurations
_LONGEST = 300  # characters of instructions
_PARTIAL = f"*.tmp.{'[0-9a-f]' * 32}"  # a folder with what was downloaded of a file
_RETRIES = 5  # of a request, 6 s in all; TFDS' own 10 take 200 s, also where there is no network


def directory_of(name: str, folder: Path) -> Path:
    """Returns the directory of the dataset of a `FILE.py:BUILDER`, which may not be there.

    Args:
      name: the builder, which determines the names of the dataset, configuration and version.
      folder: TFDS' data_dir.

    Raises:
      UsageError: there is no such builder, or it fails.
    """
    return _answer(_directory, name, folder)


def prepare(name: str, folder: Path, record_format: RecordFormat, log: _Log, *, show_bars: bool = False) -> Path:
    """Downloads and prepares a dataset, unless that is done.

    Args:
      name: as in `find_prepared`, or `FILE.py:BUILDER`.
      folder: TFDS' data_dir.
      record_format: what the user says about the records.
      log: called with one line for each note.
      show_bars: whether TFDS may draw its progress bars to standard error.

    Returns:
      The directory of the dataset.

    Raises:
      UsageError: TFDS has no such dataset, configuration or version; or another process is preparing it.
      DataError: it has no images with labels, or its files cannot be downloaded, read or written.
    """
    return _answer(_prepared, name, folder, record_format, show_bars, log=log)


def _answer(work: Callable[..., Path], name: str, *arguments: object, log: _Log = lambda line: None) -> Path:
    """Returns what `work(name, *arguments, note)` returns in a process of its own; raises its errors."""
    context = multiprocessing.get_context("spawn")
    with helper_starting(), main_module_hidden():
        connection, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, work, name, *arguments))
        process.start()
    theirs.close()
    try:
        while True:
            kind, text = connection.recv()
            if kind == "note":
                log(text)
            elif kind == "directory":
                return Path(text)
            else:
                raise {"UsageError": UsageError, "DataError": DataError}.get(kind, ConvoyError)(text)
    except EOFError:
        process.join()
        raise DataError(
            f"--tfds={name}: TFDS' process ended with exit code {process.exitcode}. Free memory and run the command "
            "again: it repeats the preparation"
        ) from None
    finally:
        process.terminate()
        process.join()
        connection.close()


def _serve(connection: Connection, work: Callable[..., Path], name: str, *arguments: object) -> None:
    """Sends notes, and then the directory or an error."""
    follow_parent()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # TFDS then removes its incomplete directory
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # TFDS prints to it
    logging.disable(logging.CRITICAL)  # such as a line about every attempt of a download
    code = 1
    try:
        try:
            reply = "directory", str(work(name, *arguments, lambda text: connection.send(("note", text))))
        except ConvoyError as error:
            reply = type(error).__name__, str(error)
        except Exception as error:
            traceback.print_exc()
            reply = "", f"--tfds={name}: {failure(error)}"
        connection.send(reply)
        code = 0
    finally:
        os._exit(code)  # not waiting for the threads of other downloads


def _directory(name: str, folder: Path, note: _Log) -> Path:
    """Does what `directory_of` does."""
    del note
    return Path(_builder(name, folder).data_dir)


def _prepared(name: str, folder: Path, record_format: RecordFormat, show_bars: bool, note: _Log) -> Path:
    """Does what `prepare` does."""
    import tensorflow_datasets as tfds
    from google.protobuf.json_format import MessageToDict
    from tensorflow_datasets.core.download import downloader

    tfds.display_progress_bar(show_bars)
    downloader.MAX_RETRIES = _RETRIES
    builder = _builder(name, folder)
    directory = Path(builder.data_dir)
    if directory.exists():
        return directory
    downloads = folder / "downloads" / builder.name
    before = set(downloads.glob(_PARTIAL))
    size = f" ({megabytes(builder.info.download_size)} to download)" if builder.info.download_size else ""
    try:
        find_keys(f"--tfds={name}", MessageToDict(builder.info.features.to_proto()), record_format)
        directory.parent.mkdir(parents=True, exist_ok=True)
        with locked(directory.parent, f"--tfds={name}: another command is preparing it. Wait until it ends"):
            note(f"{name}: TFDS prepares it in {directory}{size}.")
            builder.download_and_prepare(file_format="tfrecord")
    except ConvoyError:
        raise
    except Exception as error:
        raise DataError(f"--tfds={name}: {_explained(error, builder, folder)}") from error
    finally:
        for partial_download in set(downloads.glob(_PARTIAL)) - before:  # TFDS leaves them, and never uses them
            shutil.rmtree(partial_download, ignore_errors=True)
        with suppress(OSError):
            directory.parent.rmdir()
    return directory


def _builder(name: str, folder: Path) -> Any:  # noqa: ANN401 (a class of TFDS)
    """Returns the `tfds.core.DatasetBuilder`."""
    import tensorflow_datasets as tfds

    build = _class_in_file(name) if is_from_file(name) else partial(tfds.builder, name)
    try:
        return build(data_dir=str(folder))
    except tfds.core.DatasetNotFoundError:
        known = tfds.list_builders(with_community_datasets=False)
        guess = did_you_mean(re.split("[/:]", name)[0], known)
        raise UsageError(
            f"--tfds={name}: TFDS {tfds.__version__} has no such dataset{guess}. Its own are listed at "
            "https://www.tensorflow.org/datasets/catalog; a builder of yours is FILE.py:CLASS"
        ) from None
    except Exception as error:
        raise UsageError(f"--tfds={name}: {_unknown_part(name) or failure(error)}") from error


def _class_in_file(name: str) -> Callable[..., Any]:
    """Returns the builder class that `FILE.py:CLASS` names. As a module, whose folder has its registered checksums."""
    import tensorflow_datasets as tfds

    file, _, attribute = name.rpartition(":")
    path = Path(file).resolve()
    if not path.is_file():
        raise UsageError(f"--tfds={name}: file {file} does not exist")
    sys.path.insert(0, str(path.parent))
    try:
        module = importlib.import_module(path.stem)
    except Exception as error:
        raise UsageError(f"--tfds={name}: {file} fails: {failure(error)}") from error
    found = getattr(module, attribute, None)
    if not (isinstance(found, type) and issubclass(found, tfds.core.DatasetBuilder)):
        guess = did_you_mean(attribute, vars(module))
        raise UsageError(f"--tfds={name}: {file} has no tfds.core.DatasetBuilder of this name{guess}")
    return found


def _unknown_part(name: str) -> str:
    """Returns what is wrong with the configuration or the version in a name, "" if nothing is."""
    import tensorflow_datasets as tfds

    path, _, version = name.partition(":")
    dataset, _, config = path.partition("/")
    try:
        builder_class = tfds.builder_cls(dataset)
    except ValueError:  # a file, or a namespace
        return ""
    configs = list(builder_class.builder_configs)
    if config and config not in configs:
        known = (
            f"It has {', '.join(configs[:_LISTED])}{', ...' * (len(configs) > _LISTED)}" if configs else "It has none"
        )
        return f"{dataset} has no configuration {config!r}{did_you_mean(config, configs)}. {known}"
    versions = [str(one) for one in (builder_class.VERSION, *(builder_class.SUPPORTED_VERSIONS or ())) if one]
    return f"TFDS {tfds.__version__} prepares {', '.join(versions)} of {path}, and not {version}" if version else ""


def _explained(error: Exception, builder: Any, folder: Path) -> str:  # noqa: ANN401 (a class of TFDS)
    """Returns what went wrong in a preparation, and the fix, in one line."""
    import requests
    from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError
    from tensorflow_datasets.core.download.extractor import ExtractError
    from tensorflow_datasets.core.download.util import DownloadError

    text = " ".join(str(error).split())
    again = "Run the command again; if this stays, install a newer tensorflow-datasets"
    address = getattr(getattr(error, "request", None), "url", None) or "a file of it"
    if isinstance(error, NonMatchingChecksumError):
        return f"{text.partition(' To debug')[0].rstrip(':')}. {again}"
    if isinstance(error, DownloadError | requests.exceptions.RetryError):
        return f"{text.rstrip('.')}. {again}"
    if isinstance(error, requests.exceptions.ConnectionError | requests.exceptions.Timeout):
        reason = getattr(error.args[0] if error.args else None, "reason", error)
        return (
            f"{address} cannot be reached ({failure(reason)}). Check the network and https_proxy, or prepare the "
            f"dataset elsewhere and copy it to {folder}"
        )
    if isinstance(error, requests.exceptions.RequestException):
        return f"the download of {address} broke off ({failure(error)}). {again}"
    if isinstance(error, ExtractError):
        return f"{text}. The file is damaged: delete it, and run the command again"
    if builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
        needed = " ".join(builder.MANUAL_DOWNLOAD_INSTRUCTIONS.split())
        needed = needed if len(needed) <= _LONGEST else f"{needed[:_LONGEST]} ..."
        return f"some of its files must be downloaded by hand to {folder / 'downloads' / 'manual'}: {needed}"
    if isinstance(error, OSError) and error.errno:
        return (
            f"{error.filename or folder} cannot be written or read ({error.strerror}). Free disk space, or pass "
            "another folder as --tfds_dir"
        )
    return f"TFDS cannot prepare it: {failure(error)}"
