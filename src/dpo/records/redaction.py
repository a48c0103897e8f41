"""The one place that removes secrets from what is written: command lines, configs, messages."""

from __future__ import annotations

import os
import re

PATTERN = re.compile(
    r"hf_[A-Za-z0-9]{20,}|sk-[A-Za-z0-9_-]{20,}|wandb_v1_[A-Za-z0-9_]{20,}"
    r"|(?<=://)[^/\s:@]+:[^/\s:@]+(?=@)|(?i:(?<=token=)|(?<=key=)|(?<=password=)|(?<=secret=))[^\s&]+"
)
ENVIRONMENT = re.compile(r"(TOKEN|API_KEY|SECRET|PASSWORD)$")


def redact(text: str) -> str:
    """Replace what looks like a secret, and every value of a secret environment variable, by `[redacted]`."""
    for name, value in os.environ.items():
        if ENVIRONMENT.search(name) and len(value) >= 8:
            text = text.replace(value, "[redacted]")
    return PATTERN.sub("[redacted]", text)
