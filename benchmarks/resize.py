"""`convoy bench resize`: trains a recipe on images that are not square, with each `config.resize`.

    convoy bench resize --recipe=convnet_fast --epochs=20 --seeds=3

The images are those of `convoy sample` with sides of up to 2:1, wide or tall, in two framings:

    scene   the picture continues to one or both sides: the product is whole and somewhere near the center
    cut     the picture is cut to one part of it: the product fills the frame or leaves it

As in `generalization`, each run is one `convoy train` and three `convoy evaluate` commands in --workdir, and finished
runs are reused. The table is Markdown.
"""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from absl import flags as absl_flags
from PIL import Image

from benchmarks import measure
from benchmarks.trained_runs import Outcome, Runs, define_recipe_flags, define_training_flags, refuse_useless_flags
from convoy.trainer.config.resolution import RESIZES

FRAMINGS = ("scene", "cut")
_SIDE = 96  # of the drawn images, pixels


def define_flags(flags: absl_flags.FlagValues) -> None:
    """Defines the flags of this benchmark."""
    define_recipe_flags(flags)
    define_training_flags(flags)


def run(flags: absl_flags.FlagValues) -> None:
    """Trains the runs that are missing, prints a table per framing and writes the JSON file.

    Raises:
      UsageError: a flag without effect, or --workdir contains a run with another config.
      ConvoyError: a command failed; the message ends with the last lines of its output.
    """
    refuse_useless_flags(flags, "resize")
    _, about = measure.begin()
    found: dict[str, dict[str, list[Outcome]]] = {}
    for framing in FRAMINGS:
        runs = Runs(Path(flags.workdir or "resize") / framing, devices=flags.devices, say=measure.say)
        _make_dataset(runs, framing)
        found[framing] = {resize: [] for resize in RESIZES}
        for seed in range(flags.seeds):
            for resize in RESIZES:  # in turn, so that other load on the machine affects all of them
                overrides = {"resize": resize, "epochs": flags.epochs, "seed": seed}
                outcome = runs.outcome(f"{Path(flags.recipe).stem}-{resize}-seed{seed}", flags.recipe, overrides)
                found[framing][resize].append(outcome)
        print("\n".join(["", f"{framing}: {runs.description}", "", *table(found[framing])]), flush=True)
    rows = {
        framing: {resize: [asdict(outcome) for outcome in outcomes] for resize, outcomes in by_resize.items()}
        for framing, by_resize in found.items()
    }
    measure.write_json(flags.json, {"benchmark": "resize", "environment": about, "recipe": flags.recipe, "rows": rows})


def table(outcomes: Mapping[str, Sequence[Outcome]]) -> list[str]:
    """Returns the lines of a table: mean and standard deviation over the seeds, the change against the first row."""
    columns = ("resize", "train top-1", "test top-1", "test, change")
    lines = [measure.markdown(columns), "|---" * len(columns) + "|"]
    first = next(iter(outcomes.values()))
    for resize, found in outcomes.items():
        changes = [100 * (run.test_top1 - base.test_top1) for run, base in zip(found, first, strict=True)]
        cells = (
            f"`{resize}`",
            measure.spread([100 * run.train_top1 for run in found], " %"),
            measure.spread([100 * run.test_top1 for run in found], " %"),
            "" if found is first else measure.spread(changes, signed=True),
        )
        lines.append(measure.markdown(cells))
    return lines


def reframed(picture: np.ndarray, framing: str, random: np.random.Generator) -> np.ndarray:
    """Returns a square picture, [side, side, 3] uint8, as an image with sides from 1:1 to 2:1 (module docstring)."""
    side, axis = len(picture), int(random.integers(2))
    ratio, place = 2 ** random.random(), random.random(2).mean()
    if framing == "scene":
        missing = round((ratio - 1) * side)
        margins = [(0, 0)] * 3
        margins[axis] = (round(place * missing), missing - round(place * missing))
        return np.pad(picture, margins, mode="edge")
    kept = round(side / ratio)
    start = round(place * (side - kept))
    return picture.take(range(start, start + kept), axis)


def _make_dataset(runs: Runs, framing: str) -> None:
    """Creates the images and the dataset unless they exist."""
    drawn, photos = runs.folder / "drawn", runs.folder / "photos"
    if runs.has_data("test"):
        return
    runs.folder.mkdir(parents=True, exist_ok=True)
    if not drawn.exists():
        runs.convoy("sample", f"--output={drawn}", f"--size={_SIDE}")
    for path in drawn.glob("*/*/*.jpg"):
        random = np.random.default_rng(zlib.crc32(path.name.encode()))
        target = photos / path.relative_to(drawn)
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(reframed(np.asarray(Image.open(path)), framing, random)).save(target, quality=90)
    for split in ("train", "test"):
        if not runs.has_data(split):
            runs.convoy("convert", f"--images={photos / split}", f"--output={runs.data}", f"--split={split}")
