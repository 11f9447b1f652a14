"""What the doctor found, and how the findings of all workers become one table.

    findings = [ok("clock", "apart by 3 ms at most"), failed("data", "...", mend="Copy it.")]
    print(table({0: findings, 1: others}, names={0: "worker 0 (a:2222)", 1: "worker 1 (b:2222)"}))

What several workers say in the same words is one row.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

OK, SKIPPED, WARNING, FAILED = "ok", "skipped", "warning", "FAILED"

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


@dataclass(frozen=True)
class Finding:
    """One row.

    Attributes:
      level: OK, SKIPPED, WARNING or FAILED.
      check: one of CHECKS.
      text: what was found.
      fix: what to do about it, for a warning or failure.
      of_all: whether it is about all workers, and not about the one that says it.
    """

    level: str
    check: str
    text: str
    fix: str = ""
    of_all: bool = False

    def as_json(self) -> dict[str, Any]:
        """Returns it as JSON data: `Finding(**data)` is the way back."""
        return asdict(self)


def ok(check: str, text: str, *, of_all: bool = False) -> Finding:
    """Returns that something is as it should be."""
    return Finding(OK, check, text, of_all=of_all)


def skipped(check: str, text: str, *, of_all: bool = False) -> Finding:
    """Returns that something was not looked at, and why."""
    return Finding(SKIPPED, check, text, of_all=of_all)


def warning(check: str, text: str, fix: str, *, of_all: bool = False) -> Finding:
    """Returns that a run would work, and perhaps not well."""
    return Finding(WARNING, check, text, fix, of_all)


def failed(check: str, text: str, fix: str = "", *, of_all: bool = False) -> Finding:
    """Returns that a run would not work. Texts of Convoy's own errors hold the mend already."""
    return Finding(FAILED, check, text, fix, of_all)


def table(findings: Mapping[int, Sequence[Finding]], names: Mapping[int, str]) -> str:
    """Returns the table for people.

    Args:
      findings: by the rank of the worker that made them.
      names: of all workers, by rank.
    """
    said_by: dict[Finding, list[int]] = {}
    for rank, own in sorted(findings.items()):
        for finding in own:
            said_by.setdefault(finding, []).append(rank)
    width = max(map(len, CHECKS))
    margin = " " * (len(SKIPPED) + 2 + width + 2)
    lines = []
    for finding in sorted(said_by, key=lambda finding: CHECKS.index(finding.check)):
        ranks = said_by[finding]
        by_all = finding.of_all or ranks == sorted(names)
        who = "" if by_all else f"{' and '.join(names[rank] for rank in ranks)}: "
        lines.append(f"{finding.level:<{len(SKIPPED)}}  {finding.check:<{width}}  {who}{finding.text}")
        if finding.fix:
            lines.append(f"{margin}{finding.fix}")
    counts = {level: sum(finding.level == level for finding in said_by) for level in (FAILED, WARNING)}
    told = f"{counts[FAILED]} failed" if counts[FAILED] else "Nothing failed"
    warnings = {0: "", 1: ", 1 warning"}.get(counts[WARNING], f", {counts[WARNING]} warnings")
    return "\n".join([*lines, f"{told}{warnings}."])
