"""Which keys make another run: every leaf of a config says what it decides, in one table."""

from __future__ import annotations

import dataclasses
import typing

import pytest

from dpo.config.checks.passthrough import ALLOWED
from dpo.config.identity import ROLES, Role, role
from dpo.config.lora import Quantization
from dpo.config.parse import fingerprint
from dpo.config.schema import NODES, Config
from dpo.pages.defaults import composed


def leaves() -> set[str]:
    """Every key of every option; what `dpo.trainer` may set; a quantization is one leaf, as is a null one."""
    found = {field.name for field in dataclasses.fields(Config)} - set(NODES)
    for group, nodes in NODES.items():
        found |= {f"{group}.{field.name}" for node in nodes.values() for field in dataclasses.fields(node)}
    return (found - {"dpo.trainer"}) | {f"dpo.trainer.{name}" for name in ALLOWED}


def test_every_leaf_is_classified_and_nothing_else() -> None:
    known = {key for key in leaves() if any(key == entry or key.startswith(f"{entry}.") for entry in ROLES)}
    assert known == leaves()
    assert {entry for entry in ROLES if not any(k == entry or k.startswith(f"{entry}.") for k in leaves())} == set()
    hints = typing.get_type_hints(Quantization)
    assert {role(f"lora.quantization.{name}") for name in hints} == {Role.what}
    assert {key for key in leaves() if key.startswith("hardware.") and role(key) is Role.what} == set()


OTHERS = ["seed=7", "dpo.beta=0.2", "lora.rank=4", "dataset.limit=9", "dpo.max_steps=3", "model.path=x",
          "lora.quantization.double=false", "+dpo.trainer.adam_beta2=0.9"]  # fmt: skip
SAME = ["hardware.activation_checkpointing=on", "hardware.memory_gb=3", "hardware.token_budget=99", "dpo.log_every=7",
        "dpo.eval_every=9", "dpo.eval_limit=3", "dpo.save_every=2", "dpo.keep_checkpoints=1", "hardware.hourly_rate=9",
        "hardware.precision=fp32", "hardware.engine=plain", "hardware.parallel=ddp", "name=other", "tracking=none",
        "+dpo.trainer.dataloader_num_workers=2", "sweep.evaluate=false"]  # fmt: skip


@pytest.fixture(scope="module")
def usual() -> str:
    return fingerprint(composed("config", Config, []))


def test_only_what_is_computed_makes_another_run(usual: str) -> None:
    assert fingerprint(composed("config", Config, SAME)) == usual
    prints = [fingerprint(composed("config", Config, [override])) for override in OTHERS]
    assert len({usual, *prints}) == len(OTHERS) + 1
