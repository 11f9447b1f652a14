import json

import numpy as np
import pytest

from benchmarks import index
from convoy.input_pipeline.dataset.open import open_dataset


def test_index_is_measured_at_every_size(convoy, tmp_path):
    result = convoy("bench", "index", "--records=300000,1200000", f"--json={tmp_path / 'index.json'}", check=True)
    table = [line.split("|")[1].strip() for line in result.stdout.splitlines() if line.startswith("|")]
    assert table[2:] == ["300,000", "1,200,000"]
    content = json.loads((tmp_path / "index.json").read_text())
    small, large = content["rows"]
    # What opening costs whatever the size, modules for one, falls out of the difference.
    bytes_a_record = (1.2e6 * large["bytes_a_record"] - 3e5 * small["bytes_a_record"]) / 9e5
    assert 27 < bytes_a_record <= content["promised_bytes_a_record"] == 32
    for row in (small, large):
        assert 0 < row["global_seconds"] < 0.1 and 0 < row["striped_seconds"] < 0.1 and row["open_seconds"] > 0


def test_generated_index_is_a_valid_dataset(tmp_path):
    index._make(tmp_path, 150_000)
    split = open_dataset(tmp_path).split("train")
    assert (split.num_images, len(split.shard_paths)) == (150_000, 2)
    assert np.array_equal(np.bincount(split.shard), [100_000, 50_000])
    assert sum(path.stat().st_blocks for path in split.shard_paths) < 100  # the shards take no room


@pytest.mark.parametrize("records", ["0", "-5", "many"])
def test_invalid_number_of_records_is_refused(convoy, records):
    result = convoy("bench", "index", f"--records={records}")
    assert result.returncode == 2
    assert f"--records={records}" in result.stderr
