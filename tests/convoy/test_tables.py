from convoy.cli.tables import print_table


def test_cells_are_aligned_and_printed_as_they_are(capsys):
    print_table(("name",), ("images", "MB"), [("[red]", 1234, 0.25), ("b", 0, "none")])
    heading, *rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert heading == ["name", "images", "MB"]
    assert rows == [["[red]", "1,234", "0.2"], ["b", "0", "none"]]
