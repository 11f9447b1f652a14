"""The training state: all variables that training changes, under names that do not depend on the hardware."""

import hashlib
from collections.abc import Mapping

import keras
import numpy as np
import tensorflow as tf

from convoy.core.errors import DataError
from convoy.core.text import counted
from convoy.trainer.step.optimizers import Optimizer
from convoy.trainer.tf_compat.internals import is_seed_state
from convoy.trainer.tf_compat.layers import all_layers

_INITIAL_FLOAT16_LOSS_SCALE = 2.0**15
_MODEL, _OPTIMIZER, _AVERAGE = "model/", "optimizer/", "average/"


class TrainState:
    """Model variables, optimizer slots, average of the weights, and loss scale, on every device.

    The seed states of dropout are excluded: the step derives them from `(seed, step, virtual replica, layer)`.

    Attributes:
      model: the model.
      strategy: the strategy that the variables were created under.
      weights: trainable variables of the model.
      statistics: other variables of the model, without seed states: the moving averages of batch norm.
      optimizers: the optimizer of each weight; empty for evaluation only.
      slots: for each weight, its variables by slot name.
      averages: average of each weight, for evaluation: a moving average, or a slot of the optimizer; or empty.
      statistics_of_averages: whether `statistics` are computed with the averages, as the optimizer's own: those may be
        far from the weights, unlike moving averages.
      loss_scale: factor of the loss; 1 except in float16.
      good_steps: updates since the loss scale last changed.
      step: number of completed steps.
    """

    def __init__(
        self,
        model: keras.Model,
        optimizer: Optimizer | None,
        strategy: tf.distribute.Strategy,
        *,
        average_weights: bool = False,
        float16: bool = False,
    ):
        """Creates the variables for a model that was built in the scope of `strategy`.

        Args:
          model: the model.
          optimizer: None for evaluation only.
          strategy: the strategy.
          average_weights: whether to keep averages, if the optimizer has none of its own.
          float16: whether the loss is scaled.

        Raises:
          DataError: several variables of the model have the same path.
        """
        self.model = model
        self.strategy = strategy
        self.weights = list(model.trainable_variables)
        self.statistics = [v for v in model.non_trainable_variables if not is_seed_state(v)]
        self.step = 0
        self.optimizers = optimizer.of_weights(self.weights) if optimizer else []
        self.statistics_of_averages = bool(optimizer and optimizer.average)
        with strategy.scope():
            self.slots = [
                {slot: tf.Variable(own.initial(slot, w.value), trainable=False) for slot in own.slots}
                for own, w in zip(self.optimizers, self.weights)  # noqa: B905 (empty, or one per weight)
            ]
            self.averages = [tf.Variable(w.value, trainable=False) for w in self.weights] if average_weights else []
            if optimizer and optimizer.average:
                self.averages = [slots[optimizer.average] for slots in self.slots]
            self.loss_scale = tf.Variable(_INITIAL_FLOAT16_LOSS_SCALE if float16 else 1.0, trainable=False)
            self.good_steps = tf.Variable(0, dtype=tf.int32, trainable=False)
        paths = [v.path for v in self.model_variables]
        repeated = sorted({path for path in paths if paths.count(path) > 1})
        if repeated:
            raise DataError(
                f"model {model.name!r} has several variables at {repeated[0]!r}: give its layers unique names."
            )

    @property
    def model_variables(self) -> list[keras.Variable]:
        """All variables of the model that training changes."""
        return [*self.weights, *self.statistics]

    @property
    def evaluated_weights(self) -> list[tf.Variable]:
        """The weights for evaluation: their average if there is one."""
        return self.averages or [w.value for w in self.weights]

    def named_variables(self) -> dict[str, tf.Variable]:
        """Returns all variables by name: `model/PATH`, `optimizer/SLOT/PATH`, `average/PATH`, `loss_scale/...`."""
        named = {f"{_MODEL}{v.path}": v.value for v in self.model_variables}
        for own, w, slots in zip(self.optimizers, self.weights, self.slots):  # noqa: B905 (empty, or one per weight)
            named |= {f"{_OPTIMIZER}{slot}/{w.path}": v for slot, v in slots.items() if slot != own.average}
        named |= {f"{_AVERAGE}{w.path}": v for w, v in zip(self.weights, self.averages)}  # noqa: B905 (empty, or one per weight)
        return named | {"loss_scale/scale": self.loss_scale, "loss_scale/good_steps": self.good_steps}

    def values(self) -> dict[str, np.ndarray]:
        """Returns host copies of the values of all variables, by name."""
        return {name: self._read(variable) for name, variable in self.named_variables().items()}

    def assign(self, values: Mapping[str, np.ndarray], step: int) -> None:
        """Sets all variables and the step.

        Args:
          values: value of every variable, by the names of `named_variables`.
          step: number of completed steps.

        Raises:
          DataError: a value is missing, unexpected, or has the wrong shape or dtype. Nothing has been changed then.
        """
        named = self.named_variables()
        problems = [f"{name} is missing" for name in named if name not in values]
        problems += [f"{name} is not in this model" for name in values if name not in named]
        for name in named.keys() & values.keys():
            expected = f"{named[name].dtype.name}{list(named[name].shape)}"
            found = f"{values[name].dtype.name}{list(values[name].shape)}"
            if found != expected:
                problems.append(f"{name} is {found} instead of {expected}")
        if problems:
            raise DataError(f"{problems[0]} ({len(problems)} of {counted(len(named), 'variable')} not matching).")
        for name, variable in named.items():
            variable.assign(values[name])
        for layer in all_layers(self.model):
            if isinstance(layer, keras.layers.Normalization):  # computes with copies of its mean and variance
                layer.finalize_state()
        self.step = step

    def weights_by_path(self) -> dict[str, np.ndarray]:
        """Returns host copies of the weights, by path."""
        return {w.path: self._read(w.value) for w in self.weights}

    def weights_sha256(self) -> str:
        """Returns the SHA-256 of the model variables (`weights_sha256` of this module)."""
        return weights_sha256({v.path: self._read(v.value) for v in self.model_variables})

    def evaluated_values(self) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
        """Returns the `evaluated_weights` and the model's other variables, for `keras.Model.stateless_call`.

        They are read on one device of this process, so this is not for replica context.
        """
        others = [v.value for v in self.model.non_trainable_variables]
        local = self.strategy.experimental_local_results
        weights, others = (
            [tf.convert_to_tensor(local(v)[0]) for v in group] for group in (self.evaluated_weights, others)
        )
        return weights, others

    def weight_norm(self) -> float:
        """Returns the global norm of the weights."""
        return float(np.sqrt(sum(float(np.vdot(w, w)) for w in map(self._read, (w.value for w in self.weights)))))

    def _read(self, variable: tf.Variable) -> np.ndarray:
        return np.asarray(self.strategy.experimental_local_results(variable)[0])


def without_optimizer(values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the values of a state (`TrainState.values`) that evaluation needs."""
    return {name: value for name, value in values.items() if not name.startswith(_OPTIMIZER)}


def variable_path(name: str) -> str:
    """Returns the path of the variable that a name in the values of a state is of."""
    return name.removeprefix(_MODEL)


def has_average(values: Mapping[str, np.ndarray]) -> bool:
    """Returns whether the values of a state hold an average of the weights."""
    return any(name.startswith(_AVERAGE) for name in values)


def model_sha256(values: Mapping[str, np.ndarray]) -> str:
    """Returns the `weights_sha256` of the model variables in the values of a state (`TrainState.values`)."""
    return weights_sha256({name.removeprefix(_MODEL): v for name, v in values.items() if name.startswith(_MODEL)})


def weights_sha256(values: Mapping[str, np.ndarray]) -> str:
    """Returns the hex SHA-256 of arrays, sorted by name, each as name, dtype, shape and little-endian bytes."""
    digest = hashlib.sha256()
    for path in sorted(values):
        value = np.ascontiguousarray(values[path])
        little_endian = value.astype(value.dtype.newbyteorder("<"), copy=False)
        digest.update(f"{path}\0{value.dtype.name}\0{'x'.join(map(str, value.shape))}\0".encode())
        digest.update(little_endian.tobytes())
    return digest.hexdigest()
