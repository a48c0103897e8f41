"""The hub, the token, gated models, and W&B. Without a network the default job still runs, so these only warn."""

from __future__ import annotations

import os

from dpo.diagnosis.finding import Finding
from dpo.records.hub import ask, endpoint

GATED = "meta-llama/Llama-3.1-8B"


def hub() -> list[Finding]:
    """Reach of the hub, and what the token opens there."""
    fix = "without it: model=smollm2_135m dataset=synthetic, or local folders"
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON"):
        return [Finding("hub", "warn", "HF_HUB_OFFLINE is set: only what is cached", "unset HF_HUB_OFFLINE; " + fix)]
    reached = ask("/api/models?limit=1", None)
    if not isinstance(reached, int) or reached >= 500:
        return [Finding("hub", "warn", f"{endpoint()} does not answer ({reached})", fix)]
    from huggingface_hub import get_token

    found = [Finding("hub", "ok", f"{endpoint()} answers")]
    token = get_token()
    if not token:
        return [*found, Finding("token", "warn", "none, so gated models stay closed", "hf auth login, or set HF_TOKEN")]
    if ask("/api/whoami-v2", token) != 200:
        return [
            *found,
            Finding("token", "warn", "the hub does not accept it", "hf auth login, or set a valid HF_TOKEN"),
        ]
    found.append(Finding("token", "ok", "accepted"))
    if ask(f"/{GATED}/resolve/main/config.json", token) == 200:
        return [*found, Finding("gated", "ok", f"{GATED} is open to this token")]
    fix = f"accept the licence at {endpoint()}/{GATED}"
    return [*found, Finding("gated", "warn", f"{GATED} is closed to this token", fix)]


def wandb() -> list[Finding]:
    """Whether runs go online; they are kept offline otherwise."""
    from dpo.config.tracking import WandbMode
    from dpo.records.tracking.wandb import why_offline

    why = why_offline(WandbMode.auto)
    if why is None:
        return [Finding("wandb", "ok", "a key is there and the server answers")]
    return [
        Finding("wandb", "warn", f"offline: {why}", "nothing is lost: `wandb sync` uploads later; or tracking=none")
    ]
