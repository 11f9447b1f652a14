"""Runs that change their number of virtual replicas (`convoy train --virtual_replicas`) at a step.

    changed = with_virtual_replicas(config, 8, step=900)     # config.virtual_replicas was 2
    changes_of_virtual_replicas(changed)                     # [{"step": 900, "before": 2, "after": 8}]

The config keeps the steps of the changes and the numbers until then, so it says how every step was computed. Does not
import TensorFlow.
"""

import itertools
from collections.abc import Mapping
from typing import Any

import ml_collections

from convoy.core.errors import UsageError
from convoy.core.text import joined


def with_virtual_replicas(config: ml_collections.ConfigDict, number: int, *, step: int) -> ml_collections.ConfigDict:
    """Returns a copy of a config with `number` virtual replicas from a step on.

    Changes at this step and later ones, which were not trained or have been rolled back, are dropped.

    Args:
      config: with its number of virtual replicas, 1 or more.
      number: the new number, 1 or more.
      step: number of steps done.
    """
    config = config.copy_and_resolve_references()
    earlier = config.earlier_virtual_replicas
    periods = list(zip(earlier.steps, earlier.numbers, strict=True))
    before = next((old for end, old in periods if end >= step), config.virtual_replicas)
    periods = [(end, old) for end, old in periods if end < step]
    if before != number:
        periods.append((step, before))
    earlier.steps, earlier.numbers = tuple(end for end, _ in periods), tuple(old for _, old in periods)
    config.virtual_replicas = number
    return config


def changes_of_virtual_replicas(config: ml_collections.ConfigDict) -> list[dict[str, int]]:
    """Returns the changes of a run, as JSON data: `step`, number of steps done `before` -> `after`."""
    earlier = config.earlier_virtual_replicas
    numbers = itertools.pairwise((*earlier.numbers, config.virtual_replicas))
    return [
        {"step": step, "before": before, "after": after}
        for step, (before, after) in zip(earlier.steps, numbers, strict=True)
    ]


def earlier_virtual_replicas_text(config: Mapping[str, Any] | ml_collections.ConfigDict) -> str:
    """Returns the numbers before the changes of a run, as text to follow the present one: `, 2 until step 900`.

    Args:
      config: complete, or in JSON and of an earlier version.
    """
    earlier = config.get("earlier_virtual_replicas") or {"steps": (), "numbers": ()}
    return "".join(f", {old} until step {step}" for step, old in zip(earlier["steps"], earlier["numbers"], strict=True))


def possible_virtual_replicas(config: Mapping[str, Any] | ml_collections.ConfigDict) -> list[int]:
    """Returns the numbers to which a run with this config can change, on a suitable number of devices."""
    batch, mix = config["batch_size"], config["mix"]
    least = 2 if mix["mixup"] or mix["cutmix"] else 1  # images per virtual replica
    return [number for number in range(1, batch // least + 1) if batch % number == 0]


def check_change_of_virtual_replicas(config: ml_collections.ConfigDict, number: int) -> None:
    """Raises a UsageError if a run cannot change to this number of virtual replicas."""
    if number in (possible := possible_virtual_replicas(config)):
        return
    batch, numbers = config.batch_size, joined([str(each) for each in possible], "or")
    mixing = ", and mixing needs two images in each" if number == batch else ""
    raise UsageError(
        f"--virtual_replicas={number}: the run's config.batch_size={batch} must be divisible by it{mixing}. "
        f"Pass {numbers}."
    )
