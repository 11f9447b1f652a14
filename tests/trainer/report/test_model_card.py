import re

import pytest
import yaml

from convoy.trainer.evaluation.report.page import write_report
from tests.trainer.report.made_runs import CLASSES, drawn_predictions, evaluated, made_run

NASTY = ("<script>alert(1)</script>", "a | b", "[x](http://x)", "`code` *bold* _it_", "# heading\n# another", "~~$x$~~")
RESULT = {"weights_sha256": "ab" * 32, "seconds": {"steps": 3600.0}}


def card_of(run, **options):
    told = write_report(run, **options)
    return run.model_card.read_text(), told


@pytest.fixture
def run(tmp_path):
    """A finished run that was evaluated on three splits."""
    results = (("validation", 20, 0.7), ("validation", 40, 0.8), ("train", 40, 0.95), ("test", 40, 0.61))
    run = made_run(tmp_path / "run", results=results, result=RESULT)
    found, _ = drawn_predictions([i % 4 for i in range(80)], num_classes=4)
    evaluated(run, found)
    return run


def test_the_card_has_what_the_run_knows_and_leaves_the_rest_to_a_person(run):
    card, _ = card_of(run)
    for known in (
        "| parameters | 1,185,930 |",
        "| digest of the training split | 5c6f |",
        "| name | made |",
        "adamw, learning rate 0.004, weight decay 0.05",
        "| time of the last start | 1.00 h on 2 devices |",
        "| test | 40 | 61.00 % | 90.00 % | 50.00 % | 10.00 % | 1.5000 |",
        "| validation | 40 | 80.00 % |",
        "convoy train --config=smoke",
        "convoy predict --workdir=RUN",
        "one of its 4 classes",
    ):
        assert known in card
    assert "| validation | 20 |" not in card
    assert "a-host" not in card  # nobody who gets the model needs to know
    for unknown in ("License", "What it is for", "Ethical considerations", "Where the images come from"):
        assert re.search(rf"^- {unknown}.*: TODO$", card, re.MULTILINE)


def test_its_metadata_are_those_of_hugging_face(run):
    card, _ = card_of(run)
    metadata = yaml.safe_load(card.split("---\n")[1])
    assert (metadata["library_name"], metadata["pipeline_tag"]) == ("keras", "image-classification")
    (index,) = metadata["model-index"]
    by_split = {entry["dataset"]["split"]: entry for entry in index["results"]}
    assert by_split.keys() == {"train", "validation", "test"}
    metrics = {metric["type"]: metric["value"] for metric in by_split["test"]["metrics"]}
    assert metrics == {"accuracy": 0.61, "f1": 0.5}
    assert by_split["test"]["task"] == {"type": "image-classification"}


def test_it_is_written_anew_until_a_person_has_edited_it(run):
    before, _ = card_of(run)
    evaluated(run, drawn_predictions([0] * 30, num_classes=4)[0], split="extra", step=99)
    again, told = card_of(run)
    assert again != before and "extra, digest" in again
    assert not any("edited" in text for text in told)
    edited = again.replace("- License: TODO", "- License: MIT")
    run.model_card.write_text(edited)
    after, told = card_of(run)
    assert after == edited
    assert f"{run.model_card} was edited by hand: it stays as it is." in told
    run.model_card.write_text("my own card\n")
    assert card_of(run)[0] == "my own card\n"


def test_no_name_becomes_markup(tmp_path):
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


def test_a_run_in_progress_has_a_card_without_what_is_not_known_yet(tmp_path):
    card, _ = card_of(made_run(tmp_path / "run"))
    assert "| parameters | TODO |" in card
    assert "Nothing was evaluated yet." in card
    assert f"{', '.join(CLASSES)} |" in card
