"""`convoy bench generalization`: recipes trained from scratch, and how well they know images they have never seen.

    convoy bench generalization --recipes=baseline_cnn,convnet_fast:1 --seeds=3
    convoy bench generalization --dataset=digits --recipes=digits --ablate

Each run is a `convoy train` and two `convoy evaluate`, as people type them, in --workdir. What is finished there is
taken as it stands, so a benchmark that was stopped goes on where it was when the same command is typed again.

`RECIPE:TIMES` gives a recipe so many times the budget instead of its own length: the wall time that the first recipe
takes until its best evaluation, mean over the seeds that were trained when it was first asked for. Two short runs of
the recipe tell how many steps that is; its schedule then ends there. `--ablate` trains each of the other recipes again
without each of its ingredients, for as many steps. The tables are Markdown.
"""

import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import ml_collections
from absl import flags as absl_flags

from benchmarks import measure
from benchmarks.digits import write_digits
from benchmarks.trained_runs import Outcome, Runs, command_text, steps_within
from convoy.core.errors import UsageError, did_you_mean
from convoy.core.files import write_whole
from convoy.trainer import config as configs

DATASETS = ("sample", "digits")
# What a recipe may be made of, and what takes it away. A recipe has an ingredient where it sets it otherwise.
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
    "mirror images in evaluation": {"flip_tta": False},
    "sampling by class": {"sampling": "natural"},
}
_CALIBRATION_EPOCHS = (4, 12)
_USELESS = ("rounds", "batch_size", "image_size", "threads", "peers")


@dataclass(frozen=True, eq=False)
class Entry:
    """A recipe as it takes part.

    Attributes:
      recipe: its name or file.
      times: how many budgets it is trained for; None for the length it says itself.
      overrides: config fields that are set otherwise.
      without: the ingredient that these take away; empty for the recipe as it is.
    """

    recipe: str
    times: float | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    without: str = ""

    @property
    def name(self) -> str:
        """Of its runs' folders."""
        budget = "" if self.times is None else f"-x{self.times:g}"
        without = "".join(c if c.isalnum() else "-" for c in self.without.lower())
        return f"{Path(self.recipe).stem}{budget}{without and f'-without-{without}'}"

    @property
    def label(self) -> str:
        """What the table calls it."""
        return Path(self.recipe).stem + ("" if self.times is None else f", {self.times:g}x the budget")


def define_flags(flags: absl_flags.FlagValues) -> None:
    """Defines this benchmark's own flags."""
    help_of = "Benchmark generalization: {}".format
    absl_flags.DEFINE_list(
        "recipes",
        ["baseline_cnn", "convnet_fast:1", "convnet", "resnet10:4"],
        help_of("recipes, as in --config; NAME:TIMES trains for so many times what the first takes to its best."),
        flag_values=flags,
    )
    absl_flags.DEFINE_integer("seeds", 3, help_of("runs of each."), lower_bound=1, flag_values=flags)
    absl_flags.DEFINE_list("dataset", ["sample"], help_of(f"any of {', '.join(DATASETS)}."), flag_values=flags)
    absl_flags.DEFINE_integer(
        "image_seed",
        0,
        help_of("which images there are (sample), which are for testing (digits); choose recipes by others than 0."),
        lower_bound=0,
        flag_values=flags,
    )
    absl_flags.DEFINE_float(
        "budget",
        0.0,
        help_of("seconds; 0 is what the first recipe takes to its best."),
        lower_bound=0.0,
        flag_values=flags,
    )
    absl_flags.DEFINE_bool("ablate", False, help_of("also without each ingredient."), flag_values=flags)
    absl_flags.DEFINE_string(
        "workdir",
        "generalization",
        help_of("folder of datasets and runs; what is finished there is not done again."),
        flag_values=flags,
    )
    absl_flags.DEFINE_string("devices", "auto", help_of("as in `convoy train`."), flag_values=flags)


def run(flags: absl_flags.FlagValues) -> None:
    """Trains what is not trained yet, prints the tables, writes the JSON.

    Raises:
      UsageError: an unknown recipe or dataset, or a run in --workdir that another config trained.
      ConvoyError: a run failed; the message ends with its last words.
    """
    useless = [name for name in _USELESS if flags[name].present]
    if useless:
        raise UsageError(f"--{useless[0]}: generalization trains recipes as they are. Leave it out.")
    entries = [parse_entry(text) for text in flags.recipes]
    if not entries:
        raise UsageError("--recipes: give at least one recipe.")
    for name in flags.dataset:
        if name not in DATASETS:
            raise UsageError(f"--dataset={name}{did_you_mean(name, DATASETS)}: give any of {', '.join(DATASETS)}.")
    about = measure.environment()
    measure.print_environment(measure.console(), about)
    results = []
    for dataset in flags.dataset:
        folder = dataset + (f"-images{flags.image_seed}" if flags.image_seed else "")
        runs = Runs(Path(flags.workdir) / folder, devices=flags.devices, say=_say)
        _make_dataset(dataset, runs, flags.image_seed)
        study = Study(runs, seeds=range(flags.seeds), budget_seconds=flags.budget)
        outcomes = study.outcomes(entries)
        print("\n".join(["", f"{dataset}: {runs.description}", *table(outcomes)]), flush=True)
        ablations = {}
        for entry in entries[1:] or entries:
            if flags.ablate:
                ablations[entry.name] = study.ablation(entry)
                print("\n".join(["", f"{dataset}, {entry.label}:", *ablation_table(ablations[entry.name])]), flush=True)
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
    """Returns what `convnet` or `convnet:4` asks for.

    Raises:
      UsageError: no such recipe, or a multiple that is no number above 0.
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
            raise UsageError(f"--recipes: {text!r}: what follows the colon is a multiple of the budget, such as 4.")
    configs.load_recipe(entry.recipe)
    return entry


def ingredients_of(config: ml_collections.ConfigDict) -> dict[str, dict[str, Any]]:
    """Returns what takes each ingredient of a recipe away, by ingredient: those of `INGREDIENTS` that it uses, and each
    operation of its augmentation line."""
    known = dict(configs.fields(config))
    found = {
        name: dict(overrides)
        for name, overrides in INGREDIENTS.items()
        if any(known[field_name] != value for field_name, value in overrides.items())
    }
    if config.model.instance_norm == "auto" and config.model.name != "convnet":
        del found["instance normalization"]  # no other model has it by itself
    operations = [text.strip() for text in known.get("augment.ops", "").split("|") if text.strip()]
    for number, operation in enumerate(operations):
        rest = " | ".join(operations[:number] + operations[number + 1 :])
        found[operation] = {"augment.ops": rest}
    return found


class Study:
    """Recipes on one dataset, several seeds each.

    Attributes:
      budget_seconds: the wall time that `RECIPE:TIMES` multiplies; 0 until the first recipe is trained.
    """

    def __init__(self, runs: Runs, *, seeds: Sequence[int], budget_seconds: float = 0.0):
        """Trains nothing yet.

        Args:
          runs: where they lie, and what trains them.
          seeds: of each recipe's runs.
          budget_seconds: 0 for what the first recipe takes to its best.
        """
        self._runs = runs
        self._seeds = seeds
        self.budget_seconds = budget_seconds

    def outcomes(self, entries: Sequence[Entry]) -> dict[Entry, list[Outcome]]:
        """Returns every entry's runs, one a seed; trains those that are not finished."""
        first, *others = entries
        found = {first: [self._outcome(first, seed) for seed in self._seeds]}
        if not self.budget_seconds:
            self.budget_seconds = self._kept_budget(first.name, found[first])
        found |= {entry: [] for entry in others}
        for seed in self._seeds:  # in turn: what else the machine does falls on all
            for entry in others:
                found[entry].append(self._outcome(entry, seed))
        for entry, outcomes in found.items():
            if len(sizes := sorted({outcome.parameters for outcome in outcomes})) > 1:
                raise UsageError(
                    f"{self._runs.folder} holds runs of {entry.name} of models with {sizes[0]:,} and {sizes[-1]:,} "
                    "parameters, by another version. Remove them, or give another --workdir."
                )
        return found

    def ablation(self, entry: Entry) -> dict[Entry, list[Outcome]]:
        """Returns the runs of an entry as it is and, for as many steps, without each of its ingredients."""
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
        """Returns the mean time to the best; what it was at first in this folder, so that runs with it stay."""
        path = self._runs.folder / f"budget-{name}.json"
        if not path.exists():
            seconds = statistics.mean(outcome.seconds_to_best for outcome in outcomes)
            write_whole(path, json.dumps({"seconds": seconds}).encode())
        return json.loads(path.read_text())["seconds"]

    def _steps(self, entry: Entry) -> int:
        if not self.budget_seconds:
            raise UsageError(
                f"--recipes: {entry.recipe}:{entry.times:g} is the first, which sets the budget: give it without the "
                "colon, or give --budget."
            )
        config = configs.load_recipe(entry.recipe)
        epoch = max(1, self._runs.training_images // config.batch_size)
        short, longer = (
            self._runs.trained(f"{Path(entry.recipe).stem}-{n}-epochs", entry.recipe, {"steps": n * epoch})
            for n in _CALIBRATION_EPOCHS
        )
        return steps_within(entry.times * self.budget_seconds, short, longer)


def table(outcomes: Mapping[Entry, Sequence[Outcome]]) -> list[str]:
    """Returns the README's table, in lines: a row an entry, mean and standard deviation over its runs."""
    columns = ("recipe", "parameters", "images/s", "wall time", "to its best", "train top-1", "test top-1", "gap")
    lines = [_markdown((*columns, "command")), "|---" * (len(columns) + 1) + "|"]
    for entry, found in outcomes.items():
        cells = (
            f"`{entry.label}`" if entry.times is None else f"`{Path(entry.recipe).stem}`, {entry.times:g}x the budget",
            f"{found[0].parameters:,}",
            f"{statistics.mean(run.images_per_second for run in found):,.0f}",
            f"{statistics.mean(run.seconds for run in found):,.0f} s",
            f"{statistics.mean(run.seconds_to_best for run in found):,.0f} s",
            *(spread([100 * getattr(run, name) for run in found], " %") for name in ("train_top1", "test_top1")),
            spread([100 * run.gap for run in found]),
            f"`{command_text(found[0].command)}`",
        )
        lines.append(_markdown(cells))
    return lines


def ablation_table(outcomes: Mapping[Entry, Sequence[Outcome]]) -> list[str]:
    """Returns the table of a recipe without each ingredient, in lines. The first entry is the recipe as it is.

    The change is the mean over seeds of the difference of the two runs with the same seed.
    """
    columns = ("without", "wall time", "train top-1", "test top-1", "gap", "test, change", "overrides")
    lines = [_markdown(columns), "|---" * len(columns) + "|"]
    whole, *_ = outcomes.values()
    for entry, found in outcomes.items():
        changes = [100 * (run.test_top1 - base.test_top1) for run, base in zip(found, whole, strict=True)]
        overrides = " ".join(f"--config.{name}={value}" for name, value in entry.overrides.items())
        cells = (
            entry.without or "nothing: the whole recipe",
            f"{statistics.mean(run.seconds for run in found):,.0f} s",
            *(spread([100 * getattr(run, name) for run in found], " %") for name in ("train_top1", "test_top1")),
            spread([100 * run.gap for run in found]),
            spread(changes, signed=True) if entry.without else "",
            overrides and f"`{overrides}`",
        )
        lines.append(_markdown(cells))
    return lines


def spread(values: Sequence[float], unit: str = "", *, signed: bool = False) -> str:
    """Returns mean and standard deviation, such as `71.4 ± 0.8 %`; of one value that alone."""
    mean = f"{statistics.mean(values):{'+' if signed else ''}.1f}"
    return mean + (f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else "") + unit


def _markdown(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _as_json(entry: Entry, found: Sequence[Outcome]) -> dict[str, Any]:
    return {"recipe": entry.recipe, "times": entry.times, "without": entry.without} | {
        "runs": [asdict(outcome) for outcome in found]
    }


def _make_dataset(name: str, runs: Runs, seed: int) -> None:
    """Makes the images and the dataset where they are not there yet."""
    photos = runs.folder / "photos"
    if not runs.has_data("test"):
        runs.folder.mkdir(parents=True, exist_ok=True)
        if not photos.exists():
            if name == "digits":
                write_digits(photos, seed=seed)
            else:
                runs.convoy("sample", f"--output={photos}", f"--seed={seed}")
        for split in ("train", "test"):
            if not runs.has_data(split):
                runs.convoy("convert", f"--images={photos / split}", f"--output={runs.data}", f"--split={split}")


def _say(text: str) -> None:
    print(f"bench: {text}", file=sys.stderr, flush=True)
