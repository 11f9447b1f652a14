"""What a run was made from by users: compared among workers and with the checkpoint, and kept in RUN/code.

The name of a piece says little about it: `models.py:small` may be another file on another host, or have been edited
since. So the layers of a model and the code of other pieces are compared, and the files of users are copied to RUN,
from which `convoy evaluate`, `predict` and `export` take them:

RUN/code/model/models.py  loss/losses.py  metric-0/...  schedule/...  recipe/...
RUN/code/model/config.json  image_converter.json    # of a model of Keras Hub: a preset without weights
RUN/code/registered.json            # {"loss": "recipe.py"}: the file that registers a piece, if its name is no path
"""

import ast
import contextlib
import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import keras

from convoy.core.errors import DataError, UsageError, failure
from convoy.core.files import write_whole
from convoy.core.registry import Found, Registry, is_from_file
from convoy.core.user_code import UserCode, check_owner, run_file
from convoy.trainer.models import ModelBundle
from convoy.trainer.models.hub import HUB, is_preset_folder
from convoy.trainer.run.directory import RunDirectory
from convoy.trainer.run.records import read_json_object
from convoy.trainer.tf_compat.layers import all_layers

MODEL = "model"

_logger = logging.getLogger("convoy")
_RECIPE, _REGISTERED, _METRIC = "recipe", "registered.json", "metric-"


def model_identity(built: ModelBundle) -> dict[str, Any]:
    """Returns what is compared of a model, as JSON data.

    Returns:
      `digest`: of the classes and configs of its layers, and of the names, shapes and dtypes of its variables. `files`:
      SHA-256 of the user's file and of each module that it has imported from its folder, by relative path.
    """
    content = [list(_layers(built.model)), [(v.path, list(v.shape), str(v.dtype)) for v in built.model.variables]]
    text = json.dumps(content, sort_keys=True, default=lambda value: type(value).__qualname__)
    files = _digests(built.found) if built.found else {}
    return {"digest": hashlib.sha256(text.encode()).hexdigest()[:16], "files": files}


def code_identity(built: ModelBundle, pieces: Mapping[str, Found]) -> dict[str, Any]:
    """Returns `model_identity`, with `pieces`: SHA-256 of the code of users' other pieces, by their folder in RUN/code.

    `files` are those of all.
    """
    identity, digests = model_identity(built), piece_digests(pieces)
    files = {name: digest for part in (*digests.values(), identity["files"]) for name, digest in part.items()}
    return {**identity, "files": files, "pieces": digests}


def piece_digests(pieces: Mapping[str, Found]) -> dict[str, dict[str, str]]:
    """Returns SHA-256 of the code of users' pieces, by folder and by file."""
    return {folder: dict(found.digests) for folder, found in pieces.items() if found.digests}


def check_same_code(
    metadata: Mapping[str, Any], identity: Mapping[str, Any], pieces: Mapping[str, Found], name: str, run: RunDirectory
) -> None:
    """Checks that the model and the other pieces are those of a checkpoint. Metrics and comments may change.

    Args:
      metadata: of the checkpoint.
      identity: `code_identity` of the run.
      pieces: the pieces, by their folder in RUN/code.
      name: config.model.name.
      run: the run directory.

    Raises:
      UsageError: one is another.
    """
    before = metadata.get("model", identity)  # missing in runs of earlier versions
    same_keras = metadata.get("place", {}).get("keras") == keras.__version__
    refusal = f"--workdir={run.path}: step {metadata['step']} was trained with another"
    if before["digest"] != identity["digest"] and same_keras:
        files = changed_files(before["files"], identity["files"])
        because = f" ({', '.join(files)} changed)" if files else ""
        raise UsageError(
            f"{refusal} model {name!r}{because}. Restore it from {run.code / MODEL}, or pass another --workdir."
        )
    recorded, now = before.get("pieces", identity["pieces"]), identity["pieces"]
    for folder in [folder for folder in pieces if not folder.startswith(_METRIC)]:
        files = changed_files(recorded.get(folder, {}), now.get(folder, {}))
        if files and not _is_same_program(run.code / folder, pieces[folder].code):
            raise UsageError(
                f"{refusal} {folder} {pieces[folder].name!r} ({', '.join(files)} changed). Restore it"
                + (f" from {run.code / folder}" if pieces[folder].code else "")
                + ", or pass another --workdir."
            )


def changed_files(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Returns the names of the files that were added, removed or changed, sorted."""
    return sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))


def keep_code(
    run: RunDirectory, pieces: Mapping[str, Found], recipe: UserCode | None, preset: Mapping[str, str] | None = None
) -> None:
    """Copies the files of users that made the pieces and the config to RUN/code.

    Args:
      run: the run directory.
      pieces: the pieces, by their folder in RUN/code; the model too.
      recipe: the user's file that made the config; None for others.
      preset: content of the files that describe a model of Keras Hub, by name.

    Raises:
      DataError: they cannot be copied.
    """
    codes = {_RECIPE: recipe, **{folder: found.code for folder, found in pieces.items()}}
    kept = {folder: code for folder, code in codes.items() if code}
    registered = {
        folder: code.path.name
        for folder, code in kept.items()
        if folder != _RECIPE and not is_from_file(pieces[folder].name)
    }
    try:
        for folder, code in kept.items():
            _copy(code, run.code / folder)
        for name, content in (preset or {}).items():
            (run.code / MODEL).mkdir(parents=True, exist_ok=True)
            write_whole(run.code / MODEL / name, content.encode())
        if registered:
            run.write_json(run.code / _REGISTERED, registered)
        else:
            (run.code / _REGISTERED).unlink(missing_ok=True)
    except OSError as error:
        raise DataError(f"--workdir={run.path}: {error.filename} cannot be copied ({error.strerror}).") from None


def kept_preset(run: RunDirectory, name: str) -> str:
    """Returns the name of a run's model with the copy in RUN of what describes it, if it is one of Keras Hub.

    So the run needs neither the preset nor internet access again. Other names are returned as they are.
    """
    is_kept = name.startswith(HUB) and is_preset_folder(run.code / MODEL)
    return f"{HUB}{run.code / MODEL}" if is_kept else name


def kept_name(run: RunDirectory, folder: str, name: str) -> str:
    """Returns the name of a run's piece with the copy of its file in RUN; other names are returned as they are.

    Logs a warning if the file that `name` leads to is another one.

    Args:
      run: the run directory.
      folder: folder in RUN/code.
      name: as in the config.
    """
    path, colon, attribute = name.rpartition(":")
    kept = run.code / folder / Path(path).name
    if not is_from_file(name) or not kept.is_file():
        return name
    here = Path(path)
    if here.is_file() and here.read_bytes() != kept.read_bytes():
        _logger.warning("%s differs from %s, with which %s was trained and which is used.", path, kept, run.path)
    return f"{kept}{colon}{attribute}"


def find_kept(run: RunDirectory, registry: Registry, name: str, folder: str, *, trust_code: bool) -> Found:
    """Finds a piece of a run, if possible from its copy in RUN.

    Args:
      run: the run directory.
      registry: where pieces of this kind are registered.
      name: as in the config.
      folder: folder in RUN/code.
      trust_code: whether its code may run although another user owns it.

    Raises:
      UsageError: there is no such piece, or its code is not trusted.
    """
    if registry.is_built_in(name):
        return registry.find(name)
    kept = kept_name(run, folder, name)
    if not trust_code:
        check_trusted(run, kept, f"finding its {folder.partition('-')[0]}")
    run_registering(run, registry, name, folder)
    return registry.find(kept)


def run_registering(run: RunDirectory, registry: Registry, name: str, folder: str) -> None:
    """Runs the file of a run that registers a piece, if no piece is registered under its name.

    Raises:
      UsageError: the file fails.
    """
    file = read_json_object(run.code / _REGISTERED).get(folder)
    if file and name not in registry.names:
        path = run.code / folder / Path(file).name
        try:
            run_file(path)
        except Exception as error:
            raise UsageError(f"{path} fails: {failure(error)}.") from error


def check_trusted(run: RunDirectory, name: str, runs: str) -> None:
    """Raises a UsageError if another user owns the config or the code of a run.

    Args:
      run: the run directory.
      name: of a piece, as from `kept_name`.
      runs: what would run its code, for the message.
    """
    file = Path(name.rpartition(":")[0])
    for path in {run.config, *run.code.rglob("*.py"), *([file] if file.is_file() else [])}:
        check_owner(path, runs)


def _digests(found: Found) -> Mapping[str, str]:
    """Returns the digests of a model's code, with what its function has imported when it was called."""
    return found.code.digests() if found.code and is_from_file(found.name) else found.digests


def _is_same_program(kept: Path, code: UserCode | None) -> bool:
    """Returns whether the files in a folder differ from the user's only in comments and layout."""
    files = code.files() if code else {}
    if not files or {path.relative_to(kept).as_posix() for path in kept.rglob("*.py")} != files.keys():
        return False
    with contextlib.suppress(OSError, SyntaxError, ValueError):
        return all(_program(kept / name) == _program(path) for name, path in files.items())
    return False


def _program(path: Path) -> str:
    return ast.dump(ast.parse(path.read_bytes()))


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
