"""Flags of `convoy launch`, and the trainer's command after `--`."""

import pytest

from convoy.cli import main
from convoy.launch.trainer_command import flag_value


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ("", "engine"),
        ("lcal --processes=2", "'local'"),
        ("local -- train --workdir=w", "--processes"),
        ("local --processes=0 -- train --workdir=w", "--processes=0"),
        ("local --processes=65 -- train --workdir=w", "--processes=65"),
        ("local --processes=2", "no command"),
        ("local --processes=2 train --workdir=w", "`--`"),
        ("local --processes=2 -- --workdir=w", "no command"),
        ("local --processes=2 -- trian --workdir=w", "'train'"),
        ("local --processes=2 -- evaluate --workdir=w", "'evaluate'"),
        ("local --processes=2 -- train --data=d", "--workdir"),
        ("local --processes=2 -- train --workdir=", "--workdir"),
        ("local --processes=2 -- train --workdir=w --worker_hosts=a:1,b:1", "--worker_hosts=a:1,b:1"),
        ("local --proceses=2 -- train --workdir=w", "processes?"),
        ("local --processes=2 --max_restarts=-1 -- train --workdir=w", "--max_restarts=-1"),
    ],
)
def test_usage_error_is_one_line_that_names_the_problem(capsys, arguments, named):
    assert main(["convoy", "launch", *arguments.split()]) == 2
    captured = capsys.readouterr()
    assert named in captured.err
    assert (captured.out, len(captured.err.splitlines())) == ("", 1)


def test_help_lists_the_launchers_flags_and_not_the_trainers(capsys):
    assert main(["convoy", "launch", "local", "--help", "--", "train", "--help"]) == 0
    out = capsys.readouterr().out
    assert "  --max_restarts\n" in out
    assert "  --workdir\n" not in out


def test_last_value_of_a_repeated_trainer_flag_wins():
    assert flag_value(["train", "--workdir=a", "--workdir", "b", "--other", "c"], "workdir") == "b"
    assert flag_value(["train", "--workdir"], "workdir") is None
