"""The doctor's findings, and the table that combines those of all workers.

    findings = [ok("clocks", "clocks-agree", "3 ms apart at most"), failed("data", "data-missing", "...", "Copy it.")]
    print(table({0: findings, 1: others}, names={0: "worker 0 (a:2222)", 1: "worker 1 (b:2222)"}))

Equal findings of several workers are one row.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from convoy.core.finding import Finding, Severity
from convoy.core.text import counted

# In the order of the table.
SECTIONS = (
    "cluster",
    "names",
    "key",
    "proxy",
    "rendezvous",
    "interface",
    "ports",
    "clocks",
    "versions",
    "GPU driver",
    "devices",
    "collective",
    "limits",
    "data",
    "config",
    "weights",
    "resume",
    "run directory",
    "file system",
    "disk",
)

_LABELS = {Severity.OK: "ok", Severity.SKIPPED: "skipped", Severity.WARNING: "warning", Severity.ERROR: "FAILED"}
_LABEL_WIDTH = max(map(len, _LABELS.values()))


@dataclass(frozen=True)
class DoctorFinding(Finding):
    """One row of the table; `section` is one of SECTIONS.

    Attributes:
      of_all: whether it is about all workers instead of the one that reports it.
    """

    of_all: bool = False

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "DoctorFinding":
        """Returns the finding that another worker sent, given its `asdict` after a round trip through JSON."""
        return cls(**{**data, "severity": Severity(data["severity"])})


def ok(section: str, code: str, text: str, *, of_all: bool = False) -> DoctorFinding:
    """Returns a passed check."""
    return DoctorFinding(Severity.OK, code, text, section=section, of_all=of_all)


def skipped(section: str, code: str, text: str, *, of_all: bool = False) -> DoctorFinding:
    """Returns a check that was not made, and why."""
    return DoctorFinding(Severity.SKIPPED, code, text, section=section, of_all=of_all)


def warning(section: str, code: str, text: str, fix: str, *, of_all: bool = False) -> DoctorFinding:
    """Returns a problem with which a run starts but may not work well."""
    return DoctorFinding(Severity.WARNING, code, text, fix, section, of_all)


def failed(section: str, code: str, text: str, fix: str = "", *, of_all: bool = False) -> DoctorFinding:
    """Returns a problem with which a run does not start. The text of a ConvoyError contains the fix already."""
    return DoctorFinding(Severity.ERROR, code, text, fix, section, of_all)


def table(findings: Mapping[int, Sequence[DoctorFinding]], names: Mapping[int, str]) -> str:
    """Returns the table as text.

    Args:
      findings: by the rank of the worker that made them.
      names: names of all workers, by rank.
    """
    reported_by: dict[DoctorFinding, list[int]] = {}
    for rank, own in sorted(findings.items()):
        for finding in own:
            reported_by.setdefault(finding, []).append(rank)
    width = max(map(len, SECTIONS))
    margin = " " * (_LABEL_WIDTH + 2 + width + 2)
    lines = []
    for finding in sorted(reported_by, key=lambda finding: SECTIONS.index(finding.section)):
        ranks = reported_by[finding]
        by_all = finding.of_all or ranks == sorted(names)
        who = "" if by_all else f"{' and '.join(names[rank] for rank in ranks)}: "
        label = _LABELS[finding.severity]
        lines.append(f"{label:<{_LABEL_WIDTH}}  {finding.section:<{width}}  {who}{finding.text}")
        if finding.fix:
            lines.append(f"{margin}{finding.fix}")
    severities = [finding.severity for finding in reported_by]
    errors, warnings = severities.count(Severity.ERROR), severities.count(Severity.WARNING)
    summary = f"{errors} failed" if errors else "Nothing failed"
    if warnings:
        summary += f", {counted(warnings, 'warning')}"
    return "\n".join([*lines, f"{summary}."])
