#!/usr/bin/env bash
# The main job: QLoRA DPO of a real 135M model, then its evaluation on held-out prompts. Overrides may follow.
set -euo pipefail
source "$(dirname "$0")/environment.sh"
install_environment dev
began=$SECONDS
.venv/bin/python -m dpo.train experiment=quickstart "$@"
run="$(ls -td "${DPO_OUTPUTS:-outputs}"/quickstart/*/ | head -n 1)"
.venv/bin/python -m dpo.evaluate "${run%/}"
echo "quickstart took $((SECONDS - began)) s after installation"
