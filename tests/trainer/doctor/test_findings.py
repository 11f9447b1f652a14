"""Table of findings: equal findings share a row, others name their workers."""

from convoy.trainer.doctor.findings import failed, ok, skipped, table, warning

NAMES = {0: "worker 0 (a:1)", 1: "worker 1 (b:1)", 2: "worker 2 (c:1)"}


def test_equal_findings_share_a_row():
    text = table({rank: [ok("devices", "devices-code", "1 x H100")] for rank in NAMES}, NAMES)
    assert text.splitlines() == ["ok       devices        1 x H100", "Nothing failed."]


def test_different_findings_name_workers():
    text = table(
        {
            0: [ok("devices", "devices-code", "one")],
            1: [failed("devices", "devices-code", "two", "Fix it.")],
            2: [ok("devices", "devices-code", "one")],
        },
        NAMES,
    )
    assert "ok       devices        worker 0 (a:1) and worker 2 (c:1): one\n" in text
    assert "FAILED   devices        worker 1 (b:1): two\n                        Fix it.\n" in text


def test_finding_of_all_names_no_worker():
    assert "ok       ports          all open\n" in table(
        {0: [ok("ports", "ports-code", "all open", of_all=True)], 1: []}, NAMES
    )


def test_rows_are_ordered_and_counted():
    found = [
        failed("disk", "disk-code", "full", "Make room."),
        warning("clocks", "clocks-code", "2 s", "NTP."),
        skipped("data", "data-code", "no --data"),
        ok("names", "names-code", "a"),
        warning("limits", "limits-code", "few", "More."),
        failed("data", "data-code", "gone"),
    ]
    lines = table({0: found}, {0: "worker 0"}).splitlines()
    rows = [line.split()[1] for line in lines[:-1] if not line.startswith(" ")]
    assert rows == ["names", "clocks", "limits", "data", "data", "disk"]
    assert lines[-1] == "2 failed, 2 warnings."
