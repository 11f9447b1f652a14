"""What a run says when its batch does not fit on a device. `tests/gpu/test_runs.py` has a run without memory."""

import re
from types import SimpleNamespace

import pytest
import tensorflow as tf

from convoy.core import exit_codes
from convoy.trainer.session.errors import OutOfMemoryError, is_out_of_memory


def message(images, virtual_replicas):
    plan = SimpleNamespace(
        virtual_batch_size=images, virtual_replicas=virtual_replicas, global_batch_size=images * virtual_replicas
    )
    error = OutOfMemoryError(plan, 224)
    assert error.exit_code == exit_codes.USAGE  # a restart would not help
    return str(error)


@pytest.mark.parametrize(("images", "virtual_replicas", "batch"), [(64, 1, 32), (9, 4, 16), (2, 8, 8)])
def test_a_smaller_batch_that_divides_is_suggested(images, virtual_replicas, batch):
    text = message(images, virtual_replicas)
    assert re.findall(r"--config\.batch_size=(\d+)", text) == [str(batch)]
    assert batch % virtual_replicas == 0
    assert "--find_batch_size" in text and f"--config.virtual_replicas={2 * virtual_replicas}" in text


def test_single_images_that_do_not_fit_need_a_smaller_model():
    text = message(1, 4)
    assert "config.image_size" in text and "--config.batch_size" not in text


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor"), True),
        (tf.errors.InternalError(None, None, "RESOURCE_EXHAUSTED: Out of memory while trying to allocate"), True),
        (tf.errors.InternalError(None, None, "CUDNN_STATUS_ALLOC_FAILED"), True),
        (tf.errors.InternalError(None, None, "CUDA_ERROR_ILLEGAL_ADDRESS"), False),
        (MemoryError(), True),
    ],
)
def test_errors_that_mean_out_of_memory(error, expected):
    assert is_out_of_memory(error) == expected
