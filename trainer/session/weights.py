"""`config.model.weights`: which file it stands for, what identifies that, and whether its head is for the same classes.

path = fetch_weights(worker_group, config)       # on every worker; downloads published weights
weights_digest(path)                             # kept in checkpoints, to recognize the file when a run resumes
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import ml_collections

from convoy.core.downloads import RemoteFile
from convoy.core.errors import ConvoyError, DataError
from convoy.core.files import sha256_of
from convoy.core.run_layout import RunLayout, checkpoint_name
from convoy.trainer.checkpoint.checkpoints import CheckpointStore
from convoy.trainer.cluster.worker_group import WorkerGroup
from convoy.trainer.models.from_users import APPLICATIONS
from convoy.trainer.models.hub import HUB, PRESET, fetch_preset, preset_weights
from convoy.trainer.models.pretrained import SAVED_MODEL
from convoy.trainer.models.published import IMAGENET, cached_path, cached_weights, fetched_weights, published_file
from convoy.trainer.run.directory import RunDirectory
from convoy.trainer.run.records import EXPORT_DESCRIPTION, read_json_object

_DOWNLOAD_SECONDS = 6 * 3600.0


def fetch_weights(worker_group: WorkerGroup, config: ml_collections.ConfigDict) -> str:
    """Returns `local_weights` of a config, after downloading what its model and weights need.

    Every worker calls it: the chief downloads first, so that workers with the same cache folder find it there. On other
    hosts, one process of each downloads.

    Args:
      worker_group: the workers.
      config: the run's config, complete.

    Raises:
      UsageError: unknown model, or a model without published weights.
      DataError: they cannot be downloaded, on this worker or another one.
    """
    if not config.model.name.startswith(HUB) and not published_weights(config):
        return config.model.weights
    path = ""
    for is_chiefs_turn in (True, False):
        own: ConvoyError | None = None
        if worker_group.is_chief == is_chiefs_turn:
            try:
                path = local_weights(config)
            except ConvoyError as error:
                own = error
        who = "the chief" if is_chiefs_turn else "all others"
        problems = worker_group.exchange(f"download by {who}", str(own or ""), seconds=_DOWNLOAD_SECONDS)
        if own:
            raise own
        for rank, problem in enumerate(problems):
            if problem:
                raise DataError(f"{worker_group.address(rank)}: {problem}")
    return path


def local_weights(config: ml_collections.ConfigDict) -> str:
    """Returns `config.model.weights` with the path of the file in place of `imagenet`; downloads what is missing.

    Raises:
      UsageError: unknown model, or a model without published weights.
      DataError: they cannot be downloaded.
    """
    name, weights = config.model.name, config.model.weights
    if name.startswith(HUB):
        fetch_preset(name.removeprefix(HUB), with_weights=weights == PRESET)
    elif file := published_weights(config):
        return str(fetched_weights(file))
    return weights


def available_weights(config: ml_collections.ConfigDict) -> str:
    """Returns what `local_weights` does, but downloads nothing: "" if published weights are not on this machine."""
    file = published_weights(config)
    return str(cached_weights(file) or "") if file else config.model.weights


def published_weights(config: ml_collections.ConfigDict) -> RemoteFile | None:
    """Returns the file that `imagenet` stands for; None for other weights.

    Raises:
      UsageError: unknown model, or a model without published weights.
    """
    if config.model.weights != IMAGENET or not config.model.name.startswith(APPLICATIONS):
        return None
    return published_file(config.model.name.removeprefix(APPLICATIONS), config.image_size)


def located_text(config: ml_collections.ConfigDict) -> str:
    """Returns where weights that a config names are, or where they will be downloaded from; "" for other weights.

    Raises:
      UsageError: as `published_weights`.
    """
    file = published_weights(config)
    if not file:
        return ""
    path = cached_weights(file)
    return f"{path}" if path else f"{cached_path(file)}, not there yet: downloaded from {file.url}"


def weights_file(path: str) -> str:
    """Returns the file that config.model.weights stands for: of a run directory its best checkpoint, of the folder of
    an export its Keras file or SavedModel. `preset` stands for itself, also if there is a folder of this name.

    Raises:
      DataError: a folder without checkpoints and without these, as that of a cross-validation.
    """
    if path in ("", PRESET) or not Path(path).is_dir():
        return path
    folder = RunLayout(path).checkpoints
    store = CheckpointStore(folder)
    step = store.chosen()
    if step is not None:
        return str(folder / checkpoint_name(step))
    saved_models = [found.parent for found in Path(path).rglob(SAVED_MODEL)]
    for exported in (*sorted(Path(path).glob("*.keras")), *sorted(saved_models)):
        return str(exported)
    run = RunDirectory(path)
    if run.folds:
        raise DataError(
            f"config.model.weights={path!r}: has the {run.folds} runs of a cross-validation. Pass one of them, such as "
            f"{run.fold(1)}."
        )
    raise DataError(
        f"config.model.weights={path!r}: has no checkpoints. Pass a run directory, a weights file, or a folder of "
        "`convoy export` with a SavedModel or a Keras file."
    )


def weights_digest(path: str) -> str:
    """Returns what identifies the content of config.model.weights; "" for none or if it cannot be read."""
    try:
        file = Path(weights_file(path))
        files = sorted((file / "variables").iterdir()) if file.is_dir() else [file]  # of a SavedModel
        return " ".join(map(sha256_of, files)) if path else ""
    except (OSError, DataError):
        return ""


def initial_digest(config: ml_collections.ConfigDict) -> str:
    """Returns `weights_digest` of the weights of a config that `fetch_weights` has been called for."""
    if config.model.weights == PRESET and config.model.name.startswith(HUB):
        return weights_digest(preset_weights(config.model.name.removeprefix(HUB)))
    return weights_digest(config.model.weights)


def has_same_classes(path: str, class_names: Sequence[str]) -> bool | None:
    """Returns whether weights are those of a classifier of these classes, in this order.

    Args:
      path: a file that `weights_file` returned.
      class_names: names of the classes, by label.

    Returns:
      None if it is not known: neither a checkpoint in its run nor an export.
    """
    file = Path(path)
    description: Mapping[str, object] = {}
    if file.suffix == ".npz":
        description = read_json_object(RunLayout(file.parent.parent).dataset)
    elif path:
        description = read_json_object(file.parent / EXPORT_DESCRIPTION)
    names = description.get("class_names")
    return None if names is None or not class_names else names == list(class_names)
