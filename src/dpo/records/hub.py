"""What the hub client of this environment is like: whether it may ask, and which exceptions are the network's."""

from __future__ import annotations

import os

CLIENTS = ("huggingface_hub", "httpx", "httpcore", "requests")


def offline() -> bool:
    """Whether the user keeps the hub client off the network."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON")


def is_failure(error: BaseException) -> bool:
    """Whether the hub or the way to it failed; the client's own exceptions differ between its versions."""
    return isinstance(error, OSError) or type(error).__module__.startswith(CLIENTS)
