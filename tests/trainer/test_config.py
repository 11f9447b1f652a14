import logging
import sys

import pytest
from absl import flags as absl_flags

from convoy.cli.train import define_config_flag
from convoy.core.errors import UsageError
from convoy.trainer import config as configs
from convoy.trainer.config import renamed
from convoy.trainer.config.checks import DECAYS

OF_OTHERS = "import ml_collections\n\ndef get_config():\n    return ml_collections.ConfigDict"


@pytest.fixture
def config():
    return configs.default_config()


def changed(config, changes):
    with config.unlocked():
        for name, value in changes.items():
            section, _, field = name.rpartition(".")
            (config[section] if section else config)[field] = value
    return config


def in_steps(config, name="eval_every", images_per_step=64, num_images=1000):
    return configs.duration_in_steps(config, name, images_per_step=images_per_step, num_images=num_images)


def assert_rejected(parts, function, *arguments, **options):
    """Asserts that a call raises a UsageError whose message contains all `parts`."""
    with pytest.raises(UsageError) as caught:
        function(*arguments, **options)
    assert [part for part in parts if part not in str(caught.value)] == [], str(caught.value)


class TestDurations:
    @pytest.mark.parametrize(
        ("field", "value", "steps"),
        [
            ("eval_every", 7, 7),
            ("eval_every_steps", 7, 7),
            ("eval_every_epochs", 1.0, 16),  # 15.625
            ("eval_every_epochs", 0.5, 8),  # 7.8125
            ("eval_every_epochs", 3.0, 47),  # 46.875
            ("eval_every_images", 6400, 100),
            ("eval_every_images", 6431, 100),
            ("eval_every_images", 6433, 101),
        ],
    )
    def test_each_unit_is_rounded_to_the_nearest_step(self, config, field, value, steps):
        assert in_steps(changed(config, {field: value})) == steps

    @pytest.mark.parametrize(("field", "value"), [("eval_every_epochs", 0.001), ("eval_every_images", 1)])
    def test_a_duration_is_at_least_one_step(self, config, field, value):
        assert in_steps(changed(config, {field: value})) == 1

    def test_an_unset_duration_is_0(self, config):
        assert in_steps(config) == 0

    @pytest.mark.parametrize(
        "fields",
        [
            {"eval_every_epochs": 2.0, "eval_every_images": 100},
            {"log_every": 5, "log_every_steps": 6},
            {"schedule.warmup_steps": 5, "schedule.warmup_epochs": 1.0},
        ],
    )
    def test_two_units_of_one_duration_are_rejected(self, config, fields):
        parts = [f"config.{field}={value}" for field, value in fields.items()]
        assert_rejected(parts, configs.resolve, changed(config, fields), num_images=100, replicas=1)

    @pytest.mark.parametrize("value", [-1.0, float("inf"), float("nan")])
    def test_invalid_durations_are_rejected(self, config, value):
        assert_rejected([f"config.eval_every_epochs={value}"], in_steps, changed(config, {"eval_every_epochs": value}))


class TestResolve:
    def test_the_plan_of_a_config_a_dataset_and_devices(self, config):
        changed(
            config,
            {
                "batch_size": 48,
                "epochs": 2.5,
                "virtual_replicas": 12,
                "schedule.warmup_epochs": 0.5,
                "checkpoint_every_images": 480,
                "model.freeze_images": 144,
                "model.weights": "weights.h5",
                "optimizer.learning_rate": 0.3,
            },
        )
        plan = configs.resolve(config, num_images=1000, replicas=4)
        assert plan == configs.Plan(
            num_images=1000,
            replicas=4,
            virtual_replicas=12,
            global_batch_size=48,
            replica_batch_size=12,
            virtual_batch_size=4,
            steps_per_epoch=1000 / 48,
            total_steps=53,  # 52.08, rounded up to complete 2.5 epochs
            warmup_steps=10,
            eval_every_steps=21,  # an epoch
            checkpoint_every_steps=10,
            log_every_steps=20,
            histogram_every_steps=0,
            freeze_steps=3,
            peak_learning_rate=0.3,
            weight_decay=0.0,
        )
        assert plan.as_dict()["total_steps"] == 53

    def test_weight_decay_per_run_depends_on_the_steps_with_which_a_run_began(self, config):
        fields = {"optimizer.learning_rate": 0.01, "optimizer.weight_decay_per_run": 4.0, "schedule.scaling": "linear"}
        config = changed(config, {**fields, "batch_size": 128, "steps": 100})
        assert configs.resolve(config, num_images=9, replicas=1).weight_decay == pytest.approx(4 / (0.02 * 100))
        extended = configs.with_extension(changed(config, {"steps": 150}), before=100, step=100)
        assert configs.resolve(extended, num_images=9, replicas=1).weight_decay == pytest.approx(4 / (0.02 * 100))

    def test_steps_override_epochs(self, config):
        plan = configs.resolve(changed(config, {"steps": 7, "epochs": 100.0}), num_images=1000, replicas=1)
        assert plan.total_steps == 7

    def test_a_dataset_smaller_than_a_batch_still_trains(self, config):
        plan = configs.resolve(changed(config, {"epochs": 0.01}), num_images=3, replicas=1)
        assert (plan.total_steps, plan.eval_every_steps) == (1, 1)

    def test_checkpoints_follow_evaluations_by_default(self, config):
        plan = configs.resolve(changed(config, {"eval_every_steps": 9}), num_images=1000, replicas=1)
        assert plan.checkpoint_every_steps == 9

    @pytest.mark.parametrize(("in_config", "replicas", "expected"), [(0, 1, 1), (0, 4, 4), (8, 2, 8)])
    def test_virtual_replicas_default_to_one_per_device(self, config, in_config, replicas, expected):
        plan = configs.resolve(changed(config, {"virtual_replicas": in_config}), num_images=1000, replicas=replicas)
        assert plan.virtual_replicas == expected

    def test_the_hardware_choices_of_the_first_start_are_kept(self, config):
        recorded = {"virtual_replicas": 8, "precision": "bfloat16"}
        kept = configs.with_recorded_choices(config, recorded)
        assert configs.resolve(kept, num_images=1000, replicas=2).virtual_replicas == 8
        assert configs.differences(configs.to_json(config) | recorded, configs.to_json(kept)) == []
        assert (config.virtual_replicas, config.precision) == (0, "auto")

    def test_explicit_values_override_recorded_choices(self, config):
        changed(config, {"virtual_replicas": 4, "precision": "float32"})
        kept = configs.with_recorded_choices(config, {"virtual_replicas": 8, "precision": "bfloat16"})
        assert (kept.virtual_replicas, kept.precision) == (4, "float32")

    @pytest.mark.parametrize(
        ("virtual", "devices", "fix"), [(12, 5, "1, 2, 3, 4, 6 or 12 devices"), (1, 2, "use 1 device,")]
    )
    def test_device_counts_that_do_not_divide_the_virtual_replicas_are_rejected(self, config, virtual, devices, fix):
        parts = [f"virtual_replicas={virtual}", f"{devices} devices", fix]
        changed(config, {"virtual_replicas": virtual})
        assert_rejected(parts, configs.resolve, config, num_images=1000, replicas=devices)

    @pytest.mark.parametrize(("devices", "is_named"), [(8, True), (5, False)])
    def test_a_run_that_has_begun_may_get_as_many_virtual_replicas_as_devices(self, config, devices, is_named):
        changed(config, {"virtual_replicas": 2, "batch_size": 64})
        with pytest.raises(UsageError) as caught:
            configs.resolve(config, num_images=1000, replicas=devices, resumes=True)
        assert (f"--virtual_replicas={devices}" in str(caught.value)) == is_named
        assert "1 or 2 devices" in str(caught.value)

    @pytest.mark.parametrize(
        ("batch", "virtual", "nearest"), [(63, 2, "62 or 64."), (100, 8, "96 or 104."), (3, 4, "to 4.")]
    )
    def test_batch_sizes_that_the_virtual_replicas_do_not_divide_are_rejected(self, config, batch, virtual, nearest):
        parts = [f"config.batch_size={batch}", f"virtual_replicas={virtual}", nearest]
        changed(config, {"batch_size": batch, "virtual_replicas": virtual})
        assert_rejected(parts, configs.resolve, config, num_images=1000, replicas=1)

    def test_mixing_with_one_image_per_virtual_replica_is_rejected(self, config):
        changed(config, {"batch_size": 8, "virtual_replicas": 8, "mix.cutmix": 1.0})
        parts = ["config.batch_size=8", "virtual_replicas=8", "16", "config.mix.cutmix"]
        assert_rejected(parts, configs.resolve, config, num_images=1000, replicas=1)

    @pytest.mark.parametrize(("scaling", "peak"), [("none", 0.1), ("linear", 0.4), ("sqrt", 0.2)])
    def test_the_learning_rate_scales_with_the_global_batch(self, config, scaling, peak):
        changed(
            config,
            {
                "batch_size": 256,
                "optimizer.learning_rate": 0.1,
                "schedule.scaling": scaling,
                "schedule.reference_batch_size": 64,
            },
        )
        plan = configs.resolve(config, num_images=1000, replicas=1)
        assert plan.peak_learning_rate == pytest.approx(peak, rel=1e-12)

    @pytest.mark.parametrize("replicas", [1, 2, 4])
    def test_the_learning_rate_does_not_depend_on_the_number_of_devices(self, config, replicas):
        changed(config, {"schedule.scaling": "linear", "batch_size": 128, "virtual_replicas": 4})
        plan = configs.resolve(config, num_images=1000, replicas=replicas)
        assert plan.peak_learning_rate == pytest.approx(2e-3)


class TestCheck:
    def test_the_defaults_are_valid(self, config):
        configs.check(config)

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("batch_size", 0),
            ("image_size", 7),
            ("virtual_replicas", -1),
            ("steps", -1),
            ("epochs", 0.0),
            ("epochs", float("inf")),
            ("epochs", float("nan")),
            ("seed", 2**63),
            ("keep_checkpoints", 0),
            ("label_smoothing", 1.0),
            ("label_smoothing", -0.1),
            ("precision", "fp8"),
            ("resize", "stretch"),
            ("xla", "maybe"),
            ("model.instance_norm", "layer"),
            ("shuffle", "blok"),
            ("shuffle_window_size", -1),
            ("on_corrupt", "skip"),
            ("cache", "dsk"),
            ("schedule.name", "cosin"),
            ("schedule.scaling", "cubic"),
            ("schedule.reference_batch_size", 0),
            ("schedule.final_fraction", 1.1),
            ("schedule.factor", 0.0),
            ("schedule.boundaries", (0.75, 0.5)),
            ("schedule.boundaries", (0.5, 1.0)),
            ("optimizer.learning_rate", 0.0),
            ("optimizer.learning_rate", float("nan")),
            ("optimizer.learning_rate", float("inf")),
            ("optimizer.weight_decay", -1e-3),
            ("optimizer.clip_norm", -1.0),
            ("optimizer.epsilon", 0.0),
            ("optimizer.trust_coefficient", 0.0),
            ("optimizer.beta_1", 1.0),
            ("optimizer.beta_2", -0.1),
            ("optimizer.momentum", 1.0),
            ("ema.decay", 1.0),
            ("model.dropout", 1.0),
            ("sampling", "balancd"),
            ("mix.mixup", -0.1),
            ("mix.cutmix", float("inf")),
            ("mix.probability", 1.1),
            ("mix.off_fraction", -0.5),
            ("deterministic_threads", 0),
            ("deterministic_threads", 1025),
            ("divergence.rollbacks", -1),
            ("divergence.learning_rate_factor", 0.0),
            ("model.depth", -1),
            ("model.width", -1),
            ("model.stochastic_depth", 1.0),
            ("model.freeze_steps", 3),
            ("model.backbone_rate", 0.0),
            ("model.layer_decay", 0.0),
            ("model.layer_decay", 1.1),
            ("schedule.boundaries", ("a",)),
            ("eval_every", 2**63),
        ],
    )
    def test_invalid_values_are_rejected(self, config, field, value):
        with pytest.raises(UsageError) as caught:
            configs.check(changed(config, {field: value}))
        assert str(caught.value).startswith((f"config.{field}={value}: ", f"config.{field}={value!r}: "))

    @pytest.mark.parametrize("field", ["optimizer.clip_norm", "optimizer.weight_decay", "optimizer.epsilon"])
    def test_ranges_without_an_upper_bound_include_infinity(self, config, field):
        configs.check(changed(config, {field: float("inf")}))

    def test_epochs_are_ignored_with_steps(self, config):
        configs.check(changed(config, {"epochs": 0.0, "steps": 5}))

    def test_the_nearest_choice_is_suggested(self, config):
        assert_rejected(
            ["schedule.name='cosin'", "'cosine'"], configs.check, changed(config, {"schedule.name": "cosin"})
        )

    def test_augmentation_ops_are_checked_with_the_image_size(self, config):
        configs.check(changed(config, {"augment.ops": "crop(32) | flip", "image_size": 32}))
        changed(config, {"image_size": 64})
        assert_rejected(["config.augment.ops", "config.image_size=64"], configs.check, config)
        assert_rejected(["config.augment.ops", "flp"], configs.check, changed(config, {"augment.ops": "crop | flp"}))

    @pytest.mark.parametrize(
        ("changes", "parts"),
        [
            ({"shuffle": "striped", "sampling": "balanced"}, ["config.sampling=balanced", "shuffle=striped"]),
            ({"deterministic": True, "xla": "on"}, ["config.xla=on", "determin"]),
            ({"deterministic": True, "reduce_in_bfloat16": True}, ["config.reduce_in_bfloat16=True", "determin"]),
        ],
    )
    def test_conflicting_fields_are_rejected(self, config, changes, parts):
        assert_rejected(parts, configs.check, changed(config, changes))


class TestDifferences:
    def test_a_config_does_not_differ_from_its_json(self, config):
        assert configs.differences(configs.to_json(config), config) == []

    def test_fields_that_change_the_computation_count(self, config):
        before = configs.to_json(config)
        changed(config, {"seed": 3, "schedule.boundaries": (0.3,), "model.name": "baseline_cnn"})
        assert sorted(configs.differences(before, configs.to_json(config))) == [
            "model.name: convnet -> baseline_cnn",
            "schedule.boundaries: [0.5, 0.75] -> [0.3]",
            "seed: 0 -> 3",
        ]

    def test_operational_fields_count_only_on_request(self, config):
        before = configs.to_json(config)
        changed(config, {"log_every_images": 5, "eval_every": 9, "checkpoint_every_epochs": 0.5, "keep_checkpoints": 9})
        changed(config, {"on_corrupt": "substitute", "cache": "disk"})
        assert configs.differences(before, configs.to_json(config)) == []
        assert len(configs.differences(before, configs.to_json(config), operational=True)) == 6

    def test_a_field_that_an_older_run_lacks_counts_with_its_default(self, config):
        new_fields = ("shuffle", "shuffle_window_size")
        before = {name: value for name, value in configs.to_json(config).items() if name not in new_fields}
        assert configs.differences(before, configs.to_json(config)) == []
        changed(config, {"shuffle": "striped"})
        assert configs.differences(before, configs.to_json(config)) == ["shuffle: global -> striped"]

    def test_fields_of_only_one_config_count(self):
        assert configs.differences({"old": 1}, {"new": 2}) == ["new: None -> 2", "old: 1 -> None"]


RECIPE = """
from {module} import default_config


def get_config():
    config = default_config()
    {statement}
    return config
"""


@pytest.fixture
def recipe(tmp_path):
    """Writes a recipe that sets a field; returns its path as text."""

    def write(statement, module="convoy.trainer.config"):
        path = tmp_path / "mine.py"
        path.write_text(RECIPE.format(statement=statement, module=module))
        return str(path)

    return write


class TestRecipes:
    @pytest.mark.parametrize("name", configs.shipped_recipes())
    def test_shipped_recipes_are_valid_and_document_their_command(self, name):
        config = configs.load_recipe(name)
        configs.check(config)
        assert configs.resolve(config, num_images=100_000, replicas=1).total_steps > 0
        assert [field for field, _ in configs.fields(config)] == [
            field for field, _ in configs.fields(configs.default_config())
        ]
        text = configs.shipped_recipes()[name].read_text()
        docstring = text.split('"""')[1]
        assert f"convoy train --config={name} " in docstring

    def test_a_duration_overrides_the_recipes_duration_in_another_unit_unless_it_is_0(self):
        config = configs.load_recipe("convnet")
        assert configs.overridden_fields(config, {"eval_every_steps": "7"}) == ["eval_every_epochs"]
        assert configs.overridden_fields(config, {"eval_every_steps": "0", "schedule.warmup_steps": "0.0"}) == []
        for zero in ("", "-0", "0x0", "0_0", "0e3", "+.0"):
            assert configs.overridden_fields(config, {"eval_every_steps": zero}) == []

    @pytest.mark.parametrize(("given", "other"), [DECAYS, DECAYS[::-1]])
    @pytest.mark.parametrize("value", [0.0, 0.05])
    def test_a_given_weight_decay_is_the_only_one(self, given, other, value):
        fields = configs.default_config()
        for field in (given, other):
            fields.optimizer[field.removeprefix("optimizer.")] = 0.5
        assert configs.overridden_fields(fields, {given: str(value)}) == [other]
        assert configs.overridden_fields(fields, {given: str(value), other: "0.1"}) == []
        with pytest.raises(UsageError, match=r"optimizer\.weight_decay=0\.5: .*weight_decay_per_run=0\.5"):
            configs.check(fields)

    def test_a_loaded_recipe_is_locked(self):
        config = configs.load_recipe("smoke")
        with pytest.raises(AttributeError):
            config.bach_size = 3

    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            ("def get_config(:\n", "SyntaxError"),
            ("", "get_config()"),
            ("import no_such_module\n", "no_such_module"),
            ("def get_config():\n    return 1 / 0\n", "ZeroDivisionError"),
            ("def get_config():\n    return {'seed': 1}\n", "ml_collections.ConfigDict"),
            ("raise SystemExit('enough')\n", "SystemExit(enough)"),
            ("def get_config():\n    exit()\n", "SystemExit"),
            ("def get_config():\n    raise ValueError('one\\ntwo')\n", "ValueError: one."),
            (f"{OF_OTHERS}({{'seed': 1}})\n", "no field augment.ops"),
            (f"{OF_OTHERS}({{'rate': 0.1}})\n", "no field 'rate'"),
            (f"{OF_OTHERS}({{'steps': 'x'}})\n", "TypeError"),
        ],
    )
    def test_a_failing_recipe_is_reported_with_the_reason(self, tmp_path, text, reason):
        path = tmp_path / "mine.py"
        path.write_text(text)
        assert_rejected([f"--config={path}", reason], configs.load_recipe, str(path))

    def test_a_recipe_must_be_a_python_file(self, tmp_path):
        path = tmp_path / "recipe.txt"
        path.write_text("")
        assert_rejected([f"--config={path}", ".py"], configs.load_recipe, str(path))

    def test_a_misspelled_field_in_a_recipe_is_reported_with_the_nearest_one(self, recipe):
        path = recipe("config.bach_size = 3")
        assert_rejected([f"--config={path}", "'bach_size'", "config.batch_size"], configs.load_recipe, path)

    def test_a_recipe_adds_the_arguments_of_its_loss_and_no_other_fields(self, recipe):
        added = configs.configured(recipe("with config.unlocked(): config.loss.power = 0.5"), {"loss.power": 0.25})
        assert added.loss.power == 0.25 and added.loss.is_locked
        path = recipe("with config.unlocked(): config.bach_size = 3")
        assert_rejected([f"--config={path}", "'bach_size'"], configs.load_recipe, path)


class TestRenamed:
    @pytest.fixture(autouse=True)
    def no_earlier_warnings(self):
        renamed.current.cache_clear()

    @pytest.fixture
    def parse(self):
        """Returns the config of a command line."""

        def parsed(*arguments):
            flags = absl_flags.FlagValues()
            flags(["convoy train", *define_config_flag(flags, list(arguments))])
            return flags.config

        return parsed

    @pytest.fixture
    def warnings(self, caplog):
        """Returns the warnings since the start of the test."""
        return lambda: {record.getMessage() for record in caplog.records if record.levelno == logging.WARNING}

    @pytest.mark.parametrize(("old", "new"), renamed.RECIPES.items())
    def test_an_earlier_recipe_name_loads_the_recipe_with_one_warning(self, warnings, old, new):
        for _ in range(2):
            assert configs.recipe_path(old) == configs.shipped_recipes()[new]
            assert configs.load_recipe(old) == configs.load_recipe(new)
        (warning,) = warnings()
        assert old in warning and new in warning

    def test_a_file_with_an_earlier_recipe_name_is_that_file(self, warnings, tmp_path, monkeypatch):
        (tmp_path / "seed42").write_text("")
        monkeypatch.chdir(tmp_path)
        assert configs.recipe_path("seed42").read_text() == ""
        assert warnings() == set()

    @pytest.mark.parametrize(
        ("argument", "field", "value", "words"),
        [
            ("--config.augment.line=flip", "augment.ops", "flip", ["augment.line", "augment.ops"]),
            ("--config.eval_flip", "flip_tta", True, ["eval_flip", "flip_tta"]),
            ("--noconfig.eval_flip", "flip_tta", False, ["eval_flip", "flip_tta"]),
            ("--config.window=2048", "shuffle_window_size", 2048, ["window", "shuffle_window_size"]),
            ("--config.shuffle_block_size=9", "shuffle_window_size", 9, ["shuffle_block_size", "shuffle_window_size"]),
            ("--config.order=global", "shuffle", "global", ["order", "shuffle"]),
            ("--config.shuffle=windowed", "shuffle", "striped", ["windowed", "striped"]),
            ("--config.shuffle=block", "shuffle", "striped", ["block", "striped"]),
            ("--config.model.name=seed42", "model.name", "baseline_cnn", ["seed42", "baseline_cnn"]),
        ],
    )
    def test_earlier_fields_and_values_on_the_command_line_work_with_a_warning(
        self, parse, warnings, argument, field, value, words
    ):
        config = parse("--config=convnet_fast", argument)
        assert dict(configs.fields(config))[field] == value
        (warning,) = warnings()
        assert all(word in warning for word in words)

    def test_an_earlier_field_with_an_earlier_value_gives_two_warnings(self, parse, warnings):
        assert parse("--config.order=windowed").shuffle == "striped"
        assert len(warnings()) == 2

    def test_current_names_give_no_warning(self, parse, warnings):
        assert parse("--config=baseline_cnn", "--config.shuffle=striped").model.name == "baseline_cnn"
        assert warnings() == set()

    def test_a_config_of_an_earlier_version_is_the_same_config_under_current_names(self, config, warnings):
        changed(config, {"shuffle": "striped", "shuffle_window_size": 2048, "flip_tta": True, "augment.ops": "flip"})
        current = configs.to_json(changed(config, {"model.name": "baseline_cnn"}))
        old = {name: value for name, value in current.items() if name not in renamed.FIELDS.values()}
        old |= {"order": "windowed", "window": 2048, "eval_flip": True}
        old |= {"augment": {"line": "flip"}, "model": current["model"] | {"name": "seed42"}}
        before = repr(old)
        assert renamed.modernized(old) == current
        assert renamed.modernized(current) == current
        assert configs.differences(old, current) == configs.differences(current, old) == []
        assert configs.differences(old, current | {"shuffle": "global"}) == ["shuffle: striped -> global"]
        assert repr(old) == before
        assert warnings() == set()

    def test_a_config_without_the_renamed_fields_keeps_its_fields(self):
        assert renamed.modernized({"seed": 1}) == {"seed": 1}

    @pytest.mark.parametrize(
        ("statement", "old", "new"),
        [
            ("config.order = 'global'", "order", "shuffle"),
            ("config.window = 5", "window", "shuffle_window_size"),
            ("config.shuffle_block_size = 5", "shuffle_block_size", "shuffle_window_size"),
            ("config.eval_flip = True", "eval_flip", "flip_tta"),
            ("config.augment.line = 'flip'", "line", "augment.ops"),
        ],
    )
    def test_a_recipe_that_sets_an_earlier_field_is_rejected_with_the_current_name(self, recipe, statement, old, new):
        path = recipe(statement)
        assert_rejected([f"--config={path}", f"{old!r}", f"{new!r}"], configs.load_recipe, path)

    def test_a_recipe_that_sets_an_earlier_value_gets_the_current_one_with_a_warning(self, recipe, parse, warnings):
        path = recipe("config.model.name, config.shuffle = 'seed42', 'windowed'")
        for config in (configs.load_recipe(path), parse(f"--config={path}")):
            assert (config.model.name, config.shuffle) == ("baseline_cnn", "striped")
        assert len(warnings()) == 2

    @pytest.mark.parametrize("directory", ["elsewhere", "repository"])
    def test_a_recipe_that_imports_by_an_earlier_module_name_is_told_the_current_one(
        self, recipe, tmp_path, monkeypatch, directory
    ):
        path = recipe("pass", module="trainer.config")
        if directory == "elsewhere":
            monkeypatch.setattr("sys.path", [entry for entry in sys.path if "site-packages" in entry])
            monkeypatch.chdir(tmp_path)
        assert_rejected([f"--config={path}", "convoy.trainer.config"], configs.load_recipe, path)

    def test_a_recipe_that_imports_an_earlier_recipe_is_told_the_current_module(self, recipe):
        path = recipe("pass", module="configs.quick42")
        assert_rejected([f"--config={path}", "convoy.configs.convnet_fast"], configs.load_recipe, path)
