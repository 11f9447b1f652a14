"""Differences between two configs, and which of them a resumed run may have."""

from collections.abc import Mapping
from typing import Any

from convoy.trainer.config import renamed
from convoy.trainer.config.schema import default_config, fields, to_json

# Fields that change what is shown and kept, not what is computed: a resumed run may change them.
OPERATIONAL_FIELDS = (
    "log_every",
    "eval_every",
    "checkpoint_every",
    "histogram_every",
    "keep_checkpoints",
    "on_corrupt",
    "cache",
    "measure_peak",
)


def differences(before: Mapping[str, Any], after: Mapping[str, Any], *, operational: bool = False) -> list[str]:
    """Returns `name: before -> after` for every field that differs and changes what is computed.

    A field that came with a newer version than `before` counts there with its default.

    Args:
      before: a config.
      after: another.
      operational: whether those count as well that do not change what is computed, `OPERATIONAL_FIELDS`.
    """
    before, after = renamed.modernized(before), renamed.modernized(after)
    new = dict(fields(after))
    old = {name: value for name, value in fields(to_json(default_config())) if name in new} | dict(fields(before))
    names = [*new, *(old.keys() - new.keys())]
    if not operational:
        names = [name for name in names if not name.startswith(OPERATIONAL_FIELDS)]
    return [
        f"{name}: {old.get(name)} -> {new.get(name)}"
        for name in names
        if _plain(old.get(name)) != _plain(new.get(name))
    ]


def _plain(value: Any) -> Any:  # noqa: ANN401 (any JSON value)
    return list(value) if isinstance(value, list | tuple) else value
