#!/usr/bin/env bash
# Install and run the tests, on up to four cores.
#
#   bash tools/test.sh [arguments of pytest]
set -euo pipefail
cd "$(dirname "$0")/.."
bash tools/install.sh
# In the order of their names, so that the longest files do not come last.
exec "${VENV:-.venv}/bin/python" -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder "$@"
