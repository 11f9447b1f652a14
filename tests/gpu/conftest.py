"""Where the tests of this folder run: on GPUs, marked `gpu`, and on logical CPU devices, which shows that they work.

    pytest -m gpu tests/gpu           # on a machine with GPUs
    pytest -m "not gpu" tests/gpu     # on any machine, as in CI

Everything that uses TensorFlow runs in processes of its own, so that the memory of a GPU is free for the next one.
"""

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from convoy.trainer.doctor.hardware import driver_gpus
from tests import processes
from tests.forks import ForkedProcess, Forks, Result


@dataclass(frozen=True)
class Place:
    """The devices of one kind.

    Attributes:
      kind: GPU or CPU.
      gpus: the GPUs, as in CUDA_VISIBLE_DEVICES; of CPU devices there may be any number.
      forks: starts processes without GPUs.
    """

    kind: str
    gpus: tuple[str, ...]
    forks: Forks

    def devices(self, number: int) -> str:
        """Returns the flag for `number` devices; skips the test if there are fewer."""
        if self.kind == "CPU":
            return f"--devices=cpu:{number}"
        if number > len(self.gpus):
            pytest.skip(f"needs {number} GPUs, and there are {len(self.gpus)}")
        return f"--devices=gpu:{','.join(map(str, range(number)))}"

    def run(self, module: str, *arguments: object, environment: Mapping[str, str] | None = None) -> Result:
        """Runs `python -m module *arguments` to the end."""
        if self.kind == "CPU":
            return self.forks.run(module, *arguments, environment=environment, timeout=500)
        command = [sys.executable, "-m", module, *map(str, arguments)]
        done = processes.run(command, environment=self._environment(environment), timeout=500)
        return Result(done.returncode, done.stdout, done.stderr)

    @contextlib.contextmanager
    def started(
        self, module: str, *arguments: object, output: Path, environment: Mapping[str, str] | None = None
    ) -> Iterator[ForkedProcess]:
        """Starts `python -m module *arguments` and kills it on exit; `output` is the file for its output."""
        if self.kind == "CPU":
            with self.forks.started(module, *arguments, output=output, environment=environment) as process:
                yield process
            return
        command = [sys.executable, "-m", module, *map(str, arguments)]
        with processes.started(command, output=output, environment=self._environment(environment)) as process:
            yield process

    def _environment(self, given: Mapping[str, str] | None) -> dict[str, str]:
        return {"CUDA_VISIBLE_DEVICES": ",".join(self.gpus), "STEP_PROGRAM_DEVICES": "GPU", **(given or {})}


@pytest.fixture(
    scope="session",
    params=[pytest.param("GPU", marks=pytest.mark.gpu), pytest.param("CPU", marks=pytest.mark.slow)],
)
def place(request, forks) -> Place:
    """The GPUs of this host, if there are any, and then its CPU."""
    if request.param == "CPU":
        return Place("CPU", (), forks)
    driver = driver_gpus()
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "-1":
        pytest.skip("needs a GPU: CUDA_VISIBLE_DEVICES=-1 hides them")
    if not driver.gpus:
        pytest.skip(f"needs a GPU: {driver.problem or 'nvidia-smi lists none'}")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = map(str, range(len(driver.gpus))) if visible is None else visible.split(",")
    return Place("GPU", tuple(gpus), forks)
