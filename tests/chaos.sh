#!/usr/bin/env bash
# Injects N faults into a run and checks that its result is that of a run without faults.
#
#   ./tests/chaos.sh 20 [--seed=1]
set -euo pipefail

checkout="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
cd "$checkout"
launch/install.sh "$checkout/.venv" "[test]"
exec .venv/bin/python -m tests.chaos "$@"
