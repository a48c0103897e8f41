"""Typed schema of the group `judge`: one dataclass a judge; several at once are `judge=[rules,NAME]`."""

from __future__ import annotations

from dataclasses import dataclass

from hydra.core.config_store import ConfigStore


@dataclass
class RulesJudge:
    """The stated rule of dpo/evaluation/rules.py; its thresholds are part of the rule."""


@dataclass
class Judges:
    """The judges asked for, by name."""

    rules: RulesJudge | None = None


JUDGES: dict[str, type] = {
    "rules": RulesJudge,
}


def register() -> None:
    """Put each judge's schema into Hydra's ConfigStore; must run before a verb with judges composes."""
    store = ConfigStore.instance()
    for name, node in JUDGES.items():
        store.store(group="judge", name=f"base_{name}", node={name: node})
