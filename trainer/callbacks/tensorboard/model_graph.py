"""A Keras model's graph of layers, as TensorBoard's page Graphs reads it.

That page takes what `model.to_json()` writes, and fails on parts of it: arguments that are no tensors, and precisions
that are policies. So it gets no more than what it shows: each layer's name, class, and where its inputs come from.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import keras


def layers_of(model: keras.Model) -> dict[str, Any] | None:
    """Returns the model's layers, nested models among them, as JSON data; None of a model that does not tell them.

    Args:
      model: functional and sequential models tell, others may not.
    """
    try:
        config = keras.saving.serialize_keras_object(model)
    except Exception:  # a layer of a user's own may do anything there; a picture is not worth a run
        return None
    return _layer(config) if _layers(config) else None


def _layer(serialized: Mapping[str, Any]) -> dict[str, Any]:
    config = serialized["config"]
    name = config.get("name") or serialized.get("name")
    shown = {"class_name": serialized["class_name"].encode("ascii", "replace").decode(), "config": {"name": name}}
    if layers := _layers(serialized):
        shown["config"] |= {"layers": [_layer(layer) for layer in layers]}
        for ends in ("input_layers", "output_layers"):
            if ends in config:
                shown["config"][ends] = config[ends]
    if "inbound_nodes" in serialized:
        shown["inbound_nodes"] = [
            {"args": [{"config": {"keras_history": list(source)}} for source in _sources(node)]}
            for node in serialized["inbound_nodes"]
        ]
    return shown


def _layers(serialized: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    config = serialized.get("config")
    return config.get("layers", []) if isinstance(config, Mapping) else []


def _sources(part: Any) -> Iterator[list[Any]]:  # noqa: ANN401 (any JSON value)
    """Yields the origin of every tensor among a call's arguments."""
    if isinstance(part, Mapping):
        if "keras_history" in part:
            yield part["keras_history"]
        else:
            for value in part.values():
                yield from _sources(value)
    elif isinstance(part, list | tuple):
        for value in part:
            yield from _sources(value)
