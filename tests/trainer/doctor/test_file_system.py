"""What the doctor says of file systems that refuse an operation."""

import errno
import fcntl
import os
from pathlib import Path

import pytest

from convoy.core.finding import Severity
from convoy.trainer.doctor.file_system import check_file_system


def refuse(*_, **__):
    raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))


def test_this_file_system_does_everything(tmp_path):
    (finding,) = check_file_system(tmp_path)
    assert (finding.severity, finding.code) == (Severity.OK, "file-system-suffices")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("place", "name", "codes"),
    [
        (os, "fsync", {"no-fsync-of-files", "no-fsync-of-folders"}),
        (fcntl, "flock", {"no-locks"}),
        (Path, "unlink", {"no-removing-an-open-file"}),
    ],
)
def test_refused_operation_is_a_warning(tmp_path, monkeypatch, place, name, codes):
    monkeypatch.setattr(place, name, refuse)
    findings = check_file_system(tmp_path)
    assert {finding.code for finding in findings} == codes
    assert all(finding.severity == Severity.WARNING and finding.fix for finding in findings)


def test_locks_that_lock_nothing_are_a_warning(tmp_path, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", lambda *_: None)
    assert [finding.code for finding in check_file_system(tmp_path)] == ["no-locks"]


def test_operations_without_which_no_run_is_possible_are_errors(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "replace", refuse)
    found = {finding.code: finding.severity for finding in check_file_system(tmp_path)}
    assert found == {
        "no-renaming-over-a-file": Severity.ERROR,
        "no-renaming-over-an-open-file": Severity.WARNING,
    }
    assert os.listdir(tmp_path) == []
