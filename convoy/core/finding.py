"""Findings: what a check, a report or a run in progress has to say, with its severity and a suggested fix.

    Finding(Severity.WARNING, "overfitting", "top-1 is 95 % in training and 71 % in validation", fix="Add images.")

The doctor, the data set's report, the run's report, `verify` and the advice during training all use this type. Tests
and scripts rely on `severity` and `code`; `text` and `fix` are for people and may change.
"""

import enum
from dataclasses import dataclass


class Severity(str, enum.Enum):
    """How serious a finding is, the most serious first."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"
    SKIPPED = "skipped"  # not checked
    OK = "ok"

    @property
    def rank(self) -> int:
        """Position in the order above, from 0."""
        return list(Severity).index(self)


@dataclass(frozen=True)
class Finding:
    """One observation.

    Attributes:
      severity: how serious it is.
      code: stable identifier in kebab-case, such as `class-imbalance`.
      text: what was found: one or two sentences.
      fix: what to do about it, in the imperative; empty where there is nothing to do.
      section: the part of a page or table that it belongs to; empty where there is none.
    """

    severity: Severity
    code: str
    text: str
    fix: str = ""
    section: str = ""
