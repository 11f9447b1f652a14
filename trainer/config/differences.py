"""Differences between two configs, and the fields that a resumed run may change."""

from collections.abc import Mapping
from typing import Any

from convoy.trainer.config import renamed
from convoy.trainer.config.schema import default_config, fields, to_json

# Fields that change what is logged and kept, but not what is computed: a resumed run may change them.
OPERATIONAL_FIELDS = (
    "log_every",
    "eval_every",
    "checkpoint_every",
    "histogram_every",
    "keep_checkpoints",
    "on_corrupt",
    "cache",
    "measure_peak",
    "early_stopping",
    "metrics",
)


def differences(before: Mapping[str, Any], after: Mapping[str, Any], *, operational: bool = False) -> list[str]:
    """Returns `name: before -> after` for every field that differs and changes what is computed.

    Earlier names of fields and values count as the current ones. A field that `before` lacks, because a newer version
    added it, counts with its default.

    Args:
      before: a config.
      after: another config.
      operational: whether to include `OPERATIONAL_FIELDS`.
    """
    new = dict(fields(renamed.modernized(after)))
    defaults = {name: value for name, value in fields(to_json(default_config())) if name in new}
    old = defaults | dict(fields(renamed.modernized(before)))
    names = [*new, *(old.keys() - new.keys())]
    if not operational:
        names = [name for name in names if not name.startswith(OPERATIONAL_FIELDS)]
    return [
        f"{name}: {old.get(name)} -> {new.get(name)}"
        for name in names
        if _as_list(old.get(name)) != _as_list(new.get(name))
    ]


def _as_list(value: Any) -> Any:  # noqa: ANN401 (any JSON value)
    """Returns sequences as lists: JSON has no tuples."""
    return list(value) if isinstance(value, list | tuple) else value
