"""Fuzzes what users and other programs give to Convoy: files, recipes, overrides and environments.

    python -m tests.fuzz --images=10000 --tables=1000 --shards=1000 --recipes=1000 --environments=1000 --seed=1
    python -m tests.fuzz --only=recipes:17 --seed=1      # prints one case and what becomes of it

Prints every fault (traceback, crash, hang, silent acceptance, message of several lines), then a table. The exit code is
1 if there is a fault. --json=FILE writes the counts, with details, to a file.
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

from tests.fuzz import runner

_CASES = {"images": 10_000, "tables": 1_000, "shards": 1_000, "recipes": 1_000, "environments": 1_000}
_COLUMNS = ("subject", "cases", "unharmed", "announced", "refused", "faults", "seconds", "slowest")


def main() -> int:
    """Runs the cases of all subjects; see the module docstring."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    for subject, cases in _CASES.items():
        parser.add_argument(f"--{subject}", type=int, default=cases, help=f"number of cases (default: {cases})")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", metavar="SUBJECT:NUMBER", help="run one case in this process")
    parser.add_argument("--json", type=Path)
    flags = parser.parse_args()
    if flags.only:
        name, _, number = flags.only.partition(":")
        return _run_one(name, int(number), flags.seed)
    results = []
    print(_line(*_COLUMNS), flush=True)
    for subject in _CASES:
        if cases := getattr(flags, subject):
            results.append(result := runner.run(subject, cases, flags.seed))
            for number, fault in result.faults.items():
                print(f"--only={subject}:{number} --seed={flags.seed}: {fault}", file=sys.stderr)
            counts = (result.kinds[kind] for kind in (runner.UNHARMED, runner.ANNOUNCED, runner.REFUSED, runner.FAULT))
            slowest = f"{result.slowest[0]:.1f} s (case {result.slowest[1]})"
            print(_line(subject, cases, *counts, f"{result.seconds:.0f}", slowest), flush=True)
    if flags.json:
        flags.json.write_text(json.dumps({result.subject: vars(result) for result in results}, indent=1))
    return int(any(result.faults for result in results))


def _run_one(name: str, number: int, seed: int) -> int:
    with tempfile.TemporaryDirectory() as folder:
        subject = runner.load(name, Path(folder))
        print(f"case: {runner.make(subject, seed, number)!r}")
        ((_, outcome, _),) = runner.outcomes(subject, [number], seed)
    print(f"{outcome.kind}: {outcome.text or outcome.detail}")
    return int(outcome.kind == runner.FAULT)


def _line(*cells: object) -> str:
    subject, *numbers, slowest = map(str, cells)
    return f"{subject:<13}" + "".join(f"{number:>10}" for number in numbers) + f"  {slowest}"


if __name__ == "__main__":
    sys.exit(main())
