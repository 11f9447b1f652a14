"""Search spaces of users."""

import optuna
import pytest

from convoy.core.errors import UsageError
from convoy.trainer.sweep.space import config_flags, find_space


@pytest.fixture
def space_in(tmp_path):
    """Writes a file with a search space and returns the path."""

    def write(text):
        path = tmp_path / "space.py"
        path.write_text(text)
        return str(path)

    return write


def test_fields_of_a_trial_become_flags(space_in):
    name = space_in(
        "import numpy as np\n"
        "def space(trial):\n"
        "    rate = trial.suggest_float('rate', 1e-4, 1e-1, log=True)\n"
        "    return {'optimizer.learning_rate': rate, 'deterministic': True, 'batch_size': np.int64(8),\n"
        "            'schedule.boundaries': (0.5, 0.75), 'augment.ops': 'flip'}\n"
        "def other(trial):\n"
        "    return {'epochs': trial.suggest_int('epochs', 3, 3)}\n"
    )
    trial = optuna.trial.FixedTrial({"rate": 0.0012345678901234567, "epochs": 3})
    rate, *others = config_flags(find_space(name)(trial))
    assert float(rate.removeprefix("--config.optimizer.learning_rate=")) == 0.0012345678901234567
    assert others == [
        "--config.deterministic=true",
        "--config.batch_size=8",
        "--config.schedule.boundaries=0.5,0.75",
        "--config.augment.ops=flip",
    ]
    assert config_flags(find_space(f"{name}:other")(trial)) == ["--config.epochs=3"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("def spaces(trial): return {'epochs': 1}", "no space .did you mean 'spaces'"),
        ("space = {'epochs': 1}", "dict"),
        ("1 / 0", "ZeroDivisionError"),
        ("def space(trial): return [1]", "list"),
        ("def space(trial): return {}", "no config field"),
        ("def space(trial): return {'epochs': None}", "NoneType for epochs"),
        ("def space(trial): return {'epochs': trial.suggest_flat('e', 1, 2)}", "suggest_flat"),
    ],
)
def test_what_is_no_space_is_refused_in_one_line(space_in, text, problem):
    name = space_in(text)
    with pytest.raises(UsageError, match=problem) as refusal:
        find_space(name)(optuna.create_study().ask())
    assert name in str(refusal.value) and "\n" not in str(refusal.value)
