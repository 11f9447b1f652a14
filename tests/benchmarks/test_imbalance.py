"""The benchmark of imbalanced classes: what is left of them, and its table."""

from benchmarks.imbalance import REMEDIES, Score, imbalanced, table
from convoy import cli


def test_every_second_class_keeps_a_tenth_of_its_images():
    rows = [{"filename": f"{n}.jpg", "category": "abcd"[n % 4]} for n in range(80)]
    kept = imbalanced(rows)
    assert [sum(row["category"] == category for row in kept) for category in "abcd"] == [20, 2, 20, 2]
    assert all(row in rows for row in kept)


def test_table_compares_runs_with_the_same_seed():
    scores = {
        "none": [Score(0.5, 0.2, 0.8), Score(0.7, 0.4, 1.0)],
        "focal": [Score(0.6, 0.3, 0.8), Score(0.8, 0.5, 1.0)],
    }
    cells = [[cell.strip() for cell in row.split("|")[1:-1]] for row in table(scores)]
    assert cells[2][:3] == ["", "60.0 ± 14.1 %", ""] and cells[3][2] == "+10.0 ± 0.0"
    assert cells[3][0] == "`--config.loss.name=focal`" and cells[3][3:] == ["40.0 ± 14.1 %", "90.0 ± 14.1 %"]


def test_remedies_are_valid_flags(capsys):
    for overrides in REMEDIES.values():
        words = [f"--config.{name}={value}" for name, value in overrides.items()]
        assert cli.main(["convoy", "train", "--print_config", *words]) == 0, capsys.readouterr().err
