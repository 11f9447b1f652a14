"""Splits that keep images together that look alike or have the same value in a column of the CSV."""

import json
import os
import re
import signal

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from convoy.core.errors import DataError, UsageError
from convoy.input_pipeline.convert.convert import convert
from convoy.input_pipeline.convert.groups import divide_grouped, find_groups
from convoy.input_pipeline.convert.options import Options
from convoy.input_pipeline.convert.publish import WorkingDirectory
from convoy.input_pipeline.convert.sources import Source, Table, list_sources
from convoy.input_pipeline.images.perceptual import FLAT, NEAR
from tests.input_pipeline.conversions import assert_rejected, contents, examples
from tests.input_pipeline.images import draw_classes

CUP, JUG, POT = 0x9D3A_61F0_5C2B_87E4, 0x6B58_C419_E07D_3A92, 0xF1A7_2E83_94D6_0B5C  # unlike each other


def grouped_names(hashes, columns=()):
    images = [Source("", str(i), "a", 9, group=columns[i] if columns else "") for i in range(len(hashes or columns))]
    found, complete = find_groups(images, np.array(hashes, np.uint64) if hashes else None)
    assert complete
    return [[image.name for image in group] for group in found]


def test_look_alikes_are_one_group_also_by_way_of_others():
    near = 2**NEAR - 1  # as many bits as look-alikes may differ in
    assert grouped_names([CUP, JUG, CUP ^ near, POT, CUP ^ near ^ (near << 8)]) == [["0", "2", "4"]]


def test_images_of_a_single_color_and_images_without_a_value_are_in_no_group():
    assert grouped_names([FLAT, FLAT, CUP]) == []
    assert grouped_names([], ["", "anna", "", "otto", "anna"]) == [["1", "4"]]


def test_groups_of_the_column_and_of_look_alikes_are_joined():
    assert grouped_names([CUP, JUG, JUG + 1, POT, FLAT], ["x", "x", "y", "", "y"]) == [["0", "1", "2", "4"]]


def test_blanks_around_a_group_and_unicode_forms_do_not_matter(tmp_path):
    photos = draw_classes(tmp_path / "photos", {"mug": 3})
    lines = [
        "filename,category,patient",
        "mug/mug_000.jpg,m, Zoë",
        "mug/mug_001.jpg,m,Zoe\u0308 ",
        "mug/mug_002.jpg,m, ",
    ]
    (tmp_path / "m.csv").write_text("\n".join(lines), encoding="utf-8")
    found = list_sources(photos, Table(tmp_path / "m.csv", group_column="patient"))
    assert [image.group for image in found.images] == ["Zoë", "Zoë", ""]


@pytest.fixture
def copied(tmp_path):
    """Two classes of ten pictures, each with two copies of another size and brightness."""
    random = np.random.default_rng(0)
    for category in ("cup", "jug"):
        (tmp_path / "photos" / category).mkdir(parents=True)
        for number in range(10):
            coarse = Image.fromarray(random.integers(0, 256, (6, 6, 3), np.uint8))
            for copy, side in enumerate((96, 80, 64)):
                picture = ImageEnhance.Brightness(coarse.resize((side, side), Image.Resampling.BICUBIC))
                name = f"{random.integers(10**6):06d}-{number}-{copy}.png"
                picture.enhance(1 - 0.05 * copy).save(tmp_path / "photos" / category / name)
    return tmp_path / "photos"


def pictures_by_split(data, splits):
    return {split: {name.rpartition("-")[0][-1] + name[:3] for name in examples(data, split)} for split in splits}


@pytest.mark.slow
def test_look_alikes_are_in_one_split_for_any_number_of_processes(tmp_path, copied):
    shares = {"train": 0.6, "validation": 0.2, "test": 0.2}
    data, logged = tmp_path / "one" / "data", []
    options = Options(copied, data, splits=shares, group_similar=True, workers=1)
    summary = convert(options, log=logged.append)
    found = pictures_by_split(data, shares)
    assert {split: len(names) for split, names in found.items()} == {"train": 12, "validation": 4, "test": 4}
    assert set.union(*found.values()) == {f"{number}{category}" for number in range(10) for category in ("cup", "jug")}
    assert (summary.grouped.groups, summary.grouped.images, summary.grouped.missed) == (20, 60, {})
    assert summary.grouped.otherwise_spread > 5
    manifest = json.loads((data / "manifest.json").read_text())
    for split in shares:
        recorded = manifest["splits"][split]["grouped"]
        assert (recorded["by"], recorded["groups"]) == ("--group_similar", 20)
        assert manifest["splits"][split]["counts"] == [3 * len(found[split]) // 2] * 2
    assert "split-leakage" not in (data / "report.html").read_text()
    convert(Options(copied, tmp_path / "two" / "data", splits=shares, group_similar=True, workers=2))
    assert contents(tmp_path / "two" / "data") == contents(data)
    assert len(logged) == 1 and "60" in logged[0]


def test_a_column_of_groups_is_kept_together_and_shares_that_it_misses_are_counted(tmp_path, copied):
    names = sorted(path.relative_to(copied).as_posix() for path in copied.rglob("*.png"))
    patients = {name: f"p{number // 18}" if number > 3 else "" for number, name in enumerate(names)}
    manifest = tmp_path / "m.csv"
    manifest.write_text("filename,category,patient\n" + "".join(f"{n},{n[:3]},{p}\n" for n, p in patients.items()))
    table, logged = Table(manifest, group_column="patient"), []
    options = Options(copied, tmp_path / "data", table, splits={"train": 0.7, "test": 0.3})
    images, work = list_sources(copied, table).images, WorkingDirectory(tmp_path / "unused")
    splits, grouped = divide_grouped(
        images, options, work, {}, together=frozenset(), progress=lambda *_: None, log=logged.append
    )
    train, test = ({image.group for image in splits[split]} - {""} for split in ("train", "test"))
    assert (train | test, train & test) == ({"p0", "p1", "p2", "p3"}, set()) and test
    assert (grouped.groups, grouped.images, grouped.largest) == (4, 56, 18)
    missed = {split: (options.splits[split], len(part) / 60) for split, part in splits.items()}
    assert {"test": grouped.missed["test"]} == {"test": missed["test"]}
    assert len(logged) == 1 and " 4 images" in logged[0] and "'patient'" in logged[0]


def test_groups_that_leave_nothing_for_a_split_are_named(tmp_path, copied):
    names = [path.relative_to(copied).as_posix() for path in copied.rglob("*.png")]
    (tmp_path / "m.csv").write_text("filename,category,patient\n" + "".join(f"{n},{n[:3]},one\n" for n in names))
    options = Options(copied, tmp_path / "data", Table(tmp_path / "m.csv", group_column="patient"))
    with pytest.raises(DataError, match=r"--group_column=patient.* 60 .*'validation'"):
        convert(options)


@pytest.mark.parametrize("given", [{"validation_fraction": 0.0}, {"split": "test"}])
def test_grouping_without_splits_to_draw_is_rejected(tmp_path, copied, given):
    with pytest.raises(UsageError, match="--group_similar"):
        convert(Options(copied, tmp_path / "data", group_similar=True, **given))


def test_a_column_of_groups_needs_a_manifest_with_it(tmp_path, copied, capsys):
    flags = (f"--images={copied}", f"--output={tmp_path / 'data'}", "--group_column=patient")
    assert_rejected(capsys, "--group_column=patient", *flags, code=2)
    (tmp_path / "m.csv").write_text("filename,category,patients\na,b,c\n")
    assert_rejected(capsys, "'patients'", *flags, f"--manifest={tmp_path / 'm.csv'}", code=3)


@pytest.mark.slow
def test_comparisons_survive_a_kill(tmp_path, convoy_started, convoy, wait_until):
    photos = draw_classes(tmp_path / "photos", {"a": 700, "b": 700}, size=8, suffix=".png")
    flags = (f"--images={photos}", "--group_similar", "--workers=1")
    hashes = tmp_path / "data.partial" / "hashes"
    with convoy_started("convert", *flags, f"--output={tmp_path}/data", output=tmp_path / "log") as process:
        wait_until(lambda: process.poll() is not None or list(hashes.glob("*.npz")), "the first comparisons", 120)
        os.kill(process.pid, signal.SIGKILL)
        process.wait(60)
    assert not (tmp_path / "data").exists()
    resumed = convoy("convert", *flags, f"--output={tmp_path}/data", check=True)
    assert int(re.search(r"([\d,]+) of them done earlier", resumed.output)[1].replace(",", "")) >= 376
    (tmp_path / "reference").mkdir()
    convert(Options(photos, tmp_path / "reference" / "data", group_similar=True))
    assert contents(tmp_path / "data") == contents(tmp_path / "reference" / "data")
    assert not (tmp_path / "data.partial").exists()
