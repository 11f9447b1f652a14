"""The example of a callback: on one device and on two, and resumed."""

import pytest

from tests.processes import REPOSITORY
from tests.trainer import user_models
from tests.trainer.run_files import events_of, result_of

pytestmark = pytest.mark.slow

FLAGS = (
    *("train", "--config=smoke", f"--config.model.name={user_models.__file__}:normalized", "--deterministic"),
    *("--config.virtual_replicas=2", "--config.steps=60", "--config.eval_every_steps=5", "--config.log_every_steps=5"),
    f"--callbacks={REPOSITORY}/examples/callback.py:Milestones",
)


def test_milestones_are_the_same_on_any_number_of_devices_and_survive_a_restart(convoy, dataset, tmp_path):
    runs = {devices: tmp_path / str(devices) for devices in (1, 2)}
    for devices, run in runs.items():
        command = (*FLAGS, f"--devices=cpu:{devices}", f"--data={dataset.data}", f"--workdir={run}")
        if devices == 2:
            convoy(*command, "--max_hours=0", check=True)
        convoy(*command, check=True)
    one, two = ([(e["step"], e["level"]) for e in events_of(run, "milestone")] for run in runs.values())
    assert one and one == two
    assert result_of(runs[1])["weights_sha256"] == result_of(runs[2])["weights_sha256"]
