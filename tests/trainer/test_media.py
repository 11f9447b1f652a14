import io

import numpy as np
import tensorflow as tf
from PIL import Image

from convoy.input_pipeline.augment.pipeline import parse_pipeline
from convoy.trainer.callbacks.tensorboard_pages import train_batch


def test_training_batch_is_shown_augmented():
    count, size = 4, 32
    batch = {
        "image": tf.fill([count, size, size, 3], tf.constant(10, tf.uint8)),
        "label": tf.zeros([count], tf.int32),
        "randomness": tf.constant(np.random.default_rng(0).random((count, 16)), tf.float32),
    }
    strategy = tf.distribute.OneDeviceStrategy("cpu:0")

    def erased_pixels(text):
        pipeline = parse_pipeline(text, image_size=size)
        (shown,) = train_batch(batch, pipeline.device, ["mug"], strategy)
        picture = np.asarray(Image.open(io.BytesIO(shown.tensor.string_val[-1])))
        return int((picture == 128).all(-1).sum())

    assert erased_pixels("flip") < 20  # at most pixels of the captions
    assert erased_pixels("erase(1, area=0.3..0.3)") > 1000
