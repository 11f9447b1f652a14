"""An augmentation operation of your own: a lens that darkens towards the corners.

    convoy train --data=data --workdir=run --config.augment.ops='crop | flip | examples/operation.py:vignette(0.6)'
    convoy augment --data=data --output=augment.html --config.augment.ops='examples/operation.py:vignette(0.6)'

The function takes pixels [batch, height, width, 3] float32 from 0 to 255 and the random numbers of each image, [batch,
draws] float32 in [0, 1), and returns pixels of the same shape and dtype. Convoy draws these numbers from the seed, the
image and the epoch, so that a run is the same on any number of devices and after a resume. For that the function must
be pure: the result for an image depends on its pixels, draws and arguments only. Convoy tries it before training.

Parameters after the draws are the arguments in the pipeline: numbers, integers (`int`), or ranges `low..high`
(`tuple[float, float]`). Once the file is imported, as by a recipe, the operation is `vignette(0.6)` without the path.
"""

import tensorflow as tf

import convoy


@convoy.register_operation("vignette", draws=2, strength=(0, 1))
def vignette(pixels, draws, strength: float = 0.5, radius: tuple[float, float] = (0.5, 1.5)):
    """Darkens the corners by up to this strength, from a random share of half the side on."""
    height, width = pixels.shape[1:3]
    down, right = tf.linspace(-1.0, 1.0, height)[:, tf.newaxis], tf.linspace(-1.0, 1.0, width)
    distance = (down * down + right * right)[tf.newaxis]  # squared; 1 at the middle of each side
    chosen, place = draws[:, 0, tf.newaxis, tf.newaxis], draws[:, 1, tf.newaxis, tf.newaxis]
    start = radius[0] + (radius[1] - radius[0]) * place
    shade = tf.clip_by_value(distance - start, 0.0, 1.0)
    return pixels * (1.0 - strength * chosen * shade)[..., tf.newaxis]
