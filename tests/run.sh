#!/usr/bin/env bash
# Run the tests on a fresh machine: bash tests/run.sh [pytest arguments]
# Uses the active virtual environment; makes .venv if none is active.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [ -z "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ]; then
    [ -x .venv/bin/python ] || python3 -m venv .venv
    source .venv/bin/activate
fi
python -m pip install --quiet -r requirements.txt -r tests/requirements.txt
exec python -m pytest "$@"
