"""Models of users' files: what keeps the contract, and the reason given for what does not."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from convoy.core.errors import UsageError
from convoy.core.user_code import run_file
from convoy.trainer.models import MODELS, build_model
from convoy.trainer.tf_compat.layers import FusedBatchNormalization

SIZE = 32


@pytest.fixture(autouse=True)
def float32_policy():
    keras.config.set_dtype_policy("float32")
    yield
    keras.config.set_dtype_policy("float32")


PROGRAM = """
import keras
import tensorflow as tf
from keras import layers

class Double(layers.Layer):
    def __init__(self):
        super().__init__(name="double")

    def call(self, x):
        return 2 * x

def nested(num_classes, image_size):
    trunk = keras.Sequential(
        [layers.Input((image_size, image_size, 3)), layers.Conv2D(4, 3), layers.BatchNormalization(name="norm")],
        name="trunk",
    )
    inputs = layers.Input((image_size, image_size, 3))
    x = layers.Lambda(lambda x: x + 1)(Double()(trunk(inputs)))
    return keras.Model(inputs, layers.Dense(num_classes)(layers.GlobalAveragePooling2D()(x)))

class Own(keras.Model):
    def __init__(self, num_classes):
        super().__init__()
        self.pool, self.dense = layers.GlobalAveragePooling2D(), layers.Dense(num_classes)

    def call(self, x):
        return self.dense(self.pool(x))

def subclassed(num_classes, image_size):
    return Own(num_classes)

def one_too_many(num_classes, image_size):
    return Own(num_classes + 1)

def two_outputs(num_classes, image_size):
    inputs = layers.Input((image_size, image_size, 3))
    x = layers.GlobalAveragePooling2D()(inputs)
    return keras.Model(inputs, [layers.Dense(num_classes)(x), layers.Dense(2)(x)])

def in_a_dict(num_classes, image_size):
    inputs, x = pooled(image_size)
    return keras.Model(inputs, {"logits": layers.Dense(num_classes)(x)})

def pooled(image_size, channels=3, before=lambda x: x):
    inputs = layers.Input((image_size, image_size, channels))
    return inputs, layers.GlobalAveragePooling2D()(layers.Conv2D(8, 3)(before(inputs)))

def ending_in(image_size, end, **options):
    inputs, x = pooled(image_size, **options)
    return keras.Model(inputs, end(x))

def softmax(num_classes, image_size):
    return ending_in(image_size, layers.Dense(num_classes, activation="softmax"))

def softmax_layer(num_classes, image_size):
    return ending_in(image_size, lambda x: layers.Softmax()(layers.Dense(num_classes)(x)))

def softmax_in_float32(num_classes, image_size):
    return ending_in(image_size, lambda x: layers.Activation("softmax", dtype="float32")(layers.Dense(num_classes)(x)))

def softmax_operation(num_classes, image_size):
    return ending_in(image_size, lambda x: keras.ops.softmax(layers.Dense(num_classes)(x)))

class OwnSoftmax(Own):
    def call(self, x):
        return tf.nn.softmax(super().call(x))

def subclassed_softmax(num_classes, image_size):
    return OwnSoftmax(num_classes)

def sigmoid(num_classes, image_size):
    return ending_in(image_size, layers.Dense(num_classes, activation="sigmoid"))

def log_softmax(num_classes, image_size):
    return ending_in(image_size, layers.Dense(num_classes, activation="log_softmax"))

def gray(num_classes, image_size):
    return ending_in(image_size, layers.Dense(num_classes), channels=1)

def of_224(num_classes, image_size):
    return ending_in(224, layers.Dense(num_classes))

def scaled_twice(num_classes, image_size):
    return ending_in(image_size, layers.Dense(num_classes), before=layers.Rescaling(1 / 255))

def scaled_back(num_classes, image_size):
    both = lambda x: layers.Rescaling(1 / 127.5, offset=-1)(layers.Rescaling(255.0)(x))
    return ending_in(image_size, layers.Dense(num_classes), before=both)

def multiplied_back(num_classes, image_size):
    return ending_in(image_size, layers.Dense(num_classes), before=lambda x: layers.Rescaling(1 / 255)(x * 255))

def to_minus_1_to_1(num_classes, image_size):
    return ending_in(image_size, layers.Dense(num_classes), before=layers.Rescaling(2.0, offset=-1.0))

def application(num_classes, image_size):
    return keras.applications.MobileNetV3Small(
        (image_size, image_size, 3), weights=None, classes=num_classes, classifier_activation=None
    )

def not_a_number(num_classes, image_size):
    return ending_in(image_size, lambda x: layers.Dense(num_classes)(x) / 0.0 * 0.0)

def constant(num_classes, image_size):
    return ending_in(image_size, lambda x: layers.Dense(num_classes)(x * 0))

def beginning_at_0(num_classes, image_size):
    return ending_in(image_size, layers.Dense(num_classes, kernel_initializer="zeros"))

def frozen(num_classes, image_size):
    model = nested(num_classes, image_size)
    model.trainable = False
    return model

def half(num_classes, image_size):
    return ending_in(image_size, layers.Dense(num_classes, dtype="float16"))

def half_at_the_end(num_classes, image_size):
    return ending_in(image_size, lambda x: keras.ops.cast(layers.Dense(num_classes)(x), "float16"))

def synchronized(num_classes, image_size):
    return ending_in(image_size, layers.Dense(num_classes), before=layers.BatchNormalization(synchronized=True))

def nothing(num_classes, image_size):
    nested(num_classes, image_size)

def layer(num_classes, image_size):
    return layers.Dense(num_classes)

def other_arguments(classes, size=32):
    return nested(classes, size)

def fails(num_classes, image_size):
    raise RuntimeError("reason")

def scaled_by(scale, image_size, num_classes):
    return ending_in(image_size, layers.Dense(num_classes)), scale

def own_scaling(num_classes, image_size):
    return scaled_by(lambda pixels: pixels / 127.5 - 1, image_size, num_classes)

def scaling_of_batch(num_classes, image_size):
    return scaled_by(lambda pixels: pixels / keras.ops.max(pixels), image_size, num_classes)

def random_scaling(num_classes, image_size):
    return scaled_by(lambda pixels: pixels * tf.random.uniform([]), image_size, num_classes)

def scaling_to_gray(num_classes, image_size):
    return scaled_by(lambda pixels: pixels[..., :1], image_size, num_classes)

def infinite_scaling(num_classes, image_size):
    return scaled_by(lambda pixels: pixels / 0.0, image_size, num_classes)

def scaling_of_tensorflow(num_classes, image_size):
    return scaled_by(lambda pixels: tf.image.per_image_standardization(pixels), image_size, num_classes)

def model_and_size(num_classes, image_size):
    return nested(num_classes, image_size), image_size

def loses_a_worker(num_classes, image_size):
    raise tf.errors.UnavailableError(None, None, "connection reset")
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    path = tmp_path_factory.mktemp("program") / "mine.py"
    path.write_text(PROGRAM)
    return path


def test_a_user_model_can_nest_models_and_define_layers(program):
    model = build_model(f"{program}:nested", num_classes=3, image_size=SIZE).model
    assert isinstance(model.get_layer("trunk").get_layer("norm"), FusedBatchNormalization)
    assert len({v.path for v in model.variables}) == len(model.variables)
    assert model(np.zeros((2, SIZE, SIZE, 3), np.float32)).shape == (2, 3)


def test_a_user_model_can_be_subclassed(program):
    model = build_model(f"{program}:subclassed", num_classes=3, image_size=SIZE).model
    assert [tuple(v.shape) for v in model.variables] == [(3, 3), (3,)]


def test_a_worker_lost_while_a_user_model_is_built_is_not_the_models_fault(program):
    with pytest.raises(tf.errors.UnavailableError):
        build_model(f"{program}:loses_a_worker", num_classes=3, image_size=SIZE)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("one_too_many", r"\[4\].*num_classes=3"),
        ("two_outputs", "2 outputs in a list"),
        ("in_a_dict", "1 output in a dict"),
        ("softmax", 'activation="softmax"'),
        ("softmax_layer", 'activation="softmax"'),
        ("softmax_in_float32", 'activation="softmax"'),
        ("softmax_operation", 'activation="softmax"'),
        ("subclassed_softmax", 'activation="softmax"'),
        ("sigmoid", 'activation="sigmoid"'),
        ("gray", r"\[32, 32, 1\].*RGB"),
        ("of_224", "224x224.*config.image_size=32"),
        ("scaled_twice", r"Rescaling.*\[0, 255\].*Rescaling\(255.0\)"),
        pytest.param("application", r"Rescaling.*\[0, 255\].*Rescaling\(255.0\)", marks=pytest.mark.slow),
        ("not_a_number", "not finite"),
        ("constant", "same outputs"),
        ("frozen", "trainable=True"),
        ("half", "float16.*config.precision"),
        ("synchronized", "synchronized=True"),
        ("nothing", "None.*`return`"),
        ("scaling_of_batch", "scaling.*other images"),
        ("random_scaling", "scaling.*random"),
        ("scaling_to_gray", "scaling.*same shape"),
        ("infinite_scaling", "scaling.*NaN"),
        ("scaling_of_tensorflow", "scaling.*keras.ops"),
        ("model_and_size", "a tuple"),
        ("layer", "a Dense"),
        ("other_arguments", r"\(classes, size=32\)"),
        ("fails", "RuntimeError: reason"),
        ("subclased", "'subclassed'"),
    ],
)
def test_an_unusable_user_model_is_rejected(program, function, message):
    with pytest.raises(UsageError, match=rf"config\.model\.name='.*mine\.py:{function}'.*{message}"):
        build_model(f"{program}:{function}", num_classes=3, image_size=SIZE)


@pytest.mark.parametrize(
    "function",
    ["log_softmax", "scaled_back", "multiplied_back", "to_minus_1_to_1", "beginning_at_0", "half_at_the_end"],
)
def test_a_user_model_that_keeps_the_contract_in_an_unusual_way_is_accepted(program, function):
    built = build_model(f"{program}:{function}", num_classes=3, image_size=SIZE)
    assert built.model(built.scale_pixels(np.zeros((2, SIZE, SIZE, 3), np.float32))).shape == (2, 3)


def test_a_user_model_can_have_its_own_scaling_and_be_registered(program):
    build = run_file(program).names["own_scaling"]
    MODELS.register("own_scaling_of_test")(build)
    for name in (f"{program}:own_scaling", "own_scaling_of_test"):
        built = build_model(name, num_classes=3, image_size=SIZE)
        assert built.scale_pixels(tf.constant([0.0, 255.0])).numpy().tolist() == [-1.0, 1.0]
        assert built.found.code.path == program
