import numpy as np
import pytest

from tests.trainer.export.helpers import SIZE


@pytest.fixture
def float32_policy():
    import keras

    keras.config.set_dtype_policy("float32")
    yield
    keras.config.set_dtype_policy("float32")


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (5, SIZE, SIZE, 3), np.uint8)
