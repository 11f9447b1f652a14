"""What averages add to trained models: over mirror images, checkpoints and runs.

averages(runs, ["convnet-seed0", "convnet-seed1"])[1].top1      # with mirror images, one value per run
"""

import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.trained_runs import Runs

CHECKPOINTS = 3  # the last ones, which every run keeps


@dataclass(frozen=True)
class Averaged:
    """A way to evaluate trained runs on the test images.

    Attributes:
      way: description.
      passes: forward passes per image.
      top1: top-1 accuracy in [0, 1], one value per evaluation.
      ece: expected calibration error in [0, 1], likewise.
    """

    way: str
    passes: int
    top1: Sequence[float]
    ece: Sequence[float]


def averages(runs: Runs, names: Sequence[str]) -> list[Averaged]:
    """Returns each way to evaluate finished runs: every run alone, then all together. The first is the plain one.

    Args:
      runs: the runs on one dataset.
      names: names of runs with the same recipe.

    Raises:
      ConvoyError: an evaluation failed; the message ends with the last lines of its output.
    """
    alone, together = [[name] for name in names], [list(names)]
    ways = [
        ("one run, one pass", 1, alone, "best", False),
        ("mirror images", 2, alone, "best", True),
        (f"mean of the last {CHECKPOINTS} checkpoints", 1, alone, f"mean:{CHECKPOINTS}", False),
    ]
    if len(names) > 1:
        ways += [
            (f"{len(names)} runs", len(names), together, "best", False),
            (f"{len(names)} runs, mirror images", 2 * len(names), together, "best", True),
        ]
    found = []
    for way, passes, groups, checkpoint, flips in ways:
        evaluated = [_evaluated(runs, group, checkpoint, flips) for group in groups]
        found.append(Averaged(way, passes, [each["top1"] for each in evaluated], [each["ece"] for each in evaluated]))
    return found


def _evaluated(runs: Runs, names: Sequence[str], checkpoint: str, flips: bool) -> dict[str, float]:
    """Returns the metrics of one evaluation on the test images, which is kept in FOLDER/averages."""
    file = f"{'+'.join(names)}-{checkpoint.replace(':', '')}{'-flips' if flips else ''}.json"
    path = runs.folder / "averages" / file
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        # In copies: `evaluate` replaces the files about the evaluation before.
        with tempfile.TemporaryDirectory(dir=path.parent) as copies:
            for name in names:
                shutil.copytree(runs.folder / name, Path(copies) / name, copy_function=os.link)
            workdirs = ",".join(str(Path(copies) / name) for name in names)
            words = (f"--workdir={workdirs}", "--split=test", f"--checkpoint={checkpoint}", f"--json={path}")
            runs.convoy("evaluate", *words, "--flip_tta" if flips else "--noflip_tta", name=Path(file).stem)
    return json.loads(path.read_text(encoding="utf-8"))
