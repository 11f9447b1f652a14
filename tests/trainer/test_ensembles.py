"""Ensembles of runs, also those that resize images differently: each loads the images itself then."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf

from convoy.core.devices import parse_devices
from convoy.core.errors import UsageError
from convoy.input_pipeline.dataset.folds import View, make_folds
from convoy.input_pipeline.dataset.open import open_dataset
from convoy.input_pipeline.reading.decode import Crop
from convoy.trainer.config import default_config
from convoy.trainer.evaluation.classifier import MixedEnsemble
from convoy.trainer.evaluation.loading import probabilities_of
from convoy.trainer.evaluation.split import evaluate_split
from convoy.trainer.run.directory import RunDirectory
from convoy.trainer.session.description import dataset_identity
from convoy.trainer.session.restore import TrainedRun, open_dataset_of, open_runs
from tests.input_pipeline.datasets import write_dataset
from tests.input_pipeline.images import pixels


def part(size, models):
    """Returns a stand-in for the runs of one image size: its probabilities are the mean of the pixels that it gets."""

    def probabilities(image_of, num_images, *, flip_tta):
        for number in range(num_images):
            image = image_of(tf.constant(number, tf.int64))
            assert image.shape == (size, size, 3) and not flip_tta
            share = np.float32(image.numpy().mean() / 255)
            yield np.array([share, 1 - share])

    crop, names = Crop(size), ["cup", "jar"]
    return SimpleNamespace(
        class_names=names,
        crop=crop,
        step=3,
        checkpoint="",
        decision=None,
        flip_tta=False,
        models=models,
        probabilities=probabilities,
    )


def test_every_model_counts_the_same():
    images, parts = [pixels(number, 40) for number in range(3)], [part(8, 3), part(16, 1)]
    alone = [np.stack(list(probabilities_of(images, each))) for each in parts]
    together = np.stack(list(probabilities_of(images, MixedEnsemble(parts))))
    np.testing.assert_allclose(together, (3 * alone[0] + alone[1]) / 4, rtol=1e-6)


def test_a_model_counts_once(tmp_path):
    (tmp_path / "dataset.json").write_text('{"folds": 2}')
    for number in (1, 2):
        (tmp_path / f"fold-{number}").mkdir()
    fold = tmp_path / "fold-2"
    for workdirs in ([fold, fold], [tmp_path, fold], [fold, tmp_path / "fold-1/../fold-2"]):
        with pytest.raises(UsageError, match="fold-2 twice"):
            open_runs([str(path) for path in workdirs], parse_devices("cpu:1"))


def test_a_cross_validation_has_the_loss_that_its_folds_keep(tmp_path):
    kept = tmp_path / "fold-1/code/loss/losses.py"
    kept.parent.mkdir(parents=True)
    kept.write_text("import tensorflow as tf\ndef mine(logits, labels): return 7 * tf.reduce_sum(logits**2, -1)\n")
    (tmp_path / "fold-1/config.json").touch()  # its owner is who kept the code
    (tmp_path / "dataset.json").write_text('{"folds": 2}')
    config = default_config()
    config.loss.name, config.label_smoothing = f"{tmp_path / 'gone/losses.py'}:mine", 0.0
    trained = TrainedRun(RunDirectory(tmp_path), config, {"class_names": ["a", "b"]}, None, (1,))
    assert trained.objective().loss(tf.ones([1, 2]), tf.zeros([1], tf.int32)).numpy() == [14]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ensembles")
    for name, images in (("data", 12), ("small", 1)):
        drawn = {split: [pixels(number) for number in range(images)] for split in ("train", "validation")}
        write_dataset(folder / name, drawn, ("cup", "jar"))
    return folder


def opened(folders, seen):
    """Returns a stand-in for a run that was trained on a dataset, or on a view of it."""
    description = {"directory": str(folders / "data"), "class_names": ["cup", "jar"], **dataset_identity(seen)}
    if isinstance(seen, View):
        description |= {"fold": seen.fold, "folds": seen.folds}
    return TrainedRun(RunDirectory(folders / "run"), default_config(), description, None, (1,))


@pytest.mark.parametrize("is_first", [True, False])
def test_an_ensemble_with_the_run_of_a_fold_is_refused(folders, is_first):
    whole = open_dataset(folders / "data")
    runs = [opened(folders, seen) for seen in (make_folds(whole, 3).without(1), whole)]
    first, other = runs if is_first else runs[::-1]
    with pytest.raises(UsageError, match="out_of_fold"):
        evaluate_split(dataclasses.replace(first, others=(other,)), "validation")


def test_a_small_dataset_is_another_one_for_the_run_of_a_fold(folders):
    fold = opened(folders, make_folds(open_dataset(folders / "data"), 5).without(1))
    assert open_dataset_of(fold, str(folders / "small")).split("validation").num_images == 1
