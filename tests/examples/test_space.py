from pathlib import Path

import optuna
import pytest

from convoy.cli import parse
from convoy.trainer.sweep.space import config_flags, find_space

EXAMPLE = Path(__file__).parents[2] / "examples/space.py"


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_the_space_of_the_example_sets_config_fields(optimizer):
    trial = optuna.trial.FixedTrial({"optimizer": optimizer, f"learning_rate_{optimizer}": 0.01, "weight_decay": 0.001})
    flags, _ = parse("train", ["--config=convnet", *config_flags(find_space(str(EXAMPLE))(trial))])
    fields = flags.config.optimizer
    assert (fields.name, fields.learning_rate, fields.weight_decay) == (optimizer, 0.01, 0.001)
