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


SHARES = {"train": 0.8, "validation": 0.1, "test": 0.1}


def split_of(images, shares=SHARES, **options):
    return {image.name: split for split, part in divide(images, shares, seed=0, **options).items() for image in part}


def test_groups_stay_in_one_split_and_classes_keep_their_shares():
    images = sources({"cat": 200, "dog": 100, "eel": 50})
    groups = [images[start : start + 2 + start % 3] for start in range(0, 320, 7)]  # some of two classes
    found = split_of(images, groups=groups)
    used = [{found[image.name] for image in group} for group in groups]
    assert all(len(splits) == 1 for splits in used) and {split for splits in used for split in splits} == set(SHARES)
    for category, number in {"cat": 200, "dog": 100, "eel": 50}.items():
        for split, share in SHARES.items():
            count = sum(found[image.name] == split for image in images if image.category == category)
            assert abs(count - share * number) <= 1 + (split == "train"), (category, split)


def test_a_group_that_is_too_large_leaves_the_other_classes_alone():
    images = sources({"cat": 50, "dog": 50})
    found = split_of(images, {"train": 0.5, "test": 0.5}, groups=[images[:20], images[20:45]])
    assert found[images[0].name] != found[images[20].name]
    assert sum(found[image.name] == "test" for image in images[50:]) == 25


def test_a_class_in_one_group_stays_in_the_first_split():
    images = sources({"cat": 6, "dog": 40})
    found = split_of(images, {"train": 0.1, "test": 0.9}, groups=[images[:6]])
    assert {found[image.name] for image in images[:6]} == {"train"}


def test_every_split_gets_a_group_if_all_images_are_in_groups():
    images = sources({"cat": 30})
    found = split_of(images, SHARES, groups=[images[:14], images[14:26], images[26:]])
    assert set(found.values()) == set(SHARES)
    assert found[images[0].name] == "train"


def test_a_group_with_the_bytes_of_another_class_stays_in_the_first_split():
    images = sources({"cat": 10, "dog": 10})
    groups = [images[start : start + 2] for start in range(0, 20, 2)]
    found = split_of(images, {"train": 0.1, "test": 0.9}, groups=groups, together=frozenset({images[3].name}))
    assert found[images[2].name] == found[images[3].name] == "train"


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
