"""`convoy bench imbalance`: trains a recipe on imbalanced classes, with each remedy that Convoy has.

    convoy bench imbalance --recipe=convnet_fast --epochs=20 --seeds=2

The images are those of `convoy sample`, where every second class keeps a tenth of its training images. The test images
are as many for each class. Scores are macro F1 on the test images, and recall of the small and of the other classes.

As in `generalization`, each run is a `convoy train` and a `convoy evaluate` command in --workdir, and finished runs
are reused. The table is Markdown.
"""

import csv
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from absl import flags as absl_flags

import convoy
from benchmarks import measure
from benchmarks.trained_runs import Runs, define_recipe_flags, define_training_flags, refuse_useless_flags

KEPT = 0.1  # share of the training images that every second class keeps
SMALL, OTHERS = slice(1, None, 2), slice(0, None, 2)  # of the classes
REMEDIES: Mapping[str, Mapping[str, Any]] = {
    "none": {},
    "class_weights-inverse_sqrt": {"loss.class_weights": "inverse_sqrt"},
    "class_weights-balanced": {"loss.class_weights": "balanced"},
    "sampling-inverse_sqrt": {"sampling": "inverse_sqrt"},
    "sampling-balanced": {"sampling": "balanced"},
    "focal": {"loss.name": "focal"},
}


@dataclass(frozen=True)
class Score:
    """Scores of a run on the test images, in [0, 1].

    Attributes:
      macro_f1: mean F1 of all classes.
      small: mean recall of the small classes.
      others: mean recall of the other classes.
    """

    macro_f1: float
    small: float
    others: float


def define_flags(flags: absl_flags.FlagValues) -> None:
    """Defines the flags of this benchmark."""
    define_recipe_flags(flags)
    define_training_flags(flags)


def run(flags: absl_flags.FlagValues) -> None:
    """Trains the runs that are missing, prints the table and writes the JSON file.

    Raises:
      UsageError: a flag without effect, or --workdir contains a run with another config.
      ConvoyError: a command failed; the message ends with the last lines of its output.
    """
    refuse_useless_flags(flags, "imbalance")
    _, about = measure.begin()
    runs = Runs(Path(flags.workdir or "imbalance"), devices=flags.devices, say=measure.say)
    _make_dataset(runs)
    scores: dict[str, list[Score]] = {remedy: [] for remedy in REMEDIES}
    for seed in range(flags.seeds):
        for remedy, overrides in REMEDIES.items():
            name = f"{Path(flags.recipe).stem}-{remedy}-seed{seed}"
            trained = runs.trained(name, flags.recipe, {**overrides, "epochs": flags.epochs, "seed": seed})
            runs.evaluation(trained, "test")
            scores[remedy].append(score_of(convoy.open_run(trained.run.path).evaluation("test")))
    print("\n".join(["", runs.description, "", *table(scores)]), flush=True)
    rows = {remedy: [asdict(score) for score in found] for remedy, found in scores.items()}
    about_runs = {"recipe": flags.recipe, "epochs": flags.epochs, "overrides": REMEDIES, "rows": rows}
    measure.write_json(flags.json, {"benchmark": "imbalance", "environment": about, **about_runs})


def score_of(evaluation: convoy.Evaluation) -> Score:
    """Returns the scores of an evaluation."""
    recalls = [row["recall"] for row in evaluation.per_class()]
    return Score(evaluation.macro_f1, statistics.mean(recalls[SMALL]), statistics.mean(recalls[OTHERS]))


def table(scores: Mapping[str, Sequence[Score]]) -> list[str]:
    """Returns the lines of a table: mean and standard deviation over the seeds, the change against the first row."""
    columns = ("flag", "macro F1", "change", "recall of small classes", "recall of the others")
    lines = [measure.markdown(columns), "|---" * len(columns) + "|"]
    first = next(iter(scores.values()))
    for remedy, found in scores.items():
        changes = [100 * (score.macro_f1 - base.macro_f1) for score, base in zip(found, first, strict=True)]
        flags = " ".join(f"--config.{name}={value}" for name, value in REMEDIES[remedy].items())
        cells = (
            f"`{flags}`" if flags else "",
            measure.spread([100 * score.macro_f1 for score in found], " %"),
            "" if found is first else measure.spread(changes, signed=True),
            measure.spread([100 * score.small for score in found], " %"),
            measure.spread([100 * score.others for score in found], " %"),
        )
        lines.append(measure.markdown(cells))
    return lines


def imbalanced(rows: Sequence[Mapping[str, str]]) -> list[Mapping[str, str]]:
    """Returns the rows of a CSV with every second category cut to its first images, a tenth of them."""
    categories = sorted({row["category"] for row in rows})
    kept = []
    for category in categories:
        images = [row for row in rows if row["category"] == category]
        kept += images[: round(KEPT * len(images))] if category in categories[SMALL] else images
    return kept


def _make_dataset(runs: Runs) -> None:
    """Creates the images and the dataset unless they exist."""
    photos, table_of_kept = runs.folder / "photos", runs.folder / "train.csv"
    if runs.has_data("test"):
        return
    runs.folder.mkdir(parents=True, exist_ok=True)
    if not photos.exists():
        runs.convoy("sample", f"--output={photos}")
    with open(photos / "train.csv", newline="") as file:
        rows = imbalanced(list(csv.DictReader(file)))
    with open(table_of_kept, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    if not runs.has_data("train"):
        words = (f"--images={photos / 'train'}", f"--manifest={table_of_kept}")
        runs.convoy("convert", *words, f"--output={runs.data}")
    runs.convoy("convert", f"--images={photos / 'test'}", f"--output={runs.data}", "--split=test")
