import json

import pytest

_COMMAND = ("bench", "order", "--images_simulated=100000", "--batch_size=16")


@pytest.mark.slow
def test_order_is_simulated_for_every_number_of_virtual_replicas(convoy, tmp_path):
    result = convoy(*_COMMAND, "--virtual_replicas=2,16", f"--json={tmp_path / 'order.json'}", check=True)
    table = [line.split("|")[1].strip() for line in result.stdout.splitlines() if line.startswith("|")]
    assert table[2:] == ["global", "striped, V = 2", "striped, V = 16"]
    shuffled, *striped = json.loads((tmp_path / "order.json").read_text())["rows"]
    assert shuffled["moved"] == pytest.approx(1 / 3, abs=0.02) and shuffled["met_again"] < 0.001
    assert shuffled["class_mix"] == pytest.approx(1, abs=0.05)
    for row, hosts in zip(striped, (1, 2), strict=True):
        assert row["hosts"] == hosts
        assert 1 <= row["times_read"] < 1.3  # of which the last windows are read ahead
        assert row["reads_per_host"] < 0.06 * 100_000 / hosts
        assert 0 < row["window_bytes"] < 3.01 * min(8, row["virtual_replicas"]) * 2**26
        assert row["moved"] == pytest.approx(1 / 3, abs=0.1) and row["met_again"] < 0.05
        assert row["class_mix"] == pytest.approx(1, abs=0.05) and row["class_mix_sorted"] > 1.2


@pytest.mark.parametrize(
    ("flag", "value"), [("virtual_replicas", "8,many"), ("virtual_replicas", "0"), ("images_simulated", "20")]
)
def test_sizes_that_cannot_be_simulated_are_refused(convoy, flag, value):
    result = convoy(*_COMMAND, f"--{flag}={value}")
    assert result.returncode == 2
    assert f"--{flag}={value.rpartition(',')[2]}" in result.stderr
