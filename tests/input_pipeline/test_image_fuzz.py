"""Thousands of damaged images: never a crash, a hang or a wrong pixel.

FUZZ_IMAGES=30000 pytest tests/input_pipeline/test_image_fuzz.py does more of them; FUZZ_SEED=7 does others.
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
def test_a_damaged_image_is_refused_with_a_reason_or_read_as_it_is_seen(tmp_path):
    run_logger = tmp_path / "journal"
    process = subprocess.run(
        [sys.executable, "-m", "tests.input_pipeline.fuzz_images", f"--cases={CASES}", f"--seed={SEED}"]
        + [f"--journal={run_logger}"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=60 + CASES / 10,
        start_new_session=True,
    )
    if process.returncode < 0:  # a decoder crashed, or took longer than any image may
        raise AssertionError(f"{signal.Signals(-process.returncode).name} in {run_logger.read_text().strip()}")
    assert process.returncode == 0, process.stderr[-3000:]
    *faults, last = process.stdout.splitlines()
    assert not faults, "\n".join(faults[:10])
    summary = json.loads(last)
    counts = summary["counts"]
    assert sum(counts.values()) == CASES
    # Of both sorts there must be many, or the damages are all too small or too large to tell anything.
    assert counts["refused"] > 0.3 * CASES and counts["made exactly"] > 0.1 * CASES
    assert counts["passed exactly"] > 0.005 * CASES and counts["passed jpeg, as by Pillow"] > 0.01 * CASES
    # A JPEG has no checksum: damage that libjpeg cannot notice is seen by Pillow too, and mostly the same.
    assert counts.get("passed jpeg, out of range", 0) < 0.1 * counts["passed jpeg, as by Pillow"]
    assert summary["peak_megabytes"] < 2_000, summary
