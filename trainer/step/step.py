"""The training step: forward and backward pass for each virtual replica, one reduction, one update.

    train_step = TrainStep(state, built, settings)
    result = train_step(batch, learning_rate)      # advances state.step

The global batch is split into `V` virtual replicas, each with its own dropout seeds and batch statistics. Each of `R`
devices computes `V / R` of them in turn. Gradients, batch statistics and metric sums go through one packed reduction
(`reduction`); the update (`update`) follows once, on reduced values. The step is therefore the same for any `R` that
divides `V`.

Prior art: VirtualFlow (Or et al., MLSys 2022), EasyScale (Li et al., SC 2023).
"""

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import tensorflow as tf

from convoy.input_pipeline.augment.apply import on_device
from convoy.trainer.models import ModelBundle
from convoy.trainer.step import mixing
from convoy.trainer.step.freezing import Phase, training_phases
from convoy.trainer.step.losses import losses_of
from convoy.trainer.step.reduction import reduce_over_virtual_replicas
from convoy.trainer.step.settings import StepSettings
from convoy.trainer.step.state import TrainState
from convoy.trainer.step.update import Update
from convoy.trainer.tf_compat.internals import is_seed_state


class StepResult(NamedTuple):
    """The result of a step, the same on every device but for the times.

    Attributes:
      sums: [MetricSet.sums_size(num_classes)] float32, metric sums of the batch, from the forward pass of training,
        without class weights. With mixing they are defined as in `convoy.trainer.step.mixing`.
      gradient_norm: float32 scalar, global norm of the mean gradient before clipping.
      finite: bool scalar, whether the update was applied. If not, only the loss scale has changed.
      loss_scale: float32 scalar, the loss scale of this step.
      stop_requested: bool scalar, whether any worker was asked to stop.
      ready: float64 scalar, when the sums of this process's devices were ready for the reduction, in seconds since the
        epoch; 0 in a single process.
      reduced: float64 scalar, when the reduction was done, likewise.
    """

    sums: tf.Tensor
    gradient_norm: tf.Tensor
    finite: tf.Tensor
    loss_scale: tf.Tensor
    stop_requested: tf.Tensor
    ready: tf.Tensor
    reduced: tf.Tensor


class _Reduced(NamedTuple):
    """The result of the reduction, the same on every device: mean gradients and statistics, and sums."""

    gradients: list[tf.Tensor]
    statistics: list[tf.Tensor]
    sums: tf.Tensor
    stop_requested: tf.Tensor
    loss_scale: tf.Tensor
    ready: tf.Tensor
    reduced: tf.Tensor


class TrainStep:
    """The compiled training step."""

    def __init__(
        self,
        state: TrainState,
        built: ModelBundle,
        settings: StepSettings,
        resized: Mapping[int, ModelBundle] | None = None,
    ):
        """Prepares the step. It compiles at the first call for each image size and training phase (`freezing`).

        `built` is the model of `state`; `resized` is the model built for other image sizes, by size.

        Raises:
          UsageError: the settings need a separate head, and the model has none.
        """
        self._state = state
        self._settings = settings
        self._update = Update(state, settings)
        self._is_seed = [is_seed_state(v) for v in built.model.non_trainable_variables]
        make_phases = functools.partial(
            training_phases,
            freeze_steps=settings.freeze_steps,
            backbone_rate=settings.backbone_rate,
            layer_decay=settings.layer_decay,
        )
        self._phases = make_phases(built)
        self._phases_of_size = {size: make_phases(other) for size, other in (resized or {}).items()}
        self._forward_backward_compiled = tf.function(
            self._forward_backward, jit_compile=settings.use_xla or None, autograph=False
        )
        self._run = tf.function(self._all_replicas, autograph=False)

    def __call__(
        self, batch: dict[str, tf.Tensor], learning_rate: float, *, stop_requested: bool = False
    ) -> StepResult:
        """Trains on one global batch.

        Args:
          batch: from the strategy's distributed iterator: per replica `image` [G / R, height, width, 3] uint8, `label`
            [G / R] int32, or [G / R, num_classes] float32 with several labels per image, and `randomness`
            [G / R, draws] float32, where G is the global batch size.
          learning_rate: learning rate of this step.
          stop_requested: whether this worker was asked to stop. The result passes it to all workers at the same step.

        Returns:
          The result. Its tensors may still be pending.
        """
        result = self._run(
            self._phase(batch),
            tf.constant(self._state.step, tf.int64),
            tf.constant(learning_rate, tf.float32),
            tf.constant(stop_requested, tf.float32),
            batch,
        )
        self._state.step += 1
        return result

    def gradients(self, batch: dict[str, tf.Tensor]) -> list[tf.Tensor]:
        """Returns the reduced mean gradient of a global batch without changing the state; for tests and tools."""

        def replica_gradients(step: tf.Tensor, batch: dict[str, tf.Tensor]) -> list[tf.Tensor]:
            return self._reduced(self._phase(batch), step, tf.constant(0.0), batch).gradients

        run = tf.function(
            lambda step, batch: self._state.strategy.run(replica_gradients, (step, batch)), autograph=False
        )
        gradients = run(tf.constant(self._state.step, tf.int64), batch)
        return [self._state.strategy.experimental_local_results(g)[0] for g in gradients]

    def _phase(self, batch: dict[str, tf.Tensor]) -> Phase:
        """Returns the phase of the next step, from its number and image size."""
        image = self._state.strategy.experimental_local_results(batch["image"])[0]
        whole, head = self._phases_of_size.get(image.shape[1], self._phases)
        return head if head and self._state.step < self._settings.freeze_steps else whole

    def reduction_alone(self) -> Callable[[], None]:
        """Returns a function that runs only the reduction of a step and waits for it, to measure its duration.

        It does not change the state. All workers must call it equally often. Sums over the virtual replicas of one
        device are not included.
        """
        settings, state = self._settings, self._state
        replicas = state.strategy.num_replicas_in_sync
        share = settings.virtual_replicas // replicas
        # If its number of virtual replicas is a power of two, a device sends one block, as with one virtual replica.
        virtual_replicas = settings.virtual_replicas if share & (share - 1) else replicas

        def one_replica() -> list[tf.Tensor]:
            # Weights have the devices and shapes of the gradients; the loss scale substitutes for the metric sums.
            values = [tf.identity(w.value) for w in state.weights]  # this replica's component
            values += [tf.cast(tf.identity(v.value), tf.float32) for v in state.statistics]
            values.append(tf.reshape(tf.identity(state.loss_scale), [1]))
            return reduce_over_virtual_replicas(
                lambda virtual_replica: values,
                virtual_replicas=virtual_replicas,
                deterministic=settings.deterministic,
                bfloat16_terms=len(state.weights) if settings.reduce_in_bfloat16 else 0,
            )

        run = tf.function(lambda: state.strategy.run(one_replica), autograph=False)

        def reduce() -> None:
            total = run()  # returns all sums: others would be pruned from the graph
            for value in state.strategy.experimental_local_results(total[-1]):
                value.numpy()

        return reduce

    def _all_replicas(
        self, phase: Phase, step: tf.Tensor, learning_rate: tf.Tensor, stop: tf.Tensor, batch: dict[str, tf.Tensor]
    ) -> StepResult:
        def one_replica(batch: dict[str, tf.Tensor]) -> StepResult:
            reduced = self._reduced(phase, step, stop, batch)
            number = tf.cast(step + 1, tf.float32)
            gradient_norm, finite = self._update(phase, reduced.gradients, reduced.statistics, learning_rate, number)
            return StepResult(
                reduced.sums,
                gradient_norm,
                finite,
                reduced.loss_scale,
                reduced.stop_requested,
                reduced.ready,
                reduced.reduced,
            )

        local = self._state.strategy.experimental_local_results
        result = StepResult(*map(local, self._state.strategy.run(one_replica, (batch,))))
        first = StepResult(*(values[0] for values in result))
        return first._replace(ready=tf.reduce_max(result.ready), reduced=tf.reduce_max(result.reduced))

    def _reduced(self, phase: Phase, step: tf.Tensor, stop: tf.Tensor, batch: dict[str, tf.Tensor]) -> _Reduced:
        """Computes this device's virtual replicas and reduces the results over all of them."""
        settings, state = self._settings, self._state
        context = tf.distribute.get_replica_context()
        share = settings.virtual_replicas // context.num_replicas_in_sync
        first = tf.cast(context.replica_id_in_sync_group, tf.int32) * share
        slice_size = settings.global_batch_size // settings.virtual_replicas
        weights = [tf.convert_to_tensor(w.value) for w in state.weights]
        statistics = [tf.convert_to_tensor(v.value) for v in state.statistics]
        averages = [tf.convert_to_tensor(v) for v in state.averages] if state.statistics_of_averages else []
        loss_scale = tf.convert_to_tensor(state.loss_scale)

        def term(virtual_replica: tf.Tensor) -> list[tf.Tensor]:
            start = (virtual_replica - first) * slice_size
            # [slice_size, ...]: the images of this virtual replica
            part = {name: batch[name][start : start + slice_size] for name in ("image", "label", "randomness")}
            for name, column in part.items():
                part[name] = tf.ensure_shape(column, [slice_size, *batch[name].shape[1:]])
            with tf.device("/CPU:0"):  # where the random numbers of a step are drawn
                stream = step * settings.virtual_replicas + tf.cast(virtual_replica, tf.int64)
            seeds = self._layer_seeds(stream)
            if settings.mixing.is_on:
                part["mixing"] = mixing.draw(settings.mixing, slice_size, seed=settings.seed, step=step, stream=stream)
            *values, sums = self._forward_backward_compiled(
                phase, weights, averages, statistics, seeds, part, loss_scale
            )
            return [*values, tf.concat([sums, [stop]], 0)]

        times: list[tf.Tensor] = []
        several_processes = len(context.strategy.extended.worker_devices) < context.num_replicas_in_sync

        def note_time(values: list[tf.Tensor]) -> None:
            times.append(_time_after(values) if several_processes else tf.constant(0.0, tf.float64))

        total = reduce_over_virtual_replicas(
            term,
            virtual_replicas=settings.virtual_replicas,
            deterministic=settings.deterministic,
            bfloat16_terms=len(phase.weights) if settings.reduce_in_bfloat16 else 0,
            before_exchange=note_time,
        )
        note_time(total)
        gradients, changes, sums = total[: len(phase.weights)], total[len(phase.weights) : -1], total[-1]
        virtual_replicas, global_batch_size = float(settings.virtual_replicas), float(settings.global_batch_size)
        divisor = virtual_replicas * loss_scale if settings.float16 else global_batch_size
        return _Reduced(
            [g / divisor for g in gradients],
            # Averages changes instead of values, so that frozen weights, which count as statistics, stay as they are.
            [
                statistics[k] + tf.cast(change / virtual_replicas, statistics[k].dtype)
                for k, change in zip(phase.statistics, changes, strict=True)
            ],
            sums[:-1],
            sums[-1] > 0,
            loss_scale,
            *times,
        )

    def _layer_seeds(self, stream: tf.Tensor) -> tf.Tensor:
        """Returns the seeds of the random layers for a virtual replica and step, [layers, 2] uint32."""
        # On the host, where GPU dropout kernels expect their seeds.
        with tf.device("/CPU:0"):
            return tf.random.stateless_uniform(
                [max(1, sum(self._is_seed)), 2],
                tf.stack([tf.constant(self._settings.seed, tf.int64), stream]),
                minval=None,
                maxval=None,
                dtype=tf.uint32,
                alg="philox",
            )

    def _losses(
        self, logits: tf.Tensor, labels: tf.Tensor, mixed: mixing.Mixed | None, class_weights: Sequence[float]
    ) -> tf.Tensor:
        """Returns the loss of each image; with mixing of both its labels, by their shares."""
        losses = losses_of(self._settings.loss, logits, labels, class_weights)
        if mixed:
            partner_losses = losses_of(self._settings.loss, logits, mixed.partners, class_weights)
            losses = mixed.shares * losses + (1.0 - mixed.shares) * partner_losses
        return losses

    def _forward_backward(
        self,
        phase: Phase,
        weights: list[tf.Tensor],
        averages: list[tf.Tensor],
        statistics: list[tf.Tensor],
        seeds: tf.Tensor,
        part: dict[str, tf.Tensor],
        loss_scale: tf.Tensor,
    ) -> list[tf.Tensor]:
        """Returns gradient sums, changes of statistics, and metric sums of one virtual replica.

        A pure function: under `tf.distribute`, XLA can compile only those.
        """
        settings, labels = self._settings, part["label"]
        built, model = phase.built, phase.built.model
        pixels = on_device(part["image"], part["randomness"], settings.operations)
        mixed = None
        if settings.mixing.is_on:
            mixed = mixing.mix(pixels, labels, part["mixing"])
            pixels, labels = mixed.pixels, mixed.main_labels
        inputs = tf.cast(built.scale_pixels(pixels), model.compute_dtype)
        seed_of, statistic_of = iter(tf.unstack(seeds)), iter(statistics)
        others = [
            tf.cast(next(seed_of), variable.dtype) if is_seed else next(statistic_of)
            for variable, is_seed in zip(model.non_trainable_variables, self._is_seed, strict=True)
        ]
        trained = [weights[k] for k in phase.weights]
        with tf.GradientTape() as tape:
            tape.watch(trained)
            logits, new_others, penalties = phase.model.stateless_call(
                weights, others, inputs, training=True, return_losses=True
            )
            logits = tf.cast(logits, tf.float32)
            losses = self._losses(logits, part["label"], mixed, ())
            weighted_losses = losses
            if settings.class_weights:
                weighted_losses = self._losses(logits, part["label"], mixed, settings.class_weights)
            loss = tf.reduce_sum(weighted_losses)
            if penalties:  # losses of layers count once per image, so that they too add up over virtual replicas
                loss += float(losses.shape[0]) * tf.add_n([tf.cast(penalty, tf.float32) for penalty in penalties])
            # In float16 the mean of the slice is scaled, because a sum over many images would overflow much earlier.
            scaled_loss = loss * (loss_scale / losses.shape[0]) if settings.float16 else loss
        sparse_or_dense = tape.gradient(scaled_loss, trained, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        gradients = [tf.convert_to_tensor(gradient) for gradient in sparse_or_dense]  # those of an embedding are sparse
        if averages and phase.statistics:  # statistics of the weights that are evaluated, which are not those trained
            _, new_others, _ = phase.model.stateless_call(averages, others, inputs, training=True, return_losses=True)
        new_statistics = [value for value, is_seed in zip(new_others, self._is_seed, strict=True) if not is_seed]
        changes = [tf.cast(new_statistics[k] - statistics[k], tf.float32) for k in phase.statistics]
        return [*gradients, *changes, settings.metrics.batch_sums(logits, labels, losses)]


def _time_after(values: list[tf.Tensor]) -> tf.Tensor:
    """Returns when all values have been computed, a float64 scalar in seconds since the epoch."""
    with tf.control_dependencies(values), tf.device("/CPU:0"):
        on_host = tf.identity(values[-1])  # on a GPU, other operations end when they are queued
        with tf.control_dependencies([on_host]):  # tf.timestamp is refused in deterministic runs
            return tf.ensure_shape(tf.numpy_function(time.time, [], tf.float64), [])
