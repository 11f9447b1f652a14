#!/usr/bin/env bash
# Creates the virtual environment with the test extra and runs linters and tests. Arguments go to pytest.
#
#   ./tests/run.sh                   # all tests, as in CI
#   ./tests/run.sh -m "not slow"     # only the quick tests
#
# Cluster tests use real SLURM and ssh daemons in network namespaces; page tests use a browser, and some tests the
# pictures of Tux Paint. As root on Debian or Ubuntu this script installs them; elsewhere tests without them are skipped.
set -euo pipefail

checkout="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
cd "$checkout"

apt_log="$(mktemp)"
install() { # whose tests, packages
  local whose="$1"
  shift
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null && ! dpkg --status "$@" >/dev/null 2>&1; then
    echo "Installing packages for the $whose tests: $*"
    export DEBIAN_FRONTEND=noninteractive
    { apt-get update && apt-get install --yes --no-install-recommends "$@"; } >"$apt_log" 2>&1 ||
      { tail -n 5 "$apt_log" >&2; echo "Installation failed: these tests will be skipped." >&2; }
  fi
}
install cluster slurmctld slurmd slurm-client munge openssh-server openssh-client iproute2 iptables
install browser chromium-headless-shell
install "real image" tuxpaint-stamps-default

launch/install.sh "$checkout/.venv" "[test]"
# A server with the protocol of Azure's storage; without it, its tests are skipped.
if command -v npm >/dev/null && ! [ -e .venv/node_modules/.bin/azurite-blob ]; then
  npm install --silent --prefix .venv azurite@3 || echo "Installation of azurite failed: its tests will be skipped." >&2
fi
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
# Three processes even on two cores, because tests often wait for other processes.
exec .venv/bin/python -m pytest -n 3 --dist=loadfile --no-loadscope-reorder "$@"
