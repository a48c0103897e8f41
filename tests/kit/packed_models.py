"""Tiny random models of each family and random pairs, for the packed engine's tests."""

from __future__ import annotations

import random
from typing import Any

import torch
from peft import LoraConfig, get_peft_model

from dpo.data.pair import TokenPair
from dpo.engine.packed_forward import install

VOCABULARY = 97
SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EXTRA: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": 7},
    "qwen2": {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1},
    "qwen3": {},
    "gemma": {},
    "gemma3_text": {"sliding_window": 7, "query_pre_attn_scalar": 8, "final_logit_softcapping": 5.0},
}


def tiny_model(family: str, dtype: torch.dtype = torch.float64, seed: int = 0, **changes: Any) -> torch.nn.Module:
    """A random causal LM whose attention is sharp enough to tell who sees whom."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(seed)
    config = AutoConfig.for_model(family, **{**SHAPE, **EXTRA[family], **changes})
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0.0, 0.25)
    return model.requires_grad_(False)


def with_lora(model: torch.nn.Module, rank: int = 4, seed: int = 1, trained: bool = True) -> Any:
    """LoRA on all linear layers; `trained` moves B away from zero."""
    torch.manual_seed(seed)
    dtype = next(model.parameters()).dtype
    policy = get_peft_model(
        model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    for name, parameter in policy.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.to(dtype)
            if trained and "lora_B" in name:
                torch.nn.init.normal_(parameter, 0.0, 0.1)
    return policy


def random_pairs(count: int, seed: int = 0, longest: int = 20) -> list[TokenPair]:
    """Pairs of all shapes, one-token prompts and completions among them."""
    rng = random.Random(seed)

    def ids(low: int = 1) -> list[int]:
        return [rng.randrange(3, VOCABULARY) for _ in range(rng.randint(low, longest))]

    pairs = [TokenPair(f"t:train:{i}", ids(), ids(), ids()) for i in range(count)]
    pairs[0] = TokenPair("t:train:0", [5], [6], [7, 8, 9])
    if count > 1:
        pairs[1] = TokenPair("t:train:1", ids(15), ids(15), [11])
    return pairs


def separate_log_probs(model: torch.nn.Module, pairs: list[TokenPair]) -> torch.Tensor:
    """[B, 2] by the textbook: each sequence alone, all logits, log_softmax, gather, sum."""
    rows = []
    for pair in pairs:
        sums = []
        for completion in (pair.chosen_ids, pair.rejected_ids):
            ids = torch.tensor([pair.prompt_ids + completion])
            logits = model(input_ids=ids, use_cache=False).logits[0, len(pair.prompt_ids) - 1 : -1]
            log_probs = torch.log_softmax(logits, dim=-1)
            sums.append(log_probs.gather(1, torch.tensor(completion).unsqueeze(1)).sum())
        rows.append(torch.stack(sums))
    return torch.stack(rows)


def packed_log_probs(model: torch.nn.Module, pairs: list[TokenPair]) -> torch.Tensor:
    """[B, 2] the way the trainer asks for it."""
    from dpo.engine.collate import layout
    from dpo.losses.completions import sums

    packed = layout(pairs)
    lengths = torch.tensor([(chosen, rejected) for _, chosen, rejected in packed.lengths])
    return sums(model(input_ids=packed.token_ids, packed=packed).log_probs, lengths.view(-1))


def padded_log_probs(model: torch.nn.Module, pairs: list[TokenPair]) -> torch.Tensor:
    """[B, 2] by TRL's own forward on its padded batch (needs its fused head on the model)."""
    from dpo.engine.collate import pad

    batch: dict[str, Any] = pad(pairs, pad_id=0)
    completion_mask = batch.pop("completion_mask")
    labels = batch["input_ids"].masked_fill(completion_mask == 0, -100)
    out = model(**batch, labels=labels, use_cache=False, fused_lm_head=True)
    return out.log_probs.sum(dim=1).view(2, -1).t()


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad and p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


Scored = tuple[torch.Tensor, dict[str, torch.Tensor]]


def plain_and_packed(policy: Any, pairs: list[TokenPair]) -> tuple[Scored, Scored]:
    """([B, 2] log-probs, LoRA gradients of the summed margins) of separate plain sequences, then of the packed
    forward, which is installed on the way."""
    scored: list[Scored] = []
    for log_probs_of in (separate_log_probs, packed_log_probs):
        if log_probs_of is packed_log_probs:
            assert install(policy) is None
        log_probs = log_probs_of(policy, pairs)
        log_probs.diff(dim=1).sum().backward()
        scored.append((log_probs, gradients(policy)))
    return scored[0], scored[1]
