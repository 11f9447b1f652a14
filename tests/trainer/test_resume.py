import json
import os
import signal
from dataclasses import replace
from types import SimpleNamespace

import ml_collections
import pytest

from convoy.core.errors import DataError, UsageError
from convoy.input_pipeline.dataset import records
from convoy.input_pipeline.dataset.layout import RecordFormat
from convoy.input_pipeline.dataset.open import open_dataset
from convoy.trainer import config as configs
from convoy.trainer.checkpoint.checkpoints import CheckpointStore
from convoy.trainer.config import resolution
from convoy.trainer.run.directory import RunDirectory
from convoy.trainer.session.description import dataset_identity
from convoy.trainer.session.prepare import open_training_data
from convoy.trainer.session.resume import effects_of_extension, resumed_config
from convoy.trainer.session.weights import weights_digest
from tests.input_pipeline.datasets import encode, write_dataset
from tests.input_pipeline.images import pixels
from tests.trainer.run_files import events_of, measured, result_of


@pytest.fixture
def shards(tmp_path):
    folder = tmp_path / "shards"
    folder.mkdir()
    frames = [records.frame(records.example({"image": b"x", "label": label})) for label in (0, 1, 1)]
    (folder / "train.tfrecord").write_bytes(b"".join(frames))
    return folder


@pytest.mark.parametrize(
    ("field", "typed", "meant"),
    [
        ("loss.name", "focl", "focal"),
        ("loss.class_weights", "balance", "balanced"),
        ("optimizer.name", "lamp", "lamb"),
        ("model.name", "convnt", "convnet"),
    ],
)
def test_misspelled_names_are_found_before_a_run_is_compared(shards, field, typed, meant):
    config = ml_collections.ConfigDict(configs.default_config())
    open_training_data(config, str(shards))
    config.update_from_flattened_dict({field: typed})
    with pytest.raises(UsageError, match=rf"config\.{field}='{typed}'.*did you mean '{meant}'"):
        open_training_data(config, str(shards))


@pytest.mark.parametrize(("field", "value"), [("cache", "disk"), ("shuffle", "striped")])
def test_what_needs_shards_is_refused_for_a_source(shards, field, value):
    png = encode(pixels(0, 8), "png")
    source = SimpleNamespace(num_images=4, label=lambda index: index % 2, read=lambda indices: [png for _ in indices])
    config = ml_collections.ConfigDict(configs.default_config())
    open_training_data(config, {"train": source})
    config[field] = value
    open_training_data(config, str(shards))
    with pytest.raises(UsageError, match=f"config.{field}={value}"):
        open_training_data(config, {"train": source})


@pytest.fixture
def resume_on(tmp_path):
    """Returns a function that resumes, on a dataset, a run that was started on the dataset with another identity."""
    config = ml_collections.ConfigDict(configs.default_config())

    def check(before, dataset):
        metadata = {"config": configs.to_json(config), "dataset": before, "step": 3}
        resumed_config(metadata, config, dataset, RunDirectory(tmp_path / "run"))

    return check


def test_external_dataset_may_be_moved_and_renamed(shards, resume_on):
    before = dataset_identity(open_dataset(shards))
    moved = open_dataset(shards.rename(shards.with_name("imagenet")))
    assert dataset_identity(moved) == before
    resume_on(before, moved)
    # Earlier versions also recorded a name.
    resume_on({"name": "shards", **before}, moved)


def test_another_external_dataset_is_refused(shards, resume_on):
    before = dataset_identity(open_dataset(shards))
    frames = [records.frame(records.example({"image": b"y", "label": label})) for label in (0, 1, 1)]
    (shards / "train.tfrecord").write_bytes(b"".join(frames))
    for recorded in (before, {"name": "shards", **before}):
        with pytest.raises(DataError, match="train_digest: .* -> .*--data"):
            resume_on(recorded, open_dataset(shards))


def test_a_run_remembers_how_its_records_were_read(shards, tmp_path, resume_on):
    run = RunDirectory(tmp_path / "run")
    given = RecordFormat(label_key="class")
    assert run.record_format(given) == given  # a new one
    run.checkpoints.mkdir(parents=True)
    (run.checkpoints / "step-00000003.npz").touch()
    dataset = open_dataset(shards, RecordFormat("image", "label", ("cup", "jar")))
    run.write_json(run.dataset, {"record_format": dataset.record_format.as_dict()})
    assert run.record_format(RecordFormat()) == dataset.record_format
    assert run.record_format(given) == replace(dataset.record_format, label_key="class")
    before = dataset_identity(dataset)
    with pytest.raises(DataError, match="image_key: other -> image"):
        resume_on({**before, "image_key": "other"}, dataset)


def test_a_run_of_an_earlier_version_keeps_its_class_without_images(tmp_path, resume_on):
    folder = tmp_path / "shards"
    folder.mkdir()
    frames = [records.frame(records.example({"image": b"x", "label": label})) for label in (1, 2, 2)]
    (folder / "train.tfrecord").write_bytes(b"".join(frames))
    run = RunDirectory(tmp_path / "run")
    run.checkpoints.mkdir(parents=True)
    (run.checkpoints / "step-00000003.npz").touch()
    run.write_json(run.dataset, {"class_names": ["0", "1", "2"]})
    assert open_dataset(folder).class_names == ("1", "2")
    dataset = open_dataset(folder, run.record_format(RecordFormat()))
    assert dataset.class_names == ("0", "1", "2")
    new = ("image_key", "label_key", "first_label")
    resume_on({name: value for name, value in dataset_identity(dataset).items() if name not in new}, dataset)


@pytest.mark.parametrize(("field", "value"), [("shuffle", "block"), ("shuffle", "windowed"), ("order", "windowed")])
def test_a_run_of_an_earlier_sample_order_does_not_continue_in_another(shards, tmp_path, field, value):
    dataset, run = open_dataset(shards), RunDirectory(tmp_path / "run")
    config = configs.default_config()
    config.update({"batch_size": 3, "steps": 30, "shuffle": "striped"})
    recorded = {**configs.to_json(config), "virtual_replicas": 1, "precision": "float32"}
    metadata = {"config": recorded, "dataset": dataset_identity(dataset), "step": 20}
    resumed_config(metadata, config, dataset, run)
    del recorded["shuffle"]
    recorded[field] = value
    with pytest.raises(UsageError, match=rf"step 20 .*config\.shuffle={value}.*--config\.model\.weights={run.path}"):
        resumed_config(metadata, config, dataset, run)
    config.shuffle = "global"
    with pytest.raises(UsageError, match="shuffle: striped -> global"):
        resumed_config(metadata, config, dataset, run)
    config.shuffle = "striped"
    resumed_config({**metadata, "step": 30}, config, dataset, run)  # it has ended


class TestExtension:
    """A run of 30 steps on 3 images, which has reached step 20 or its end."""

    @pytest.fixture
    def resumed(self, shards, tmp_path):
        """Returns a function that resumes with some changes and returns the config."""
        dataset, run = open_dataset(shards), RunDirectory(tmp_path / "run")

        def resume(changes, *, step=30, recorded=None, extend=True):
            config = configs.default_config()
            config.update({"batch_size": 3, "steps": 30})
            recorded = recorded or {**configs.to_json(config), "virtual_replicas": 1, "precision": "float32"}
            config.update(changes)
            metadata = {"config": recorded, "dataset": dataset_identity(dataset), "step": step}
            return resumed_config(metadata, config, dataset, run, extend=extend)

        return resume

    @pytest.mark.parametrize("step", [20, 30])
    @pytest.mark.parametrize("longer", [{"steps": 40}, {"steps": 0, "epochs": 39.5}])
    def test_keeps_the_first_steps_and_what_earlier_starts_chose(self, resumed, step, longer):
        config = resumed(longer, step=step)
        total = configs.resolve(config, num_images=3, replicas=1).total_steps
        assert configs.spans(config, total) == [(0, step, 30), (step, 40, 40)]
        assert (config.virtual_replicas, config.precision) == (1, "float32")

    def test_is_recorded_once_and_can_be_repeated(self, resumed):
        recorded = configs.to_json(resumed({"steps": 40}))
        for extend in (True, False):  # as after a crash
            config = resumed({"steps": 40}, step=35, recorded=recorded, extend=extend)
            assert configs.spans(config, 40) == [(0, 30, 30), (30, 40, 40)]
        config = resumed({"steps": 60}, step=35, recorded=recorded)
        assert configs.spans(config, 60) == [(0, 30, 30), (30, 35, 40), (35, 60, 60)]
        configs.check(config)

    @pytest.mark.parametrize(
        ("changes", "extend", "named"),
        [
            ({"steps": 40}, False, "--extend"),
            ({"steps": 20}, True, "30 steps"),
            ({"steps": 20}, False, "30 steps"),
            ({"steps": 40, "seed": 3}, True, "seed: 0 -> 3"),
            ({"steps": 40, "schedule": {"name": "cosine"}}, True, "schedule.name"),
        ],
    )
    def test_other_changes_are_refused_with_both_ways_on(self, resumed, tmp_path, changes, extend, named):
        with pytest.raises(UsageError) as caught:
            resumed(changes, extend=extend)
        message = str(caught.value)
        assert named in message and "extend" in message and f"--config.model.weights={tmp_path / 'run'}" in message

    def test_same_length_in_another_unit_is_no_change(self, resumed):
        for extend in (True, False):
            assert not resumed({"steps": 0, "epochs": 30.0}, extend=extend).extended.steps

    def test_run_of_an_earlier_version_resumes_and_extends(self, resumed):
        recorded = configs.to_json(resumed({}))
        del recorded["extended"]
        assert not resumed({}, recorded=recorded, extend=False).extended.steps
        assert resumed({"steps": 40}, recorded=recorded).extended.steps == (30,)

    def test_needs_a_checkpoint(self, shards, tmp_path):
        with pytest.raises(UsageError, match="--extend"):
            run = RunDirectory(tmp_path / "run")
            resumed_config(None, configs.default_config(), open_dataset(shards), run, extend=True)

    def test_schedule_sizes_and_mixing_follow_the_length_of_each_step(self, resumed):
        changes = {
            "schedule": {"name": "cosine"},
            "progressive": {"sizes": (32,), "ends": (0.8,)},
            "mix": {"mixup": 0.2, "off_fraction": 0.1},
        }
        before, alone = configs.default_config(), configs.default_config()
        for config, steps in ((before, 30), (alone, 60)):
            config.update({"batch_size": 3, "virtual_replicas": 1, "steps": steps, **changes})
        extended = resumed({**changes, "steps": 60}, recorded=configs.to_json(before))

        def rates(config, *steps):
            plan = configs.resolve(config, num_images=3, replicas=1)
            return [configs.learning_rate_of(config, plan, step) for step in steps]

        assert rates(extended, *range(30)) == rates(before, *range(30))
        assert rates(extended, *range(30, 60)) == rates(alone, *range(30, 60))
        assert resolution.stages(extended, 60) == [(32, 0, 24), (64, 24, 30), (32, 30, 48), (64, 48, 60)]
        assert configs.mixing_steps(extended, 60) == ((0, 27), (30, 54))
        effects = " ".join(effects_of_extension(extended, configs.resolve(extended, num_images=3, replicas=1)))
        for rate in (*rates(before, 29), *rates(alone, 30)):
            assert f"{rate:.2e}" in effects
        assert "32 px" in effects and "mixed again" in effects and "another result" in effects

    def test_constant_schedule_gives_the_same_as_a_run_from_the_start(self, resumed):
        config = resumed({"steps": 40})
        effects = " ".join(effects_of_extension(config, configs.resolve(config, num_images=3, replicas=1)))
        assert "another result" not in effects


class TestVirtualReplicas:
    """A run of 30 steps with 2 virtual replicas and 16 images per step, which has reached step 20."""

    @pytest.fixture
    def resumed(self, shards, tmp_path):
        """Returns a function that resumes with a number of virtual replicas and some changes; returns the config."""
        dataset, run = open_dataset(shards), RunDirectory(tmp_path / "run")

        def resume(number, changes=(), *, step=20, recorded=None):
            config = configs.default_config()
            config.update({"batch_size": 16, "steps": 30, **dict(changes)})
            recorded = recorded or {**configs.to_json(config), "virtual_replicas": 2, "precision": "float32"}
            metadata = {"config": recorded, "dataset": dataset_identity(dataset), "step": step}
            return resumed_config(metadata, config, dataset, run, virtual_replicas=number)

        return resume

    def test_change_is_recorded_and_kept_by_later_starts(self, resumed):
        config = resumed(8)
        assert config.virtual_replicas == 8
        assert configs.changes_of_virtual_replicas(config) == [{"step": 20, "before": 2, "after": 8}]
        configs.check(config)
        recorded = configs.to_json(config)
        for number in (None, 8):  # without the flag, and with the same command again
            for in_config in (0, 2, 8):  # a command or recipe keeps the number that the run began with
                again = resumed(number, {"virtual_replicas": in_config}, step=25, recorded=recorded)
                assert configs.to_json(again) == recorded

    def test_same_number_is_no_change(self, resumed):
        assert configs.changes_of_virtual_replicas(resumed(2)) == []
        assert resumed(2).virtual_replicas == 2

    def test_further_changes_are_listed(self, resumed):
        recorded = configs.to_json(resumed(8))
        further = resumed(4, step=25, recorded=recorded)
        assert configs.changes_of_virtual_replicas(further) == [
            {"step": 20, "before": 2, "after": 8},
            {"step": 25, "before": 8, "after": 4},
        ]
        # At the step of a change, nothing has been trained with it.
        assert configs.changes_of_virtual_replicas(resumed(4, recorded=recorded)) == [
            {"step": 20, "before": 2, "after": 4}
        ]
        undone = resumed(2, recorded=recorded)
        assert undone.virtual_replicas == 2 and configs.changes_of_virtual_replicas(undone) == []

    @pytest.mark.parametrize(
        ("step", "changes"),
        [
            (25, [(10, 2, 4), (20, 4, 8)]),
            (20, [(10, 2, 4), (20, 4, 8)]),
            (15, [(10, 2, 4), (15, 4, 8)]),
            (10, [(10, 2, 8)]),
            (5, [(5, 2, 8)]),
        ],
    )
    def test_rollback_before_a_change_moves_it(self, step, changes):
        config = configs.default_config()
        config.virtual_replicas = 8
        config.earlier_virtual_replicas.update({"steps": (10, 20), "numbers": (2, 4)})
        moved = configs.with_virtual_replicas(config, 8, step=step)
        assert [tuple(change.values()) for change in configs.changes_of_virtual_replicas(moved)] == changes

    @pytest.mark.parametrize(
        ("number", "changes", "named"),
        [
            (3, {}, ("--virtual_replicas=3", "config.batch_size=16", "1, 2, 4, 8 or 16")),
            (16, {"mix": {"mixup": 0.2}}, ("--virtual_replicas=16", "mixing", "1, 2, 4 or 8.")),
        ],
    )
    def test_impossible_numbers_are_refused(self, resumed, number, changes, named):
        with pytest.raises(UsageError) as caught:
            resumed(number, changes)
        assert all(part in str(caught.value) for part in named)

    @pytest.mark.parametrize(("in_config", "is_possible"), [(8, True), (3, False)])
    def test_another_number_in_the_config_is_refused_with_the_flag(self, resumed, in_config, is_possible):
        recorded = {**configs.to_json(resumed(None)), "virtual_replicas": 2}
        with pytest.raises(UsageError, match=f"virtual_replicas: 2 -> {in_config}") as caught:
            resumed(None, {"virtual_replicas": in_config}, recorded=recorded)
        assert (f"--virtual_replicas={in_config}" in str(caught.value)) == is_possible

    def test_run_of_an_earlier_version_changes_too(self, resumed):
        recorded = configs.to_json(resumed(None))
        del recorded["earlier_virtual_replicas"]
        assert resumed(8, recorded=recorded).earlier_virtual_replicas.to_dict() == {"steps": (20,), "numbers": (2,)}

    def test_a_new_run_has_nothing_to_change(self, shards, tmp_path):
        dataset, run, config = open_dataset(shards), RunDirectory(tmp_path / "run"), configs.default_config()
        with pytest.raises(UsageError, match=r"--virtual_replicas=8.*--config\.virtual_replicas=8"):
            resumed_config(None, config, dataset, run, virtual_replicas=8)
        config.earlier_virtual_replicas.update({"steps": (20,), "numbers": (2,)})
        with pytest.raises(UsageError, match="earlier_virtual_replicas"):
            resumed_config(None, config, dataset, run)


@pytest.mark.slow
def test_extended_run_ends_like_one_planned_so_on_any_hardware_and_through_kills(
    copied_run, finished_run, dataset, convoy, convoy_started, wait_until, tmp_path
):
    base = [flag for flag in finished_run.flags if "steps=40" not in flag]
    command = ("train", *base, "--config.steps=240", f"--data={dataset.data}")
    store, log = CheckpointStore(copied_run / "checkpoints"), tmp_path / "killed.log"
    refused = convoy(*command, f"--workdir={copied_run}", "--devices=cpu:1")
    assert refused.returncode == 2 and "--extend" in refused.stderr
    with convoy_started(*command, f"--workdir={copied_run}", "--devices=cpu:1", "--extend", output=log) as process:
        wait_until(lambda: store.latest() > 40 or process.poll() is not None, "a checkpoint of the extension")
        os.killpg(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, log.read_text()
    assert not (copied_run / "result.json").exists()  # of the shorter run
    convoy(*command, f"--workdir={copied_run}", "--devices=cpu:4", check=True)
    planned = tmp_path / "planned"
    record = ("--config.extended.steps=(40,)", "--config.extended.lengths=(40,)")
    convoy(*command, *record, f"--workdir={planned}", "--devices=cpu:2", check=True)
    result, expected = result_of(copied_run), result_of(planned)
    for name in ("step", "weights_sha256", "images_seen"):
        assert result[name] == expected[name], name
    assert measured(copied_run, "train") == measured(planned, "train")
    (event,) = events_of(copied_run, "extended")
    assert (event["step"], event["before"], event["steps"]) == (40, 40, 240)
    again = convoy(*command, f"--workdir={copied_run}", "--devices=cpu:1", "--extend", check=True)
    assert "Nothing left" in again.stdout


def test_identical_dataset_converted_under_another_name_is_accepted(tmp_path, resume_on):
    images = {"train": [pixels(0), pixels(1)]}
    first = open_dataset(write_dataset(tmp_path / "data", images, ("cup", "jar")))
    again = write_dataset(tmp_path / "again", images, ("cup", "jar"))
    manifest = json.loads((again / "manifest.json").read_text())
    (again / "manifest.json").write_text(json.dumps({**manifest, "name": "photos"}))
    assert (first.name, open_dataset(again).name) == ("made", "photos")
    resume_on({"name": "made", **dataset_identity(first)}, open_dataset(again))  # the name is of earlier versions
    other = write_dataset(tmp_path / "other", {"train": [pixels(0), pixels(2)]}, ("cup", "jar"))
    with pytest.raises(DataError, match="train_digest"):
        resume_on(dataset_identity(first), open_dataset(other))


def test_weights_that_a_run_began_with_are_compared_by_their_content(shards, tmp_path):
    dataset, run = open_dataset(shards), RunDirectory(tmp_path / "run")
    before, moved, other = (tmp_path / name for name in ("before.h5", "moved.h5", "other.h5"))
    before.write_bytes(b"weights")
    config = ml_collections.ConfigDict(configs.default_config())
    config.model.weights = str(before)
    metadata = {"config": configs.to_json(config), "dataset": dataset_identity(dataset), "step": 3}
    metadata["model"] = {"weights": weights_digest(str(before))}
    before.rename(moved)
    resumed_config(metadata, config, dataset, run)  # the checkpoint replaces them, so they may be gone
    config.model.weights = str(moved)
    assert resumed_config(metadata, config, dataset, run).model.weights == str(moved)
    other.write_bytes(b"others")
    for path in (other, tmp_path / "missing.h5"):
        config.model.weights = str(path)
        with pytest.raises(UsageError, match="model.weights"):
            resumed_config(metadata, config, dataset, run)
    config.model.weights = str(moved)
    with pytest.raises(UsageError, match="model.weights"):
        resumed_config({**metadata, "model": {}}, config, dataset, run)  # of an earlier version


def test_model_of_a_file_is_compared_by_its_content_not_its_folder(shards, tmp_path):
    dataset, run = open_dataset(shards), RunDirectory(tmp_path / "run")
    config = ml_collections.ConfigDict(configs.default_config())
    config.model.name = "models.py:small"
    metadata = {"config": configs.to_json(config), "dataset": dataset_identity(dataset), "step": 3, "model": {}}
    config.model.name = "elsewhere/models.py:small"
    resumed_config(metadata, config, dataset, run)
    del metadata["model"]  # of an earlier version, which has nothing to compare
    with pytest.raises(UsageError, match="model.name"):
        resumed_config(metadata, config, dataset, run)
    config.model.name = "models.py:large"
    with pytest.raises(UsageError, match="model.name"):
        resumed_config({**metadata, "model": {}}, config, dataset, run)
