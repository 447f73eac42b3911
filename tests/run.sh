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
[ $# -eq 0 ] || exec python -m pytest "$@"
# Four processes at most, since each takes up to 1.5 GB; with a thread each, so that they do not get in each other's way.
# Trainings one after another: in both full runs with pytest-xdist a test that sends SIGTERM to itself lost its process.
OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} python -m pytest -n auto --maxprocesses 4 --ignore tests/training
exec python -m pytest tests/training
