#!/usr/bin/env bash
# Makes the environment with the test extras and runs the tests. Arguments go to pytest.
#
#   ./tests/run.sh                   # everything, as CI does
#   ./tests/run.sh -m "not slow"     # the quick part, for the working loop
#
# The cluster tests drive real SLURM and ssh daemons on network namespaces, the pages' tests a browser. As root on Debian
# or Ubuntu what they need is installed; elsewhere they are skipped, and say so.
set -euo pipefail

checkout="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
cd "$checkout"

apt_log="$(mktemp)"
install() { # whose tests, packages
  local whose="$1"
  shift
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null && ! dpkg --status "$@" >/dev/null 2>&1; then
    echo "Installing what the $whose tests need: $*"
    export DEBIAN_FRONTEND=noninteractive
    { apt-get update && apt-get install --yes --no-install-recommends "$@"; } >"$apt_log" 2>&1 ||
      { tail -n 5 "$apt_log" >&2; echo "That failed: the tests that need them will be skipped." >&2; }
  fi
}
install cluster slurmctld slurmd slurm-client munge openssh-server openssh-client iproute2 iptables
install browser chromium-headless-shell

launch/install.sh "$checkout/.venv" "[test]"
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
# Three at a time, also on two cores: a quarter of the time a test waits for processes to start, die and come back.
exec .venv/bin/python -m pytest -n 3 --dist=loadfile --no-loadscope-reorder "$@"
