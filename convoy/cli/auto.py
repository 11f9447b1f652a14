"""`--config=auto` of `convoy train`: the flag, and the table of choices."""

import os
from pathlib import Path
from typing import Any

import ml_collections
from absl import flags as absl_flags
from ml_collections import config_flags

from convoy.cli import require_flags
from convoy.cli.foreign_records import record_format
from convoy.cli.tables import print_table
from convoy.core.cluster import find_cluster
from convoy.core.errors import UsageError
from convoy.core.user_code import UserCode
from convoy.input_pipeline.tf_startup import start_tensorflow
from convoy.trainer import config as configs

START = Path(configs.__file__).parents[1] / "auto" / "start.py"


def is_auto(flags: absl_flags.FlagValues) -> bool:
    """Returns whether the flags say `--config=auto`."""
    return config_flags.get_config_filename(flags["config"]) == str(START)


def config_from_flags(flags: absl_flags.FlagValues) -> tuple[ml_collections.ConfigDict, UserCode | None]:
    """Returns the config that `--config=auto` leads to, and its recipe; prints the choices if they are made here.

    Raises:
      UsageError: flags are missing or do not go together, or as `choosing.auto_config`.
      DataError: as `choosing.auto_config`.
    """
    for finder in ("find_lr", "find_batch_size"):
        if flags[finder].value:
            raise UsageError(f"--{finder} --config=auto: needs a recipe. Pass the one that was chosen, RUN/recipe.py.")
    require_flags(flags, "data", *([] if flags.print_config else ["workdir"]))
    start_tensorflow()
    from convoy.trainer.auto.choosing import Request, auto_config
    from convoy.trainer.auto.rules import Choice

    def show(headline: str, choices: list[Choice]) -> None:
        print(headline, flush=True)
        rows = [(f"config.{choice.field}", _text(choice.value), choice.reason) for choice in choices]
        print_table(("choice", "value", "reason"), (), rows, wrap=True)
        if not flags.print_config:
            print(f"Written to {Path(flags.workdir) / 'recipe.py'}, an ordinary recipe.", flush=True)

    given = dict(config_flags.get_override_values(flags["config"]))
    if flags.deterministic is not None:
        given["deterministic"] = flags.deterministic
    request = Request(
        data=flags.data,
        workdir=flags.workdir if not flags.print_config or _has_recipe(flags.workdir) else None,
        devices=flags.devices,
        strategy_name=flags.strategy,
        record_format=record_format(flags, flags.data),
        cluster=find_cluster(os.environ, hosts=flags.worker_hosts, index=flags.worker_index),
        folds=flags.folds or 0,
        max_hours=flags.max_hours or 0.0,
        given=given,
        backup=flags.backup,
        startup_seconds=flags.startup_timeout,
    )
    return auto_config(request, show)


def _has_recipe(workdir: str | None) -> bool:
    return bool(workdir) and (Path(str(workdir)) / "recipe.py").is_file()


def _text(value: Any) -> str:  # noqa: ANN401 (of any field)
    return value if isinstance(value, str) else repr(value)
