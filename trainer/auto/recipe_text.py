"""Choices as a recipe: a Python file with the reason above each field, or a config.

write_whole(path, recipe_text(choices, "2,268 training images of 42 classes").encode())
config = config_of(choices)
"""

import textwrap
from collections.abc import Iterable

import ml_collections

from convoy.trainer.auto.rules import Choice
from convoy.trainer.config import DEFAULT_RECIPE, load_recipe, renamed

_COLUMNS = 120
_INDENT = "    "


def recipe_text(choices: Iterable[Choice], about: str) -> str:
    """Returns the source of a recipe.

    Args:
      choices: the values that differ from the default recipe or confirm it.
      about: what they were chosen for, in one line of plain text.
    """
    lines = [
        f'"""Chosen by `convoy train --config=auto` for {about}.',
        "",
        "An ordinary recipe: edit it, and pass its path as --config with another --workdir.",
        '"""',
        "",
        f"from convoy.configs.{DEFAULT_RECIPE} import get_config as {DEFAULT_RECIPE}",
        "",
        "",
        "def get_config():",
        f'{_INDENT}"""Returns the recipe."""',
        f"{_INDENT}config = {DEFAULT_RECIPE}()",
    ]
    for choice in choices:
        comment = f"{choice.reason[:1].upper()}{choice.reason[1:]}."
        wrapped = textwrap.wrap(comment, _COLUMNS - 6, break_long_words=False, break_on_hyphens=False)
        lines += [f"{_INDENT}# {line}" for line in wrapped]
        lines.append(f"{_INDENT}config.{choice.field} = {choice.value!r}")
    return "\n".join([*lines, f"{_INDENT}return config", ""])


def config_of(choices: Iterable[Choice]) -> ml_collections.ConfigDict:
    """Returns the config that `recipe_text` makes of the same choices."""
    config = load_recipe(DEFAULT_RECIPE)
    for choice in choices:
        section, name = renamed.section_of(config, choice.field)
        section[name] = choice.value
    return config
