"""The trial of one batch size: `python -m convoy.trainer.finders.batch_size_trial`, started by `batch_size`.

Its only argument is a JSON object: `config`, `data`, `devices`, `strategy_name`, `record_format`, `virtual_batch_size`
(0: as in the config), `files` (of users, to be run first), `memory_limit` (bytes that the process may use), `parent`
(process id). It prints lines of JSON after `MARK`: first the plan, then the measurements. It exits with `ORPHANED` when
its parent is gone, and with `TOO_LARGE` at the memory limit.
"""

import contextlib
import json
import os
import statistics
import sys
import threading
import time
from pathlib import Path
from typing import Any

from convoy.core.errors import ConvoyError
from convoy.core.memory import peak_memory, resident_memory

MARK = "batch_size_trial "
TOO_LARGE = 86
ORPHANED = 87
_WATCH_SECONDS = 0.01
_MEASURED_SECONDS = 3.0
_MOST_STEPS = 50


def main() -> int:
    """Tries the size given on the command line; returns the exit code."""
    options = json.loads(sys.argv[1])
    threading.Thread(target=_watch, args=(options["parent"], options["memory_limit"]), daemon=True).start()
    from convoy.input_pipeline.tf_startup import start_tensorflow

    start_tensorflow()
    try:
        _try(options)
    except ConvoyError as error:
        _send({"error": str(error), "exit_code": error.exit_code})
        return error.exit_code
    except Exception as error:
        from convoy.trainer.session.errors import is_out_of_memory

        if not is_out_of_memory(error):
            raise
        return TOO_LARGE
    return 0


def _try(options: dict[str, Any]) -> None:
    import ml_collections

    from convoy.core.devices import parse_devices
    from convoy.core.user_code import run_file
    from convoy.input_pipeline.dataset.layout import RecordFormat
    from convoy.trainer.cluster.strategy import peak_gpu_memory, runs_on_gpu
    from convoy.trainer.finders.trial import prepare_trial

    for path in options["files"]:
        run_file(Path(path))
    config = ml_collections.ConfigDict(options["config"])
    config.image_size = max([config.image_size, *config.progressive.sizes])  # uses the most memory
    trial = prepare_trial(
        config,
        data=options["data"],
        devices=parse_devices(options["devices"]),
        strategy_name=options["strategy_name"],
        virtual_batch_size=options["virtual_batch_size"],
        record_format=RecordFormat.from_dict(options["record_format"]),
    )
    on_gpu = runs_on_gpu(trial.runtime.strategy)
    _send({"plan": trial.plan.as_dict(), "on_gpu": on_gpu})
    seconds: list[float] = []
    with contextlib.closing(trial.training_input.batches(0)) as batches:
        # The first step compiles. Nothing can diverge: the learning rate is 0.
        while len(seconds) < 3 or (sum(seconds[1:]) < _MEASURED_SECONDS and len(seconds) <= _MOST_STEPS):
            started = time.perf_counter()
            trial.step(next(batches), 0.0).gradient_norm.numpy()
            seconds.append(time.perf_counter() - started)
        memory = peak_gpu_memory() if on_gpu else peak_memory()
    # The lower quartile: other work on the machine only ever makes steps slower.
    _send({"step_seconds": statistics.quantiles(seconds[1:], n=4, method="inclusive")[0], "memory": memory})


def _send(what: dict[str, Any]) -> None:
    print(f"{MARK}{json.dumps(what)}", flush=True)


def _watch(parent: int, memory_limit: int) -> None:
    """Ends the process when its parent is gone, or before the machine would swap or kill processes."""
    while True:
        if resident_memory() > memory_limit:
            os._exit(TOO_LARGE)
        if os.getppid() != parent:
            os._exit(ORPHANED)
        time.sleep(_WATCH_SECONDS)


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # as in `convoy.cli.entry_point`: TensorFlow's threads may hang Python's shutdown
