"""Plan of a conversion: duplicates and splits."""

from convoy.input_pipeline.convert.plan import divide, find_duplicates
from convoy.input_pipeline.convert.sources import Source


def sources(classes):
    return [
        Source("", f"{category}/{number}.png", category, size=100)
        for category, images in classes.items()
        for number in range(images)
    ]


def written(path, contents, **facts):
    """Writes a file and returns it as a source."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(contents)
    return Source(str(path), path.name, path.parent.name, len(contents), **facts)


def test_single_image_classes_do_not_increase_the_share_of_the_others():
    classes = {f"rare {number:03d}": 1 for number in range(200)} | {"usual": 50}
    splits = divide(sources(classes), {"train": 0.8, "validation": 0.2}, seed=0)
    assert {image.category for image in splits["validation"]} == {"usual"}
    assert len(splits["validation"]) == 10


def test_duplicate_of_an_earlier_split_is_dropped_in_any_category(tmp_path):
    train = written(tmp_path / "cat" / "1", b"x" * 200, split="train")
    same = written(tmp_path / "cat" / "2", b"x" * 200, split="test")
    other = written(tmp_path / "dog" / "3", b"x" * 200, split="test")
    found = find_duplicates([train, same, other])
    assert found.kept == (train,)
    assert found.dropped == ((same, train), (other, train))
    assert found.conflicting == frozenset()


def test_images_in_a_shard_are_compared_without_the_bytes_that_follow(tmp_path):
    path = tmp_path / "shard"
    path.write_bytes(b"image" * 8 + b"footer" * 20 + b"image" * 8 + b"FOOTER" * 20)
    images = [Source(str(path), str(start), "a", 40, offset=start) for start in (0, 160)]
    assert find_duplicates(images).dropped == ((images[1], images[0]),)
