"""A search space of your own: what `convoy sweep` tries.

    convoy sweep --space=examples/space.py --trials=20 --workdir=sweep -- train --data=data --config=convnet

The function gets an Optuna trial (https://optuna.readthedocs.io), asks it for values, and returns config fields by
their dotted names; `convoy train --print_config` lists all. Plain Python decides which values belong together. Each
trial is a run of its own, sweep/trial-0000 and so on, with `--config.FIELD=VALUE` after the flags of the command line.
"""

from typing import Any

import optuna


def space(trial: optuna.Trial) -> dict[str, Any]:
    """Returns the config fields of a trial."""
    optimizer = trial.suggest_categorical("optimizer", ["adam", "sgd"])
    # Each optimizer has learning rates of its own: two parameters, so that the sampler does not mix them.
    low, high = {"adam": (1e-4, 1e-2), "sgd": (1e-2, 1.0)}[optimizer]
    return {
        "optimizer.name": optimizer,
        "optimizer.learning_rate": trial.suggest_float(f"learning_rate_{optimizer}", low, high, log=True),
        "optimizer.weight_decay": trial.suggest_float("weight_decay", 1e-5, 1e-1, log=True),
    }
