import json

import pytest

from convoy.core.error_file import note_error
from convoy.core.errors import UsageError
from convoy.trainer.callbacks.callback_list import CallbackError
from convoy.trainer.cluster.rendezvous import PeerLostError, PortTakenError


@pytest.mark.parametrize(
    ("error", "code"),
    [(ValueError("x"), 1), (UsageError("x"), 2), (PortTakenError("x"), 138), (PeerLostError("x"), None)],
)
def test_errors_that_do_not_follow_from_others_are_left_for_the_launcher(monkeypatch, tmp_path, error, code):
    path = tmp_path / "error-0.json"
    monkeypatch.setenv("CONVOY_ERROR_FILE", str(path))
    note_error(error)
    assert (json.loads(path.read_text())["exit_code"] if path.exists() else None) == code


@pytest.mark.parametrize("error", [CallbackError("x", "Mine"), ValueError("x")])
def test_launchers_are_told_when_a_restart_would_fail_the_same_way(monkeypatch, tmp_path, error):
    path = tmp_path / "error-0.json"
    monkeypatch.setenv("CONVOY_ERROR_FILE", str(path))
    note_error(error)
    assert json.loads(path.read_text())["is_final"] == isinstance(error, CallbackError)
