"""What rests on how TensorFlow and Keras are built inside; `tests/trainer/test_upstream.py` fails when that moves."""

import keras

_SEED_STATE = "seed_generator_state"


def is_seed_state(variable: keras.Variable) -> bool:
    """Whether a non-trainable variable is the state of a `keras.random.SeedGenerator`, [2] of the seed dtype.

    Keras has no public list of a model's seed generators; their variables share this name.
    """
    return variable.name == _SEED_STATE and tuple(variable.shape) == (2,)
