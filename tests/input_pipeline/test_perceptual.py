import io
import itertools

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from convoy.input_pipeline.images.perceptual import FLAT, NEAR, decode_ratio, near_pairs, perceptual_hash
from convoy.input_pipeline.sample.photograph import photograph

SIDES = (64, 256)


@pytest.fixture(scope="module")
def photographs():
    """Returns, by side, twelve unrelated images of each of four products."""
    return {
        side: [photograph(0, "train", category, category, index, side) for category in range(4) for index in range(12)]
        for side in SIDES
    }


def jpeg(image, quality=85):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def hashed(data):
    """Returns the hash as the converter computes it: of the fewest pixels that libjpeg can decode."""
    image = Image.open(io.BytesIO(data))
    ratio = decode_ratio(*image.size)
    image.draft("RGB", (image.width // ratio, image.height // ratio))
    return perceptual_hash(np.asarray(image.convert("RGB")))


def distance(one, other):
    return (one ^ other).bit_count()


COPIES = {
    "lower quality": lambda image: jpeg(image, 60),
    "three quarters the size": lambda image: jpeg(image.resize((image.width * 3 // 4, image.height * 3 // 4))),
    "half the size": lambda image: jpeg(image.resize((image.width // 2, image.height // 2))),
    "other aspect ratio": lambda image: jpeg(image.resize((image.width, image.height * 3 // 4))),
    "brighter": lambda image: jpeg(ImageEnhance.Brightness(image).enhance(1.06)),
    "more contrast": lambda image: jpeg(ImageEnhance.Contrast(image).enhance(1.15)),
}


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("copy", COPIES)
def test_copies_are_near(photographs, copy, side):
    distances = [distance(hashed(jpeg(image, 92)), hashed(COPIES[copy](image))) for image in photographs[side][::2]]
    assert np.mean(np.array(distances) <= NEAR) >= 0.9, distances


@pytest.mark.parametrize("side", SIDES)
def test_images_of_the_same_product_are_not_near(photographs, side):
    hashes = [hashed(jpeg(image, 92)) for image in photographs[side]]
    assert min(itertools.starmap(distance, itertools.combinations(hashes, 2))) > NEAR


def test_reduced_decode_has_the_hash_of_the_whole_image(photographs):
    import tensorflow as tf

    for side in SIDES:
        for image in photographs[side][::6]:
            data = jpeg(image, 92)
            reduced = tf.raw_ops.DecodeJpeg(contents=data, ratio=decode_ratio(side, side)).numpy()
            assert reduced.shape == (32 if side == 256 else 16,) * 2 + (3,)
            assert distance(perceptual_hash(reduced), perceptual_hash(np.asarray(image))) <= NEAR


def test_decode_ratio():
    assert [decode_ratio(side, 2 * side) for side in (1, 31, 32, 63, 64, 127, 128, 5000)] == [1, 1, 2, 2, 4, 4, 8, 8]


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 9, 3), (9, 1, 1), (8, 8, 3), (7, 300, 1), (700, 500, 3), (40, 40, 4)])
def test_any_shape_has_a_hash_and_one_color_is_flat(shape):
    random = np.random.default_rng(0)
    assert perceptual_hash(np.full(shape, 200, np.uint8)) == FLAT
    assert 0 <= perceptual_hash(random.integers(0, 256, shape).astype(np.uint8)) < 2**64


def test_gray_and_rgb_have_the_same_hash():
    gray = np.random.default_rng(0).integers(0, 256, (24, 30, 1)).astype(np.uint8)
    assert perceptual_hash(gray) == perceptual_hash(gray.repeat(3, 2)) != FLAT


def test_blank_page_with_jpeg_noise_is_flat():
    noise = np.random.default_rng(0).integers(250, 254, (64, 64, 3)).astype(np.uint8)
    assert hashed(jpeg(Image.fromarray(noise))) == FLAT


def test_hash_golden_value():
    blocks = np.random.default_rng(148).integers(0, 256, (10, 12)).astype(np.uint8)
    assert perceptual_hash(blocks.repeat(4, 0).repeat(4, 1)[..., None]) == 0xF488920BAEC636E7


@pytest.mark.parametrize("most", [0, 1, 4, 9])
def test_near_pairs_equal_brute_force(most):
    random = np.random.default_rng(most)
    # Few bits vary, so that many pairs are near.
    hashes = np.unique(random.integers(0, 2**63, 700).astype(np.uint64) & np.uint64(0x0F0F_00FF_0F00_F00F))
    distances = np.bitwise_count(hashes[:, None] ^ hashes)
    near = np.triu((distances <= most) & (hashes[:, None] != FLAT) & (hashes != FLAT), 1)
    found = near_pairs(hashes, most)
    assert found.complete
    assert [found.first.tolist(), found.second.tolist()] == [rows.tolist() for rows in np.nonzero(near)]


def test_empty_and_flat_have_no_near_pairs():
    for hashes in ([], [FLAT], [FLAT, 2**62 + 1]):
        assert len(near_pairs(np.array(hashes, np.uint64)).first) == 0


def test_search_of_many_near_hashes_is_bounded():
    hashes = np.unique(np.random.default_rng(0).integers(0, 2**20, 120_000)).astype(np.uint64) + np.uint64(2**40)
    found = near_pairs(hashes)
    assert not found.complete
    assert 0 < len(found.first) < 4_000_000
    assert (np.bitwise_count(hashes[found.first] ^ hashes[found.second]) <= NEAR).all()
