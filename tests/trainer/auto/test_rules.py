"""The rules of `--config=auto`: facts about data and machine lead to choices, each with a reason."""

import dataclasses

import pytest

from convoy.trainer import config as configs
from convoy.trainer.auto import table
from convoy.trainer.auto.facts import DataFacts
from convoy.trainer.auto.recipe_text import config_of, recipe_text
from convoy.trainer.auto.rules import Machine, choose
from convoy.trainer.auto.sensitivity import Color, Mirror

PHOTOS = DataFacts(
    images=2000,
    validation_images=200,
    class_names=("cat", "dog"),
    multi_label=False,
    smallest_class=1000,
    largest_class=1000,
    sampled=512,
    side=200.0,
    odd_shapes=0.0,
    long_shapes=0.0,
    is_gray=False,
    mirror=Mirror(accuracy=0.8, mirrored=0.79, chance=0.5, number=512),
    color=Color(colors=0.55, grays=0.8, chance=0.5, number=512),
)
ORIENTED = Mirror(accuracy=0.95, mirrored=0.3, chance=0.1, number=512)
UNDECIDED = Mirror(accuracy=0.51, mirrored=0.4, chance=0.5, number=64)


def chosen(changes=(), machine=Machine(), budget=0.0, **given):  # noqa: B008 (a frozen dataclass)
    facts = dataclasses.replace(PHOTOS, **dict(changes))
    return {choice.field: choice.value for choice in choose(facts, machine, budget, given)}


@pytest.mark.parametrize(
    ("facts", "field", "value"),
    [
        ({}, "flip_tta", True),
        ({"mirror": ORIENTED}, "flip_tta", False),
        ({"mirror": UNDECIDED}, "flip_tta", True),
        ({"mirror": None}, "flip_tta", True),
        ({"mirror": UNDECIDED, "class_names": ("turn left", "turn_right")}, "flip_tta", False),
        ({"mirror": UNDECIDED, "class_names": ("copyright", "leftover")}, "flip_tta", True),
        ({"mirror": None, "class_names": ("A", "B", "C")}, "flip_tta", False),
        # Numbers are often no digits but numbers of classes.
        ({"mirror": None, "class_names": ("0", "1", "2")}, "flip_tta", True),
        ({"mirror": None, "class_names": ("0", "1", "2"), "is_gray": True}, "flip_tta", False),
        ({"mirror": None, "class_names": ("\u732b", "\u72ac")}, "flip_tta", True),  # cat and dog in Japanese
        # What was measured counts more than names.
        ({"class_names": ("left", "right")}, "flip_tta", True),
        ({}, "image_size", 32),
        ({"side": 30.0}, "image_size", 24),
        ({"side": 8.0}, "image_size", 16),
        ({"images": 227, "side": 64.0}, "image_size", 32),
        ({}, "batch_size", 64),
        ({"images": 227}, "batch_size", 32),
        ({}, "epochs", 80.0),
        ({"images": 150}, "epochs", 182.0),
        ({"images": 10}, "epochs", float(table.MOST_EPOCHS)),
        ({}, "sampling", "natural"),
        ({"smallest_class": 300}, "sampling", "inverse_sqrt"),
        ({"smallest_class": 100}, "sampling", "balanced"),
        ({}, "resize", "squash"),
        ({"smallest_class": 10, "multi_label": True}, "sampling", "natural"),
        ({"odd_shapes": 0.3}, "resize", "crop"),
        ({"odd_shapes": 0.5, "long_shapes": 0.4}, "resize", "pad"),
        ({"multi_label": True, "mirror": None, "color": None}, "loss.name", "bce"),
    ],
)
def test_choices_follow_from_the_data(facts, field, value):
    assert chosen(facts)[field] == value


@pytest.mark.parametrize(
    ("facts", "present", "absent"),
    [
        ({}, ("flip", "hue(0.5, 0.5)", "solarize"), ()),
        ({"mirror": ORIENTED}, ("hue(0.5, 0.5)",), ("flip",)),
        ({"color": Color(0.7, 0.5, 0.5, 512)}, ("flip", "hue(0.05)"), ("solarize",)),
        ({"color": Color(0.95, 0.5, 0.5, 512)}, ("flip",), ("hue", "solarize", "saturation")),
        # Shapes tell as much: a network does not need the colors.
        ({"color": Color(0.95, 0.95, 0.5, 512)}, ("hue(0.5, 0.5)",), ()),
        ({"is_gray": True, "color": None}, ("flip", "contrast"), ("hue", "solarize", "shear")),
        ({"is_gray": True, "color": None, "mirror": ORIENTED}, ("shear", "contrast"), ("hue", "flip")),
    ],
)
def test_augmentation_keeps_what_identifies_a_class(facts, present, absent):
    ops = chosen(facts)["augment.ops"]
    assert all(name in ops for name in present)
    assert not any(name in ops for name in absent)


def test_machine_sets_the_largest_image_and_batch():
    gpu = Machine("GPU", replicas=1)
    assert chosen(machine=gpu)["image_size"] == 128
    assert chosen({"images": 50_000}, gpu)["batch_size"] == 128
    assert chosen({"images": 50_000})["batch_size"] == 64
    small = Machine(memory=2**27)
    fits = chosen(machine=small)
    assert table.BYTES_PER_PIXEL * fits["image_size"] ** 2 * fits["batch_size"] <= 2**26
    assert fits["image_size"] < 32


@pytest.mark.parametrize(("replicas", "given", "batch"), [(1, 0, 64), (3, 0, 66), (16, 0, 128), (1, 6, 66), (2, 4, 64)])
def test_batch_is_divisible_by_the_virtual_replicas(replicas, given, batch):
    found = chosen(machine=Machine(replicas=replicas), virtual_replicas=given)["batch_size"]
    assert found == batch
    assert found % (given or replicas) == 0


def seconds_of(choices, facts, speed):
    """Returns the time that the choices take at a speed per image of 64 pixels, without stages."""
    pixels = (choices["image_size"] / 64) ** 1.5
    evaluated = table.EVALUATIONS * facts.validation_images * 2 * table.EVALUATION_COST
    return (table.OVERHEAD * choices["epochs"] * facts.images + evaluated) / speed * pixels


@pytest.mark.parametrize("budget", [600, 1200, 3600, 10 * 3600])
def test_length_keeps_to_nine_tenths_of_the_budget(budget):
    choices = chosen(machine=Machine(speeds={64: 64.0}), budget=budget, **{"model.name": "baseline_cnn"})
    assert "progressive.sizes" not in choices
    assert seconds_of(choices, PHOTOS, 64.0) <= 0.9 * budget
    assert choices["epochs"] <= table.LONGEST * table.EPOCHS


def test_less_time_means_half_the_epochs_then_smaller_images_in_stages_then_fewer_epochs():
    def within(hours):
        return chosen(machine=Machine("GPU", speeds={128: 64.0}), budget=3600.0 * hours)

    plenty, enough, less, least = within(4), within(0.8), within(0.3), within(0.02)
    assert plenty["epochs"] == 160.0 and "progressive.sizes" not in plenty
    assert enough["image_size"] == 128 and 40 <= enough["epochs"] < 80 and "progressive.sizes" not in enough
    assert table.SMALLEST_SIDE < less["image_size"] < 128 and less["epochs"] >= 80
    assert less["progressive.sizes"] == (less["image_size"] / 2, less["image_size"] * 3 / 4)
    assert least["image_size"] == table.SMALLEST_SIDE and least["epochs"] < 50
    assert least["mix.probability"] == 0.0 and "mix.probability" not in less


@pytest.mark.parametrize(
    ("images", "epochs", "is_mixed"), [(2000, 39, False), (2000, 40, True), (200, 60, False), (200, 80, True)]
)
def test_short_runs_are_not_mixed(images, epochs, is_mixed):
    choices = chosen({"images": images}, epochs=float(epochs))
    assert ("mix.probability" not in choices) == is_mixed


def test_less_than_one_epoch_fits_in_a_short_time():
    choices = chosen({"images": 10**6}, Machine(speeds={64: 64.0, 32: 256.0}), budget=900.0)
    assert 0 < choices["epochs"] < 1
    assert 0 < choices["schedule.warmup_epochs"] < choices["eval_every_epochs"] < choices["epochs"]
    assert choices["checkpoint_every_epochs"] <= choices["eval_every_epochs"]


def test_no_speed_no_budget():
    assert chosen(budget=60.0)["epochs"] == 80.0


def test_values_of_the_user_win_and_others_follow():
    choices = chosen(machine=Machine(speeds={48: 64.0}), budget=30.0, epochs=100.0, image_size=48, batch_size=20)
    assert (choices["epochs"], choices["image_size"], choices["batch_size"]) == (100.0, 48, 20)
    assert choices["eval_every_epochs"] == 17.0
    few, many = chosen(steps=100), chosen(steps=10_000)
    assert "epochs" not in few
    assert few["optimizer.weight_decay_per_run"] < many["optimizer.weight_decay_per_run"] == table.DECAY_PER_RUN


def test_weight_decay_is_chosen_for_adamw_unless_it_is_given():
    assert "optimizer.weight_decay_per_run" not in chosen(**{"optimizer.name": "sgd"})
    given = chosen(**{"optimizer.weight_decay": 0.1})
    assert (given["optimizer.weight_decay"], given["optimizer.weight_decay_per_run"]) == (0.1, 0.0)


def test_models_of_one_image_size_have_no_stages():
    choices = chosen(machine=Machine(speeds={32: 64.0}), budget=1800.0, **{"model.name": "baseline_cnn"})
    assert "progressive.sizes" not in choices


@pytest.mark.parametrize(
    "facts", [{}, {"images": 30}, {"multi_label": True, "mirror": None, "color": None}, {"images": 10**6}]
)
@pytest.mark.parametrize("budget", [0, 100, 5000])
def test_the_recipe_is_valid_and_gives_the_chosen_config(tmp_path, facts, budget):
    machine = Machine(speeds={64: 64.0}) if budget else Machine()
    choices = choose(dataclasses.replace(PHOTOS, **facts), machine, budget, {"seed": 3})
    recipe = tmp_path / "recipe.py"
    recipe.write_text(recipe_text(choices, "a test"))
    config = configs.load_recipe(str(recipe))
    configs.check(config)
    assert config.to_dict() == config_of(choices).to_dict()
    assert config.seed == 3
    comments = [line.strip() for line in recipe.read_text().splitlines() if line.strip().startswith("#")]
    text = " ".join(line.removeprefix("# ") for line in comments)
    assert not [choice for choice in choices if choice.reason[1:] not in text]
