import keras

from convoy.trainer.measurement.flops import measured_peak, training_flops

BATCH = (4, 8, 8, 3)


def model_of(*layers):
    return keras.Sequential([keras.layers.Input(BATCH[1:]), *layers])


def test_products_count_two_flops_three_times_except_the_first_twice():
    model = model_of(
        keras.layers.Conv2D(16, 3),  # 6 x 6 x 16 sums over 3 x 3 x 3
        keras.layers.BatchNormalization(),
        keras.layers.DepthwiseConv2D(3),  # 4 x 4 x 16 sums over 3 x 3
        keras.layers.Flatten(),
        keras.layers.Dense(10),  # 10 sums over 256
    )
    first, depthwise, dense = 2 * 6 * 6 * 16 * 27, 2 * 4 * 4 * 16 * 9, 2 * 10 * 256
    assert training_flops(model, BATCH) == 2 * first + 3 * (depthwise + dense)


def test_grouped_convolution_counts_the_channels_of_one_group():
    assert training_flops(model_of(keras.layers.Conv2D(6, 1, groups=3)), BATCH) == 2 * 2 * 8 * 8 * 6 * 1


def test_layers_of_nested_models_count():
    inner = model_of(keras.layers.Conv2D(4, 3))
    assert training_flops(model_of(inner), BATCH) == training_flops(inner, BATCH)


def test_attention_counts_its_matrix_products():
    inputs = keras.layers.Input((8, 8, 3))
    tokens = keras.layers.Reshape((64, 3))(inputs)
    attended = keras.layers.MultiHeadAttention(num_heads=1, key_dim=4)(tokens, tokens)
    projections = 2 * 64 * (3 * 3 * 4 + 4 * 3)
    products = 2 * 2 * 64 * 64 * 4
    first = 2 * 64 * 3 * 4
    assert training_flops(keras.Model(inputs, attended), BATCH) == 3 * (projections + products) - first


def test_measured_peak_is_plausible_for_a_cpu():
    assert 1e9 < measured_peak("float32") < 1e15
