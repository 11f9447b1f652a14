#!/usr/bin/env bash
# Creates a virtual environment and installs this checkout into it, editable. Does nothing if that is up to date.
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
if ! "$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null; then
  echo "$python is missing or is not Python 3.11 to 3.13. Set PYTHON to a supported interpreter." >&2
  exit 2
fi
"$python" -m venv "$venv"
"$venv/bin/python" -m pip install --quiet --quiet --disable-pip-version-check --upgrade pip
# The distribution used to be called convoy. Uninstalling it later would remove the new `convoy` command.
"$venv/bin/python" -m pip uninstall --quiet --quiet --yes --disable-pip-version-check convoy
rm -rf "$checkout/build" # files left by an earlier build would be packaged again
"$venv/bin/python" -m pip install --quiet --quiet --disable-pip-version-check --editable "$checkout$extras"
touch "$stamp"
echo "Installed into $venv."
