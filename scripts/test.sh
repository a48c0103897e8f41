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
.venv/bin/python -m pytest "${selection[@]}" "$@"
