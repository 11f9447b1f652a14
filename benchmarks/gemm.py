"""How fast this machine multiplies matrices, and how many floating point operations a training step needs at least.

Their ratio says how much of the machine a training step uses, which no comparison with another library can.
"""

from typing import TYPE_CHECKING

from benchmarks.workers import Prepared, Stopwatch

if TYPE_CHECKING:
    import keras

_SIZE = 2048
_REPEATS = 24


def prepare_gemm(dtype: str, training_flops_per_image: int) -> Prepared:
    """Prepares products of square matrices, large enough that nothing but the arithmetic counts.

    Args:
      dtype: "float32" or "bfloat16".
      training_flops_per_image: passed on as a fact.
    """
    import tensorflow as tf

    left, right = (tf.cast(tf.random.normal([_SIZE, _SIZE], seed=seed), dtype) for seed in (1, 2))

    def time_round():  # noqa: ANN202
        watch = Stopwatch()
        for _ in range(_REPEATS):
            product = tf.matmul(left, right)
        float(product[0, 0])
        return watch.stop(_REPEATS * 2 * _SIZE**3)

    return Prepared(time_round, {"training_flops_per_image": training_flops_per_image})


def training_flops(model: "keras.Model") -> int:
    """Returns the floating point operations of one image's way forward and back through convolutions and dense layers.

    A multiplication and an addition count as two. The backward pass takes two products as large as the forward's, one
    for the gradient of the weights and one for that of the input, which the first layer does without. Everything else
    (normalization, activations, the optimizer) is left out, so this is the least that a step needs.
    """
    import keras

    forward = []
    for layer in model.layers:
        if isinstance(layer, keras.layers.Conv2D):
            _, height, width, _ = layer.output.shape
            forward.append(2 * height * width * layer.kernel.shape.num_elements())
        elif isinstance(layer, keras.layers.Dense):
            forward.append(2 * layer.kernel.shape.num_elements())
    return 3 * sum(forward) - forward[0]
