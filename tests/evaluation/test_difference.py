"""A comparison begins with the settings that differ, and says when margins cannot be compared as they stand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import yaml

from dpo.config.read import config_yaml
from dpo.evaluation.comparing.difference import BETAS, caution, what_differs


def _configs(compose: Callable[..., Any], *commands: str) -> list[dict[str, Any]]:
    return [yaml.safe_load(config_yaml(compose(*command.split()))) for command in commands]


def test_only_the_keys_that_decide_and_differ(compose: Callable[..., Any]) -> None:
    found = what_differs(
        _configs(compose, "name=a tracking=none hardware=cpu", "dpo=ipo dpo.save_every=3", "lora.rank=16 dpo=ipo")
    )
    assert {one["key"]: one["values"] for one in found} == {
        "dpo.loss": ['["sigmoid"]', '["ipo"]', '["ipo"]'],
        "lora.rank": ["8", "8", "16"],
    }
    assert caution(found) is None


def test_a_key_that_one_lacks_is_a_dash(compose: Callable[..., Any]) -> None:
    found = what_differs(_configs(compose, "", "lora=full dpo.learning_rate=1e-6"))
    assert {"key": "lora.rank", "values": ["8", "-"]} in found


def test_other_betas_forbid_comparing_margins(compose: Callable[..., Any]) -> None:
    found = what_differs(_configs(compose, "dpo.beta=0.1", "dpo.beta=0.3"))
    assert [one["key"] for one in found] == ["dpo.beta"]
    assert caution(found) == BETAS


def test_runs_that_are_the_same_differ_in_nothing(compose: Callable[..., Any]) -> None:
    assert what_differs(_configs(compose, "seed=1", "seed=1")) == []
