"""Image sizes of a run: stages, checks, and a progressive run that is resumed, evaluated and used for prediction."""

import json
import re
import shutil

import numpy as np
import pytest
import tensorflow as tf

from convoy.core.errors import UsageError
from convoy.trainer import config as configs
from convoy.trainer.checkpoint.checkpoints import CheckpointStore
from convoy.trainer.config import resolution
from convoy.trainer.session.runtime import make_runtime
from tests.trainer.run_files import measured, result_of

STEPS = 9
# Stages of 17, 24 and 21 pixels from steps 0, 3 and 6: odd and even, and the last one is not the largest.
PROGRESSIVE = (
    *("--config=smoke", "--config.model.name=tests/trainer/user_models.py:pooled", "--deterministic"),
    *("--config.precision=float32", "--config.virtual_replicas=2"),
    *(f"--config.steps={STEPS}", "--config.eval_every_steps=100", "--config.checkpoint_every_steps=1"),
    *("--config.log_every_steps=3", "--config.keep_checkpoints=20", "--config.image_size=21"),
    *("--config.progressive.sizes=(17, 24)", "--config.progressive.ends=(0.3, 0.7)", "--config.eval_image_size=27"),
    *("--config.sampling=balanced", "--config.mix.mixup=0.2", "--config.mix.cutmix=1", "--config.mix.off_fraction=0.3"),
)


def config_with(**changes):
    config = configs.default_config()
    with config.unlocked():
        for name, value in changes.items():
            section, _, field = name.rpartition("__")
            (config[section] if section else config)[field] = value
    return config


def progressive(sizes, ends, **changes):
    return config_with(progressive__sizes=sizes, progressive__ends=ends, **changes)


def test_a_run_has_one_stage_by_default():
    assert resolution.stages(config_with(image_size=40), 100) == [(40, 0, 100)]
    assert resolution.all_sizes(config_with(image_size=40)) == (40,)
    assert resolution.summary(config_with(image_size=40), 100) == ""


def test_stages_cover_all_steps_without_gaps():
    config = progressive((32, 48), (0.25, 0.6), image_size=64, eval_image_size=80)
    assert resolution.stages(config, 1000) == [(32, 0, 250), (48, 250, 600), (64, 600, 1000)]
    assert resolution.stages(config, 7) == [(32, 0, 2), (48, 2, 4), (64, 4, 7)]
    assert [resolution.stage_at(config, 7, step).size for step in range(9)] == [32, 32, 48, 48, 64, 64, 64, 64, 64]
    assert resolution.all_sizes(config) == (64, 32, 48, 80)
    numbers = [int(word) for word in re.findall(r"\d+", resolution.summary(config, 7))]
    assert numbers == [32, 2, 48, 4, 64, 80]


def test_runs_of_older_versions_squash_images():
    assert resolution.crop_settings(config_with(resize="pad", decode="fast")) == {"resize": "pad", "decode": "fast"}
    older = config_with()
    with older.unlocked():
        del older.resize
    assert resolution.crop_settings(older) == resolution.crop_settings(config_with())


def test_stages_shorter_than_a_step_are_left_out():
    assert resolution.stages(progressive((32, 48), (0.01, 0.5), image_size=64), 10) == [(48, 0, 5), (64, 5, 10)]
    assert resolution.stages(progressive((32, 48), (0.01, 0.5), image_size=64), 1) == [(64, 0, 1)]
    assert resolution.stages(progressive((32, 48), (0.5, 0.9), image_size=64), 3) == [(32, 0, 2), (64, 2, 3)]


def test_a_model_for_one_size_with_input_scaling_weights_is_rejected_for_other_sizes():
    changes = {"image_size": 32, "precision": "float32", "eval_image_size": 40}
    config = config_with(model__name="tests/trainer/user_models.py:scaled", **changes)
    with pytest.raises(UsageError, match="'scaling'"):
        make_runtime(config, tf.distribute.OneDeviceStrategy("CPU:0"), num_classes=5)


@pytest.mark.parametrize(
    ("changes", "setting"),
    [
        ({"eval_image_size": 5}, "config.eval_image_size=5: "),
        ({"progressive__sizes": (4,), "progressive__ends": (0.5,)}, "config.progressive.sizes=(4,): "),
        ({"progressive__sizes": (32, 48), "progressive__ends": (0.5,)}, "config.progressive.ends=(0.5,): "),
        ({"progressive__sizes": (32, 48), "progressive__ends": (0.5, 0.2)}, "config.progressive.ends=(0.5, 0.2): "),
        ({"progressive__sizes": (32,), "progressive__ends": (1.0,)}, "config.progressive.ends=(1.0,): "),
        ({"progressive__sizes": (32,), "progressive__ends": ("a",)}, "config.progressive.ends=('a',): "),
    ],
)
def test_invalid_sizes_are_rejected(changes, setting):
    with pytest.raises(UsageError, match=f"^{re.escape(setting)}"):
        configs.check(config_with(**changes))


@pytest.mark.parametrize(
    "changes", [{"eval_image_size": 48}, {"progressive__sizes": (24,), "progressive__ends": (0.5,)}]
)
def test_a_model_whose_weights_depend_on_the_size_is_rejected(changes):
    config = config_with(image_size=32, precision="float32", model__name="baseline_cnn", **changes)
    with pytest.raises(UsageError, match="'baseline_cnn'.*seed42/dense1/kernel"):
        make_runtime(config, tf.distribute.OneDeviceStrategy("CPU:0"), num_classes=5)


@pytest.mark.parametrize("changes", [{"eval_image_size": 8}, {"progressive__sizes": (8,), "progressive__ends": (0.5,)}])
def test_a_size_too_small_for_a_fully_convolutional_model_is_rejected_before_training(changes):
    model = "tests/trainer/user_models.py:for_any_size"
    config = config_with(image_size=32, precision="float32", model__name=model, **changes)
    with pytest.raises(UsageError, match="for_any_size'.* 8 pixels.*config.progressive.sizes"):
        make_runtime(config, tf.distribute.OneDeviceStrategy("CPU:0"), num_classes=5)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, convoy, dataset):
    """A progressive run on two devices."""
    run = tmp_path_factory.mktemp("progressive") / "run"
    answer = convoy("train", *PROGRESSIVE, "--devices=cpu:2", f"--data={dataset.data}", f"--workdir={run}", check=True)
    assert re.search(r"17 px \D*3, .*24 px \D*6, .*21 px.*27 px", answer.stdout)
    return run


@pytest.mark.slow
class TestProgressiveRun:
    def test_resumes_in_any_stage_with_identical_results(self, trained, tmp_path, convoy, dataset):
        resumed = {step: shutil.copytree(trained, tmp_path / f"from-{step}") for step in (2, 5)}
        for step, run in resumed.items():
            (run / "result.json").unlink()
            for path in (run / "checkpoints").glob("step-*.npz"):
                if int(path.stem.removeprefix("step-")) > step:
                    path.unlink()
            assert CheckpointStore(run / "checkpoints").steps()[-1] == step
        answers = [
            convoy("train", *PROGRESSIVE, "--devices=cpu:1", f"--data={dataset.data}", f"--workdir={run}")
            for run in resumed.values()
        ]
        for (step, run), answer in zip(resumed.items(), answers, strict=True):
            assert answer.returncode == 0 and re.search(rf"step {step} of {STEPS}\b", answer.output), answer.output
            assert result_of(run)["weights_sha256"] == result_of(trained)["weights_sha256"]
            assert measured(run, "train") == measured(trained, "train")

    def test_is_evaluated_and_used_for_prediction_at_the_evaluation_size(self, trained, tmp_path, convoy, dataset):
        predictions = tmp_path / "predicted.csv"
        images = (f"--images={dataset.photos / 'test'}", f"--output={predictions}")
        mirrored, evaluated, predicted = (
            convoy(command, f"--workdir={trained}", "--devices=cpu:1", "--checkpoint=last", *flags)
            for command, *flags in (
                ["evaluate", "--split=validation", "--flip_tta"],
                ["evaluate", "--split=validation"],
                ["predict", *images],
            )
        )
        assert (evaluated.returncode, mirrored.returncode, predicted.returncode) == (0, 0, 0), evaluated.output
        in_training = measured(trained, "validation")[-1]
        evaluation = json.loads((trained / "evaluation_validation.json").read_text())
        assert evaluation["ece_before"] == pytest.approx(in_training["quality/ece"], abs=1e-5)
        assert "flip test-time augmentation" in mirrored.output
        assert np.loadtxt(predictions, str, delimiter=",").shape == (260, 2)
