"""Leaves the global state of Keras and TensorFlow as it was found: for code that runs in somebody else's process.

with global_state_kept():
    runtime = make_runtime(...)      # clears Keras' session, sets its dtype policy and all seeds
keras.config.dtype_policy()          # as before
"""

import contextlib
import logging
import random
from collections.abc import Iterator

import keras
import numpy as np
import tensorflow as tf
from keras.src.backend.common import global_state
from tensorflow.python.eager import context
from tensorflow.python.framework import config as tf_config

# What a keras.json or the program around may have changed.
_SETTINGS = {"floatx": "float32", "image_data_format": "channels_last", "epsilon": 1e-7}


@contextlib.contextmanager
def global_state_kept() -> Iterator[None]:
    """Starts with Keras' defaults, and restores at the end what the block has changed for the whole process.

    That is Keras' session (layer names, dtype policy, global seed) and settings, the seeds of Python, NumPy and
    TensorFlow, TensorFlow's determinism and its graph optimizations. Blocks may be nested. Other threads that use Keras
    meanwhile see the state of the block, as with `keras.utils.clear_session`. As `retracing_advice_left_out`.
    """
    names = ("GLOBAL_STATE_TRACKER", "GLOBAL_SETTINGS_TRACKER")
    session = {name: getattr(global_state, name) for name in names}
    settings = {name: getattr(keras.config, name)() for name in _SETTINGS}
    python_random, numpy_random = random.getstate(), np.random.get_state()
    eager = context.context()
    seed = eager._seed
    operation_seeds = None if seed is None else eager._rng.getstate()
    deterministic = tf_config.is_op_determinism_enabled()
    options = tf.config.optimizer.get_experimental_options()
    try:
        keras.utils.clear_session(free_memory=False)
        for name, value in _SETTINGS.items():
            getattr(keras.config, f"set_{name}")(value)
        with retracing_advice_left_out():
            yield
    finally:
        for name, tracker in session.items():
            setattr(global_state, name, tracker)
        for name, value in settings.items():
            getattr(keras.config, f"set_{name}")(value)
        random.setstate(python_random)
        np.random.set_state(numpy_random)
        eager._set_global_seed(seed)
        if operation_seeds:
            eager._rng.setstate(operation_seeds)
        (tf_config.enable_op_determinism if deterministic else tf_config.disable_op_determinism)()
        if tf.config.optimizer.get_experimental_options() != options:
            tf.config.optimizer.set_experimental_options({"arithmetic_optimization": True, **options})


@contextlib.contextmanager
def retracing_advice_left_out() -> Iterator[None]:
    """Leaves out TensorFlow's warning that functions of one name are traced repeatedly, as by several runs."""
    logger = tf.get_logger()
    if _says_more_than_retracing in logger.filters:  # of an outer block
        yield
        return
    logger.addFilter(_says_more_than_retracing)
    try:
        yield
    finally:
        logger.removeFilter(_says_more_than_retracing)


def _says_more_than_retracing(record: logging.LogRecord) -> bool:
    return "triggered tf.function retracing" not in record.getMessage()
