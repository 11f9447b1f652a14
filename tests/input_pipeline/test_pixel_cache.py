"""The pixel cache, in memory and on a disk: the same images as without it; in memory within the budget."""

import os

import numpy as np
import pytest

from convoy.input_pipeline.augment.pipeline import parse_pipeline
from convoy.input_pipeline.reading.cache import MemoryCache, make_cache
from convoy.input_pipeline.reading.decode import Crop
from convoy.input_pipeline.reading.disk_cache import DiskCache
from convoy.input_pipeline.reading.pixel_store import DiskSpace, PixelStore
from convoy.input_pipeline.reading.reader import BatchSlice
from tests.input_pipeline.datasets import write_split
from tests.input_pipeline.images import pixels
from tests.input_pipeline.streams import SIZE, STRIPED, assert_same, make_split, stream

pytestmark = pytest.mark.slow

IMAGES, EPOCH = 60, 8  # an epoch is 7.5 steps of 8
LARGE = 2**30


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    return make_split(tmp_path_factory.mktemp("data"), IMAGES)


@pytest.fixture(params=["memory", "disk"])
def new_cache(request, tmp_path):
    """Makes an empty cache of a split for a crop."""

    def make(split, crop):
        if request.param == "memory":
            return MemoryCache(split.num_images, budget_bytes=LARGE)
        key = split.shard_paths[0].parent.name
        return DiskCache(split, crop, PixelStore(DiskSpace(tmp_path / "cache", LARGE), key, split.num_images))

    return make


@pytest.mark.parametrize(
    "crop",
    [Crop(SIZE), Crop(8), Crop(20), Crop(SIZE, 0.3), Crop(8, 0.3)],
    ids=lambda crop: f"{crop.size}-{crop.min_area}",
)
@pytest.mark.parametrize("order", [{}, STRIPED], ids=["global", "striped"])
def test_every_epoch_equals_the_uncached_stream(split, crop, order, new_cache):
    cache = new_cache(split, crop)
    options = {"crop": crop, **order}
    assert_same(stream(split, 4 * EPOCH, cache=cache, **options), stream(split, 4 * EPOCH, **options))
    assert cache.keeps(np.arange(IMAGES)).all()


def test_augmentation_comes_after_the_cache(split):
    pipeline = parse_pipeline("crop(scale=0.3..0.8) | flip | contrast(0.5) | trivial", image_size=SIZE)
    cache = MemoryCache(IMAGES, budget_bytes=LARGE)
    options = {"crop": Crop(SIZE, *pipeline.scale), "draws": pipeline.draws, "operations": pipeline.host}
    cached = stream(split, 4 * EPOCH, cache=cache, **options)
    assert_same(cached, stream(split, 4 * EPOCH, **options))
    assert cache.keeps(np.arange(IMAGES)).all()
    first_image = cached["image"][cached["index"] == 0]
    assert len(np.unique(first_image, axis=0)) == len(first_image) >= 4  # differs in each epoch


@pytest.mark.parametrize("crop", [Crop(8), Crop(8, 0.3), Crop(8, resize="pad"), Crop(8, 0.3, resize="crop")])
def test_images_of_any_shape_and_format_equal_the_uncached_ones(tmp_path, crop, new_cache):
    shapes = [(1, 40), (40, 1), (1, 1), (5, 9), (8, 8), (30, 20)] * 3
    images = [pixels(number, 40)[:height, :width] for number, (height, width) in enumerate(shapes)]
    for image_format in ("png", "raw"):
        split = write_split(tmp_path / image_format, images, range(18), image_format)
        cache = new_cache(split, crop)
        options = {"crop": crop, "slices": BatchSlice(5)}
        assert_same(stream(split, 15, cache=cache, **options), stream(split, 15, **options))


@pytest.mark.parametrize("crop", [Crop(8, decode="fast"), Crop(4, 0.6, decode="fast")])
def test_files_that_are_decoded_at_a_smaller_size_equal_the_uncached_ones(tmp_path, crop, new_cache):
    sides = [(16, 16), (40, 33), (8, 8), (30, 20)] * 3
    images = [pixels(number, 40)[:height, :width] for number, (height, width) in enumerate(sides)]
    split = write_split(tmp_path, images, range(12), "jpeg")
    options = {"crop": crop, "slices": BatchSlice(5)}
    uncached = stream(split, 10, **options)
    assert_same(stream(split, 10, cache=new_cache(split, crop), **options), uncached)
    assert not np.array_equal(
        uncached["image"], stream(split, 10, **options | {"crop": crop._replace(decode="exact")})["image"]
    )


@pytest.mark.parametrize("crop", [Crop(8), Crop(8, 0.3)])
def test_cached_images_are_not_read_again(tmp_path, crop, new_cache):
    split = make_split(tmp_path, IMAGES)
    cache = new_cache(split, crop)
    expected = stream(split, 2 * EPOCH, crop=crop)
    stream(split, EPOCH, crop=crop, cache=cache)
    for path in split.shard_paths:
        os.truncate(path, 0)
    assert_same(stream(split, 2 * EPOCH, crop=crop, cache=cache), expected)


@pytest.mark.parametrize("crop", [Crop(SIZE), Crop(8, 0.3)])
def test_full_cache_still_serves_its_images(split, crop):
    cache = MemoryCache(IMAGES, budget_bytes=20_000)
    assert_same(stream(split, 3 * EPOCH, crop=crop, cache=cache), stream(split, 3 * EPOCH, crop=crop))
    assert 0 < cache.keeps(np.arange(IMAGES)).sum() < IMAGES
    assert cache._bytes <= 20_000


def filled(cache: MemoryCache, count: int, size: int) -> int:
    for start in range(0, count, 10):
        cache.keep(np.arange(start, start + 10), np.zeros((10, size, size, 3), np.uint8))
    return int(cache.keeps(np.arange(count)).sum())


def test_auto_stops_once_not_all_images_will_fit():
    image = 32 * 32 * 3 + 300
    for budget, kept in ((1000 * image, 1000), (999 * image, 63)):
        cache = MemoryCache(1000, budget_bytes=budget, only_if_all=True)
        assert filled(cache, 1000, 32) == kept


def test_auto_with_random_crops_caches_large_images_only(monkeypatch):
    monkeypatch.setattr("convoy.input_pipeline.reading.cache.available_memory", lambda: 2**32)
    for size, random_crops, kept in ((64, False, 200), (64, True, 63), (128, True, 200)):
        cache = make_cache("auto", num_images=200, random_crops=random_crops)
        assert filled(cache, 200, size) == kept


def test_processes_of_a_host_share_the_free_memory(monkeypatch):
    monkeypatch.setattr("convoy.input_pipeline.reading.cache.available_memory", lambda: 2 * 10 * (32 * 32 * 3 + 300))
    for mode, processes, kept in (("auto", 1, 10), ("auto", 2, 5), ("memory", 1, 16), ("memory", 4, 4)):
        cache = make_cache(mode, num_images=30, random_crops=False, processes=processes)
        assert filled(cache, 30, 32) == kept, (mode, processes)
    assert make_cache("none", num_images=30, random_crops=False) is None
