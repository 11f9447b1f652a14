"""The mean of several checkpoints, `--checkpoint=mean:3` (Izmailov et al. 2018, "Averaging weights leads to wider
optima and better generalization").

values, changed, metadata = load_mean(CheckpointStore(run.checkpoints), (80, 90, 100))
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from convoy.core.errors import DataError
from convoy.trainer.checkpoint.checkpoints import CheckpointStore
from convoy.trainer.step.state import without_optimizer


def load_mean(
    store: CheckpointStore, steps: Sequence[int]
) -> tuple[dict[str, np.ndarray], set[str], list[dict[str, Any]]]:
    """Returns the mean of checkpoints, variable by variable; which variables differ between them; and their metadata.

    Averages are averaged as the weights are: the mean is that of what evaluation uses. It is computed in float64.
    Integers are those of the last step. The state of the optimizer is left out.

    Args:
      store: the run's checkpoints.
      steps: the steps, ascending; of a single one, its own values are returned.

    Raises:
      DataError: a checkpoint is missing, damaged, or has other variables than the first.
    """
    values, metadata = store.load(steps[0])
    first = last = without_optimizer(values)
    all_metadata = [metadata]
    total = {name: value.astype(np.float64) for name, value in first.items() if value.dtype.kind == "f"}
    changed = set()
    for step in steps[1:]:
        values, metadata = store.load(step)
        last = without_optimizer(values)
        all_metadata.append(metadata)
        if {name: value.shape for name, value in last.items()} != {name: value.shape for name, value in first.items()}:
            raise DataError(
                f"checkpoint {store.path(step)}: has other variables than that of step {steps[0]}, so they have no "
                "mean."
            )
        changed |= {name for name, value in last.items() if not np.array_equal(value, first[name])}
        for name in total:
            total[name] += last[name]
    mean = {name: (value / len(steps)).astype(last[name].dtype) for name, value in total.items()}
    return {**last, **mean}, changed, all_metadata
