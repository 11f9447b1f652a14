"""The doctor's findings, and the table that shows those of all workers.

    findings = [ok("clocks", "3 ms apart at most"), failed("data", "...", fix="Copy it.")]
    print(table({0: findings, 1: others}, names={0: "worker 0 (a:2222)", 1: "worker 1 (b:2222)"}))

Identical findings of several workers are one row.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from convoy.core.finding import Finding, Severity

OK, SKIPPED, WARNING, FAILED = Severity.OK, Severity.SKIPPED, Severity.WARNING, Severity.ERROR
_SHOWN = {OK: "ok", SKIPPED: "skipped", WARNING: "warning", FAILED: "FAILED"}

# In the order of the table.
CHECKS = (
    "cluster",
    "names",
    "meeting",
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
    "resume",
    "run directory",
    "disk",
)


@dataclasses.dataclass(frozen=True)
class CheckResult(Finding):
    """A finding of the doctor. `section` is one of `CHECKS`, `code` the same in kebab-case.

    Attributes:
      of_all: whether it concerns all workers, and not only the one that reports it.
    """

    of_all: bool = False

    def as_json(self) -> dict[str, Any]:
        """Returns JSON data; `from_json` is the inverse."""
        return dataclasses.asdict(self) | {"severity": self.severity.value}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "CheckResult":
        """Returns a finding from the data of `as_json`."""
        return cls(**{**data, "severity": Severity(data["severity"])})


def _result(severity: Severity, check: str, text: str, fix: str, of_all: bool) -> CheckResult:
    return CheckResult(severity, check.replace(" ", "-").lower(), text, fix, check, of_all)


def ok(check: str, text: str, *, of_all: bool = False) -> CheckResult:
    """Returns a passed check."""
    return _result(OK, check, text, "", of_all)


def skipped(check: str, text: str, *, of_all: bool = False) -> CheckResult:
    """Returns a skipped check; `text` is the reason."""
    return _result(SKIPPED, check, text, "", of_all)


def warning(check: str, text: str, fix: str, *, of_all: bool = False) -> CheckResult:
    """Returns a problem with which a run would still work."""
    return _result(WARNING, check, text, fix, of_all)


def failed(check: str, text: str, fix: str = "", *, of_all: bool = False) -> CheckResult:
    """Returns a problem with which a run would fail. Texts of Convoy's own errors contain the fix already."""
    return _result(FAILED, check, text, fix, of_all)


def table(findings: Mapping[int, Sequence[CheckResult]], names: Mapping[int, str]) -> str:
    """Returns the table as text.

    Args:
      findings: by the rank of the worker that reports them.
      names: names of all workers, by rank.
    """
    reported_by: dict[CheckResult, list[int]] = {}
    for rank, own in sorted(findings.items()):
        for finding in own:
            reported_by.setdefault(finding, []).append(rank)
    width, left = max(map(len, CHECKS)), max(map(len, _SHOWN.values()))
    margin = " " * (left + 2 + width + 2)
    lines = []
    for finding in sorted(reported_by, key=lambda finding: CHECKS.index(finding.section)):
        ranks = reported_by[finding]
        by_all = finding.of_all or ranks == sorted(names)
        who = "" if by_all else f"{' and '.join(names[rank] for rank in ranks)}: "
        lines.append(f"{_SHOWN[finding.severity]:<{left}}  {finding.section:<{width}}  {who}{finding.text}")
        if finding.fix:
            lines.append(f"{margin}{finding.fix}")
    counts = {severity: sum(found.severity == severity for found in reported_by) for severity in (FAILED, WARNING)}
    failures = f"{counts[FAILED]} failed" if counts[FAILED] else "Nothing failed"
    warnings = {0: "", 1: ", 1 warning"}.get(counts[WARNING], f", {counts[WARNING]} warnings")
    return "\n".join([*lines, f"{failures}{warnings}."])
