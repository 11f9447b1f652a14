"""Earlier names of recipes, config fields and values: still accepted, with one warning line each.

Configs of earlier versions, in run directories and checkpoints, are read through `modernized`, without a warning.
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
FIELDS = {  # within one section
    "augment.line": "augment.ops",
    "eval_flip": "flip_tta",
    "order": "shuffle",
    "window": "shuffle_window_size",
    "shuffle_block_size": "shuffle_window_size",
}
VALUES = {
    "model.name": {"seed42": "baseline_cnn"},
    # Another order, for the same purpose: a run of the earlier one does not resume (`session/resume.py`).
    "shuffle": {"windowed": "striped", "block": "striped"},
}

_logger = logging.getLogger("convoy")


@functools.cache  # one warning per process
def current(kind: str, old: str, new: str) -> str:
    """Returns `new`; logs a warning if `old`, the name that was used, is an earlier one."""
    if old != new:
        _logger.warning("%s %s is now called %s: use the new name.", kind, old, new)
    return new


def current_field(name: str, text: str | None) -> tuple[str, str | None]:
    """Returns the current name of a config field and its current value.

    Args:
      name: dotted, as given on the command line.
      text: the value, or None if there is none.
    """
    name = current("config field", name, FIELDS.get(name, name))
    if text is not None:
        text = current(f"config.{name}", text, VALUES.get(name, {}).get(text, text))
    return name, text


def modernized(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a config of any version, as JSON data, under the current names."""
    result: dict[str, Any] = {
        key: dict(value) if isinstance(value, Mapping) else value for key, value in config.items()
    }
    for old, new in FIELDS.items():
        section, name = section_of(result, old)
        if name in section:
            section[new.rpartition(".")[2]] = section.pop(name)
    for field, values in VALUES.items():
        section, name = section_of(result, field)
        if section.get(name) in values:
            section[name] = values[section[name]]
    return result


def section_of(config: Any, field: str) -> tuple[Any, str]:  # noqa: ANN401 (a ConfigDict or a dict)
    """Returns the section of a dotted field, empty if missing, and the field's name in it."""
    section, _, name = field.rpartition(".")
    return (config.get(section, {}) if section else config), name
