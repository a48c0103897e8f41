"""Leftovers of a launcher and of a tracker in the environment of a plain start."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dpo.config.composing.leftovers import PREFIXES, RANK_VARIABLES, around, drop_leftovers
from dpo.config.tracking import Wandb, WandbMode
from dpo.records.tracking import NoTracker, build_tracker


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*RANK_VARIABLES, "MASTER_ADDR", *(name for name in os.environ if name.startswith(PREFIXES))):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("left", [
    {"LOCAL_RANK": "0"}, {"WORLD_SIZE": "2"}, {"RANK": "1", "WORLD_SIZE": "2"}, {"ACCELERATE_USE_DEEPSPEED": "true"},
    {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "0"}, {"PMI_RANK": "0"},
])  # fmt: skip
def test_leftovers_of_a_launcher_are_dropped(left: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in left.items():
        monkeypatch.setenv(name, value)
    assert not around()
    assert drop_leftovers() == sorted(left)
    assert not any(name in os.environ for name in left)


def test_a_launcher_that_is_there_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    assert around()
    assert drop_leftovers() == []


def test_wandb_disabled_in_the_environment_is_heeded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    tracker = build_tracker(Wandb("wandb", None, "p", None, False, WandbMode.auto), tmp_path, {}, {})
    assert isinstance(tracker, NoTracker)
    assert list(tmp_path.iterdir()) == []
