"""The config of a run: schema, recipes, checks, and the plan derived from it.

    config = load_recipe("convnet")              # a shipped recipe, or a file with get_config()
    plan = resolve(config, num_images=4000, replicas=2)
    plan.total_steps, plan.virtual_replicas, plan.peak_learning_rate

A duration is set in steps, epochs or images, through one of `eval_every_steps`, `eval_every_epochs` and
`eval_every_images`; a bare `eval_every` means steps. Does not import TensorFlow.
"""

from convoy.trainer.config.checks import check
from convoy.trainer.config.differences import OPERATIONAL_FIELDS, differences
from convoy.trainer.config.extension import mixing_steps, spans, with_extension
from convoy.trainer.config.plan import (
    AUTOMATIC,
    Plan,
    duration_in_steps,
    learning_rate_of,
    resolve,
    total_steps,
    with_recorded_choices,
)
from convoy.trainer.config.recipes import (
    AUTO_RECIPE,
    DEFAULT_RECIPE,
    check_field_names,
    check_length,
    configured,
    load_recipe,
    overridden_fields,
    recipe_path,
    shipped_recipes,
)
from convoy.trainer.config.scaled import scaled
from convoy.trainer.config.schema import default_config, fields, loss_text, to_json
from convoy.trainer.config.virtual_replicas import (
    changes_of_virtual_replicas,
    check_change_of_virtual_replicas,
    earlier_virtual_replicas_text,
    possible_virtual_replicas,
    with_virtual_replicas,
)

__all__ = [
    "AUTOMATIC",
    "AUTO_RECIPE",
    "DEFAULT_RECIPE",
    "OPERATIONAL_FIELDS",
    "Plan",
    "changes_of_virtual_replicas",
    "check",
    "check_change_of_virtual_replicas",
    "check_field_names",
    "check_length",
    "configured",
    "default_config",
    "differences",
    "duration_in_steps",
    "earlier_virtual_replicas_text",
    "fields",
    "learning_rate_of",
    "load_recipe",
    "loss_text",
    "mixing_steps",
    "overridden_fields",
    "possible_virtual_replicas",
    "recipe_path",
    "resolve",
    "scaled",
    "shipped_recipes",
    "spans",
    "to_json",
    "total_steps",
    "with_extension",
    "with_recorded_choices",
    "with_virtual_replicas",
]
