"""Loads recipes, shipped or user-written, and checks the names of config fields."""

import contextlib
import difflib
import importlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_collections

import convoy
from convoy.core.errors import UsageError, did_you_mean, failure
from convoy.core.text import counted, one_line
from convoy.core.user_code import first_on_path, located, run_file
from convoy.trainer.config import renamed
from convoy.trainer.config.checks import DECAYS, check
from convoy.trainer.config.schema import default_config, fields

DEFAULT_RECIPE = "convnet"
AUTO_RECIPE = "auto"  # chosen from the data and the machine

_OPEN_SECTIONS = ("loss", "schedule", "optimizer")  # to which a recipe may add arguments of pieces of its own

# Imports by the names that the packages had at the top level.
_EARLIER_IMPORT = re.compile(r"^\s*(?:from|import)\s+((?:configs|input_pipeline|launch|trainer)(?:\.\w+)*)", re.M)


def shipped_recipes() -> dict[str, Path]:
    """Returns the paths of the recipes that come with Convoy, by name."""
    folder = Path(convoy.__file__).parent / "configs"
    return {path.stem: path for path in sorted(folder.glob("*.py")) if path.stem != "__init__"}


def recipe_path(name: str) -> Path:
    """Returns the path of a recipe.

    Args:
      name: a path, or the current or an earlier name of a shipped recipe.

    Raises:
      UsageError: neither a file nor a shipped recipe.
    """
    recipes = shipped_recipes()
    if name == AUTO_RECIPE:
        raise UsageError(
            "--config=auto: is chosen from the data by `convoy train --config=auto --data=DATA --workdir=RUN`. For "
            "other commands and options pass the result: --config=RUN/recipe.py."
        )
    if name in recipes:
        return recipes[name]
    path = located(name)
    if name in renamed.RECIPES and not path.is_file():
        return recipes[renamed.current("recipe", name, renamed.RECIPES[name])]
    if path.is_file():
        return path
    raise UsageError(
        f"--config={name}: not a file and not a shipped recipe{did_you_mean(name, recipes)}. "
        f"Pass a path or one of {', '.join(recipes)}."
    )


def load_recipe(name: str) -> ml_collections.ConfigDict:
    """Returns the config of a recipe, locked: existing fields can be set, new ones cannot be added.

    Args:
      name: a file with `get_config()`, or the name of a shipped recipe.

    Raises:
      UsageError: no such recipe, or it fails.
    """
    path = recipe_path(name)
    if path.suffix != ".py":
        raise UsageError(f"--config={name}: {path} is not a Python file. Rename it to end in .py.")
    try:
        get_config = _get_config_of(path)
        if not callable(get_config):
            raise UsageError(f"--config={name}: {path} has no function get_config().")
        with contextlib.nullcontext() if _is_shipped(path) else first_on_path(path.parent):
            config = get_config()
        if isinstance(config, ml_collections.ConfigDict):
            known = default_config()
            for section in (known[name] for name in _OPEN_SECTIONS):
                section.unlock()
            known.update(config)  # which rejects unknown fields and values of other types
    except UsageError:
        raise
    except ImportError as error:
        raise UsageError(f"--config={name}: {path} fails: {_import_problem(path, error)}") from error
    except SystemExit as error:
        raise UsageError(f"--config={name}: {path} ends the process: SystemExit({one_line(str(error))}).") from error
    except Exception as error:
        unknown = re.match(r"\W*Key \"([^\"]+)\" does not exist", str(error))
        if unknown:  # ml_collections' message lists every field of the config
            raise UsageError(f"--config={name}: {path}: {_no_field(unknown[1], default_config())}") from error
        raise UsageError(f"--config={name}: {path} fails: {failure(error)}.") from error
    if not isinstance(config, ml_collections.ConfigDict):
        raise UsageError(f"--config={name}: get_config() in {path} must return an ml_collections.ConfigDict.")
    present = dict(fields(config))
    if missing := [field for field, _ in fields(default_config()) if field not in present]:
        raise UsageError(
            f"--config={name}: the config of {path} has no field {missing[0]}. Let get_config() change the fields of "
            "convoy.trainer.config.default_config(), and return it."
        )
    for field in renamed.VALUES:
        section, last = renamed.section_of(config, field)
        _, section[last] = renamed.current_field(field, section[last])
    return config.lock()


def _get_config_of(path: Path) -> Any:  # noqa: ANN401 (whatever a file defines)
    if _is_shipped(path):
        return importlib.import_module(f"convoy.configs.{path.stem}").get_config
    return run_file(path).names.get("get_config")


def _is_shipped(path: Path) -> bool:
    return path in shipped_recipes().values()


def check_field_names(config: ml_collections.ConfigDict, names: list[str]) -> None:
    """Raises a UsageError for the first of the dotted `names` that is not a field; suggests the most similar field."""
    known = dict(fields(config))
    for name in names:
        if name not in known:
            raise UsageError(f"{_no_field(name, config)} `convoy train --print_config` lists all fields.")


def overridden_fields(config: ml_collections.ConfigDict, given: Mapping[str, str]) -> list[str]:
    """Returns the fields of a recipe that the command line replaces by setting the same in another way.

    `eval_every_steps` on the command line overrides `eval_every_epochs` of a recipe, unless it is 0; `weight_decay`
    overrides `weight_decay_per_run`, and the other way round.

    Args:
      config: the recipe.
      given: value of each field on the command line, as text, by dotted name.
    """
    known, found = dict(fields(config)), []
    for name in (name for name, text in given.items() if not _is_zero(text)):
        base = re.sub("_(steps|epochs|images)$", "", name)
        family = [base, *(f"{base}_{unit}" for unit in ("steps", "epochs", "images"))]
        if known.keys() >= set(family):
            found += [field for field in family if known[field] and field not in given and field not in found]
    for name, other in (DECAYS, DECAYS[::-1]):
        found += [other] * (name in given and other not in given and known[other] > 0)
    return found


def _is_zero(text: str) -> bool:
    """Returns whether the value of a numeric field on the command line is 0, or empty."""
    return bool(re.fullmatch(r"\s*[-+]?(0x)?[0_]*\.?0*(e[-+]?\d+)?\s*", text, re.I))


def check_length(recipe: ml_collections.ConfigDict, name: str, given: Mapping[str, str]) -> None:
    """Raises a UsageError if the fields `given`, as text, leave open how long to train."""
    if "steps" not in given:
        return
    if not _is_zero(given["steps"]) and "epochs" in given:
        raise UsageError(
            f"--config.steps={given['steps']} and --config.epochs={given['epochs']} are two lengths. Pass one"
        )
    if _is_zero(given["steps"]) and "epochs" not in given and recipe.steps:
        raise UsageError(
            f"--config.steps={given['steps']} takes away the length of recipe {name} "
            f"({counted(recipe.steps, 'step')}). Pass --config.epochs=EPOCHS, or --config.steps=STEPS"
        )


def configured(name: str, given: Mapping[str, Any]) -> ml_collections.ConfigDict:
    """Returns the config of a recipe with the values of the fields `given`, checked.

    Args:
      name: as in `load_recipe`.
      given: values by name, in dicts by section or by dotted name.

    Raises:
      UsageError: no such recipe or field, or a value of the wrong type or out of range.
    """
    values: dict[str, Any] = {}
    for field, value in fields(given):
        field, text = renamed.current_field(field, value if isinstance(value, str) else None)
        values[field] = value if text is None else text
    config = load_recipe(name)
    check_field_names(config, list(values))
    texts = {field: str(value) for field, value in values.items()}
    check_length(config, name, texts)
    replaced = dict.fromkeys(overridden_fields(config, texts), 0)
    if "epochs" in values and "steps" not in values:
        replaced["steps"] = 0
    for field, value in {**replaced, **values}.items():
        section, last = renamed.section_of(config, field)
        try:
            section[last] = value
        except TypeError:
            kind = type(section[last]).__name__
            raise UsageError(f"config.{field}={value!r}: must be of type {kind}, such as {section[last]!r}.") from None
    check(config)
    return config


def _no_field(name: str, config: ml_collections.ConfigDict) -> str:
    """Returns an error message for an unknown field.

    Args:
      name: dotted, or only the last part, as in the errors of ml_collections.
      config: the config to search for similar fields.
    """
    known = dict(fields(config))
    for old, new in renamed.FIELDS.items():
        if name in (old, old.rpartition(".")[2]):
            return f"config has no field {name!r}: it is now called {new!r}."
    if in_section := [field for field in known if field.startswith(f"{name}.")]:
        return f"config.{name} is a section. Set its fields: {', '.join(f'config.{field}' for field in in_section)}."
    # The last part counts most: `lr_schedule.warmup_steps` should find `schedule.warmup_steps`.
    by_last_part = [field for field in known if field.rpartition(".")[2] == name.rpartition(".")[2]]
    close = by_last_part or difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    suggestion = f" Nearest: config.{close[0]}, now {known[close[0]]!r}." if close else ""
    return f"config has no field {name!r}.{suggestion}"


def _import_problem(path: Path, error: ImportError) -> str:
    """Returns an error message for a failed import in a recipe; suggests the current name of Convoy's packages."""
    earlier = _EARLIER_IMPORT.search(path.read_text(encoding="utf-8"))
    if not earlier:
        return f"{failure(error)}."
    package, _, module = earlier[1].rpartition(".")
    current = f"convoy.{package}.{renamed.RECIPES.get(module, module)}" if package else f"convoy.{module}"
    return f"{earlier[1]} is now called {current}. Import that."
