import numpy as np
import pytest

from convoy.input_pipeline.reading.order import (
    SAMPLINGS,
    Stripes,
    class_sampling,
    image_randomness,
    permute,
    positions_to_images,
    sampled_positions_to_images,
    striped_positions_to_images,
)

# Golden values of existing runs. A resumed run recomputes its order, so if a value changes, every existing checkpoint
# continues with other images: change the code, never the tables.
GOLDEN_ORDER = [  # (num_images, seed, epoch, images at positions 0 to 9 of the epoch)
    (10, 0, 0, [6, 1, 2, 5, 9, 0, 3, 4, 7, 8]),
    (10, 0, 1, [2, 6, 5, 7, 1, 3, 9, 4, 8, 0]),
    (10, 1, 0, [2, 5, 6, 3, 9, 1, 8, 4, 0, 7]),
    (257, 42, 3, [182, 130, 6, 35, 128, 227, 54, 57, 247, 79]),
    (105390, 7, 12, [56046, 49321, 8953, 94922, 68861, 82772, 26597, 100602, 9030, 63993]),
    (
        2**33 + 5,
        -1,
        100,
        [
            7063421853,
            7853502777,
            3469144145,
            6274784522,
            7451218752,
            3794282687,
            3246858855,
            2724436408,
            5733192821,
            4212322944,
        ],
    ),
]
GOLDEN_STRIPES = [  # (shard sizes, window_size, V, G, pieces, seed, epoch, images at positions 0 to 9 of the epoch)
    ((10,), 10, 1, 1, 1, 0, 0, [2, 1, 4, 5, 9, 3, 7, 8, 6, 0]),
    ((4, 6, 5), 8, 1, 4, 2, 0, 0, [7, 14, 6, 3, 5, 9, 4, 8, 10, 12]),
    ((4, 6, 5), 3, 2, 4, 1, 0, 0, [6, 8, 2, 3, 7, 11, 4, 14, 9, 10]),
    ((4, 6, 5), 3, 2, 4, 1, 0, 1, [13, 4, 5, 12, 14, 6, 9, 0, 1, 8]),
    ((4, 6, 5), 3, 2, 4, 1, 1, 0, [7, 8, 11, 2, 6, 9, 1, 13, 3, 10]),
    ((1000, 1, 2500, 0, 700), 512, 4, 64, 3, 42, 3, [502, 567, 4077, 4148, 550, 1665, 1620, 1334, 920, 1650]),
    (
        (10000000, 20000000, 2147483648),
        33554,
        8,
        16,
        16,
        -1,
        100,
        [
            534456601,
            420077960,
            659312332,
            774969613,
            1108423745,
            894437185,
            1176560434,
            1275285611,
            1519240246,
            1442695961,
        ],
    ),
]
GOLDEN_SAMPLED = [  # (images per class, sampling, seed, epoch, images at positions 0 to 9, their passes)
    ((3, 5, 2), "natural", 0, 0, [3, 2, 0, 6, 5, 7, 4, 1, 8, 9], [0] * 10),
    ((1, 2, 9), "balanced", 0, 0, [0, 0, 11, 2, 1, 2, 7, 0, 8, 6], [3, 2, 0, 1, 0, 0, 0, 0, 0, 0]),
    ((1, 2, 9), "balanced", 0, 3, [0, 8, 6, 1, 0, 0, 3, 4, 2, 0], [12, 1, 1, 7, 14, 13, 1, 1, 6, 15]),
    ((1, 2, 9), "inverse_sqrt", 1, 3, [0, 0, 10, 7, 8, 2, 5, 1, 11, 1], [7, 6, 2, 2, 2, 5, 2, 5, 2, 4]),
    (
        *((0, 400, 0, 7, 1), "inverse_sqrt", -1, 100),
        [294, 367, 400, 110, 267, 140, 311, 43, 309, 181],
        [86, 87, 657, 87, 86, 86, 86, 86, 86, 86],
    ),
    (
        *((1000, 30, 2), "balanced", 42, 7),
        [1031, 730, 1031, 1031, 1026, 1001, 1031, 1019, 732, 1027],
        [1232, 2, 1233, 1272, 90, 87, 1229, 86, 2, 83],
    ),
]
GOLDEN_RANDOMNESS = [  # (index, epoch, seed, first three draws times 2**24)
    (0, 0, 42, [3910892, 3147803, 12533417]),
    (1, 0, 42, [13457588, 11014295, 808354]),
    (105389, 7, 42, [5131421, 2482480, 4868351]),
]


def chi_square(counts: np.ndarray) -> float:
    """Returns the statistic's distance from its mean in standard deviations; below 5 for anything near uniform."""
    expected = counts.mean()
    freedom = counts.size - 1
    return (((counts - expected) ** 2 / expected).sum() - freedom) / np.sqrt(2 * freedom)


@pytest.mark.parametrize(("num_images", "seed", "epoch", "images"), GOLDEN_ORDER)
def test_order_golden_values(num_images, seed, epoch, images):
    assert permute(np.arange(10), num_images=num_images, seed=seed, epoch=epoch).tolist() == images
    positions = epoch * num_images + np.arange(10)
    at_positions, epochs = positions_to_images(positions, num_images=num_images, seed=seed)
    assert at_positions.tolist() == images
    assert epochs.tolist() == [epoch] * 10


@pytest.mark.parametrize(("index", "epoch", "seed", "numbers"), GOLDEN_RANDOMNESS)
def test_randomness_golden_values(index, epoch, seed, numbers):
    drawn = image_randomness(np.array([index]), np.array([epoch]), seed=seed, draws=3)
    assert (drawn[0] * 2**24).tolist() == numbers


@pytest.mark.parametrize("seed", [0, 1, 2**63, -5])
def test_each_epoch_of_few_images_has_each_image_once(seed):
    for num_images in range(1, 201):
        for epoch in (0, 1, 17):
            permuted = permute(np.arange(num_images), num_images=num_images, seed=seed, epoch=epoch)
            assert np.array_equal(np.sort(permuted), np.arange(num_images)), (num_images, epoch)


@pytest.mark.parametrize("num_images", [4095, 4096, 4097, 65536, 65537, 105_390])
def test_each_epoch_of_many_images_has_each_image_once(num_images):
    permuted = permute(np.arange(num_images), num_images=num_images, seed=3, epoch=5)
    assert np.array_equal(np.sort(permuted), np.arange(num_images))


@pytest.mark.parametrize("num_images", [14_197_122, 2**32 - 1, 2**32 + 1, 2**40 + 7, 2**61 + 3])
def test_huge_epoch_is_in_range_without_repetition(num_images):
    positions = np.unique(np.random.default_rng(0).integers(0, num_images, 50_000))
    permuted = permute(positions, num_images=num_images, seed=3, epoch=5)
    assert permuted.dtype == np.int64
    assert permuted.min() >= 0 and permuted.max() < num_images
    assert len(np.unique(permuted)) == len(positions)


def test_order_differs_by_epoch_and_seed():
    orders = [
        permute(np.arange(1000), num_images=1000, seed=seed, epoch=epoch) for seed in range(5) for epoch in range(5)
    ]
    for i, one in enumerate(orders):
        for other in orders[:i]:
            assert (one == other).sum() < 12  # two independent orders agree in one position on average
        assert (one == np.arange(1000)).sum() < 12


@pytest.mark.parametrize("num_images", [10, 64, 100])
def test_images_are_uniform_over_positions(num_images):
    epochs = 40 * num_images
    places = np.stack([permute(np.arange(num_images), num_images=num_images, seed=1, epoch=e) for e in range(epochs)])
    for position in (0, 1, num_images // 2, num_images - 1):
        assert chi_square(np.bincount(places[:, position], minlength=num_images)) < 5


def test_neighboring_images_are_not_neighboring_positions():
    permuted = permute(np.arange(10_000), num_images=10_000, seed=0, epoch=0)
    steps = np.diff(permuted) % 10_000
    assert chi_square(np.bincount(steps // 100, minlength=100)) < 5


def test_positions_can_cross_the_end_of_an_epoch():
    images, epochs = positions_to_images(np.arange(25), num_images=10, seed=4)
    assert epochs.tolist() == [0] * 10 + [1] * 10 + [2] * 5
    expected = [permute(np.arange(10), num_images=10, seed=4, epoch=epoch) for epoch in range(3)]
    assert images.tolist() == np.concatenate(expected)[:25].tolist()


def test_positions_can_be_queried_in_any_order_and_grouping():
    positions = np.random.default_rng(0).permutation(60)
    together, epochs = positions_to_images(positions, num_images=7, seed=9)
    one_by_one = [positions_to_images(np.array([p]), num_images=7, seed=9) for p in positions]
    assert together.tolist() == [images[0] for images, _ in one_by_one]
    assert epochs.tolist() == (positions // 7).tolist()


def test_stream_of_one_image_repeats_it():
    images, epochs = positions_to_images(np.arange(5), num_images=1, seed=0)
    assert images.tolist() == [0] * 5
    assert epochs.tolist() == [0, 1, 2, 3, 4]


def test_randomness_is_uniform_and_below_one():
    drawn = image_randomness(np.arange(20_000), np.zeros(20_000, np.int64), seed=0, draws=8)
    assert drawn.dtype == np.float32 and drawn.shape == (20_000, 8)
    assert drawn.min() >= 0 and drawn.max() < 1
    for column in drawn.T:
        assert chi_square(np.bincount((column * 64).astype(int), minlength=64)) < 5
    correlations = np.corrcoef(drawn.T)
    assert np.abs(correlations - np.eye(8)).max() < 0.04  # five standard deviations
    assert np.abs(np.corrcoef(drawn[:-1, 0], drawn[1:, 0])[0, 1]) < 0.04


def test_first_draws_do_not_depend_on_the_number_of_draws():
    indices, epochs = np.arange(50), np.arange(50) // 10
    eight = image_randomness(indices, epochs, seed=1, draws=8)
    for draws in (1, 4, 7):
        assert np.array_equal(image_randomness(indices, epochs, seed=1, draws=draws), eight[:, :draws])


def test_randomness_depends_only_on_image_epoch_and_seed():
    indices, epochs = np.array([5, 6, 5, 5]), np.array([0, 0, 1, 0])
    drawn = image_randomness(indices, epochs, seed=1, draws=4)
    assert np.array_equal(drawn[0], drawn[3])
    other_seed = image_randomness(indices, epochs, seed=2, draws=4)
    different = [drawn[0], drawn[1], drawn[2], *other_seed[:3]]
    assert len({row.tobytes() for row in different}) == len(different)


@pytest.mark.parametrize(
    ("sizes", "window_size", "virtual_replicas", "global_batch_size", "pieces", "seed", "epoch", "images"),
    GOLDEN_STRIPES,
)
def test_striped_shuffle_golden_values(
    sizes, window_size, virtual_replicas, global_batch_size, pieces, seed, epoch, images
):
    stripes = Stripes(np.array(sizes), window_size, virtual_replicas, global_batch_size, pieces)
    positions = epoch * sum(sizes) + np.arange(10)
    at_positions, epochs = striped_positions_to_images(positions, stripes=stripes, seed=seed)
    assert at_positions.tolist() == images
    assert epochs.tolist() == [epoch] * 10


def replicas_of(positions: np.ndarray, stripes: Stripes) -> np.ndarray:
    """Returns the virtual replica of each position, from its definition: the v-th equal slice of each step."""
    slices = np.repeat(np.arange(stripes.virtual_replicas), stripes.global_batch_size // stripes.virtual_replicas)
    return slices[positions % stripes.global_batch_size]


@pytest.mark.parametrize("virtual_replicas", range(1, 17))
@pytest.mark.parametrize("sizes", [(1,), (7,), (3, 1, 5), (0, 41, 0, 60), (23, 23, 23, 24), (1, 150, 2, 46)])
@pytest.mark.parametrize(("window_size", "per_replica", "pieces"), [(1, 1, 1), (7, 3, 3), (1000, 2, 11)])
def test_striped_shuffle_has_each_image_once_per_epoch(sizes, virtual_replicas, window_size, per_replica, pieces):
    num_images = sum(sizes)
    stripes = Stripes(np.array(sizes), window_size, virtual_replicas, virtual_replicas * per_replica, pieces)
    images, epochs = striped_positions_to_images(np.arange(5 * num_images), stripes=stripes, seed=5)
    assert np.array_equal(epochs, np.arange(5 * num_images) // num_images)
    for epoch in range(5):
        assert np.array_equal(np.sort(images[epochs == epoch]), np.arange(num_images))


@pytest.mark.parametrize("virtual_replicas", [1, 3, 8])
@pytest.mark.parametrize(("window_size", "pieces"), [(1, 1), (5, 1), (30, 1), (30, 3), (1000, 4)])
def test_each_virtual_replica_reads_its_stripe_window_by_window(virtual_replicas, window_size, pieces):
    shard_sizes, num_images = np.array([40, 25, 61, 35]), 161
    shard_of = np.repeat(np.arange(4), shard_sizes)
    stripes = Stripes(shard_sizes, window_size, virtual_replicas, 2 * virtual_replicas, pieces)
    positions = np.arange(3 * num_images)
    images, epochs = striped_positions_to_images(positions, stripes=stripes, seed=2)
    windows, replicas = stripes.windows(positions), replicas_of(positions, stripes)
    for epoch in range(3):
        for replica in range(virtual_replicas):
            own = np.flatnonzero((epochs == epoch) & (replicas == replica))
            firsts, begins = np.unique(windows.first[own], return_index=True)
            assert np.array_equal(firsts, own[begins])  # one after another
            sizes = windows.sizes[own[begins]]
            assert sizes.sum() == len(own) and sizes.max() <= window_size and np.ptp(sizes) <= 1
            stretches = 0
            for first, size in zip(firsts, sizes, strict=True):
                window = own[np.searchsorted(own, first) :][:size]
                assert np.array_equal(stripes.following(first, size), window)
                held = np.sort(images[window])
                stretches += 1 + ((np.diff(held) != 1) | (np.diff(shard_of[held]) != 0)).sum()
                assert size < 20 or not np.array_equal(images[window], held)
            # More only where shards, the row and the sections end.
            assert stretches <= len(firsts) * pieces + 5 + pieces
    for position in (0, 7, 160, 161, 300):
        (following,) = stripes.following(position, 2)[1:]
        assert following == positions[(positions > position) & (replicas == replicas[position])][0]


@pytest.mark.parametrize("sizes", [[100] * 10, [1000]])
def test_striped_shuffle_differs_by_epoch_seed_and_virtual_replicas(sizes):
    sizes = np.array(sizes)
    orders = [
        striped_positions_to_images(np.arange(3000), stripes=Stripes(sizes, 128, replicas, 8), seed=seed)[0]
        for replicas in (1, 4)
        for seed in range(3)
    ]
    epochs = [order[1000 * epoch : 1000 * (epoch + 1)] for order in orders for epoch in range(3)]
    for i, one in enumerate(epochs):
        for other in epochs[:i]:
            assert (one == other).sum() < 30


def test_an_image_of_a_single_shard_comes_at_another_time_and_to_another_virtual_replica_in_each_epoch():
    stripes = Stripes(np.array([4000]), 100, 8, 64)
    positions = np.arange(50 * 4000)
    images, _ = striped_positions_to_images(positions, stripes=stripes, seed=0)
    at = np.argsort(images.reshape(50, 4000), axis=1)  # [epoch, image]
    assert abs(np.abs(np.diff(at[:, 17])).mean() / 4000 - 1 / 3) < 0.1  # as for independent places
    met = np.bincount(replicas_of(np.arange(50)[:, np.newaxis] * 4000 + at, stripes)[:, 17], minlength=8)
    assert met.min() > 0 and met.max() < 15


def test_striped_positions_can_be_queried_in_any_order_and_grouping():
    stripes = Stripes(np.array([5, 9, 2]), 4, 3, 6)
    positions = np.random.default_rng(0).permutation(60)
    together, epochs = striped_positions_to_images(positions, stripes=stripes, seed=9)
    one_by_one = [striped_positions_to_images(np.array([p]), stripes=stripes, seed=9) for p in positions]
    assert together.tolist() == [images[0] for images, _ in one_by_one]
    assert epochs.tolist() == (positions // 16).tolist()


def labels_of(sizes: tuple[int, ...]) -> np.ndarray:
    return np.repeat(np.arange(len(sizes)), sizes)


@pytest.mark.parametrize(("sizes", "name", "seed", "epoch", "images", "passes"), GOLDEN_SAMPLED)
def test_class_sampling_golden_values(sizes, name, seed, epoch, images, passes):
    positions = epoch * sum(sizes) + np.arange(10)
    sampling = class_sampling(labels_of(sizes), name)
    at_positions, passes_at = sampled_positions_to_images(positions, sampling=sampling, seed=seed)
    assert at_positions.tolist() == images
    assert passes_at.tolist() == passes


@pytest.mark.parametrize(
    ("name", "quotas"),
    [
        ("natural", [1, 4, 0, 25, 70]),
        ("inverse_sqrt", [6, 12, 0, 31, 51]),  # 100 * (1, 2, 0, 5, 8.37) / 16.37
        ("balanced", [25, 25, 0, 25, 25]),
    ],
)
def test_class_quotas(name, quotas):
    assert class_sampling(labels_of((1, 4, 0, 25, 70)), name).quotas.tolist() == quotas


@pytest.mark.parametrize("name", SAMPLINGS)
@pytest.mark.parametrize("sizes", [(7,), (1, 1), (1, 2, 9), (0, 30, 0, 3, 1), (5, 5, 5, 5), (1, 200)])
def test_every_epoch_meets_class_quotas_and_draws_images_equally_often(name, sizes):
    labels = np.random.default_rng(0).permutation(labels_of(sizes))
    sampling, num_images = class_sampling(labels, name), len(labels)
    assert sampling.quotas.sum() == num_images
    assert all((quota > 0) == (size > 0) for quota, size in zip(sampling.quotas, sizes, strict=True))
    images, passes = sampled_positions_to_images(np.arange(11 * num_images), sampling=sampling, seed=2)
    for epoch in range(11):
        epoch_images = images[epoch * num_images : (epoch + 1) * num_images]
        assert np.array_equal(np.bincount(labels[epoch_images], minlength=len(sizes)), sampling.quotas)
        turns = np.bincount(images[: (epoch + 1) * num_images], minlength=num_images)
        for label in np.flatnonzero(sizes):
            assert np.ptp(turns[labels == label]) <= 1
    assert len(np.unique(np.stack([images, passes]), axis=1).T) == len(images)  # each (image, pass) once


def test_class_sampling_spreads_classes_over_the_epoch():
    sampling = class_sampling(labels_of((10, 1000, 3000)), "balanced")
    images, _ = sampled_positions_to_images(np.arange(4010), sampling=sampling, seed=0)
    assert chi_square(np.bincount(np.flatnonzero(images < 10) // 401, minlength=10)) < 5


def test_class_sampling_differs_by_epoch_and_seed():
    sampling = class_sampling(labels_of((100, 900)), "inverse_sqrt")
    orders = [sampled_positions_to_images(np.arange(3000), sampling=sampling, seed=seed)[0] for seed in range(3)]
    epochs = [order[1000 * epoch : 1000 * (epoch + 1)] for order in orders for epoch in range(3)]
    for i, one in enumerate(epochs):
        for other in epochs[:i]:
            assert (one == other).sum() < 15


def test_sampled_positions_can_be_queried_in_any_order_and_grouping():
    sampling = class_sampling(labels_of((1, 7, 3)), "balanced")
    positions = np.random.default_rng(0).permutation(80)
    together = sampled_positions_to_images(positions, sampling=sampling, seed=9)
    one_by_one = [sampled_positions_to_images(np.array([p]), sampling=sampling, seed=9) for p in positions]
    for column, parts in zip(together, zip(*one_by_one, strict=True), strict=True):
        assert column.tolist() == [part[0] for part in parts]
