import shutil
from pathlib import Path

import pytest

from tests.trainer.run_files import result_of

EXAMPLE = Path(__file__).parents[2] / "examples/optimizer.py"


@pytest.mark.slow
def test_the_optimizer_of_the_example_trains_alike_on_one_and_two_devices(convoy, dataset, tmp_path):
    """And the run can be evaluated without its file."""
    file = shutil.copy(EXAMPLE, tmp_path / "optimizer.py")
    command = (
        *("train", "--config=smoke", "--deterministic", "--config.precision=float32", "--config.virtual_replicas=2"),
        *("--config.steps=3", "--config.batch_size=16", f"--data={dataset.data}"),
    )
    runs = {name: tmp_path / name for name in ("cpu:1", "cpu:2", "adam")}
    for name, run in runs.items():
        device, optimizer = ("cpu:1", "adam") if name == "adam" else (name, f"{file}:adabelief")
        convoy(*command, f"--config.optimizer.name={optimizer}", f"--devices={device}", f"--workdir={run}", check=True)
    digests = {name: result_of(run)["weights_sha256"] for name, run in runs.items()}
    assert digests["cpu:1"] == digests["cpu:2"] != digests["adam"]
    Path(file).unlink()
    convoy("evaluate", f"--workdir={runs['cpu:1']}", f"--data={dataset.data}", "--split=test", check=True)
