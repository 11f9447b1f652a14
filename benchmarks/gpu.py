"""`convoy bench gpu`: the training step on GPUs, compared with Keras `fit` and PyTorch, and on more and more GPUs.

Every peer trains in bfloat16, with Adam, on a batch that stays in memory. Convoy runs with its defaults for GPUs (XLA),
without XLA, deterministically, with four virtual replicas, and on 2, 4, 8, ... GPUs with the same batch on each.
ResNet-50 is that of `keras.applications`; PyTorch's has the same layers with the strides of two convolutions swapped,
which takes 6 % more FLOPs. `--device=cpu` shows on a machine without GPUs that everything works.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import flags as absl_flags

from benchmarks import measure
from benchmarks.step import convoy_step
from benchmarks.step_baselines import LEARNING_RATE, keras_model, prepare_fit, prepare_torch
from benchmarks.workers import PeerError, Prepared, serve, timed
from convoy.core.errors import ConvoyError, UsageError
from convoy.input_pipeline.tf_startup import start_tensorflow
from convoy.trainer.doctor.hardware import driver_gpus, granted_gpus

PEERS = {
    "fit": "Keras fit",
    "torch": "PyTorch eager",
    "torch-compile": "PyTorch, torch.compile",
    "convoy": "Convoy",
    "convoy-no-xla": "Convoy, xla=off",
    "convoy-deterministic": "Convoy, deterministic",
    "convoy-v4": "Convoy, V=4",
}
# Image size, images per GPU and step, and the model's name in `config.model.name`.
MODELS = {"baseline_cnn": (64, 512, "baseline_cnn"), "resnet50": (224, 128, "keras_applications:ResNet50")}
_BASELINE = "fit"
_PRECISION = "bfloat16"


def define_flags(flags: absl_flags.FlagValues) -> None:
    """Defines the flags of this benchmark."""
    measure.define_steps_per_round(flags)
    absl_flags.DEFINE_enum("device", "gpu", ("gpu", "cpu"), "Benchmark gpu: kind of the devices.", flag_values=flags)
    absl_flags.DEFINE_list("models", [*MODELS], "Benchmark gpu: models, of baseline_cnn,resnet50.", flag_values=flags)
    absl_flags.DEFINE_integer(
        "most_devices", 0, "Benchmark gpu: largest number of devices; 0 for all.", lower_bound=0, flag_values=flags
    )


def run(flags: absl_flags.FlagValues) -> None:
    """Runs the benchmark, prints the tables and writes the JSON file."""
    gpus = driver_gpus()
    on_gpu = flags.device == "gpu"
    if on_gpu and not gpus.gpus:
        raise UsageError(
            f"--device=gpu: no GPU ({gpus.problem or 'nvidia-smi lists none'}). --device=cpu tries it out."
        )
    if unknown := [name for name in flags.models if name not in MODELS]:
        raise UsageError(f"--models: unknown model {unknown[0]!r}. Known: {', '.join(MODELS)}.")
    devices = granted_gpus(gpus, os.environ.get("CUDA_VISIBLE_DEVICES"))
    labels = PEERS | _on_more_devices(flags.most_devices or devices or 1)
    peers = {name: labels[name] for name in measure.chosen_peers(flags.peers, labels)}
    console, about = measure.begin()
    content: dict[str, Any] = {
        "benchmark": "gpu",
        "unit": "images/s",
        "baseline": _BASELINE,
        "environment": about | {"gpus": list(gpus.gpus), "driver": gpus.version},
        "settings": {"precision": _PRECISION, "rounds": flags.rounds, "steps_per_round": flags.steps_per_round},
        "seconds_to_first_step": None,
        "models": {},
    }
    try:
        content["seconds_to_first_step"] = seconds_to_first_step(flags.device)
        console.print(f"From the command to the end of the first step: {content['seconds_to_first_step']:.1f} s.")
    except ConvoyError as error:
        measure.say(str(error))
    for model in flags.models:
        size, batch_size, _ = MODELS[model]
        options = {
            **{"model": model, "on_gpu": on_gpu, "threads": flags.threads, "steps_per_round": flags.steps_per_round},
            "image_size": flags.image_size if flags["image_size"].present else size,
            "batch_size": flags.batch_size if flags["batch_size"].present else batch_size,
        }
        measurement = _measure(peers, options, flags.rounds)
        rows = [_line(row, measurement.rows) for row in measurement.rows.values()]
        content["models"][model] = options | {"rows": rows, "skipped": measurement.skipped}
        _print(console, model, options, rows)
        measure.write_json(flags.json, content)  # after each model: a failure of the next one loses nothing


def _measure(peers: Mapping[str, str], options: Mapping[str, Any], rounds: int) -> measure.Measurement:
    """Measures one peer after another, since together they may not fit into the memory of a GPU; skips what fails."""
    rows: dict[str, measure.Row] = {}
    skipped: dict[str, str] = {}
    for name, label in peers.items():
        try:
            measurement = measure.measure("benchmarks.gpu", {name: label}, options, rounds)
        except PeerError as error:
            skipped[name] = str(error).splitlines()[-1].strip()
            measure.say(str(error))
        else:
            rows |= measurement.rows
            skipped |= measurement.skipped
    return measure.Measurement(rows, skipped)


def _on_more_devices(most: int) -> dict[str, str]:
    """Returns the peers on 2, 4, 8, ... devices."""
    peers, devices = {}, 2
    while devices <= most:
        peers[f"convoy-on-{devices}"] = f"Convoy, {devices} devices"
        peers[f"convoy-deterministic-on-{devices}"] = f"Convoy, {devices} devices, deterministic"
        devices *= 2
    return peers


def _line(row: measure.Row, rows: Mapping[str, measure.Row]) -> dict[str, Any]:
    one, _, number = row.peer.partition("-on-")
    devices = int(number or 1)
    speedup = row.ratio_to(rows.get(one)) if number else None
    # PyTorch's processes report neither: the model and the device are the same.
    known = next((other.facts for other in rows.values() if "peak_flops" in other.facts), None)
    utilization = known and row.rate * known["training_flops_per_image"] / (devices * known["peak_flops"])
    return row.as_json() | {
        "devices": devices,
        "ratio": row.ratio_to(rows.get(_BASELINE)),
        "efficiency": speedup and speedup / devices,
        "model_flops_utilization": utilization,
        "facts": dict(row.facts),
    }


def _print(console: measure.Console, model: str, options: Mapping[str, Any], rows: list[dict[str, Any]]) -> None:
    size, batch_size = options["image_size"], options["batch_size"]
    console.print(f"\n{model}, {size}x{size}, {batch_size} images per device, {_PRECISION}:")
    measure.print_table(console, TABLE_COLUMNS, [table_cells(row) for row in rows])


TABLE_COLUMNS = ("images/s", "median", "min", "max", "to Keras fit", "MFU", "efficiency", "memory, MB")


def table_cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns the cells of `TABLE_COLUMNS` for a row as JSON data."""
    return (
        row["label"],
        *(f"{row[name]:,.0f}" for name in ("median", "min", "max")),
        measure.as_times(row["ratio"]),
        measure.as_percent(row["model_flops_utilization"]),
        measure.as_percent(row["efficiency"]),
        f"{row['facts']['memory_mb']:,.0f}" if row["facts"].get("memory_mb") else "",
    )


def seconds_to_first_step(device: str) -> float:
    """Returns the time from the command `convoy train` until its first step is done, with compilation.

    Raises:
      ConvoyError: the command failed.
    """
    with tempfile.TemporaryDirectory(prefix="convoy-bench-") as scratch:
        photos, data, workdir = (Path(scratch, name) for name in ("photos", "data", "run"))
        _convoy("sample", f"--output={photos}", "--categories=2", "--per_category=40", "--test_per_category=1")
        _convoy("convert", f"--images={photos / 'train'}", f"--output={data}")
        started = time.time()
        flags = ("--config=convnet", "--config.batch_size=16", "--config.steps=2", "--config.schedule.warmup_epochs=0")
        _convoy(
            "train",
            *flags,
            f"--data={data}",
            f"--workdir={workdir}",
            f"--devices={device}:{0 if device == 'gpu' else 1}",
        )
        events = [json.loads(line) for line in (workdir / "events.jsonl").read_text().splitlines()]
    return next(event["time"] for event in events if event["event"] == "first_step") - started


def _convoy(*arguments: str) -> None:
    command = [sys.executable, "-m", "convoy", *arguments]
    root = str(Path(__file__).parents[1])
    done = subprocess.run(command, cwd=root, env=os.environ | {"PYTHONPATH": root}, capture_output=True, text=True)
    if done.returncode:
        raise ConvoyError(
            f"`convoy {' '.join(arguments)}` failed (exit code {done.returncode}):\n{done.stderr[-2000:]}"
        )


# The rest runs in the worker processes.


def prepare(name: str, options: dict[str, Any]) -> Prepared:
    """Prepares a peer.

    Args:
      name: one of PEERS, or `NAME-on-DEVICES`.
      options: model, on_gpu, batch_size (images per device), image_size, steps_per_round, threads.
    """
    if name.startswith("torch"):
        return prepare_torch(_PRECISION, options, compiled=name == "torch-compile")
    start_tensorflow()
    if name == "fit":
        fit = prepare_fit(_PRECISION, options)
        fit.time_round()  # so that the memory is that of a step
        return Prepared(fit.time_round, _facts(options))
    kind, _, number = name.partition("-on-")
    devices = int(number or 1)
    train_step, batch, _ = convoy_step(
        _PRECISION,
        devices * options["batch_size"],
        options["image_size"],
        model=MODELS[options["model"]][2],
        virtual_replicas=4 if kind == "convoy-v4" else devices,
        devices=devices,
        deterministic_threads=len(os.sched_getaffinity(0)) if kind == "convoy-deterministic" else 0,
        on_gpu=options["on_gpu"],
        xla="off" if kind == "convoy-no-xla" else "auto",
    )

    def train() -> None:
        for _ in range(options["steps_per_round"]):
            result = train_step(batch, LEARNING_RATE)
        float(result.gradient_norm)

    train()  # as above
    work = options["steps_per_round"] * devices * options["batch_size"]
    return Prepared(timed(train, work), _facts(options))


def _facts(options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the largest use of memory so far (None on the CPU), FLOPs of the model, and the peak of one device."""
    import tensorflow as tf

    from convoy.trainer.cluster.strategy import peak_gpu_memory
    from convoy.trainer.measurement.flops import measured_peak, training_flops
    from convoy.trainer.measurement.peaks import known_peak

    on_gpu, size = options["on_gpu"], options["image_size"]
    facts: dict[str, Any] = {"memory_mb": peak_gpu_memory() / 1e6 if on_gpu else None}
    with tf.device("CPU:0"):
        facts["training_flops_per_image"] = training_flops(keras_model(size, options["model"]), [1, size, size, 3])
    peak = None
    if on_gpu:
        details = tf.config.experimental.get_device_details(tf.config.get_visible_devices("GPU")[0])
        peak = known_peak(details.get("device_name", ""), _PRECISION)
    source = "measured" if peak is None else "data sheet"
    return facts | {"peak_flops": measured_peak(_PRECISION) if peak is None else peak, "peak": source}


if __name__ == "__main__":
    serve(prepare)
