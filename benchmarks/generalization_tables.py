"""Tables and page of `convoy bench generalization`: one table per dataset and image seed, one line per recipe over all.

Every ± is half of the 95 % confidence interval of a mean over training seeds, by Student's t distribution: it covers
what chance in initialization, order and augmentation does, not the choice of images. A change is the mean of the
differences between runs with the same seed. Ratios are geometric means over datasets, so that twice the errors on one
and half of them on another give 1.
"""

import math
import shlex
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from absl import flags as absl_flags

from benchmarks import measure
from benchmarks.averages import Averaged
from benchmarks.datasets import DATASETS, HELD_OUT
from benchmarks.study import Entry
from benchmarks.trained_runs import Outcome
from convoy.core.text import counted

# 97.5 % quantiles of Student's t distribution for 1, 2, ... degrees of freedom.
_T_QUANTILES = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)
_FEWEST_ERRORS = 0.5  # images; a recipe without a single error has no ratio otherwise
_SHOWN_FLAGS = ("recipes", "dataset", "image_seed", "seeds", "budget", "ablate", "averages", "devices")


@dataclass(frozen=True)
class Result:
    """The runs on one dataset with one image seed.

    Attributes:
      dataset: its name.
      image_seed: selects its images.
      description: numbers of its images and categories.
      outcomes: runs of each recipe, one per training seed.
      budget_seconds: the time that `RECIPE:TIMES` multiplies; 0 if it was not needed.
      ablations: runs of each recipe without each of its ingredients, the full recipe first.
      averages: ways to evaluate the runs of each recipe, the plain one first.
    """

    dataset: str
    image_seed: int
    description: str
    outcomes: Mapping[Entry, Sequence[Outcome]]
    budget_seconds: float = 0.0
    ablations: Mapping[Entry, Mapping[Entry, Sequence[Outcome]]] = field(default_factory=dict)
    averages: Mapping[Entry, Sequence[Averaged]] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """Its name in headings."""
        seed = f", image seed {self.image_seed}" if self.image_seed else ""
        return f"{self.dataset}{seed}{' (held out from all choices)' if self.dataset in HELD_OUT else ''}"

    def lines(self) -> list[str]:
        """Returns its tables with headings, in Markdown."""
        about = [DATASETS[self.dataset], "", f"{self.description}."]
        lines = [f"## {self.title}", "", *about, "", *table(self.outcomes)]
        for entry, rows in self.ablations.items():
            lines += ["", f"Without each ingredient of {entry.label}:", "", *ablation_table(rows)]
        return lines


@dataclass(frozen=True)
class Summary:
    """A recipe over all datasets that are kept for choosing. Each counts once, as the mean over its image seeds.

    Attributes:
      test_top1: mean over datasets in [0, 1], one value per training seed.
      changes: the same minus that of the first recipe.
      errors_ratio: errors on test images divided by those of the first recipe, geometric mean over datasets.
      seconds_ratio: the same of the wall time of training.
      gap: mean of train minus test top-1.
      test_ece: mean expected calibration error on the test images; None if it is missing in a run.
    """

    test_top1: Sequence[float]
    changes: Sequence[float]
    errors_ratio: float
    seconds_ratio: float
    gap: float
    test_ece: float | None

    def as_json(self) -> dict[str, Any]:
        """Returns it with the means and intervals of the table."""
        half_widths = {"test_top1": half_width(self.test_top1), "change": half_width(self.changes)}
        return {
            "test_top1": statistics.mean(self.test_top1),
            "change": statistics.mean(self.changes),
            "half_widths": half_widths,
            "errors_ratio": self.errors_ratio,
            "seconds_ratio": self.seconds_ratio,
            "gap": self.gap,
            "test_ece": self.test_ece,
        }


def half_width(values: Sequence[float]) -> float | None:
    """Returns half of the 95 % confidence interval of the mean, by Student's t; None for a single value.

    Beyond 31 values the interval is that of 31, up to 4 % too wide.
    """
    if len(values) < 2:
        return None
    quantile = _T_QUANTILES[min(len(values) - 1, len(_T_QUANTILES)) - 1]
    return quantile * statistics.stdev(values) / math.sqrt(len(values))


def estimate(values: Sequence[float], unit: str = "", *, signed: bool = False, digits: int = 1) -> str:
    """Returns the mean and half of its 95 % interval, such as `71.4 ± 0.8 %`, or a single value alone."""
    half = half_width(values)
    mean = f"{statistics.mean(values):{'+' if signed else ''}.{digits}f}"
    return mean + ("" if half is None else f" ± {half:.{digits}f}") + unit


def table(outcomes: Mapping[Entry, Sequence[Outcome]]) -> list[str]:
    """Returns the lines of the table of a dataset: one row per recipe, means over its runs."""
    lines = _header(
        *("recipe", "parameters", "steps", "images/s", "wall time", "to its best", "train top-1", "validation top-1"),
        *("test top-1", "gap", "validation ECE", "test ECE"),
    )
    for entry, runs in outcomes.items():
        cells = (
            entry.label,
            f"{runs[0].parameters:,}",
            f"{runs[0].steps:,}",
            f"{statistics.mean(run.images_per_second for run in runs):,.0f}",
            estimate([run.seconds for run in runs], " s", digits=0),
            estimate([run.seconds_to_best for run in runs], " s", digits=0),
            _percent(runs, "train_top1"),
            _percent(runs, "validation_top1"),
            _percent(runs, "test_top1"),
            estimate([100 * run.gap for run in runs]),
            _percent(runs, "validation_ece"),
            _percent(runs, "test_ece"),
        )
        lines.append(measure.markdown(cells))
    return lines


def ablation_table(outcomes: Mapping[Entry, Sequence[Outcome]]) -> list[str]:
    """Returns the lines of the ablation table. The first entry is the full recipe."""
    lines = _header("without", "wall time", "train top-1", "test top-1", "gap", "test, change", "overrides")
    whole = next(iter(outcomes.values()))
    for entry, runs in outcomes.items():
        changes = [100 * (run.test_top1 - base.test_top1) for run, base in zip(runs, whole, strict=True)]
        overrides = " ".join(f"--config.{name}={value}" for name, value in entry.overrides.items())
        cells = (
            entry.without or "nothing (full recipe)",
            estimate([run.seconds for run in runs], " s", digits=0),
            _percent(runs, "train_top1"),
            _percent(runs, "test_top1"),
            estimate([100 * run.gap for run in runs]),
            estimate(changes, signed=True) if entry.without else "",
            overrides and f"`{overrides}`",
        )
        lines.append(measure.markdown(cells))
    return lines


def averages_lines(results: Sequence[Result]) -> list[str]:
    """Returns the tables of averages with their heading, one per recipe, over all datasets; empty without any."""
    lines = []
    for entry in results[0].averages:
        by_way = list(zip(*(result.averages[entry] for result in results), strict=True))
        lines += ["", f"{entry.label}:", "", *_header("way", "passes per image", "test top-1", "change", "test ECE")]
        plain = [statistics.mean(found.top1) for found in by_way[0]]
        for found in by_way:
            top1 = [statistics.mean(each.top1) for each in found]
            changes = [own - base for own, base in zip(top1, plain, strict=True)]
            cells = (
                *(found[0].way, str(found[0].passes), f"{100 * statistics.mean(top1):.1f} %"),
                "" if found is by_way[0] else f"{100 * statistics.mean(changes):+.1f}",
                f"{100 * statistics.mean(statistics.mean(each.ece) for each in found):.1f} %",
            )
            lines.append(measure.markdown(cells))
    titles = "; ".join(result.title for result in results)
    return ["## More from trained models", "", f"Mean over {titles}.", *lines, ""] if lines else []


def summaries(results: Sequence[Result]) -> dict[Entry, Summary]:
    """Returns each recipe over the datasets that are kept for choosing; empty if none of the results is of one."""
    by_dataset: dict[str, list[Result]] = {}
    for result in results:
        if result.dataset not in HELD_OUT:
            by_dataset.setdefault(result.dataset, []).append(result)
    if not by_dataset:
        return {}

    def over_datasets(entry: Entry, value: Callable[[Outcome], float]) -> list[float]:
        """Returns the mean over datasets of a value, one per training seed."""
        of_datasets = [
            [statistics.mean(map(value, runs)) for runs in zip(*(r.outcomes[entry] for r in of_seeds), strict=True)]
            for of_seeds in by_dataset.values()
        ]
        return [statistics.mean(values) for values in zip(*of_datasets, strict=True)]

    def ratio(entry: Entry, value: Callable[[Outcome], float], least: float = 0.0) -> float:
        """Returns the geometric mean over datasets of the ratio to the first recipe of a sum over runs."""
        sums = (
            [max(least, sum(value(run) for r in of_seeds for run in r.outcomes[e])) for e in (entry, first)]
            for of_seeds in by_dataset.values()
        )
        return statistics.geometric_mean(own / base for own, base in sums)

    first = next(iter(results[0].outcomes))
    base = over_datasets(first, lambda run: run.test_top1)
    found = {}
    for entry in results[0].outcomes:
        test_top1 = over_datasets(entry, lambda run: run.test_top1)
        calibrated = all(
            run.test_ece is not None for runs in by_dataset.values() for r in runs for run in r.outcomes[entry]
        )
        found[entry] = Summary(
            test_top1=test_top1,
            changes=[own - other for own, other in zip(test_top1, base, strict=True)],
            errors_ratio=ratio(entry, lambda run: (1 - run.test_top1) * run.test_images, _FEWEST_ERRORS),
            seconds_ratio=ratio(entry, lambda run: run.seconds),
            gap=statistics.mean(over_datasets(entry, lambda run: run.gap)),
            test_ece=statistics.mean(over_datasets(entry, lambda run: run.test_ece or 0.0)) if calibrated else None,
        )
    return found


def summary_table(found: Mapping[Entry, Summary]) -> list[str]:
    """Returns the lines of the table that compares the recipes over datasets."""
    lines = _header("recipe", "test top-1", "change", "errors, ratio", "wall time, ratio", "gap", "test ECE")
    for number, (entry, one) in enumerate(found.items()):
        cells = (
            entry.label,
            estimate([100 * value for value in one.test_top1], " %"),
            estimate([100 * value for value in one.changes], signed=True) if number else "",
            f"{one.errors_ratio:.2f}",
            f"{one.seconds_ratio:.2f}",
            f"{100 * one.gap:.1f}",
            "" if one.test_ece is None else f"{100 * one.test_ece:.1f} %",
        )
        lines.append(measure.markdown(cells))
    return lines


def summary_lines(results: Sequence[Result]) -> list[str]:
    """Returns the summary with its heading; empty if there are no two results to summarize."""
    titles = [result.title for result in results if result.dataset not in HELD_OUT]
    if len(titles) < 2:
        return []
    return ["## Summary", "", f"Mean over {'; '.join(titles)}.", "", *summary_table(summaries(results)), ""]


def page(results: Sequence[Result], command: str, environment: str, seeds: int) -> str:
    """Returns the results page, in Markdown.

    Args:
      results: what it shows.
      command: the command that made it.
      environment: date, machine and versions.
      seeds: number of training seeds.
    """
    lines = ["# Generalization", "", "How well recipes do on images that they were not trained on.", ""]
    lines += ["```sh", command, "```", "", environment, "", *summary_lines(results), *averages_lines(results)]
    for result in results:
        lines += [*result.lines(), ""]
    lines += [
        "## Columns",
        "",
        f"- All values are means over {counted(seeds, 'training seed')}. ± is half of the 95 % confidence interval of",
        "  the mean by Student's t distribution. It covers training again on the same images, not other images.",
        "- Train top-1 is measured on training images without augmentation; gap is train minus test top-1, in points.",
        "- The checkpoint was chosen by the validation images; the test images had no part in training.",
        "- ECE is the expected calibration error: how far confidence and accuracy are apart, on average.",
        "- Wall time includes compilation, evaluations during training and checkpoints.",
    ]
    if averages_lines(results):
        lines += ["- Passes per image are forward passes of a model of that recipe: the cost of a prediction."]
    if summary_lines(results):
        lines += [
            "- In the summary each dataset counts once. Change is the difference in test top-1 to the first recipe, in",
            "  points, paired by seed. Ratios are to the first recipe: geometric means over datasets of the number of",
            "  errors on test images and of the wall time.",
        ]
    return "\n".join(lines) + "\n"


def command_of(flags: absl_flags.FlagValues) -> str:
    """Returns the command with the flags that affect the results."""
    words = [flags[name].serialize() for name in _SHOWN_FLAGS if flags[name].present]
    return shlex.join(["convoy", "bench", "generalization", *words])


def _header(*columns: str) -> list[str]:
    return [measure.markdown(columns), "|---" + "|---:" * (len(columns) - 1) + "|"]


def _percent(runs: Sequence[Outcome], name: str) -> str:
    values = [getattr(run, name) for run in runs]
    return "" if None in values else estimate([100 * value for value in values], " %")
