#!/usr/bin/env bash
# Makes a virtual environment and installs this checkout into it, editable. Does nothing where that is done already.
#
#   launch/install.sh VENV [EXTRAS]      # EXTRAS: such as [test] or [cuda]
set -euo pipefail

checkout="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
venv="$1" extras="${2:-}"
stamp="$venv/.convoy${extras//[^a-z]/-}"

if [ "$stamp" -nt "$checkout/setup.py" ]; then
  echo "$venv is up to date."
  exit 0
fi
python="${PYTHON:-python3}"
if ! "$python" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] < (3, 14))' 2>/dev/null; then
  echo "$python is missing or not Python 3.10 to 3.13: set PYTHON to one that is." >&2
  exit 2
fi
"$python" -m venv "$venv"
"$venv/bin/python" -m pip install --quiet --quiet --disable-pip-version-check --upgrade pip
# Before version 0.2 the distribution was called convoy. Uninstalled after the new one it would take its command along.
"$venv/bin/python" -m pip uninstall --quiet --quiet --yes --disable-pip-version-check convoy
rm -rf "$checkout/build" # what an old build left there would be built in again
"$venv/bin/python" -m pip install --quiet --quiet --disable-pip-version-check --editable "$checkout$extras"
touch "$stamp"
echo "Installed into $venv."
