"""Findings: observations of checks, reports and running jobs, with severity and suggested fix.

    Finding(Severity.WARNING, "overfitting", "top-1 is 95 % in training and 71 % in validation", fix="Add images.")

Used by the doctor, the dataset report, the run report, `verify` and the advice during training. Tests and scripts may
rely on `severity` and `code`; the wording of `text` and `fix` may change.
"""

import enum
from dataclasses import dataclass


class Severity(str, enum.Enum):
    """Severity of a finding, the most serious first."""

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
      severity: severity of the finding.
      code: stable identifier in kebab-case, such as `class-imbalance`.
      text: observation in one or two sentences.
      fix: suggested action in the imperative; empty if none is needed.
      section: part of the page or table to which it belongs; may be empty.
    """

    severity: Severity
    code: str
    text: str
    fix: str = ""
    section: str = ""
