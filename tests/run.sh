#!/usr/bin/env bash
# Makes the environment with the test extras and runs the tests. Arguments go to pytest.
#
#   ./tests/run.sh                   # everything, as CI does
#   ./tests/run.sh -m "not slow"     # the quick part, for the working loop
set -euo pipefail

checkout="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
cd "$checkout"
launch/install.sh "$checkout/.venv" "[test]"
.venv/bin/ruff check .
.venv/bin/ruff format --check .
exec .venv/bin/python -m pytest "$@"
