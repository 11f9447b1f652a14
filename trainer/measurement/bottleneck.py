"""Bottleneck analysis: step time split into input wait, gradient reduction and compute, with a one-sentence summary.

    analyzer = BottleneckAnalyzer(session, train_step, worker_group)
    analyzer.probe()                            # once, on all workers at the same step, while training pauses
    analyzer.values(step_timer.window())        # scalars of a log line, by tag
    analyzer.summary(step_timer.steady())       # on all workers: `limits` of result.json

Input wait is timed in every step. The reduction is part of the compiled step, so the probe times it separately: the
median of a few reductions of tensors of the same shapes over the same devices. The rest of the step is compute, which
with several workers includes waiting for the slowest one.
"""

import statistics
import time
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from convoy.core.memory import resident_memory
from convoy.core.processes import usable_cores
from convoy.core.text import joined
from convoy.core.thresholds import INPUT_BOUND_PCT
from convoy.trainer.cluster.strategy import computes_in_bfloat16, peak_gpu_memory, runs_on_gpu
from convoy.trainer.cluster.worker_group import WorkerGroup
from convoy.trainer.config import resolution
from convoy.trainer.measurement.flops import measured_peak, training_flops
from convoy.trainer.measurement.peaks import known_peak
from convoy.trainer.measurement.step_timer import Window
from convoy.trainer.measurement.worker_times import slow_workers
from convoy.trainer.session.prepare import TrainingSession
from convoy.trainer.step.step import TrainStep

_BUSY = 0.7  # share of the cores in use from which the input is limited by CPU and not by storage
_LOW_UTILIZATION = 0.3
_REDUCTIONS = 5


class BottleneckAnalyzer:
    """Measures where step time goes. Every worker has one."""

    def __init__(self, session: TrainingSession, train_step: TrainStep, worker_group: WorkerGroup):
        """Measures nothing yet."""
        self._config, self._plan, self._runtime = session.config, session.plan, session.runtime
        self._dataset = session.dataset
        self._train_step = train_step
        self._worker_group = worker_group
        self._stages = resolution.stages(session.config, session.plan.total_steps)
        self._on_gpu = runs_on_gpu(session.runtime.strategy)
        self._reduction_ms: float | None = None
        self._flops: dict[int, int] = {}  # per image, by image size
        self._peak: float | None = None  # FLOP/s of all devices of all workers

    def probe(self, *, seconds: float | None = None) -> None:
        """Times the reduction, counts the model's FLOPs and determines the devices' peak, on the first call only.

        Leaves weights and random streams unchanged.

        Args:
          seconds: how long to wait for the other workers.

        Raises:
          PeerLostError: another worker is gone.
        """
        if self._reduction_ms is not None:
            return
        reduction = self._time_reduction() if self._plan.replicas > 1 else 0.0
        for size in {stage.size for stage in self._stages}:
            # The batch shape of the training step: a custom model may accept no other.
            batch_shape = [self._plan.virtual_batch_size, size, size, 3]
            self._flops[size] = training_flops(self._runtime.model_for_size(size).model, batch_shape)
        gathered = self._worker_group.exchange("probe", [reduction, self._own_peak()], seconds=seconds)
        self._reduction_ms = 1e3 * max(reduction for reduction, _ in gathered)
        peaks = [peak for _, peak in gathered]
        self._peak = None if None in peaks else sum(peaks)

    def values(self, window: Window) -> dict[str, float]:
        """Returns means over some steps by tag; utilization only if the peak is known. Call `probe` before."""
        split = self._split(window.step_ms_mean, window.input_wait_pct)
        step = self._runtime.state.step - 1
        size = resolution.stage_at(self._config, self._plan.total_steps, step).size
        utilization = self._utilization(window.images_per_second, self._flops[size])
        return {
            **{f"perf/{name}": value for name, value in split.items()},
            "perf/memory_mb": self._memory_mb(),
            **({} if utilization is None else {"perf/model_flops_utilization": utilization}),
        }

    def summary(
        self, steady: Window, own_ms: Sequence[float | None] = (), *, seconds: float | None = None
    ) -> dict[str, Any]:
        """Returns the analysis as JSON data, the same on every worker. All must call it at the same step.

        Args:
          steady: the run's steps without warm-up.
          own_ms: how long each worker takes for its own part of a step (`worker_times`), by rank.
          seconds: how long to wait for the other workers.

        Raises:
          PeerLostError: another worker is gone.
        """
        own = [steady.input_wait_pct, steady.cores_busy, self._memory_mb(), steady.step_ms_mean]
        gathered = self._worker_group.exchange("limits", own, seconds=seconds)
        # A worker that waits for input delays the others, whose compute time then appears longer.
        rank = max(range(len(gathered)), key=lambda rank: gathered[rank][0])
        wait_pct, cores_busy, *_ = gathered[rank]
        step_ms = gathered[0][3]
        split = self._split(step_ms, wait_pct)
        images_per_second = 1e3 * self._plan.global_batch_size / step_ms
        flops = self._mean_flops(steady.steps)
        utilization = self._utilization(images_per_second, flops)
        shares = {name: 100.0 * split[f"{name}_ms"] / step_ms for name in ("input_wait", "reduction", "compute")}
        bound, sentence = self._sentence(shares, cores_busy, utilization, rank)
        slow = [
            {"worker": self._worker_group.address(rank), "own_step_ms": own_ms[rank]} for rank in slow_workers(own_ms)
        ]
        if slow:
            fastest = min(ms for ms in own_ms if ms is not None)
            sentence += (
                f"; {slow[0]['worker']} takes {slow[0]['own_step_ms']:.0f} ms for its own part of a step, the fastest "
                f"worker {fastest:.0f} ms: look at its host"
            )
        return {
            "bound": bound,
            "sentence": sentence,
            "slow_workers": slow,
            "step_ms": step_ms,
            "step_ms_p50": steady.step_ms_p50,
            "step_ms_p95": steady.step_ms_p95,
            **split,
            "input_wait_pct": wait_pct,
            "images_per_second": images_per_second,
            "images_per_second_per_replica": images_per_second / self._plan.replicas,
            "cores_busy": cores_busy,
            "cores": usable_cores(),
            "memory_mb": max(memory for _, _, memory, _ in gathered),
            "memory_of": "device" if self._on_gpu else "process",
            "training_gflops_per_image": flops / 1e9,
            "peak_gflops_per_second": None if self._peak is None else self._peak / 1e9,
            "model_flops_utilization": utilization,
        }

    def input_fixes(self, cores_busy: float) -> list[str]:
        """Returns what would make input faster and is not in use yet, as flags where possible.

        Args:
          cores_busy: mean number of CPU cores this process uses. If most cores are busy, decoding limits the input,
            else storage.
        """
        fixes = ["--config.cache=memory"] * (self._config.cache not in ("memory", "disk"))
        if self._is_busy(cores_busy):
            is_raw = self._dataset.manifest.get("settings", {}).get("encoding") == "raw"
            return [*fixes, "more cores" if is_raw else "`convoy convert` with --encoding=raw"]
        return [*fixes, "a faster disk" if self._config.shuffle == "striped" else "--config.shuffle=striped"]

    def _is_busy(self, cores_busy: float) -> bool:
        return cores_busy * self._worker_group.processes_here >= _BUSY * usable_cores()

    def _split(self, step_ms: float, input_wait_pct: float) -> dict[str, float]:
        waiting = step_ms * input_wait_pct / 100.0
        if self._reduction_ms is None:
            raise AssertionError("probe() must be called first")
        reduction = min(self._reduction_ms, step_ms - waiting)
        return {
            "input_wait_ms": waiting,
            "reduction_ms": reduction,
            "compute_ms": step_ms - waiting - reduction,
        }

    def _time_reduction(self) -> float:
        reduce = self._train_step.reduction_alone()
        reduce()  # compiles
        taken = []
        for _ in range(_REDUCTIONS):
            start = time.perf_counter()
            reduce()
            taken.append(time.perf_counter() - start)
        return statistics.median(taken)

    def _own_peak(self) -> float | None:
        """Returns the FLOP/s of this worker's devices, or None if unknown; CPU devices share one processor."""
        gpus = tf.config.get_visible_devices("GPU") if self._on_gpu else []
        precision = self._runtime.precision
        if self._config.measure_peak:
            return measured_peak(precision) * max(1, len(gpus))
        names = [tf.config.experimental.get_device_details(gpu).get("device_name", "") for gpu in gpus]
        peaks = [peak for name in names if (peak := known_peak(name, precision)) is not None]
        return sum(peaks) if peaks and len(peaks) == len(names) else None

    def _mean_flops(self, steps: int) -> float:
        """Returns the FLOPs per image, averaged over the last `steps` steps."""
        end = self._runtime.state.step
        first = max(0, end - steps)
        of_stages = [max(0, min(end, stage.end_step) - max(first, stage.first_step)) for stage in self._stages]
        flops = sum(count * self._flops[stage.size] for count, stage in zip(of_stages, self._stages, strict=True))
        return flops / (end - first)

    def _utilization(self, images_per_second: float, flops: float) -> float | None:
        return None if self._peak is None else images_per_second * flops / self._peak

    def _memory_mb(self) -> float:
        """Returns the peak memory of a GPU of this worker; without GPUs the current memory of the process."""
        return (peak_gpu_memory() if self._on_gpu else resident_memory()) / 1e6

    def _sentence(
        self, shares: dict[str, float], cores_busy: float, utilization: float | None, rank: int
    ) -> tuple[str, str]:
        """Returns the bottleneck (`input`, `reduction` or `compute`), and a sentence about it with suggested fixes."""
        config, plan, workers = self._config, self._plan, self._worker_group.num_workers
        waiting, reducing, computing = (shares[name] for name in ("input_wait", "reduction", "compute"))
        if waiting >= INPUT_BOUND_PCT and waiting >= reducing:
            return "input", (
                f"input-bound: {waiting:.0f} % of step time is spent waiting for images"
                + (f" on {self._worker_group.address(rank)}" if workers > 1 else "")
                + f"; {'decoding' if self._is_busy(cores_busy) else 'reading'}, {cores_busy:.1f} of {usable_cores()} "
                f"cores busy; try {joined(self.input_fixes(cores_busy), 'or')}"
            )
        if reducing >= INPUT_BOUND_PCT:
            bytes_each = 2 if config.reduce_in_bfloat16 else 4
            parameters = sum(w.shape.num_elements() for w in self._runtime.state.weights)
            fixes = ["a larger --config.batch_size"]
            fixes += ["--config.reduce_in_bfloat16"] * (not config.reduce_in_bfloat16 and not config.deterministic)
            fixes += ["a faster network (see --interface)"] * (workers > self._worker_group.processes_here)
            return "reduction", (
                f"reduction-bound: {reducing:.0f} % of step time reduces {bytes_each * parameters / 1e6:.1f} MB of "
                f"gradients over {plan.replicas} devices; try {joined(fixes, 'or')}"
            )
        fixes = []
        if self._runtime.precision == "float32" and computes_in_bfloat16(self._runtime.strategy):
            fixes.append("--config.precision=bfloat16")
        if self._on_gpu and not self._runtime.use_xla and not config.deterministic:
            fixes.append("--config.xla=on")
        if self._on_gpu and utilization is not None and utilization < _LOW_UTILIZATION:
            fixes.append("a larger --config.batch_size")
        devices = f"{plan.replicas} {'GPU' if self._on_gpu else 'CPU device'}{'s' * (plan.replicas > 1)}"
        used = "" if utilization is None else f" at {100 * utilization:.0f} % of peak FLOP/s"
        fix = f"try {joined(fixes, 'or')}" if fixes else "more or faster devices would help"
        return "compute", f"compute-bound: {computing:.0f} % of step time is compute, on {devices}{used}; {fix}"
