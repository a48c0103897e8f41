"""Models by hub id, out of a hub cache on disk: their commit is kept, their own code runs only where trusted."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import tiny
import torch
import transformers

from dpo.errors import Refused
from dpo.evaluation.sides import load_sides
from dpo.modeling.policy import TRUST, load_trained
from dpo.modeling.weights import find_on_hub
from dpo.train import train

FIRST, SECOND = "a" * 40, "b" * 40
CODE = """\
from transformers import LlamaConfig, LlamaForCausalLM
print("code of its own runs")
class OwnConfig(LlamaConfig):
    model_type = "own_tiny"
class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
"""


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    """The folder of `org/name` in a hub cache with the commit FIRST, to which the branch main points."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    find_on_hub.cache_clear()
    monkeypatch.setenv("DPO_OUTPUTS", str(tmp_path / "outputs"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    repo = tmp_path / "hub" / "models--org--name"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(FIRST)
    tiny.make_model(repo / "snapshots" / FIRST)
    return repo


@pytest.fixture
def short(compose, tmp_path) -> Any:
    """short("lora=full") -> the config of a run of two steps on `org/name`."""
    pairs = tiny.make_pairs(tmp_path / "pairs.jsonl", 12)
    steps = ("dataset=local", f"dataset.path={pairs}", "tracking=none", "hardware=cpu", "hardware.precision=fp32")
    more = ("dpo.max_steps=2", "dpo.batch_size=2", "dpo.learning_rate=1e-2", "dpo.eval_limit=2")
    return lambda *words: compose("model=custom", "model.path=org/name", *steps, *more, *words)


def test_the_baseline_of_full_fine_tuning_is_the_commit_it_started_from(hub, short):
    run = train(short("lora=full"))
    assert json.loads((run / "run.json").read_text())["revision"] == FIRST
    # The branch moves on to other weights.
    shutil.copytree(hub / "snapshots" / FIRST, hub / "snapshots" / SECOND)
    moved = transformers.LlamaForCausalLM.from_pretrained(hub / "snapshots" / SECOND)
    with torch.no_grad():
        moved.model.norm.weight.mul_(2)
    moved.save_pretrained(hub / "snapshots" / SECOND)
    (hub / "refs" / "main").write_text(SECOND)
    sides = load_sides(run)
    first = transformers.LlamaForCausalLM.from_pretrained(hub / "snapshots" / FIRST)
    for (name, mine), theirs in zip(sides.baseline.named_parameters(), first.parameters(), strict=True):
        assert torch.equal(mine, theirs.to(mine.dtype)), name
    assert not torch.equal(sides.policy.model.norm.weight, sides.baseline.model.norm.weight)


def test_code_of_its_own_trains_where_its_commit_is_pinned_and_loads_where_it_is_trusted(
    hub, short, monkeypatch, capsys
):
    folder = hub / "snapshots" / FIRST
    settings = json.loads((folder / "config.json").read_text()) | {"model_type": "own_tiny"}
    settings |= {"auto_map": {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnForCausalLM"}}
    (folder / "config.json").write_text(json.dumps(settings))
    (folder / "own.py").write_text(CODE)
    with pytest.raises(Refused, match=r"code of its own, which runs only with"):
        train(short())
    assert "code of its own runs" not in capsys.readouterr().out

    run = train(short("model.trust_remote_code=true", f"model.revision={FIRST}"))
    said = capsys.readouterr().out
    assert "code of its own runs" in said
    assert "step 2/2" in said
    record = json.loads((run / "run.json").read_text())
    assert (record["status"], record["revision"]) == ("complete", FIRST)

    with pytest.raises(Refused, match=f"set {TRUST}={FIRST}"):
        load_trained(run)
    monkeypatch.setenv(TRUST, FIRST)
    model, _, _ = load_trained(run)
    assert type(model.get_base_model()).__name__ == "OwnForCausalLM"
