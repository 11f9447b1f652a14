"""Recipes: the shipped ones, files of users, and the names of their fields."""

import difflib
import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path

import ml_collections

from convoy.core.errors import UsageError, did_you_mean
from convoy.trainer.config import renamed
from convoy.trainer.config.schema import default_config, fields

DEFAULT_RECIPE = "convnet"


def shipped_recipes() -> dict[str, Path]:
    """Returns the recipes that come with Convoy, by bare name."""
    folder = Path(importlib.util.find_spec("convoy.configs").origin).parent
    return {path.stem: path for path in sorted(folder.glob("*.py")) if path.stem != "__init__"}


def recipe_path(name: str) -> Path:
    """Returns the file of a recipe.

    Args:
      name: a path, or the bare name of a shipped recipe.

    Raises:
      UsageError: neither a file nor a shipped recipe.
    """
    recipes = shipped_recipes()
    if name in recipes:
        return recipes[name]
    if name in renamed.RECIPES and not Path(name).is_file():
        return recipes[renamed.current("recipe", name, renamed.RECIPES[name])]
    if Path(name).is_file():
        return Path(name)
    raise UsageError(
        f"--config={name}: neither a file nor a shipped recipe{did_you_mean(name, recipes)}. "
        f"Shipped: {', '.join(recipes)}."
    )


def load_recipe(name: str) -> ml_collections.ConfigDict:
    """Returns the config of a recipe, unlocked for nothing but overriding fields that exist.

    Args:
      name: a file with `get_config()`, or the bare name of a shipped recipe.

    Raises:
      UsageError: no such recipe, or it cannot be run.
    """
    path = recipe_path(name)
    spec = importlib.util.spec_from_file_location(f"recipe_{path.stem}", path)
    try:
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        if not hasattr(module, "get_config"):
            raise UsageError(f"--config={name}: {path} has no function get_config().")
        config = module.get_config()
    except UsageError:
        raise
    except Exception as error:
        unknown = re.match(r"\W*Key \"([^\"]+)\" does not exist", str(error))
        if unknown:  # ml_collections' own text lists all fields with their values
            raise UsageError(f"--config={name}: {path}: {_no_field(unknown[1], default_config())}") from error
        raise UsageError(f"--config={name}: {path} fails: {type(error).__name__}: {error}") from error
    if not isinstance(config, ml_collections.ConfigDict):
        raise UsageError(f"--config={name}: get_config() in {path} must return an ml_collections.ConfigDict.")
    for field, values in renamed.VALUES.items():
        section, _, last = field.rpartition(".")
        fields_of_section = config[section] if section else config
        value = fields_of_section[last]
        fields_of_section[last] = renamed.current(f"config.{field}", value, values.get(value, value))
    return config.lock()


def check_field_names(config: ml_collections.ConfigDict, names: list[str]) -> None:
    """Raises a UsageError for the first of `names`, dotted, that is no field; names the nearest and its value."""
    known = dict(fields(config))
    for name in names:
        if name not in known:
            raise UsageError(f"{_no_field(name, config)} `convoy train --print_config` shows them all.")


def durations_in_other_units(config: ml_collections.ConfigDict, given: Mapping[str, str]) -> list[str]:
    """Returns the fields of a recipe that say in another unit what is given on the command line.

    Who gives `eval_every_steps` for a recipe with `eval_every_epochs` means the one in place of the other. A 0 says
    nothing.

    Args:
      config: the recipe.
      given: texts by dotted field.
    """
    known, found = dict(fields(config)), []
    for name in (name for name, text in given.items() if not re.fullmatch(r"0*\.?0*", text)):
        base = re.sub("_(steps|epochs|images)$", "", name)
        family = [base, *(f"{base}_{unit}" for unit in ("steps", "epochs", "images"))]
        if known.keys() >= set(family):
            found += [field for field in family if known[field] and field not in given and field not in found]
    return found


def _no_field(name: str, config: ml_collections.ConfigDict) -> str:
    known = dict(fields(config))
    if name in renamed.FIELDS:
        return f"config has no field {name!r}: it is now called {renamed.FIELDS[name]!r}."
    # The last part counts most: `lr_schedule.warmup_steps` should find `schedule.warmup_steps`.
    by_last_part = [field for field in known if field.split(".")[-1] == name.split(".")[-1]]
    close = by_last_part or difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    nearest = f" Nearest: config.{close[0]}, now {known[close[0]]!r}." if close else ""
    return f"config has no field {name!r}.{nearest}"
