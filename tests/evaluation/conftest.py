"""A small run, trained for real once, that the tests of this folder evaluate."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "training")]

import tiny  # noqa: E402


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of eight steps on a tiny model; not to be written to."""
    base = tmp_path_factory.mktemp("trained")
    model, pairs = tiny.make_model(base / "model"), tiny.make_pairs(base / "pairs.jsonl", 60)
    code, output = tiny.run(
        "train", tiny.arguments(model, pairs, "dataset.test_fraction=0.4", "hardware.precision=fp32"), base
    )
    assert code == 0, output
    return tiny.record(base)[0]


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of the run to write to."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


@pytest.fixture(autouse=True)
def nothing_remembered() -> None:
    """Every test draws its baseline's answers itself."""
    from dpo.caches.folder import cache_folder

    shutil.rmtree(cache_folder("answers"), ignore_errors=True)
