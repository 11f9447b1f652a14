"""Console output on a terminal, in a file, and of a worker other than the chief."""

import io
import os
import pty

import pytest
from rich.console import Console

from convoy.core.finding import Finding, Severity
from convoy.trainer.callbacks.console import TrainingConsole
from tests.trainer import user_models

LINE = {
    "quality/loss": 2.5,
    "quality/top1": 0.25,
    "perf/images_per_s": 1234.5,
    "perf/step_ms_p50": 51.6,
    "perf/input_wait_pct": 3.0,
    "optim/lr": 1e-3,
}
QUALITY = {"loss": 2.25, "top1": 0.5, "top5": 0.75, "macro_f1": 0.45, "ece": 0.05}


def shown(*, terminal, shows=True):
    """Shows a run of 100 steps; returns the output."""
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=terminal, width=80, highlight=False, soft_wrap=True, quiet=not shows)
    with TrainingConsole(100, 0, console) as view:
        view.header({"model": "convnet", "run directory": "runs/one"})
        for step in range(1, 41):
            view.step(step)
        view.progress(40, 1.0, LINE)
        view.evaluation(40, 1.0, "validation", QUALITY, True)
        view.evaluation(50, 1.25, "validation", QUALITY, False)
        view.say("Warning: a problem.")
    return screen.getvalue()


def test_file_output_has_plain_lines_only():
    lines = shown(terminal=False).splitlines()
    assert lines[0] == "model          convnet"
    assert lines[2].startswith("step 40/100  epoch 1.00  loss 2.5000  top-1 25.00%  1,234 images/s  52 ms/step")
    assert "ETA 0:0" in lines[2]
    assert lines[3].endswith("top-1 50.00%  top-5 75.00%  macro F1 45.00%  ECE 5.00%  *best*")
    assert lines[4].startswith("step 50/100") and not lines[4].endswith("*best*")
    assert lines[5:] == ["Warning: a problem."]


def test_terminal_shows_a_table_of_evaluations_and_colored_warnings():
    output = shown(terminal=True)
    assert output.count("train top-1") == 1
    row = next(line for line in output.splitlines() if "* best" in line)
    for cell in ("40", "1.00", "25.00%", "2.2500", "50.00%", "75.00%", "45.00%", "5.00%"):
        assert f" {cell}" in row
    assert output.count("* best") == 1
    assert "\x1b[32m" in row  # green
    assert "\x1b[33mWarning: a problem." in output


@pytest.mark.parametrize("terminal", [True, False])
def test_worker_other_than_the_chief_prints_nothing(terminal):
    assert shown(terminal=terminal, shows=False) == ""


def test_input_bound_lines_are_marked():
    screen = io.StringIO()
    view = TrainingConsole(100, 0, Console(file=screen, width=200))
    view.progress(20, 1.0, LINE | {"perf/input_wait_pct": 37.0})
    assert "37.0% (input-bound)" in screen.getvalue()


@pytest.mark.parametrize(("severity", "prefix"), [(Severity.WARNING, "Warning: "), (Severity.NOTE, "Note: ")])
def test_finding_is_printed_with_severity_and_fix(severity, prefix):
    screen = io.StringIO()
    view = TrainingConsole(100, 0, Console(file=screen, width=200))
    view.finding(Finding(severity, "a-code", "A problem.", "Fix it."))
    assert screen.getvalue() == f"{prefix}A problem. Fix it.\n"


def test_terminal_without_cursor_control_gets_plain_lines():
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=200, _environ={"TERM": "dumb"})
    with TrainingConsole(100, 0, console) as view:
        view.step(20)
        view.progress(20, 1.0, LINE)
    assert screen.getvalue().startswith("step 20/100  epoch 1.00  loss 2.5000")


def test_forced_colors_are_no_terminal(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    with TrainingConsole(100, 0) as view:
        view.progress(20, 1.0, LINE)
    assert "━" not in capsys.readouterr().out


@pytest.mark.slow
def test_training_in_a_terminal_draws_a_bar_and_keeps_table_and_result(dataset, convoy_started, tmp_path):
    primary, secondary = pty.openpty()
    run = tmp_path / os.fsdecode(b"a name that is not UTF-8 \xff")
    model = f"--config.model.name={user_models.__file__}:small"
    command = ("train", "--config=smoke", model, f"--data={dataset.data}", f"--workdir={run}", "--devices=cpu:1")
    with convoy_started(*command, output=os.ttyname(secondary), prefix=("env", "TERM=xterm")) as process:
        os.close(secondary)
        output = b""
        while True:
            try:
                read = os.read(primary, 65536)
            except OSError:  # the process has closed the terminal
                break
            output += read
        assert process.wait(60) == 0
    text = output.decode()
    assert "━" in text and "ETA" in text
    assert text.count("train top-1") == 1
    assert "* best" in text
    assert "Limits: " in text and "Done: step 20" in text
    assert "a name that is not UTF-8 \\udcff" in text
    assert os.fsencode(run) in (run / "command.txt").read_bytes()
