"""What the flags `--config.FIELD` change before `--config=auto` has chosen a recipe: the default recipe."""

import ml_collections

from convoy.trainer.config import DEFAULT_RECIPE, load_recipe


def get_config() -> ml_collections.ConfigDict:
    """Returns the recipe that the choices change."""
    return load_recipe(DEFAULT_RECIPE)
