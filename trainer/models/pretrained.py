"""Loads weights from a file or a run into a model of the same architecture, with a new head for other classes.

    print(load_pretrained(model, fast, "resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5"))

Formats: Keras' legacy `.h5` (weights or a complete model, such as the files published with `keras.applications`,
with or without top), recognized by its content, and `.weights.h5` and `.keras`, recognized by name, also the `.keras`
and the SavedModel of `convoy export`, and checkpoints of runs (`.npz`). No code in a file is executed. The file must
contain all weights of the backbone (`head.split`); a layer of the head is loaded if all its weights fit, and keeps its
random initialization otherwise.
"""

import warnings
import zipfile
from pathlib import Path

import h5py
import keras
import numpy as np
import tensorflow as tf

from convoy.core.errors import DataError
from convoy.core.npz import opened, read_array
from convoy.core.text import counted
from convoy.trainer.models.head import split
from convoy.trainer.tf_compat.layers import all_layers

SAVED_MODEL = "saved_model.pb"  # in the folder of one

# EfficientNet's published weights expect pixels that are also divided by the square root of ImageNet's standard
# deviation. Keras adds a layer for that only if it downloads the weights itself (tensorflow#49930); here the factor
# goes into the variance.
_IMAGENET_MEAN, _IMAGENET_VARIANCE = (0.485, 0.456, 0.406), (0.229**2, 0.224**2, 0.225**2)


def load_pretrained(model: keras.Model, fast: keras.Model, path: str, *, same_classes: bool | None = None) -> str:
    """Loads a file into `fast`.

    Args:
      model: the model in Keras' own layers.
      fast: the same model in Convoy's layers. Keras matches weights by layer class, and a file may be from either.
      path: the weights file.
      same_classes: whether it is known to be of a classifier of the same classes. If it is not, the last layer stays
        random, since a head of other classes is worse. None: unknown; the last layer is loaded if it fits.

    Returns:
      How many weights were loaded, as text.

    Raises:
      DataError: the file is missing, damaged, in an unknown format, or for another architecture.
    """
    name = f"config.model.weights={path!r}"
    is_saved_model = (Path(path) / SAVED_MODEL).is_file()
    if not Path(path).is_file() and not is_saved_model:
        raise DataError(f"{name}: the file does not exist.")
    if path.endswith((".onnx", ".tflite")):
        raise DataError(
            f"{name}: has no weights that a model can take up. Pass the run directory, or a SavedModel or Keras file "
            "of `convoy export`."
        )
    try:
        if is_saved_model:
            found = [_from_saved_model(model, path)]
        elif path.endswith(".npz"):
            found = [_from_checkpoint(fast, path)]
        elif _is_legacy(path):
            found = [_in_order(model, path)]
        else:
            found = [_by_keras(each, path) for each in (model, fast)]
            if path.endswith(".keras") and all(value is None for values in found for value in values):
                found.append(_from_export(model, path))
    except Exception as error:  # a damaged file can make h5py, zipfile and Keras raise almost anything
        reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
        raise DataError(f"{name}: damaged, or does not fit model {model.name!r}: {reason}.") from error
    values = max(found, key=lambda values: sum(value is not None for value in values))
    value_of = {id(w): value for w, value in zip(fast.weights, values, strict=True) if value is not None}
    parts = split(fast)
    head = parts[1] if parts else None
    in_head = {id(weight) for weight in head.weights} if head else set()
    of_head = [layer for layer in head.layers if layer.weights] if head else []
    has_last = bool(of_head) and all(id(weight) in value_of for weight in of_head[-1].weights)
    for layer in of_head:
        is_of_others = same_classes is False and layer is of_head[-1]
        if is_of_others or any(id(weight) not in value_of for weight in layer.weights):
            for weight in layer.weights:
                value_of.pop(id(weight), None)
    backbone = [weight for weight in fast.weights if id(weight) not in in_head]
    missing = [weight.path for weight in backbone if id(weight) not in value_of]
    if missing:
        raise DataError(
            f"{name}: does not fit model {model.name!r}: it contains {len(backbone) - len(missing)} of {len(backbone)} "
            f"backbone weights. The first missing one is {missing[0]}."
        )
    for weight in fast.weights:
        if id(weight) in value_of:
            weight.assign(value_of[id(weight)])
    for layer in all_layers(fast):
        if isinstance(layer, keras.layers.Normalization) and layer.input_mean is None:
            _scale_as_published(layer)
    in_file = len(value_of) - len(backbone)
    return (
        f"{len(backbone)} of {counted(len(backbone), 'backbone weight')} from {path}"
        + (f", {in_file} of {counted(len(in_head), 'head weight')}" if head else "")
        + ("; the rest is random" if in_file < len(in_head) else "")
        + (": the file is of other classes" if has_last and same_classes is False else "")
        + (", whose classes the file does not name" if has_last and same_classes is None else "")
    )


def _from_checkpoint(model: keras.Model, path: str) -> list[np.ndarray | None]:
    """Returns the values of a checkpoint for the weights of a model, averaged ones if the run kept an average."""
    names = {name for weight in model.weights for name in (f"average/{weight.path}", f"model/{weight.path}")}
    with opened(path) as archive:
        stored = names & {name.removesuffix(".npy") for name in archive.namelist()}
        values = {name: read_array(archive, name) for name in stored}

    def value_of(weight: keras.Variable) -> np.ndarray | None:
        value = values.get(f"average/{weight.path}", values.get(f"model/{weight.path}"))
        return value if value is not None and value.shape == tuple(weight.shape) else None

    return [value_of(weight) for weight in model.weights]


def _from_export(model: keras.Model, path: str) -> list[np.ndarray | None]:
    """Returns the values of the model inside a classifier of `convoy export`, for the weights of a model."""
    exported = keras.models.load_model(path, compile=False).get_weights()
    if len(exported) != len(model.weights):
        return [None] * len(model.weights)
    pairs = zip(exported, model.weights, strict=True)  # the head has other shapes if the classes differ
    return [value if value.shape == tuple(weight.shape) else None for value, weight in pairs]


def _from_saved_model(model: keras.Model, path: str) -> list[np.ndarray | None]:
    """Returns the values in a SavedModel of `convoy export`, for the weights of a model. Runs no operation of it."""
    reader = tf.train.load_checkpoint(str(Path(path) / "variables" / "variables"))
    names = [f"variables_of_model/{number}/.ATTRIBUTES/VARIABLE_VALUE" for number in range(len(model.variables))]
    value_of = {
        variable.path: reader.get_tensor(name)
        for variable, name in zip(model.variables, names, strict=True)
        if reader.has_tensor(name) and tuple(reader.get_variable_to_shape_map()[name]) == tuple(variable.shape)
    }
    return [value_of.get(weight.path) for weight in model.weights]


def _is_legacy(path: str) -> bool:
    if zipfile.is_zipfile(path):
        return False
    with h5py.File(path) as file:
        return "model_weights" in file or any(name.startswith("layer_names") for name in file.attrs)


def _in_order(model: keras.Model, path: str) -> list[np.ndarray | None]:
    """Returns the values of a legacy file for the weights of a model, in their order; None from the first misfit on.

    Layers are matched by order, as in Keras: their names depend on what else the writing process had built.
    """
    value_of: dict[int, np.ndarray] = {}
    with h5py.File(path) as file:
        group = file.get("model_weights", file)
        stored_by_layer = [
            [_dataset(file, group[layer][name]) for name in names]
            for layer in _names(group, "layer_names")
            if (names := _names(group[layer], "weight_names"))
        ]
        layers = [layer for layer in model.layers if layer.weights]
        for layer, stored in zip(layers, stored_by_layer, strict=False):
            weights = [*layer.trainable_weights, *layer.non_trainable_weights]  # the order in these files
            if [tuple(weight.shape) for weight in weights] != [dataset.shape for dataset in stored]:
                break
            value_of |= {id(weight): np.asarray(dataset) for weight, dataset in zip(weights, stored, strict=True)}
    return [value_of.get(id(weight)) for weight in model.weights]


def _dataset(file: h5py.File, found: h5py.Dataset) -> h5py.Dataset:
    """Returns an array of a file. Raises a ValueError if its content is in another file, which HDF5 allows."""
    if not isinstance(found, h5py.Dataset) or found.file.id != file.id or found.external or found.is_virtual:
        raise ValueError(f"{found.name} is not an array of this file")
    return found


def _names(group: h5py.Group, attribute: str) -> list[str]:
    """Returns a list of names, which may be split over several attributes: HDF5 limits each to 64 KiB."""
    pieces = [attribute] if attribute in group.attrs else []
    while f"{attribute}{len(pieces)}" in group.attrs:
        pieces.append(f"{attribute}{len(pieces)}")
    names = [name for piece in pieces for name in group.attrs[piece]]
    return [name.decode() if isinstance(name, bytes) else name for name in names]


def _by_keras(model: keras.Model, path: str) -> list[np.ndarray | None]:
    """Returns the values that Keras finds in a file for the weights of a model; None for those it does not find."""
    before = model.get_weights()
    unset = [np.full_like(value, -1 if value.dtype.kind in "iu" else np.nan) for value in before]
    try:
        model.set_weights(unset)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # one for each weight that is missing or does not fit
            model.load_weights(path, skip_mismatch=True)
        found = model.get_weights()
    finally:
        model.set_weights(before)
    return [
        None if np.array_equal(value, mark, equal_nan=value.dtype.kind == "f") else value
        for value, mark in zip(found, unset, strict=True)
    ]


def _scale_as_published(layer: keras.layers.Normalization) -> None:
    is_published = np.allclose(layer.adapt_mean.numpy(), _IMAGENET_MEAN, atol=1e-4)
    if is_published and np.allclose(layer.adapt_variance.numpy(), _IMAGENET_VARIANCE, atol=1e-4):
        layer.adapt_variance.assign(layer.adapt_variance.numpy() ** 1.5)
    layer.finalize_state()
