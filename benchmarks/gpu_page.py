"""Writes the results page of GPUs from what `benchmarks/gpu.sh` measured.

python -m benchmarks.gpu_page gpu-results docs/results/gpu.md
"""

import json
import sys
import xml.etree.ElementTree
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from benchmarks import measure
from benchmarks.gpu import TABLE_COLUMNS, table_cells
from convoy.core.files import write_whole

_INTRODUCTION = """# GPUs

Speed, memory and scaling of Convoy on {devices}. These are measurements of one machine; [GPUs](../guides/gpus.md) has
what is checked without one.

```sh
benchmarks/gpu.sh
```
"""
_MFU = """`MFU`: model FLOPs utilization, the share of the device's peak ({peak:.4g} TFLOP/s per device, {source}) that
the products of the model take; PyTorch's too is computed with the FLOPs of `keras.applications`. Efficiency: images/s
per device, relative to one device."""


def page(results: Path) -> str:
    """Returns the page in Markdown.

    Args:
      results: folder with gpu.json, input-*.json and tests.xml.
    """
    gpu, *inputs = (
        json.loads(path.read_text()) for path in (results / "gpu.json", *sorted(results.glob("input-*.json")))
    )
    about = gpu["environment"]
    devices = f"{len(about['gpus'])} x {about['gpus'][0]}" if about["gpus"] else "a CPU, which stands in for a GPU"
    seconds = gpu["seconds_to_first_step"]
    start = "it failed" if seconds is None else f"{seconds:.1f} s"
    return "\n".join(
        [
            _INTRODUCTION.format(devices=devices),
            _machine(about),
            _tests(results / "tests.xml"),
            "## Training step\n",
            *(_model(name, model) for name, model in gpu["models"].items()),
            "## Start\n",
            f"From the command `convoy train` to the end of the first step of `convnet`: {start}.\n",
            "## Input\n",
            _input(gpu, [row for read in inputs for row in read["rows"]]),
        ]
    )


def _machine(about: Mapping[str, Any]) -> str:
    driver = f" Driver {about['driver']}." if about["driver"] else ""
    return f"{measure.environment_text(about)}.{driver}\n"


def _tests(report: Path) -> str:
    """Returns how many tests passed, and the names of those that failed."""
    cases = list(xml.etree.ElementTree.parse(report).iter("testcase"))
    failed = [case.get("name") for case in cases if case.find("failure") is not None or case.find("error") is not None]
    skipped = sum(case.find("skipped") is not None for case in cases)
    text = f"Tests (`pytest -m gpu tests/gpu`): {len(cases) - len(failed) - skipped} passed, {skipped} skipped"
    return f"{text}, {len(failed)} failed{': ' + ', '.join(f'`{name}`' for name in failed) if failed else ''}.\n"


def _model(name: str, model: Mapping[str, Any]) -> str:
    size = model["image_size"]
    lines = [f"`{name}`, {size}x{size}, {model['batch_size']} images per device, bfloat16:\n", *_table(model["rows"])]
    facts = next((row["facts"] for row in model["rows"] if row["facts"].get("peak_flops")), None)
    if facts:
        lines.append("\n" + _MFU.format(peak=facts["peak_flops"] / 1e12, source=facts["peak"]))
    lines += [f"\nLeft out: {peer} ({reason})." for peer, reason in model["skipped"].items()]
    return "\n".join([*lines, ""])


def _table(rows: list[dict[str, Any]]) -> list[str]:
    rule = "|---" + "|---:" * (len(TABLE_COLUMNS) - 1) + "|"
    return [measure.markdown(TABLE_COLUMNS), rule, *(measure.markdown(table_cells(row)) for row in rows)]


def _input(gpu: Mapping[str, Any], rows: Iterable[Mapping[str, Any]]) -> str:
    """Returns how many images a core reads, and how many cores feed one device."""
    models = gpu["models"].items()
    rate_of = {name: row["median"] for name, model in models for row in model["rows"] if row["peer"] == "convoy"}
    size_of = {name: model["image_size"] for name, model in models}
    columns = ("images", "reader", "images/s", "images/s per core", *(f"cores for {name}" for name in rate_of))
    lines = [measure.markdown(columns), "|---|---" + "|---:" * (len(columns) - 2) + "|"]
    for row in rows:
        cores = [
            f"{rate / row['median_per_core']:.1f}" if size_of[name] == row["image_size"] else ""
            for name, rate in rate_of.items()
        ]
        rates = (f"{row['median']:,.0f}", f"{row['median_per_core']:,.0f}")
        lines.append(measure.markdown((f"{row['images']} at {row['image_size']}", row["label"], *rates, *cores)))
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    write_whole(Path(sys.argv[2]), page(Path(sys.argv[1])).encode())
    print(f"Written: {sys.argv[2]}")
