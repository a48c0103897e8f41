"""A process that is tracked (track.py), and what it told."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from wandb_server import Server

CONFIG = {"dpo": {"beta": 0.1, "loss": ["sigmoid"]}, "lora": {"rank": 8}}


def start(folder: Path, tracking: dict[str, Any], environment: dict[str, str], **more: Any) -> subprocess.Popen[str]:
    """A process that logs steps 0 to 3 and finishes."""
    folder.mkdir(parents=True, exist_ok=True)
    spec = {"folder": str(folder), "tracking": tracking, "config": CONFIG, "sweep": None, "steps": [0, 1, 2, 3]} | more
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB", "TRACKIO"))}
    return subprocess.Popen(
        [sys.executable, Path(__file__).with_name("track.py"), json.dumps(spec)],
        env={**clean, "WANDB_SILENT": "true", "NETRC": os.devnull, **environment},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=folder,
    )  # fmt: skip


def end(process: subprocess.Popen[str]) -> dict[str, Any]:
    """What it told; the limit is the test's only clock and far above what is bounded."""
    output, _ = process.communicate("\n", timeout=60)
    assert process.returncode == 0, output
    told = json.loads(next(line for line in output.splitlines() if line.startswith("{")))
    assert not told["torch"]
    return told | {"output": output}


def track(folder: Path, tracking: dict[str, Any], environment: dict[str, str], **more: Any) -> dict[str, Any]:
    return end(start(folder, tracking, environment, **more))


def wandb_settings(**more: Any) -> dict[str, Any]:
    return {"backend": "wandb", "project": "check", "mode": "auto", **more}


def online(server: Server) -> dict[str, str]:
    return {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": "a" * 40}
