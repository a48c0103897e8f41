"""The hub from here: whether it may be asked, whether it answers, and which exceptions are the network's."""

from __future__ import annotations

import os
import urllib.error
import urllib.request

SECONDS = 4.0
CLIENTS = ("huggingface_hub", "httpx", "httpcore", "requests")


def offline() -> bool:
    """Whether the user keeps the hub client off the network."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON")


def is_failure(error: BaseException) -> bool:
    """Whether the hub or the way to it failed; the client's own exceptions differ between its versions."""
    return isinstance(error, OSError) or type(error).__module__.startswith(CLIENTS)


def endpoint() -> str:
    """The hub's address."""
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")


def ask(path: str, token: str | None) -> int | str:
    """The status of a GET, or why there is none."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    request = urllib.request.Request(endpoint() + path, headers=headers)  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=SECONDS) as answer:  # noqa: S310
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except urllib.error.URLError as error:
        return str(error.reason)
    except OSError as error:
        return type(error).__name__
