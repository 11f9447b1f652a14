"""Predicts and evaluates with a cross-validation and with the runs of its folds.

python -m tests.trainer.cross_validation_program RUN PHOTOS FOLDER

Prints facts as JSON, which `test_cross_validation.py` compares.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

import convoy


def refusal(call: Callable[[], object]) -> str:
    """Returns the message of a ConvoyError."""
    try:
        call()
    except convoy.ConvoyError as error:
        return str(error)
    return ""


def main(workdir: str, photos: str, folder: str) -> None:
    """Prints the facts."""
    run = convoy.open_run(workdir)
    folds = [convoy.open_run(path) for path in sorted(Path(workdir).glob("fold-?"))]
    together, alone = (
        [each.predict(photos).probabilities, each.evaluate("test", save=False).label_probabilities]
        for each in (run, folds[0])
    )
    means = [
        np.mean([alone[0], *(fold.predict(photos).probabilities for fold in folds[1:])], 0),
        np.mean([alone[1], *(fold.evaluate("test", save=False).label_probabilities for fold in folds[1:])], 0),
    ]
    again, saved = run.evaluate("out_of_fold", save=False), run.evaluation("out_of_fold")
    facts = {
        "differences": [float(np.abs(one - mean).max()) for one, mean in zip(together, means, strict=True)],
        "differences of the first": [float(np.abs(one - other).max()) for one, other in zip(alone, means, strict=True)],
        "out of fold": [again.metrics, saved.metrics],
        "folds": [fold.evaluate("validation", save=False).metrics for fold in folds],
        "state": run.state,
        "mean": run.result.mean,
        "refused": {
            "trained on": refusal(lambda: run.evaluate("validation", save=False)),
            "of a fold": refusal(lambda: folds[0].evaluate("out_of_fold", save=False)),
            "export": refusal(lambda: run.export(Path(folder) / "exported")),
            "other number": refusal(lambda: convoy.train("smoke", data="none", workdir=workdir, folds=2)),
            "no folds": refusal(
                lambda: convoy.train("smoke", data=run._files.read_dataset()["directory"], workdir=workdir)
            ),
        },
    }
    print(json.dumps(facts))


if __name__ == "__main__":
    main(*sys.argv[1:])
