"""`convoy bench step`: the training step of `baseline_cnn` on the CPU, compared with Keras `fit` and PyTorch.

Every peer trains the same model with Adam on a batch that stays in memory, in its usual way: Keras through `compile`
and `fit` with its own layers (timed from the third step of each call on), PyTorch eagerly with channels last and fused
Adam. The GEMM peers measure the peak of the processor's arithmetic, so that a step can also be compared with the
hardware.
"""

from typing import TYPE_CHECKING, Any, NamedTuple

from absl import flags as absl_flags

from benchmarks import measure
from benchmarks.gemm import prepare_gemm
from benchmarks.step_baselines import CLASSES, LEARNING_RATE, keras_model, prepare_fit, prepare_torch
from benchmarks.workers import Prepared, serve, timed
from convoy.core.cluster import Cluster
from convoy.core.errors import UsageError
from convoy.input_pipeline.tf_startup import start_tensorflow
from convoy.trainer.cluster.strategy import cpu_has_bfloat16

if TYPE_CHECKING:
    from convoy.trainer.step.state import TrainState
    from convoy.trainer.step.step import TrainStep

PEERS = {
    "fit-float32": "Keras fit, float32",
    "fit-bfloat16": "Keras fit, mixed_bfloat16",
    "torch-float32": "PyTorch, float32",
    "torch-bfloat16": "PyTorch, bfloat16 autocast",
    "convoy-auto": "Convoy, precision=auto",
    "convoy-float32": "Convoy, float32",
    "convoy-v4": "Convoy, auto, V=4 on one device",
    "convoy-quarter": "Convoy, auto, V=1, a quarter of the batch",
    "convoy-two-devices": "Convoy, auto, V=2 on two logical devices",
    "gemm-float32": "matrix product, float32",
    "gemm-bfloat16": "matrix product, bfloat16",
}
_BASELINE = "fit-float32"


def define_flags(flags: absl_flags.FlagValues) -> None:
    """Defines the flags of this benchmark."""
    measure.define_steps_per_round(flags)


def run(flags: absl_flags.FlagValues) -> None:
    """Runs the benchmark, prints the table and writes the JSON file."""
    if flags.batch_size % 4:
        raise UsageError(f"--batch_size={flags.batch_size} is not a multiple of 4, the largest V in the table.")
    peers = {name: PEERS[name] for name in measure.chosen_peers(flags.peers, PEERS)}
    names = ("batch_size", "image_size", "steps_per_round", "threads")
    options = {name: getattr(flags, name) for name in names} | {"precision": auto_precision()}
    console, about = measure.begin()
    measurement = measure.measure("benchmarks.step", peers, options, flags.rounds)
    table = [_line(row, measurement.rows) for name, row in measurement.rows.items() if not name.startswith("gemm")]
    measure.write_json(
        flags.json,
        {
            "benchmark": "step",
            "unit": "images/s",
            "baseline": _BASELINE,
            "environment": about,
            "settings": options | {"rounds": flags.rounds},
            "rows": table,
            "gemm": [row.as_json() for name, row in measurement.rows.items() if name.startswith("gemm")],
            "skipped": measurement.skipped,
        },
    )
    _print(console, table, measurement, options)


def auto_precision() -> str:
    """Returns what `config.precision=auto` selects on this CPU."""
    return "bfloat16" if cpu_has_bfloat16() else "float32"


def _line(row: measure.Row, rows: dict[str, measure.Row]) -> dict[str, Any]:
    torch_rows = [rows[name] for name in ("torch-float32", "torch-bfloat16") if name in rows]
    return row.as_json() | {
        "ratio": row.ratio_to(rows.get(_BASELINE)),
        "ratio_to_best_torch": row.ratio_to(max(torch_rows, key=lambda r: r.rate, default=None)),
        "share_of_gemm": _share_of_gemm(row, rows),
    }


def _share_of_gemm(row: measure.Row, rows: dict[str, measure.Row]) -> float | None:
    precision = row.facts.get("precision") or row.peer.split("-")[-1]
    gemm = rows.get(f"gemm-{precision}")
    share = row.ratio_to(gemm)
    return None if share is None else share * gemm.facts["training_flops_per_image"]


def _print(
    console: measure.Console,
    table: list[dict[str, Any]],
    measurement: measure.Measurement,
    options: dict[str, Any],
) -> None:
    size = options["image_size"]
    console.print(f"baseline_cnn, {size}x{size}, batch {options['batch_size']}; auto is {options['precision']} here.")
    columns = ("images/s", "median", "min", "max", "to Keras fit", "to best PyTorch", "of GEMM rate", "cores busy")
    lines = [
        (
            line["label"],
            *(f"{line[name]:.0f}" for name in ("median", "min", "max")),
            measure.as_times(line["ratio"]),
            measure.as_times(line["ratio_to_best_torch"]),
            measure.as_percent(line["share_of_gemm"]),
            f"{line['busy_cores']:.1f}",
        )
        for line in table
    ]
    measure.print_table(console, columns, lines)
    gemms = [row for name, row in measurement.rows.items() if name.startswith("gemm")]
    if gemms:
        rates = ", ".join(f"{row.label} {row.rate / 1e9:,.0f} GFLOP/s" for row in gemms)
        console.print(f"{rates}; a step needs {gemms[0].facts['training_flops_per_image'] / 1e9:.2f} GFLOP per image.")
    for name, reason in measurement.skipped.items():
        console.print(f"Skipped: {PEERS[name]} ({reason}).")


# The rest runs in the worker processes.


def prepare(name: str, options: dict[str, Any]) -> Prepared:
    """Prepares a peer.

    Args:
      name: one of PEERS.
      options: batch_size, image_size, steps_per_round, precision.

    Raises:
      SkippedError: PyTorch is not installed.
    """
    kind, _, variant = name.partition("-")
    if kind == "torch":
        return prepare_torch(variant, options)
    start_tensorflow()
    if kind == "gemm":
        from convoy.trainer.measurement.flops import training_flops

        size = options["image_size"]
        return prepare_gemm(variant, training_flops(keras_model(size), [1, size, size, 3]))
    if kind == "fit":
        return prepare_fit(variant, options)
    precision = "float32" if variant == "float32" else options["precision"]
    # The batch of one of four virtual replicas, for comparison with V=4: same batch norm, one update for each.
    batch_size = options["batch_size"] // 4 if variant == "quarter" else options["batch_size"]
    virtual_replicas, devices = {"v4": (4, 1), "two-devices": (2, 2)}.get(variant, (1, 1))
    train_step, batch, _ = convoy_step(
        precision, batch_size, options["image_size"], virtual_replicas=virtual_replicas, devices=devices
    )
    steps = options["steps_per_round"]

    def train() -> None:
        for _ in range(steps):
            result = train_step(batch, LEARNING_RATE)
        float(result.gradient_norm)

    return Prepared(timed(train, steps * batch_size), {"precision": precision})


class InMemory(NamedTuple):
    """A step on a batch in memory.

    Attributes:
      train_step: the step.
      batch: its argument, the same in every call.
      state: the state that it changes.
    """

    train_step: "TrainStep"
    batch: "dict[str, Any]"
    state: "TrainState"


def convoy_step(
    precision: str,
    batch_size: int,
    image_size: int,
    *,
    model: str = "baseline_cnn",
    virtual_replicas: int = 1,
    devices: int = 1,
    cluster: Cluster | None = None,
    deterministic_threads: int = 0,
    on_gpu: bool = False,
    xla: str = "auto",
) -> InMemory:
    """Returns Convoy's training step, and this process's part of a batch for it.

    Must be called before TensorFlow has started: logical devices, precision policy and determinism are set for the
    whole process.

    Args:
      precision: "float32", "bfloat16" or "float16".
      batch_size: images per step, over all devices of all processes.
      image_size: side of the images in pixels.
      model: as in `convoy.trainer.models.build_model`.
      virtual_replicas: V.
      devices: number of logical CPU devices of this process, or of GPUs.
      cluster: the processes that train together; None for a single one.
      deterministic_threads: if above 0, fixes the order of every addition, as `convoy train --deterministic` does with
        that many threads per operation.
      on_gpu: whether to train on GPUs.
      xla: `config.xla`.
    """
    import numpy as np
    import tensorflow as tf

    from convoy.core.devices import parse_devices
    from convoy.input_pipeline.augment.pipeline import CROP_DRAWS
    from convoy.trainer import config as configs
    from convoy.trainer.cluster.strategy import make_strategy, set_cpu_threads
    from convoy.trainer.session.objective import Objective
    from convoy.trainer.session.runtime import make_runtime, make_train_step

    config = configs.default_config()
    config.model.name = model
    config.batch_size, config.image_size, config.virtual_replicas = batch_size, image_size, virtual_replicas
    config.precision, config.deterministic, config.xla = precision, deterministic_threads > 0, xla
    if deterministic_threads:
        set_cpu_threads(deterministic_threads)
    which = f"gpu:{','.join(map(str, range(devices)))}" if on_gpu else f"cpu:{devices}"
    strategy = make_strategy(parse_devices(which), cluster=cluster)
    plan = configs.resolve(config, num_images=batch_size, replicas=strategy.num_replicas_in_sync)
    runtime = make_runtime(config, strategy, num_classes=CLASSES)
    train_step = make_train_step(config, plan, runtime, Objective())
    random = np.random.default_rng(0)
    columns = {
        "image": random.integers(0, 256, (batch_size, image_size, image_size, 3), np.uint8),
        "label": random.integers(0, CLASSES, batch_size, np.int32),
        "randomness": random.random((batch_size, CROP_DRAWS), np.float32),
    }
    share = batch_size // strategy.num_replicas_in_sync

    def placed(column: "np.ndarray") -> Any:  # noqa: ANN401
        def own(context):  # noqa: ANN001, ANN202
            replica = context.replica_id_in_sync_group
            with tf.device(strategy.extended.worker_devices[replica % len(strategy.extended.worker_devices)]):
                return tf.constant(column[replica * share :][:share])

        return strategy.experimental_distribute_values_from_function(own)

    return InMemory(train_step, {name: placed(column) for name, column in columns.items()}, runtime.state)


if __name__ == "__main__":
    serve(prepare)
