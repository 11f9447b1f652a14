"""What a run's model was built from: compared among workers and with the checkpoint, and kept in RUN/code.

The name of a model says little about it: `models.py:small` may be another file on another host, or have been edited
since. So the layers are compared, and the files of users are copied to RUN, from which `convoy evaluate`, `predict` and
`export` build the model.
"""

import hashlib
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import keras

from convoy.core.errors import DataError, UsageError
from convoy.core.files import write_whole
from convoy.core.user_code import UserCode
from convoy.trainer.models import ModelBundle, is_from_file
from convoy.trainer.run.directory import RunDirectory
from convoy.trainer.tf_compat.layers import all_layers

_KEPT_MODEL, _KEPT_RECIPE = "model", "recipe"


def model_identity(built: ModelBundle) -> dict[str, Any]:
    """Returns what is compared of a model, as JSON data.

    Returns:
      `digest`: of the classes and configs of its layers, and of the names, shapes and dtypes of its variables. `files`:
      SHA-256 of the user's file and of each module that it has imported from its folder, by relative path.
    """
    content = [list(_layers(built.model)), [(v.path, list(v.shape), str(v.dtype)) for v in built.model.variables]]
    text = json.dumps(content, sort_keys=True, default=lambda value: type(value).__qualname__)
    files = built.code.digests() if built.code else {}
    return {"digest": hashlib.sha256(text.encode()).hexdigest()[:16], "files": files}


def check_same_model(metadata: Mapping[str, Any], identity: Mapping[str, Any], name: str, run: RunDirectory) -> None:
    """Checks that the model is the one of a checkpoint.

    Args:
      metadata: of the checkpoint.
      identity: `model_identity` of the model.
      name: config.model.name.
      run: the run directory.

    Raises:
      UsageError: it is another model.
    """
    before = metadata.get("model", identity)  # missing in runs of earlier versions
    same_keras = metadata.get("place", {}).get("keras") == keras.__version__
    if before["digest"] != identity["digest"] and same_keras:
        files = changed_files(before["files"], identity["files"])
        because = f" ({', '.join(files)} changed)" if files else ""
        raise UsageError(
            f"--workdir={run.path}: step {metadata['step']} was trained with another model {name!r}{because}. Restore "
            f"it from {run.code / _KEPT_MODEL}, or pass another --workdir."
        )


def changed_files(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Returns the names of the files that were added, removed or changed, sorted."""
    return sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))


def keep_code(run: RunDirectory, built: ModelBundle, recipe: UserCode | None) -> None:
    """Copies the files of users that built the model and the config to RUN/code.

    Raises:
      DataError: they cannot be copied.
    """
    for kind, code in ((_KEPT_MODEL, built.code), (_KEPT_RECIPE, recipe)):
        if code:
            try:
                _copy(code, run.code / kind)
            except OSError as error:
                raise DataError(
                    f"--workdir={run.path}: {error.filename} cannot be copied ({error.strerror})."
                ) from None


def kept_model(run: RunDirectory, name: str) -> str:
    """Returns the name of a run's model with the copy of its file in RUN; other names are returned as they are.

    Prints a line if the file that `name` leads to is another one.

    Args:
      run: the run directory.
      name: config.model.name.
    """
    path, colon, function = name.rpartition(":")
    kept = run.code / _KEPT_MODEL / Path(path).name
    if not is_from_file(name) or not kept.is_file():
        return name
    here = Path(path)
    if here.is_file() and here.read_bytes() != kept.read_bytes():
        print(
            f"convoy: {path} differs from {kept}, with which {run.path} was trained and which is used.", file=sys.stderr
        )
    return f"{kept}{colon}{function}"


def _copy(code: UserCode, folder: Path) -> None:
    if code.path.parent == folder.resolve():
        return
    files = {name: path.read_bytes() for name, path in code.files().items()}
    for path in [path for path in folder.rglob("*") if path.is_file()] if folder.is_dir() else []:
        if path.relative_to(folder).as_posix() not in files:
            path.unlink()
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_whole(folder / name, content)


def _layers(model: keras.Model) -> Iterator[tuple[str, Any]]:
    """Yields the class and the config of each layer; code in configs is replaced by its instructions."""
    for layer in all_layers(model):
        try:
            config = layer.get_config()
        except Exception:  # layers of users may not support it
            config = {}
        if isinstance(layer, keras.layers.Lambda) and hasattr(layer.function, "__code__"):
            config = {**config, "function": layer.function.__code__.co_code.hex()}
        if isinstance(layer, keras.Model):
            config = {}  # its layers follow
        yield f"{type(layer).__module__.partition('.')[0]}.{type(layer).__qualname__}", config
