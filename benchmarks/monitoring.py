"""`convoy bench monitoring`: the cost per step of console, log lines, TensorBoard, run files, and of callbacks alone.

Three processes run the same training loop on the same images, the model convnet on two logical devices: one unchanged,
with a live progress bar as on a terminal; one with all monitoring removed by patches; and one like that, with ten
callbacks whose hooks do nothing. They are measured in turn. Each round ends with an evaluation in all, so that its log
line, images and checkpoint count once per as many steps as three epochs of the sample set have.
"""

import contextlib
import json
import os
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

from absl import flags as absl_flags

from benchmarks import measure
from benchmarks.workers import Prepared, Round, Stopwatch, serve
from convoy.core.errors import UsageError
from convoy.input_pipeline.dataset.open import open_dataset

PEERS = {"monitored": "with all monitoring", "bare": "without", "hooks": "with ten empty callbacks"}
_DEVICES = 2
_TARGET = 0.02
_TARGET_OF_HOOKS = 0.005
_CALLBACKS = 10
_ENDLESS = 1_000_000  # steps


def define_flags(flags: absl_flags.FlagValues) -> None:
    """Defines the flags of this benchmark."""
    if "data" not in flags:
        absl_flags.DEFINE_string(
            "data", None, "Dataset directory with a validation split. The sample set by default.", flag_values=flags
        )
    absl_flags.DEFINE_integer(
        "steps",
        105,
        "Benchmark monitoring: steps per round, which ends with an evaluation.",
        lower_bound=1,
        flag_values=flags,
    )
    absl_flags.DEFINE_integer(
        "log_every", 20, "Benchmark monitoring: steps per log line.", lower_bound=1, flag_values=flags
    )


def run(flags: absl_flags.FlagValues) -> None:
    """Runs the benchmark, prints the table and writes the JSON file."""
    if flags.peers:
        raise UsageError("--peers has no effect on monitoring, which compares fixed variants. Omit it.")
    console, about = measure.begin()
    with _dataset(flags.data) as data, tempfile.TemporaryDirectory(prefix="convoy-bench-") as notes:
        names = ("batch_size", "image_size", "steps", "log_every", "threads")
        options = {name: getattr(flags, name) for name in names} | {"data": data, "notes": notes}
        measurement = measure.measure("benchmarks.monitoring", PEERS, options, flags.rounds)
        seconds, of_hooks = (
            json.loads((Path(notes) / f"{name}.json").read_text(encoding="utf-8")) for name in ("monitored", "hooks")
        )
    rows = measurement.rows
    shares = _shares(rows["monitored"], rows["bare"])
    shares["of_lines"] = seconds["log"] / seconds["steps"]
    shares["of_hooks"] = of_hooks["hooks"] / of_hooks["steps"]
    measure.write_json(
        flags.json,
        {
            "benchmark": "monitoring",
            "unit": "steps/s",
            "environment": about,
            "settings": options | {"rounds": flags.rounds},
            "rows": [row.as_json() for row in rows.values()],
            "share": shares,
            "target": _TARGET,
            "target_of_hooks": _TARGET_OF_HOOKS,
        },
    )
    _print(console, rows, shares, options)


def _shares(monitored: measure.Row, bare: measure.Row) -> dict[str, float]:
    """Returns the additional time of the monitored rounds as a share of the bare ones: medians over rounds."""
    return {
        "of_time": 1.0 / monitored.ratio_to(bare) - 1.0,
        "of_computing": bare.rate_per_core / monitored.rate_per_core - 1.0,
    }


def _print(
    console: measure.Console,
    rows: Mapping[str, measure.Row],
    shares: Mapping[str, float],
    options: Mapping[str, Any],
) -> None:
    console.print(
        f"convnet on {_DEVICES} logical devices, {options['image_size']}x{options['image_size']}, batch "
        f"{options['batch_size']}, log every {options['log_every']} steps, rounds of {options['steps']} steps and "
        "an evaluation."
    )
    lines = [
        (
            row.label,
            *(f"{1e3 / rate:.1f}" for rate in (row.rate, max(row.rates), min(row.rates))),
            f"{1e3 / row.rate_per_core:.1f}",  # CPU time over all cores
        )
        for row in rows.values()
    ]
    measure.print_table(console, ("ms per step", "median", "min", "max", "computing"), lines)
    console.print(
        f"All monitoring takes {100 * shares['of_time']:.2f} % of step time and {100 * shares['of_computing']:.2f} % "
        f"of CPU time (target: at most {100 * _TARGET:.0f} %); the log lines alone, timed in the loop, "
        f"{100 * shares['of_lines']:.2f} %. {_CALLBACKS} empty callbacks, timed in the "
        f"loop, take {100 * shares['of_hooks']:.3f} % of step time (target: at most {100 * _TARGET_OF_HOOKS:g} %)."
    )


@contextlib.contextmanager
def _dataset(data: str | None) -> Iterator[str]:
    """Yields the given dataset directory, or else the sample set, which is removed on exit."""
    if data:
        dataset = open_dataset(data)
        for split in ("train", "validation"):
            dataset.split(split)  # raises an error if it is missing
        yield str(Path(data).resolve())
        return
    from convoy.core.processes import terminable
    from convoy.input_pipeline.convert.convert import convert
    from convoy.input_pipeline.convert.options import Options
    from convoy.input_pipeline.sample.sample_set import SampleSet

    with terminable(), tempfile.TemporaryDirectory(prefix="convoy-bench-") as scratch:
        photos, output = Path(scratch) / "photos", Path(scratch) / "data"
        SampleSet().write(photos, workers=0)
        convert(Options(images=photos / "train", output=output))
        yield str(output)


# The rest runs in the worker processes.


class _Gate:
    """Lets a loop run a number of steps at a time."""

    def __init__(self):
        self._permits = threading.Semaphore(0)
        self._waiting = threading.Semaphore(0)

    def enter(self) -> None:
        """Called by the loop before each step; waits for permission."""
        if not self._permits.acquire(blocking=False):
            self._waiting.release()
            self._permits.acquire()

    def let_through(self, steps: int) -> None:
        """Returns when the loop has run that many steps and waits before the next."""
        self._permits.release(steps)
        self._waiting.acquire()

    def wait_for_loop(self) -> None:
        """Returns when the loop waits before its first step."""
        self._waiting.acquire()


def prepare(name: str, options: dict[str, Any]) -> Prepared:
    """Prepares a peer: a training loop that waits before its first step.

    Args:
      name: one of PEERS.
      options: data, batch_size, image_size, steps, log_every, and notes: a folder.
    """
    from convoy.input_pipeline.tf_startup import start_tensorflow

    start_tensorflow()
    from convoy.core.devices import parse_devices
    from convoy.trainer import config as configs
    from convoy.trainer import loop
    from convoy.trainer.callbacks.callback_list import CallbackList
    from convoy.trainer.measurement import measurements
    from convoy.trainer.measurement.step_timer import StepTimer

    gate, step_timers = _Gate(), []
    hook_seconds: list[float] = []
    emit = CallbackList.emit

    def timed_emit(*arguments: Any) -> None:  # noqa: ANN401
        start = time.perf_counter()
        emit(*arguments)
        hook_seconds.append(time.perf_counter() - start)

    class GatedStepTimer(StepTimer):
        """Pauses between rounds."""

        def __init__(self, images_per_step: int):
            super().__init__(images_per_step)
            step_timers.append(self)

        @contextlib.contextmanager
        def waiting(self) -> Iterator[None]:
            with self.paused("between rounds"):
                gate.enter()
            with super().waiting():
                yield

    config = configs.load_recipe(str(Path(__file__).with_name("candidates") / "convnet_64.py"))
    config.update(
        {name: options[name] for name in ("batch_size", "image_size")}
        | {"virtual_replicas": _DEVICES, "steps": _ENDLESS, "epochs": 1.0}
        | {
            "eval_every_steps": options["steps"],
            "eval_every_epochs": 0,
            "checkpoint_every_epochs": 0,
            "log_every_steps": options["log_every"],
        }
    )

    def train() -> None:
        try:
            loop.train(
                config,
                data=options["data"],
                workdir=str(Path(tempfile.mkdtemp()) / "run"),
                devices=parse_devices(f"cpu:{_DEVICES}"),
                callbacks=_callbacks(name),
            )
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(1)  # the parent shows the traceback

    def time_round() -> Round:
        watch = Stopwatch()
        gate.let_through(options["steps"])
        done = watch.stop(options["steps"])
        seconds = step_timers[0].seconds() | {"hooks": sum(hook_seconds)}
        (Path(options["notes"]) / f"{name}.json").write_text(json.dumps(seconds), encoding="utf-8")
        return done

    replaced: list[tuple[Any, str, Any]] = [(measurements, "StepTimer", GatedStepTimer)]
    # Every evaluation writes its images, as all evaluations of a short run do.
    has_pictures = name == "monitored"
    replaced.append((measurements.Measurements, "_has_pictures", lambda self, step: has_pictures))
    if name != "monitored":
        replaced.append((loop, "_all_callbacks", lambda config, given: list(given)))
        replaced.append((measurements.Measurements, "log", _no_log))
    if name == "hooks":
        replaced.append((CallbackList, "emit", timed_emit))
    for owner, attribute, replacement in replaced:
        mock.patch.object(owner, attribute, replacement).start()  # until the process exits, together with the loop
    threading.Thread(target=train, daemon=True).start()
    gate.wait_for_loop()
    return Prepared(time_round)


def _callbacks(name: str) -> list[Any]:
    """Returns the callbacks of a peer: a console as on a terminal, none, or empty ones with every hook."""
    from rich.console import Console as RichConsole

    from convoy.trainer.callbacks.callback import HOOKS, Callback
    from convoy.trainer.callbacks.console import Console

    if name == "monitored":
        screen = open(os.devnull, "w")  # noqa: SIM115
        return [Console(RichConsole(file=screen, force_terminal=True, width=120, highlight=False))]
    empty = type("Empty", (Callback,), {hook: lambda self, *arguments: None for hook in HOOKS})
    return [empty() for _ in range(_CALLBACKS)] if name == "hooks" else []


def _no_log(self: Any, sums: Any, last: Any, learning_rate: float) -> Any:  # noqa: ANN401
    """Replaces `Measurements.log`."""
    from convoy.trainer.callbacks.callback import Log

    self.step_timer.window()
    return Log(self._state.step, 0.0, {})


if __name__ == "__main__":
    serve(prepare)
