#!/usr/bin/env bash
# Lint, types and tests in the same environment as the quickstart; --full adds the slow tests.
set -euo pipefail
source "$(dirname "$0")/environment.sh"
install_environment dev
selection=(-m "not slow")
if [ "${1:-}" = "--full" ]; then
  selection=()
  shift
fi
.venv/bin/ruff check src tests scripts
.venv/bin/ruff format --check src tests scripts
.venv/bin/mypy
# A process a core with one thread each: most of a test's time is imports and small models, which do not use two.
OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n auto --maxprocesses 4 --dist loadfile "${selection[@]}" "$@"
