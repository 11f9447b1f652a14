import numpy as np
import pytest

from input_pipeline.order import image_randomness, permute, positions_to_images

# These two tables are what existing runs were trained with. A run resumes by computing its order anew, so if one of
# these numbers changes, every checkpoint ever written continues with other images: change the code, never the tables.
GOLDEN_ORDER = [  # (num_images, seed, epoch, the images at positions 0 to 9 of that epoch)
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
GOLDEN_RANDOMNESS = [  # (index, epoch, seed, the first three numbers times 2**24)
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
def test_the_order_of_existing_runs_never_changes(num_images, seed, epoch, images):
    assert permute(np.arange(10), num_images=num_images, seed=seed, epoch=epoch).tolist() == images
    positions = epoch * num_images + np.arange(10)
    at_positions, epochs = positions_to_images(positions, num_images=num_images, seed=seed)
    assert at_positions.tolist() == images
    assert epochs.tolist() == [epoch] * 10


@pytest.mark.parametrize(("index", "epoch", "seed", "numbers"), GOLDEN_RANDOMNESS)
def test_the_random_numbers_of_existing_runs_never_change(index, epoch, seed, numbers):
    drawn = image_randomness(np.array([index]), np.array([epoch]), seed=seed, draws=3)
    assert (drawn[0] * 2**24).tolist() == numbers


@pytest.mark.parametrize("seed", [0, 1, 2**63, -5])
def test_every_epoch_of_up_to_200_images_shows_each_image_once(seed):
    for num_images in range(1, 201):
        for epoch in (0, 1, 17):
            permuted = permute(np.arange(num_images), num_images=num_images, seed=seed, epoch=epoch)
            assert np.array_equal(np.sort(permuted), np.arange(num_images)), (num_images, epoch)


@pytest.mark.parametrize("num_images", [4095, 4096, 4097, 65536, 65537, 105_390])
def test_every_epoch_of_many_images_shows_each_image_once(num_images):
    permuted = permute(np.arange(num_images), num_images=num_images, seed=3, epoch=5)
    assert np.array_equal(np.sort(permuted), np.arange(num_images))


@pytest.mark.parametrize("num_images", [14_197_122, 2**32 - 1, 2**32 + 1, 2**40 + 7, 2**61 + 3])
def test_a_sample_of_a_huge_epoch_stays_in_range_and_repeats_nothing(num_images):
    positions = np.unique(np.random.default_rng(0).integers(0, num_images, 50_000))
    permuted = permute(positions, num_images=num_images, seed=3, epoch=5)
    assert permuted.dtype == np.int64
    assert permuted.min() >= 0 and permuted.max() < num_images
    assert len(np.unique(permuted)) == len(positions)


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = [
        permute(np.arange(1000), num_images=1000, seed=seed, epoch=epoch) for seed in range(5) for epoch in range(5)
    ]
    for i, one in enumerate(orders):
        for other in orders[:i]:
            assert (one == other).sum() < 12  # two independent orders agree in one place, on average
        assert (one == np.arange(1000)).sum() < 12


@pytest.mark.parametrize("num_images", [10, 64, 100])
def test_over_the_epochs_every_image_comes_to_every_place_equally_often(num_images):
    epochs = 40 * num_images
    places = np.stack([permute(np.arange(num_images), num_images=num_images, seed=1, epoch=e) for e in range(epochs)])
    for position in (0, 1, num_images // 2, num_images - 1):
        assert chi_square(np.bincount(places[:, position], minlength=num_images)) < 5


def test_neighbours_in_one_epoch_are_no_neighbours_in_the_next():
    permuted = permute(np.arange(10_000), num_images=10_000, seed=0, epoch=0)
    steps = np.diff(permuted) % 10_000
    assert chi_square(np.bincount(steps // 100, minlength=100)) < 5


def test_a_batch_may_cross_the_end_of_an_epoch():
    images, epochs = positions_to_images(np.arange(25), num_images=10, seed=4)
    assert epochs.tolist() == [0] * 10 + [1] * 10 + [2] * 5
    expected = [permute(np.arange(10), num_images=10, seed=4, epoch=epoch) for epoch in range(3)]
    assert images.tolist() == np.concatenate(expected)[:25].tolist()


def test_positions_may_be_asked_for_in_any_order_and_grouping():
    positions = np.random.default_rng(0).permutation(60)
    together, epochs = positions_to_images(positions, num_images=7, seed=9)
    one_by_one = [positions_to_images(np.array([p]), num_images=7, seed=9) for p in positions]
    assert together.tolist() == [images[0] for images, _ in one_by_one]
    assert epochs.tolist() == (positions // 7).tolist()


def test_a_stream_of_one_image_repeats_it():
    images, epochs = positions_to_images(np.arange(5), num_images=1, seed=0)
    assert images.tolist() == [0] * 5
    assert epochs.tolist() == [0, 1, 2, 3, 4]


def test_random_numbers_are_uniform_and_below_one():
    drawn = image_randomness(np.arange(20_000), np.zeros(20_000, np.int64), seed=0, draws=8)
    assert drawn.dtype == np.float32 and drawn.shape == (20_000, 8)
    assert drawn.min() >= 0 and drawn.max() < 1
    for column in drawn.T:
        assert chi_square(np.bincount((column * 64).astype(int), minlength=64)) < 5
    correlations = np.corrcoef(drawn.T)
    assert np.abs(correlations - np.eye(8)).max() < 0.04  # five standard deviations
    assert np.abs(np.corrcoef(drawn[:-1, 0], drawn[1:, 0])[0, 1]) < 0.04


def test_the_first_random_numbers_do_not_depend_on_how_many_are_drawn():
    indices, epochs = np.arange(50), np.arange(50) // 10
    eight = image_randomness(indices, epochs, seed=1, draws=8)
    for draws in (1, 4, 7):
        assert np.array_equal(image_randomness(indices, epochs, seed=1, draws=draws), eight[:, :draws])


def test_random_numbers_follow_from_image_epoch_and_seed_alone():
    indices, epochs = np.array([5, 6, 5, 5]), np.array([0, 0, 1, 0])
    drawn = image_randomness(indices, epochs, seed=1, draws=4)
    assert np.array_equal(drawn[0], drawn[3])
    other_seed = image_randomness(indices, epochs, seed=2, draws=4)
    different = [drawn[0], drawn[1], drawn[2], *other_seed[:3]]
    assert len({row.tobytes() for row in different}) == len(different)
