"""Earlier names of config fields, their values and recipes: still accepted, with one warning line each.

Configs of earlier versions in run directories and checkpoints are read through `modernized`, without a warning.
"""

import functools
import logging
from collections.abc import Mapping
from typing import Any

RECIPES = {
    "seed42": "baseline_cnn",
    "convnet42": "convnet",
    "quick42": "convnet_fast",
    "resnet42": "resnet10",
    "finetune42": "finetune",
}
FIELDS = {
    "augment.line": "augment.ops",
    "eval_flip": "flip_tta",
    "order": "shuffle",
    "window": "shuffle_block_size",
}
VALUES = {
    "model.name": {"seed42": "baseline_cnn"},
    "shuffle": {"windowed": "block"},
}

_logger = logging.getLogger("convoy")


@functools.cache  # once per process
def current(kind: str, old: str, new: str) -> str:
    """Returns `new`; logs a warning where it differs from `old`, what was given."""
    if old != new:
        _logger.warning("%s %s is now called %s: use the new name.", kind, old, new)
    return new


def current_field(name: str, text: str | None) -> tuple[str, str | None]:
    """Returns the current name of a config field and the current form of its value, which may be None.

    Args:
      name: dotted, as given on the command line.
      text: the value, or None where there is none.
    """
    name = current("config field", name, FIELDS.get(name, name))
    if text is not None:
        text = current(f"config.{name}", text, VALUES.get(name, {}).get(text, text))
    return name, text


def modernized(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a config, as JSON data of any version, under the current names."""
    found: dict[str, Any] = {key: dict(value) if isinstance(value, Mapping) else value for key, value in config.items()}
    for old, new in FIELDS.items():
        *section, last = old.split(".")
        fields = found.get(section[0], {}) if section else found
        if last in fields:
            fields[new.split(".")[-1]] = fields.pop(last)
    for name, values in VALUES.items():
        *section, last = name.split(".")
        fields = found.get(section[0], {}) if section else found
        if fields.get(last) in values:
            fields[last] = values[fields[last]]
    return found
