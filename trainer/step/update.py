"""The update of a training step, once per step, from reduced gradients, which are the same on every device.

    update = Update(state, settings)
    gradient_norm, finite = update(phase, gradients, statistics, learning_rate, number)   # in replica context

In this order: gradient norm, overflow check, clipping, optimizer, moving average of the weights, batch statistics, loss
scale. Every device updates its own copy of the variables, in the same way. After an overflow it assigns their old
values instead of branching, since the branch of a GPU would wait for the host.
"""

import functools

import tensorflow as tf

from convoy.trainer.cluster.strategy import runs_on_gpu
from convoy.trainer.step.freezing import Phase
from convoy.trainer.step.optimizers import Slots, decays_weight
from convoy.trainer.step.settings import StepSettings
from convoy.trainer.step.state import TrainState

_LOSS_SCALE_GROWTH_STEPS = 2000
_LARGEST_LOSS_SCALE = 2.0**24


class Update:
    """Applies reduced gradients to a state."""

    def __init__(self, state: TrainState, settings: StepSettings):
        """Compiles nothing yet."""
        self._state = state
        self._settings = settings
        # These kernels need a branch, for which a GPU would wait until the host knows `finite`.
        has_kernels = not (settings.use_xla or runs_on_gpu(state.strategy))
        self._in_place = [own.in_place if has_kernels else None for own in state.optimizers]
        self._decays = [decays_weight(tuple(w.shape)) for w in state.weights]
        # Even without `settings.use_xla`: XLA computes the formula of a weight in one pass over memory.
        self._formulas_compiled = tf.function(self._formulas, jit_compile=True, autograph=False)

    def __call__(
        self,
        phase: Phase,
        gradients: list[tf.Tensor],
        statistics: list[tf.Tensor],
        learning_rate: tf.Tensor,
        number: tf.Tensor,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Updates this device's copy of the state. Call it in replica context.

        Args:
          phase: the training phase.
          gradients: float32 mean gradient of each trained weight, in its shape.
          statistics: new value of each batch statistic that changes.
          learning_rate: float32 scalar.
          number: number of the update, float32 scalar, 1 at the first update of the run.

        Returns:
          Global norm of the gradient before clipping, float32 scalar, and whether the update was applied, bool scalar.
          If not, only the loss scale has changed.
        """
        state, settings = self._state, self._settings
        gradient_norm = self._global_norm(gradients)
        finite = tf.math.is_finite(gradient_norm)
        if settings.clip_norm:
            scale = tf.minimum(1.0, settings.clip_norm / tf.maximum(gradient_norm, 1e-12))
            gradients = [g * scale for g in gradients]

        weights = [self._own(state.weights[k].value) for k in phase.weights]
        slots = [{name: self._own(variable) for name, variable in state.slots[k].items()} for k in phase.weights]
        kernels, formulas = [], []
        each = self._rates_and_decays(phase, learning_rate, number)
        for k, weight, slot, gradient, options in zip(phase.weights, weights, slots, gradients, each, strict=True):
            if in_place := self._in_place[k]:
                kernels.append(functools.partial(in_place, weight, slot, gradient, *options))
            else:
                formulas.append((weight, slot, gradient))

        def run_kernels() -> None:
            for kernel in kernels:
                kernel()

        if kernels:
            tf.cond(finite, run_kernels, lambda: None)
        if formulas:
            values = tf.nest.map_structure(tf.convert_to_tensor, formulas)
            new_values = self._formulas_compiled(phase, values, finite, learning_rate, number)
            for (weight, slot, _), (new_weight, new_slot) in zip(formulas, new_values, strict=True):
                weight.assign(new_weight)
                for name, variable in slot.items():
                    variable.assign(new_slot[name])
        if settings.average_decay:
            # A small decay at the start, or the average would stay close to the random initialization.
            decay = tf.minimum(settings.average_decay, (1.0 + number) / (10.0 + number))
            share = tf.where(finite, 1.0 - decay, 0.0)
            for k, weight in zip(phase.weights, weights, strict=True):
                own = self._own(state.averages[k])
                own.assign_sub((own - weight) * share)
        for k, value in zip(phase.statistics, statistics, strict=True):
            own = self._own(state.statistics[k].value)
            own.assign(tf.where(finite, value, own))
        if settings.float16:
            self._adapt_loss_scale(finite)
        return gradient_norm, finite

    def _rates_and_decays(
        self, phase: Phase, learning_rate: tf.Tensor, number: tf.Tensor
    ) -> list[tuple[tf.Tensor, tf.Tensor, bool]]:
        """Returns the learning rate, update number and weight decay flag of each trained weight."""
        groups = list(zip(phase.rates, phase.steps_before, strict=True))
        of_group = {group: (learning_rate * group[0], number - float(group[1])) for group in dict.fromkeys(groups)}
        return [(*of_group[group], self._decays[k]) for k, group in zip(phase.weights, groups, strict=True)]

    def _formulas(
        self,
        phase: Phase,
        values: list[tuple[tf.Tensor, Slots, tf.Tensor]],
        finite: tf.Tensor,
        learning_rate: tf.Tensor,
        number: tf.Tensor,
    ) -> list[tuple[tf.Tensor, Slots]]:
        """Returns the new values of the weights that have no kernel, from weight, slots and gradient of each.

        They are the old ones if the gradient is not finite.
        """
        each = zip(phase.weights, self._rates_and_decays(phase, learning_rate, number), strict=True)
        to_update = [(self._state.optimizers[k], options) for k, options in each if not self._in_place[k]]
        new = [own.formula(*value, *options) for (own, options), value in zip(to_update, values, strict=True)]
        old = [(weight, slots) for weight, slots, _ in values]
        return tf.nest.map_structure(functools.partial(tf.where, finite), new, old)

    def _adapt_loss_scale(self, finite: tf.Tensor) -> None:
        """Halves the scale after an overflow; doubles it after many steps without one (Micikevicius et al. 2018)."""
        scale, counter = self._own(self._state.loss_scale), self._own(self._state.good_steps)
        good_steps = tf.cast(counter, tf.float32) + 1.0  # GPUs have no kernel that adds int32
        grown = good_steps >= _LOSS_SCALE_GROWTH_STEPS
        scale.assign(
            tf.where(
                finite,
                tf.where(grown, tf.minimum(scale * 2.0, _LARGEST_LOSS_SCALE), scale),
                tf.maximum(scale / 2.0, 1.0),
            )
        )
        counter.assign(tf.cast(tf.where(finite & ~grown, good_steps, 0.0), tf.int32))

    def _global_norm(self, gradients: list[tf.Tensor]) -> tf.Tensor:
        if not self._settings.deterministic:
            return tf.linalg.global_norm(gradients)
        return tf.sqrt(tf.reduce_sum(tf.stack([_ordered_sum(tf.square(g)) for g in gradients])))

    def _own(self, variable: tf.Variable) -> tf.Variable:
        """Returns this replica's component of a mirrored variable, which the replica can assign independently."""
        components = self._state.strategy.experimental_local_results(variable)
        if len(components) == 1:
            return components[0]
        context = tf.distribute.get_replica_context()
        replica = tf.get_static_value(tf.convert_to_tensor(context.replica_id_in_sync_group))
        return components[replica % len(components)]


def _ordered_sum(values: tf.Tensor) -> tf.Tensor:
    """Returns the sum in a fixed order: one thread adds each row, so the number of threads does not matter."""
    row = 256
    values = tf.reshape(values, [-1])
    while values.shape[0] > 1:
        padding = -values.shape[0] % row
        values = tf.reduce_sum(tf.reshape(tf.pad(values, [[0, padding]]), [-1, row]), 1)
    return values[0]
