"""Speed of matrix multiplication on this machine.

Together with the FLOPs of a training step (`convoy.trainer.measurement.flops.training_flops`) it shows how much of the
machine's peak the step uses, which a comparison with another library cannot.
"""

from benchmarks.workers import Prepared, timed

_SIZE = 2048
_REPEATS = 24


def prepare_gemm(dtype: str, training_flops_per_image: int) -> Prepared:
    """Prepares products of square matrices, large enough to be bound by arithmetic.

    Args:
      dtype: "float32" or "bfloat16".
      training_flops_per_image: reported as a fact.
    """
    import tensorflow as tf

    left, right = (tf.cast(tf.random.normal([_SIZE, _SIZE], seed=seed), dtype) for seed in (1, 2))

    def multiply() -> None:
        for _ in range(_REPEATS):
            product = tf.matmul(left, right)
        float(product[0, 0])

    return Prepared(timed(multiply, _REPEATS * 2 * _SIZE**3), {"training_flops_per_image": training_flops_per_image})
