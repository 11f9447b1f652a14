"""A Keras model's graph of layers for TensorBoard's Graphs page.

That page reads the format of `model.to_json()` but fails on arguments that are not tensors and on mixed-precision
policies. So it gets only what it shows: the name, class and inputs of each layer.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import keras


def layers_of(model: keras.Model) -> dict[str, Any] | None:
    """Returns the model's layers, including nested models, as JSON data; None if a subclassed model lists none."""
    try:
        config = keras.saving.serialize_keras_object(model)
    except Exception:  # a custom layer may raise anything; a missing graph must not end the run
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
    """Yields the origin of every tensor among the arguments of a call."""
    if isinstance(part, Mapping):
        if "keras_history" in part:
            yield part["keras_history"]
        else:
            for value in part.values():
                yield from _sources(value)
    elif isinstance(part, list | tuple):
        for value in part:
            yield from _sources(value)
