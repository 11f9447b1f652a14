"""Fuzz test of image files: damage never causes a crash, a hang or wrong pixels.

FUZZ_IMAGES=30000 sets the number of cases, FUZZ_SEED=7 the seed.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

CASES = int(os.environ.get("FUZZ_IMAGES", 5_000))
SEED = int(os.environ.get("FUZZ_SEED", 0))


@pytest.mark.slow
def test_damaged_image_is_rejected_with_a_reason_or_decoded_as_pillow_does(tmp_path):
    journal = tmp_path / "journal"
    process = subprocess.run(
        [sys.executable, "-m", "tests.input_pipeline.fuzz_images", f"--cases={CASES}", f"--seed={SEED}"]
        + [f"--journal={journal}"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=60 + CASES / 10,
        start_new_session=True,
    )
    if process.returncode < 0:  # a decoder crashed or timed out
        raise AssertionError(f"{signal.Signals(-process.returncode).name} in {journal.read_text().strip()}")
    assert process.returncode == 0, process.stderr[-3000:]
    *faults, last = process.stdout.splitlines()
    assert not faults, "\n".join(faults[:10])
    summary = json.loads(last)
    counts = summary["counts"]
    assert sum(counts.values()) == CASES
    # Both outcomes must be frequent, otherwise the damage is too small or too large for a useful test.
    assert counts["refused"] > 0.3 * CASES and counts["made exactly"] > 0.1 * CASES
    assert counts["passed exactly"] > 0.005 * CASES and counts["passed jpeg, as Pillow"] > 0.01 * CASES
    # A JPEG has no checksum: Pillow also decodes damage that libjpeg cannot detect, mostly to the same pixels.
    assert counts.get("passed jpeg, out of range", 0) < 0.1 * counts["passed jpeg, as Pillow"]
    assert summary["peak_megabytes"] < 2_000, summary
