import pytest

from convoy.core.errors import UsageError
from convoy.trainer import config as configs


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
    def test_every_unit_becomes_the_nearest_number_of_steps(self, config, field, value, steps):
        assert in_steps(changed(config, {field: value})) == steps

    @pytest.mark.parametrize(("field", "value"), [("eval_every_epochs", 0.001), ("eval_every_images", 1)])
    def test_a_duration_that_is_given_is_a_step_at_least(self, config, field, value):
        assert in_steps(changed(config, {field: value})) == 1

    def test_none_given_is_0(self, config):
        assert in_steps(config) == 0

    def test_two_at_once_are_refused_by_name(self, config):
        changed(config, {"eval_every_epochs": 2.0, "eval_every_images": 100})
        with pytest.raises(UsageError, match=r"config.eval_every_epochs=2\.0 and config.eval_every_images=100"):
            in_steps(config)

    def test_a_bare_duration_and_one_in_steps_are_two(self, config):
        with pytest.raises(UsageError, match="say the same thing twice"):
            in_steps(changed(config, {"log_every": 5, "log_every_steps": 5}), "log_every")

    @pytest.mark.parametrize("value", [-1.0, float("inf"), float("nan")])
    def test_what_is_no_duration_is_refused(self, config, value):
        with pytest.raises(UsageError, match="config.eval_every_epochs=.*: give 0 or more"):
            in_steps(changed(config, {"eval_every_epochs": value}))

    def test_a_warmup_is_named_with_its_section(self, config):
        changed(config, {"schedule.warmup_steps": 5, "schedule.warmup_epochs": 1.0})
        with pytest.raises(UsageError, match=r"config\.schedule\.warmup_steps=5 and config\.schedule\.warmup_epochs=1"):
            configs.resolve(config, num_images=100, replicas=1)


class TestResolve:
    def test_what_follows_from_config_dataset_and_devices(self, config):
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
            total_steps=53,  # 52.08, so that 2.5 epochs have been seen in full
            warmup_steps=10,
            eval_every_steps=21,  # an epoch
            checkpoint_every_steps=10,
            log_every_steps=20,
            histogram_every_steps=0,
            freeze_steps=3,
            peak_learning_rate=0.3,
        )
        assert plan.as_dict()["total_steps"] == 53

    def test_steps_stand_instead_of_epochs(self, config):
        plan = configs.resolve(changed(config, {"steps": 7, "epochs": 100.0}), num_images=1000, replicas=1)
        assert plan.total_steps == 7

    def test_a_dataset_smaller_than_a_batch_still_trains(self, config):
        plan = configs.resolve(changed(config, {"epochs": 0.01}), num_images=3, replicas=1)
        assert (plan.total_steps, plan.eval_every_steps) == (1, 1)

    def test_checkpoints_follow_evaluations_where_nothing_else_is_said(self, config):
        plan = configs.resolve(changed(config, {"eval_every_steps": 9}), num_images=1000, replicas=1)
        assert plan.checkpoint_every_steps == 9

    @pytest.mark.parametrize(("in_config", "replicas", "expected"), [(0, 1, 1), (0, 4, 4), (8, 2, 8)])
    def test_virtual_replicas_are_the_configs_else_one_a_device(self, config, in_config, replicas, expected):
        plan = configs.resolve(changed(config, {"virtual_replicas": in_config}), num_images=1000, replicas=replicas)
        assert plan.virtual_replicas == expected

    def test_what_the_first_start_chose_by_its_hardware_is_kept(self, config):
        chosen = {"virtual_replicas": 8, "precision": "bfloat16"}
        kept = configs.with_recorded_choices(config, chosen)
        assert configs.resolve(kept, num_images=1000, replicas=2).virtual_replicas == 8
        assert configs.differences(configs.to_json(config) | chosen, configs.to_json(kept)) == []
        assert (config.virtual_replicas, config.precision) == (0, "auto")

    def test_what_the_config_says_is_not_replaced_by_an_earlier_choice(self, config):
        changed(config, {"virtual_replicas": 4, "precision": "float32"})
        kept = configs.with_recorded_choices(config, {"virtual_replicas": 8, "precision": "bfloat16"})
        assert (kept.virtual_replicas, kept.precision) == (4, "float32")

    def test_devices_that_do_not_divide_the_virtual_replicas_name_the_numbers_that_do(self, config):
        with pytest.raises(UsageError, match="virtual_replicas=12 .* over 5 devices: use 1, 2, 3, 4, 6 or 12 devices"):
            configs.resolve(changed(config, {"virtual_replicas": 12}), num_images=1000, replicas=5)

    def test_more_devices_than_virtual_replicas_are_refused(self, config):
        with pytest.raises(UsageError, match="virtual_replicas=1 .* over 2 devices: use 1 devices"):
            configs.resolve(changed(config, {"virtual_replicas": 1}), num_images=1000, replicas=2)

    @pytest.mark.parametrize(
        ("batch", "virtual", "mend"), [(63, 2, "use 62 or 64"), (100, 8, "use 96 or 104"), (3, 4, r"parts: use 4\.")]
    )
    def test_a_batch_that_does_not_divide_names_the_nearest_that_do(self, config, batch, virtual, fix):
        changed(config, {"batch_size": batch, "virtual_replicas": virtual})
        with pytest.raises(UsageError, match=f"config.batch_size={batch} .*virtual_replicas={virtual} .*{fix}"):
            configs.resolve(config, num_images=1000, replicas=1)

    def test_virtual_replicas_of_one_image_cannot_be_mixed(self, config):
        changed(config, {"batch_size": 8, "virtual_replicas": 8, "mix.cutmix": 1.0})
        with pytest.raises(UsageError, match="config.batch_size=8 each of virtual_replicas=8 has one: use 16, or set"):
            configs.resolve(config, num_images=1000, replicas=1)

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
    def test_the_learning_rate_does_not_depend_on_the_devices(self, config, replicas):
        changed(config, {"schedule.scaling": "linear", "batch_size": 128, "virtual_replicas": 4})
        plan = configs.resolve(config, num_images=1000, replicas=replicas)
        assert plan.peak_learning_rate == pytest.approx(2e-3)


class TestCheck:
    def test_the_defaults_pass(self, config):
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
            ("xla", "maybe"),
            ("model.instance_norm", "layer"),
            ("order", "windowd"),
            ("window", -1),
            ("on_corrupt", "skip"),
            ("cache", "disk"),
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
            ("model.depth", -1),
            ("model.width", -1),
            ("model.stochastic_depth", 1.0),
            ("model.freeze_steps", 3),
            ("model.backbone_rate", 0.0),
        ],
    )
    def test_a_value_that_cannot_work_is_named(self, config, field, value):
        with pytest.raises(UsageError) as caught:
            configs.check(changed(config, {field: value}))
        assert str(caught.value).startswith(f"config.{field}={value}: ")

    def test_epochs_do_not_matter_where_steps_are_given(self, config):
        configs.check(changed(config, {"epochs": 0.0, "steps": 5}))

    def test_a_choice_names_the_nearest(self, config):
        with pytest.raises(UsageError, match=r"\(did you mean 'cosine'\?\)"):
            configs.check(changed(config, {"schedule.name": "cosin"}))

    def test_the_line_of_the_augmentation_is_checked_with_the_size_of_the_images(self, config):
        configs.check(changed(config, {"augment.ops": "crop(32) | flip", "image_size": 32}))
        with pytest.raises(UsageError, match="^config.augment.ops: operation 2, 'flp': .*did you mean 'flip'"):
            configs.check(changed(config, {"augment.ops": "crop | flp"}))
        with pytest.raises(UsageError, match="the size must be config.image_size=64"):
            configs.check(changed(config, {"augment.ops": "crop(32) | flip", "image_size": 64}))

    def test_windowed_order_and_sampling_by_class_do_not_go_together(self, config):
        with pytest.raises(UsageError, match="config.sampling=balanced: with shuffle=block give natural"):
            configs.check(changed(config, {"order": "block", "sampling": "balanced"}))

    def test_deterministic_and_xla_do_not_go_together(self, config):
        with pytest.raises(UsageError, match="config.xla=on: with deterministic give auto or off"):
            configs.check(changed(config, {"deterministic": True, "xla": "on"}))


class TestDifferences:
    def test_the_same_config_has_none_however_it_was_stored(self, config):
        assert configs.differences(configs.to_json(config), config) == []

    def test_what_is_computed_counts(self, config):
        before = configs.to_json(config)
        changed(config, {"seed": 3, "schedule.boundaries": (0.3,), "model.name": "baseline_cnn"})
        assert sorted(configs.differences(before, configs.to_json(config))) == [
            "model.name: convnet -> baseline_cnn",
            "schedule.boundaries: [0.5, 0.75] -> [0.3]",
            "seed: 0 -> 3",
        ]

    def test_what_is_shown_and_kept_does_not(self, config):
        before = configs.to_json(config)
        changed(config, {"log_every_images": 5, "eval_every": 9, "checkpoint_every_epochs": 0.5, "keep_checkpoints": 9})
        changed(config, {"on_corrupt": "substitute", "cache": "memory"})
        assert configs.differences(before, configs.to_json(config)) == []

    def test_a_field_that_a_run_of_an_older_version_lacks_had_its_default(self, config):
        before = {name: value for name, value in configs.to_json(config).items() if name not in ("order", "window")}
        assert configs.differences(before, configs.to_json(config)) == []
        changed(config, {"order": "block"})
        assert configs.differences(before, configs.to_json(config)) == ["order: global -> windowed"]

    def test_fields_that_only_one_of_them_has_count(self):
        assert configs.differences({"old": 1}, {"new": 2}) == ["new: None -> 2", "old: 1 -> None"]


class TestRecipes:
    @pytest.mark.parametrize("name", configs.shipped_recipes())
    def test_every_shipped_recipe_loads_checks_and_says_its_command(self, name):
        config = configs.load_recipe(name)
        configs.check(config)
        assert configs.resolve(config, num_images=100_000, replicas=1).total_steps > 0
        assert [field for field, _ in configs.fields(config)] == [
            field for field, _ in configs.fields(configs.default_config())
        ]
        text = configs.shipped_recipes()[name].read_text()
        docstring = text.split('"""')[1]
        assert f"convoy train --config={name} " in docstring

    def test_a_duration_takes_the_place_of_the_recipes_in_another_unit_unless_it_is_none(self):
        config = configs.load_recipe("convnet")
        assert configs.overridden_durations(config, {"eval_every_steps": "7"}) == ["eval_every_epochs"]
        assert configs.overridden_durations(config, {"eval_every_steps": "0", "schedule.warmup_steps": "0.0"}) == []

    def test_a_recipe_cannot_be_given_a_field_that_does_not_exist(self):
        config = configs.load_recipe("smoke")
        with pytest.raises(AttributeError):
            config.bach_size = 3

    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            ("def get_config(:\n", "SyntaxError"),
            ("", r"has no function get_config\(\)"),
            ("import no_such_module\n", "ModuleNotFoundError: .*no_such_module"),
            ("def get_config():\n    return 1 / 0\n", "ZeroDivisionError"),
            ("def get_config():\n    return {'seed': 1}\n", "must return an ml_collections.ConfigDict"),
        ],
    )
    def test_a_recipe_that_fails_is_named_with_the_reason(self, tmp_path, text, reason):
        path = tmp_path / "mine.py"
        path.write_text(text)
        with pytest.raises(UsageError, match=rf"(?s)--config={path}: .*{reason}"):
            configs.load_recipe(str(path))

    def test_a_misspelt_field_in_a_recipe_is_named_with_the_nearest(self, tmp_path):
        path = tmp_path / "mine.py"
        path.write_text(
            "from convoy.trainer.config import default_config\n\n\n"
            "def get_config():\n    config = default_config()\n    config.bach_size = 3\n    return config\n"
        )
        with pytest.raises(UsageError) as caught:
            configs.load_recipe(str(path))
        nearest = "config has no field 'bach_size'. Nearest: config.batch_size, now 64."
        assert str(caught.value) == f"--config={path}: {path}: {nearest}"
