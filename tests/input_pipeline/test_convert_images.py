"""Images that `convoy convert` changes or leaves out."""

import io
import os

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from convoy import cli
from convoy.input_pipeline.convert.convert import Options, convert
from tests.input_pipeline.conversions import assert_rejected, contents, examples, quarantined
from tests.input_pipeline.images import draw, draw_classes, pixels


@pytest.fixture
def photos(tmp_path):
    return draw_classes(tmp_path / "photos", {"03": 6, "mug": 8})


def converted_image(tmp_path, save, name="odd.png", **options):
    """Converts one image, saved by `save(path)`, and returns (format, pixels, bytes before, bytes after)."""
    path = tmp_path / "photos" / "odd" / name
    path.parent.mkdir(parents=True)
    save(path)
    convert(Options(tmp_path / "photos", tmp_path / "data", validation_fraction=0, **options))
    (example,) = examples(tmp_path / "data").values()
    data = example["image/encoded"]
    height, width = example["image/height"], example["image/width"]
    if example["image/format"] == b"raw":
        array = np.frombuffer(data, np.uint8).reshape(height, width, 3)
    else:
        image = Image.open(io.BytesIO(data))
        assert image.format.lower() == example["image/format"].decode()
        array = np.asarray(image)
    assert array.shape == (height, width, 3) and example["image/channels"] == 3
    return example["image/format"].decode(), array, path.read_bytes(), data


def test_exif_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    array = np.zeros((20, 30, 3), np.uint8)
    array[:10] = 255
    image_format, rotated, *_ = converted_image(
        tmp_path, lambda path: Image.fromarray(array).save(path, quality=95, exif=exif), "rotated.jpg"
    )
    assert image_format == "jpeg" and rotated.shape == (30, 20, 3)
    assert rotated[:, 12:].mean() > 250 and rotated[:, :8].mean() < 5


def test_transparency_is_flattened_onto_white(tmp_path):
    array = np.dstack([pixels(1), np.full((24, 24), 255, np.uint8)])
    array[:12, :, 3] = 0
    image_format, flat, *_ = converted_image(tmp_path, Image.fromarray(array).save)
    assert image_format == "png"
    assert (flat[:12] == 255).all()
    np.testing.assert_array_equal(flat[12:], array[12:, :, :3])


def test_palette_becomes_rgb(tmp_path):
    palette = Image.fromarray(pixels(1)).quantize(16)
    image_format, array, *_ = converted_image(tmp_path, palette.save)
    assert image_format == "png"
    np.testing.assert_array_equal(array, np.asarray(palette.convert("RGB")))


def test_sixteen_bits_become_eight(tmp_path):
    gray = (np.arange(24 * 24).reshape(24, 24) * 100).astype(np.uint16)
    image_format, array, *_ = converted_image(tmp_path, Image.fromarray(gray).save)
    assert image_format == "png"
    np.testing.assert_array_equal(array, np.repeat((gray >> 8)[..., None], 3, 2))


def test_cmyk_becomes_rgb(tmp_path):
    cmyk = Image.fromarray(np.full((24, 24, 3), (200, 40, 90), np.uint8)).convert("CMYK")
    image_format, array, *_ = converted_image(tmp_path, lambda path: cmyk.save(path, quality=95), "cmyk.jpg")
    assert image_format == "jpeg"
    np.testing.assert_allclose(array.mean((0, 1)), (200, 40, 90), atol=4)


@pytest.mark.parametrize(("suffix", "target"), [("bmp", "png"), ("gif", "png"), ("webp", "jpeg"), ("tif", "png")])
def test_other_containers_become_jpeg_or_png(tmp_path, suffix, target):
    image = Image.fromarray(np.full((24, 24, 3), (200, 40, 90), np.uint8))
    image_format, array, *_ = converted_image(tmp_path, image.save, f"a.{suffix}")
    assert image_format == target
    np.testing.assert_allclose(array.mean((0, 1)), (200, 40, 90), atol=4)


def test_format_is_detected_from_the_content_not_from_the_suffix(tmp_path):
    image_format, _, before, after = converted_image(
        tmp_path, lambda path: Image.fromarray(pixels(1)).save(path, "JPEG"), "jpeg.png"
    )
    assert image_format == "jpeg" and before == after


@pytest.mark.parametrize("encoding", ["keep", "jpeg", "png", "raw"])
def test_images_are_resized_and_encoded_as_requested(tmp_path, encoding):
    image_format, array, *_ = converted_image(
        tmp_path, lambda path: draw(path, 7, size=40), "a.jpg", image_size=16, encoding=encoding
    )
    assert image_format == {"keep": "jpeg"}.get(encoding, encoding)
    expected = Image.open(tmp_path / "photos/odd/a.jpg").resize((16, 16), Image.Resampling.BILINEAR)
    assert np.abs(array.astype(int) - np.asarray(expected)).mean() < (4 if image_format == "jpeg" else 1e-9)


def test_duplicates_are_dropped_within_a_class_and_kept_and_listed_across_classes(tmp_path, photos):
    (photos / "03" / "z_copy.jpg").write_bytes((photos / "03" / "03_001.jpg").read_bytes())
    (photos / "mug" / "z_other.jpg").write_bytes((photos / "03" / "03_002.jpg").read_bytes())
    summary = convert(Options(photos, tmp_path / "data", validation_fraction=0.4))
    assert (summary.duplicates, summary.quarantined) == (1, 0)
    assert summary.conflicts == (("mug/z_other.jpg", "03/03_002.jpg"),)
    assert quarantined(tmp_path / "data") == {("03/z_copy.jpg", "same bytes as 03/03_001.jpg")}
    train = examples(tmp_path / "data")
    assert {"03/03_002.jpg", "mug/z_other.jpg"} <= set(train)  # not one in each split
    assert len(train) + len(examples(tmp_path / "data", "validation")) == 15


def test_an_image_in_other_classes_of_other_splits_is_said_on_the_console(tmp_path, photos, capsys):
    test = draw_classes(tmp_path / "test", {"03": 2, "mug": 2}, first=90)
    (test / "mug" / "z_other.jpg").write_bytes((photos / "03" / "03_002.jpg").read_bytes())
    (test / "03" / "z_same.jpg").write_bytes((photos / "03" / "03_001.jpg").read_bytes())
    for split, folder in (("train", photos), ("test", test)):
        command = ["convoy", "convert", f"--images={folder}", f"--output={tmp_path / 'data'}", f"--split={split}"]
        assert cli.main([*command, "--validation_fraction=0"]) == 0
    said = [line for line in capsys.readouterr().out.splitlines() if "another label" in line]
    assert len(said) == 1 and "mug/z_other.jpg" in said[0] and "of train" in said[0]


def break_images(folder):
    whole = (folder / "mug" / "mug_000.jpg").read_bytes()
    (folder / "mug" / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "mug" / "empty.png").write_bytes(b"")
    (folder / "mug" / "text.jpg").write_text("<html>not found</html>")
    png = draw(folder / "mug" / "damaged.png", 55).read_bytes()
    (folder / "mug" / "damaged.png").write_bytes(png[:500] + bytes([png[500] ^ 255]) + png[501:])
    return {"mug/cut.jpg", "mug/empty.png", "mug/text.jpg", "mug/damaged.png"}


def test_bad_images_within_the_limit_are_left_out_with_a_reason(tmp_path, photos):
    bad = break_images(photos)
    (photos / "mug" / "notes.txt").write_text("stray")
    summary = convert(Options(photos, tmp_path / "data", validation_fraction=0, max_bad_fraction=4 / 18))
    reasons = dict(quarantined(tmp_path / "data"))
    assert set(reasons) == bad | {"mug/notes.txt"}
    assert reasons["mug/empty.png"] == "the file is empty"
    assert reasons["mug/text.jpg"] == "HTML, not an image"
    assert (summary.quarantined, summary.ignored) == (4, 1)
    assert len(examples(tmp_path / "data")) == 14


def test_too_many_bad_images_are_an_error_that_lists_some_and_leaves_no_dataset(tmp_path, photos, capsys):
    break_images(photos)
    before = contents(tmp_path)
    assert_rejected(capsys, "mug/", f"--images={photos}", f"--output={tmp_path}/new/data", code=3)
    assert_rejected(
        capsys,
        "--max_bad_fraction=0.1",
        f"--images={photos}",
        f"--output={tmp_path}/data",
        "--max_bad_fraction=.1",
        code=3,
    )
    assert {name: content for name, content in contents(tmp_path).items() if "partial" not in name} == before
    assert (
        cli.main(["convoy", "convert", f"--images={photos}", f"--output={tmp_path}/data", "--max_bad_fraction=.5"]) == 0
    )


def test_pngs_with_large_text_and_profiles_are_images(tmp_path, photos):
    text = PngInfo()
    text.add_text("Comment", "x" * 1_500_000, zip=True)
    for number, more in enumerate(({"pnginfo": text}, {"icc_profile": os.urandom(1_200_000)})):
        Image.new("RGB", (20, 20), (number, 0, 0)).save(photos / "mug" / f"large_{number}.png", **more)
    convert(Options(photos, tmp_path / "data", validation_fraction=0, workers=1))
    assert quarantined(tmp_path / "data") == set()
    assert {"mug/large_0.png", "mug/large_1.png"} <= examples(tmp_path / "data").keys()


def test_decompression_bomb_is_left_out(tmp_path, photos):
    Image.new("1", (20_000, 20_000)).save(photos / "mug" / "bomb.png")
    convert(Options(photos, tmp_path / "data", validation_fraction=0, max_bad_fraction=0.2))
    ((path, reason),) = quarantined(tmp_path / "data")
    assert path == "mug/bomb.png" and "decompression bomb" in reason


def test_limits_are_flags_and_hold_for_what_an_earlier_conversion_finished(tmp_path, photos, capsys):
    large = photos / "mug" / "large.png"
    Image.effect_noise((1000, 1200), 90).save(large)
    assert large.stat().st_size > 2**20
    convert_photos = ["convoy", "convert", f"--images={photos}", f"--output={tmp_path}/data", "--workers=1"]
    assert cli.main([*convert_photos, "--max_bad_fraction=0", "--max_file_mib=1"]) == 3
    error = capsys.readouterr().err
    assert "--max_file_mib=1 allows" in error and "large.png" in error
    assert cli.main([*convert_photos, "--max_megapixels=0"]) == 2
    assert "--max_megapixels=0" in capsys.readouterr().err
    assert cli.main([*convert_photos, "--max_bad_fraction=0"]) == 0
    assert quarantined(tmp_path / "data") == set()


def test_tfds_reads_raw_pixels_of_one_size_as_images(tmp_path, photos):
    import tensorflow_datasets as tfds

    convert(Options(photos, tmp_path / "data", image_size=16, encoding="raw", validation_fraction=0))
    found = examples(tmp_path / "data")
    for example in tfds.builder_from_directory(str(tmp_path / "data")).as_dataset(split="train"):
        raw = found[example["image"]["filename"].numpy().decode()]["image/encoded"]
        assert example["image"]["encoded"].numpy().tobytes() == raw
        assert example["image"]["encoded"].shape == (16, 16, 3)
