#!/usr/bin/env bash
# Injures the workers of a run N times and proves that the run comes out as if nothing had happened.
#
#   ./tests/chaos.sh 20 [--seed=1]
set -euo pipefail

checkout="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
cd "$checkout"
launch/install.sh "$checkout/.venv" "[test]"
exec .venv/bin/python -m tests.chaos "$@"
