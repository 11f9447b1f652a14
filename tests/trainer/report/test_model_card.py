import re

import pytest
import yaml

from convoy.configs.smoke import get_config
from convoy.trainer.evaluation.report.page import write_report
from tests.trainer.report.made_runs import CLASSES, drawn_predictions, evaluated, made_run

NASTY = ("<script>alert(1)</script>", "a | b", "[x](http://x)", "`code` *bold* _it_", "# heading\n# another", "~~$x$~~")
AUGMENTATION = get_config().augment.ops.replace("|", "\\|")
RESULT = {"weights_sha256": "ab" * 32, "seconds": {"steps": 3600.0}}


def card_of(run, **options):
    notes = write_report(run, **options)
    return run.model_card.read_text(), notes


@pytest.fixture
def run(tmp_path):
    """A finished run, evaluated on three splits."""
    results = (("validation", 20, 0.7), ("validation", 40, 0.8), ("train", 40, 0.95), ("test", 40, 0.61))
    run = made_run(tmp_path / "run", results=results, result=RESULT)
    found, _ = drawn_predictions([i % 4 for i in range(80)], num_classes=4)
    evaluated(run, found)
    return run


def test_card_is_filled_from_the_run_and_leaves_the_rest_as_todo(run):
    card, _ = card_of(run)
    for known in (
        "| parameters | 1,185,930 |",
        "| training split digest | 5c6f |",
        "| name | made |",
        "adamw, learning rate 0.004, weight decay 0.05",
        "| 1.00 h on 2 devices |",
        "| test | 40 | 61.00 % | 90.00 % | 50.00 % | 10.00 % | 1.5000 |",
        "| validation | 40 | 80.00 % |",
        "convoy train --config=smoke",
        "convoy predict --workdir=RUN",
        "4 classes",
        f"| augmentation | {AUGMENTATION} |",
    ):
        assert known in card
    assert "| validation | 20 |" not in card
    assert "a-host" not in card  # host names are private
    for unknown in ("License", "Primary intended uses", "Ethical considerations", "Origin of the images"):
        assert re.search(rf"^- {unknown}.*: TODO$", card, re.MULTILINE)


def test_front_matter_follows_hugging_face(run):
    card, _ = card_of(run)
    metadata = yaml.safe_load(card.split("---\n")[1])
    assert (metadata["library_name"], metadata["pipeline_tag"]) == ("keras", "image-classification")
    (index,) = metadata["model-index"]
    by_split = {entry["dataset"]["split"]: entry for entry in index["results"]}
    assert by_split.keys() == {"train", "validation", "test"}
    metrics = {metric["type"]: metric["value"] for metric in by_split["test"]["metrics"]}
    assert metrics == {"accuracy": 0.61, "f1": 0.5}
    assert by_split["test"]["task"] == {"type": "image-classification"}


def test_card_is_rewritten_until_it_was_edited_by_hand(run):
    before, _ = card_of(run)
    evaluated(run, drawn_predictions([0] * 30, num_classes=4)[0], split="extra", step=99)
    again, notes = card_of(run)
    assert again != before and "extra, digest" in again
    assert not any(str(run.model_card) in text for text in notes)
    edited = again.replace("- License: TODO", "- License: MIT")
    run.model_card.write_text(edited)
    after, notes = card_of(run)
    assert after == edited
    assert any(str(run.model_card) in text for text in notes)
    run.model_card.write_text("my own card\n")
    assert card_of(run)[0] == "my own card\n"


def test_names_are_escaped(tmp_path):
    run = made_run(tmp_path / "<b>run", class_names=NASTY)
    found, _ = drawn_predictions([i % 6 for i in range(60)], num_classes=6)
    evaluated(run, found, class_names=NASTY)
    card, _ = card_of(run)
    body = card.split("---\n", 2)[2]
    assert r"\<script\>alert(1)\</script\>" in body and r"a \| b" in body and r"\[x\](http://x)" in body
    assert r"\`code\` \*bold\* \_it\_" in body and r"\~\~\$x\$\~\~" in body
    assert r"# heading\\x0a# another" in body
    assert not re.search(r"(?<!\\)<(?!!--)", body)
    assert [line for line in body.splitlines() if line.startswith("# ")] == [r"# \<b\>run"]
    yaml.safe_load(card.split("---\n")[1])


def test_card_of_a_run_in_progress(tmp_path):
    card, _ = card_of(made_run(tmp_path / "run"))
    assert "| parameters | TODO |" in card
    assert "| split | step |" not in card
    assert f"{', '.join(CLASSES)} |" in card
