"""Findings sort by severity."""

from convoy.core.finding import Finding, Severity


def test_most_serious_finding_comes_first():
    findings = [Finding(severity, "code", "text") for severity in reversed(Severity)]
    ranked = sorted(findings, key=lambda finding: finding.severity.rank)
    assert [finding.severity.value for finding in ranked] == ["error", "warning", "note", "skipped", "ok"]
