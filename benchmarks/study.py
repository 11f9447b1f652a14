"""Recipes on one dataset, several seeds each, for a time budget if asked, and without each of their ingredients.

    study = Study(Runs(folder), seeds=range(3))
    study.outcomes([parse_entry("baseline_cnn"), parse_entry("convnet:4")])
    study.ablation(parse_entry("convnet:4"))

`RECIPE:TIMES` trains a recipe for a multiple of the time budget instead of its own length. The budget is the wall time
in which the first recipe reaches its best evaluation, averaged over the seeds trained when it was first measured. Two
short runs of the recipe determine the number of steps that fit, and its schedule is adjusted to end there.
"""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_collections

from benchmarks.averages import Averaged, averages
from benchmarks.trained_runs import Outcome, Runs, steps_within
from convoy.core.errors import UsageError
from convoy.core.files import write_whole
from convoy.trainer import config as configs

# Ingredients and the overrides that remove them. A recipe uses an ingredient if its values differ from these.
INGREDIENTS: Mapping[str, Mapping[str, Any]] = {
    "label smoothing": {"label_smoothing": 0.0},
    "weight average": {"ema.decay": 0.0},
    "weight decay": {"optimizer.weight_decay": 0.0, "optimizer.weight_decay_per_run": 0.0},
    "gradient clipping": {"optimizer.clip_norm": 0.0},
    "decaying learning rate": {"schedule.name": "constant"},
    "warmup": {"schedule.warmup_epochs": 0.0, "schedule.warmup_steps": 0},
    "mixup": {"mix.mixup": 0.0},
    "CutMix": {"mix.cutmix": 0.0},
    "mixing off at the end": {"mix.off_fraction": 0.0},
    "stochastic depth": {"model.stochastic_depth": 0.0},
    "instance normalization": {"model.instance_norm": "off"},
    "shortcuts": {"model.name": "convnet"},
    "progressive resizing": {"progressive.sizes": (), "progressive.ends": ()},
    "larger images in evaluation": {"eval_image_size": 0},
    "test-time flips": {"flip_tta": False},
    "sampling by class": {"sampling": "natural"},
}
_CALIBRATION_EPOCHS = (4, 12)


@dataclass(frozen=True, eq=False)
class Entry:
    """A recipe that takes part.

    Attributes:
      recipe: its name or file.
      times: length as a multiple of the budget; None for the recipe's own length.
      overrides: config fields with other values.
      without: the ingredient that the overrides remove; empty for the full recipe.
    """

    recipe: str
    times: float | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    without: str = ""

    @property
    def name(self) -> str:
        """Prefix of the names of its run directories."""
        budget = "" if self.times is None else f"-x{self.times:g}"
        without = "".join(c if c.isalnum() else "-" for c in self.without.lower())
        return f"{Path(self.recipe).stem}{budget}{without and f'-without-{without}'}"

    @property
    def label(self) -> str:
        """Its name in tables, in Markdown."""
        return f"`{Path(self.recipe).stem}`" + ("" if self.times is None else f", {self.times:g}x the budget")


def parse_entry(text: str) -> Entry:
    """Parses `convnet` or `convnet:4`.

    Raises:
      UsageError: unknown recipe, or a multiple that is not a positive number.
    """
    recipe, colon, times = text.rpartition(":")
    if not colon:
        entry = Entry(text)
    else:
        try:
            entry = Entry(recipe, float(times))
        except ValueError:
            entry = Entry(recipe, 0.0)
        if not 0 < entry.times < 1000:
            raise UsageError(f"--recipes: {text!r}: pass a multiple of the budget after the colon, such as 4.")
    configs.load_recipe(entry.recipe)
    return entry


def ingredients_of(config: ml_collections.ConfigDict) -> dict[str, dict[str, Any]]:
    """Returns the overrides that remove each ingredient of a recipe, by ingredient.

    Ingredients are those of `INGREDIENTS` that the recipe uses, and each operation of its augmentation pipeline.
    """
    known = dict(configs.fields(config))
    found = {
        name: dict(overrides)
        for name, overrides in INGREDIENTS.items()
        if any(known[field_name] != value for field_name, value in overrides.items())
    }
    if config.model.name not in ("convnet", "residual_convnet"):
        del found["shortcuts"]
        if config.model.instance_norm == "auto":
            del found["instance normalization"]  # other models do not use it by default
    operations = [text.strip() for text in known.get("augment.ops", "").split("|") if text.strip()]
    for number, operation in enumerate(operations):
        rest = " | ".join(operations[:number] + operations[number + 1 :])
        found[operation] = {"augment.ops": rest}
    return found


class Study:
    """Recipes on one dataset, several seeds each.

    Attributes:
      budget_seconds: the wall time that `RECIPE:TIMES` multiplies; 0 if it was neither given nor needed yet.
    """

    def __init__(self, runs: Runs, *, seeds: Sequence[int], budget_seconds: float = 0.0):
        """Trains nothing yet.

        Args:
          runs: trains and stores the runs.
          seeds: seeds of each recipe.
          budget_seconds: 0 for the time in which the first recipe reaches its best.
        """
        self._runs = runs
        self._seeds = seeds
        self.budget_seconds = budget_seconds

    def outcomes(self, entries: Sequence[Entry]) -> dict[Entry, list[Outcome]]:
        """Returns the runs of every entry, one per seed; trains those that are missing."""
        if not self.budget_seconds and any(entry.times is not None for entry in entries):
            first = entries[0]
            self.budget_seconds = self._kept_budget(first.name, [self._outcome(first, seed) for seed in self._seeds])
        found: dict[Entry, list[Outcome]] = {entry: [] for entry in entries}
        for seed in self._seeds:  # in turn, so that other load on the machine affects all of them
            for entry in entries:
                found[entry].append(self._outcome(entry, seed))
        for entry, outcomes in found.items():
            if len(sizes := sorted({outcome.parameters for outcome in outcomes})) > 1:
                raise UsageError(
                    f"{self._runs.folder} contains runs of {entry.name} with models of {sizes[0]:,} and {sizes[-1]:,} "
                    "parameters, from different versions. Remove them, or pass another --workdir."
                )
        return found

    def ablation(self, entry: Entry) -> dict[Entry, list[Outcome]]:
        """Returns the runs of an entry, and for as many steps those without each of its ingredients."""
        ingredients = ingredients_of(configs.load_recipe(entry.recipe))
        entries = [entry]
        entries += [Entry(entry.recipe, entry.times, overrides, name) for name, overrides in ingredients.items()]
        found: dict[Entry, list[Outcome]] = {entry: [] for entry in entries}
        for seed in self._seeds:
            for one in entries:
                found[one].append(self._outcome(one, seed))
        return found

    def averages(self, entry: Entry) -> list[Averaged]:
        """Returns the ways to evaluate the runs of an entry that `outcomes` has trained."""
        return averages(self._runs, [_run_name(entry, seed) for seed in self._seeds])

    def _outcome(self, entry: Entry, seed: int) -> Outcome:
        overrides = {**entry.overrides, "seed": seed}
        if entry.times is not None:
            overrides["steps"] = self._steps(entry)
        return self._runs.outcome(_run_name(entry, seed), entry.recipe, overrides)

    def _kept_budget(self, name: str, outcomes: Sequence[Outcome]) -> float:
        """Returns the mean time to the best evaluation, as first measured in this folder: its runs stay valid."""
        path = self._runs.folder / f"budget-{name}.json"
        if not path.exists():
            seconds = statistics.mean(outcome.seconds_to_best for outcome in outcomes)
            write_whole(path, json.dumps({"seconds": seconds}).encode())
        return json.loads(path.read_text())["seconds"]

    def _steps(self, entry: Entry) -> int:
        if not self.budget_seconds:
            raise UsageError(
                f"--recipes: {entry.recipe}:{entry.times:g} comes first and so defines the budget: omit the multiple, "
                "or pass --budget."
            )
        config = configs.load_recipe(entry.recipe)
        epoch = max(1, self._runs.training_images // config.batch_size)
        short, longer = (
            self._runs.trained(f"{Path(entry.recipe).stem}-{n}-epochs", entry.recipe, {"steps": n * epoch})
            for n in _CALIBRATION_EPOCHS
        )
        return steps_within(entry.times * self.budget_seconds, short, longer)


def _run_name(entry: Entry, seed: int) -> str:
    return f"{entry.name}-seed{seed}"
