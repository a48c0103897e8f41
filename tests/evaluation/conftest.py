"""What the tests of evaluation share: a run to write to, and nothing remembered."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of the run to write to."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


@pytest.fixture(autouse=True)
def nothing_remembered() -> None:
    """Every test draws its baseline's answers itself."""
    from dpo.caches.folder import cache_folder

    shutil.rmtree(cache_folder("answers"), ignore_errors=True)
