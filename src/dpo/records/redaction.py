"""The one place that removes secrets from what is written: command lines, configs, messages, cards, uploads."""

from __future__ import annotations

import os
import re

# What can be nothing but a secret, whatever stands around it.
CERTAIN = re.compile(
    r"hf_[A-Za-z0-9]{20,}|sk-[A-Za-z0-9_-]{20,}|wandb_v1_[A-Za-z0-9_]{20,}|gh[pousr]_[A-Za-z0-9]{30,}"
    r"|github_pat_[A-Za-z0-9_]{30,}|glpat-[A-Za-z0-9_-]{20,}|xox[abposr]-[A-Za-z0-9-]{10,}|AKIA[A-Z0-9]{16}"
    r"|AIza[A-Za-z0-9_-]{35}|eyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)"
    r"|(?<=://)[^/\s:@]+:[^/\s:@]+(?=@)"
)
# What a name in front of it makes a secret: key=value, key: value, "key": "value", Bearer value.
NAMED = re.compile(
    r"(?!\\?\[redacted)(?:"
    r"(?i:(?<=token=)|(?<=key=)|(?<=password=)|(?<=secret=))[^\s&]+"
    r"|(?i:(?<=bearer ))[A-Za-z0-9._~+/=-]{16,}"
    r"|(?i:(?<=api_key: )|(?<=password: )|(?<=secret: )|(?<=access_token: ))[^\s,}]+"
    r"|(?i:(?<=api_key\": \")|(?<=password\": \")|(?<=secret\": \")|(?<=access_token\": \"))[^\"]+)"
)
PATTERN = re.compile(f"{CERTAIN.pattern}|{NAMED.pattern}")
ENVIRONMENT = re.compile(r"(TOKEN|API_KEY|SECRET|PASSWORD)$")
MARK = "[redacted]"


def redact(text: str) -> str:
    """Replace what looks like a secret, and every value of a secret environment variable, by `[redacted]`."""
    return redact_counted(text)[0]


def redact_counted(text: str, certain: bool = False) -> tuple[str, int]:
    """`redact`, and how many places were replaced.

    `certain` looks for what can be nothing else: files a model is loaded from may hold `key=value` of their own.
    """
    count = 0
    for name, value in os.environ.items():
        if ENVIRONMENT.search(name) and len(value) >= 8:
            count += text.count(value)
            text = text.replace(value, MARK)
    pattern = CERTAIN if certain else PATTERN
    text, more = pattern.subn(MARK, text)
    return text, count + more
