"""What each value may be by itself."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from dpo.config.judges import JUDGES

SLUG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")

# key -> (holds, what is allowed). A key the chosen option does not have is skipped; null passes.
RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "seed": (lambda v: 0 <= v < 2**32, "0 to 4294967295"),
    "name": (
        lambda v: SLUG.fullmatch(v) is not None,
        "letters, digits, dot, dash and underscore, at most 100, starting with a letter or digit",
    ),
    "dataset.max_length": (lambda v: 16 <= v <= 10**7, "at least 16 tokens, at most 10000000"),
    "dataset.limit": (lambda v: v >= 1, "at least 1, or null for all rows"),
    "dataset.min_ratio": (lambda v: v >= 1, "at least 1"),
    "dataset.pairs_per_post": (lambda v: v >= 1, "at least 1"),
    "dataset.dev_fraction": (lambda v: 0 <= v < 1, "0 or more and below 1"),
    "dataset.test_fraction": (lambda v: 0 <= v < 1, "0 or more and below 1"),
    "dataset.judges": (lambda v: set(v) <= set(JUDGES), f"some of {', '.join(JUDGES)}"),
    "dataset.max_new_tokens": (lambda v: 1 <= v <= 10**6, "at least 1, at most 1000000"),
    "lora.rank": (lambda v: 1 <= v <= 4096, "1 to 4096"),
    "lora.alpha": (lambda v: 1 <= v <= 10**6, "at least 1, at most 1000000"),
    "lora.dropout": (lambda v: 0 <= v < 1, "at least 0 and below 1"),
    "lora.quantization.bits": (lambda v: v in (4, 8), "4 or 8"),
    "dpo.beta": (lambda v: 1e-8 <= v <= 1e38, "above 0, from 1e-8 to 1e38"),
    "dpo.learning_rate": (lambda v: 1e-12 <= v < 1, "above 0 and below 1, from 1e-12"),
    "dpo.weight_decay": (lambda v: 0 <= v < 1, "at least 0 and below 1"),
    "dpo.max_grad_norm": (lambda v: v >= 0, "at least 0 (0: no clipping)"),
    "dpo.warmup_ratio": (lambda v: 0 <= v < 1, "at least 0 and below 1"),
    "dpo.discopop_tau": (lambda v: 1e-8 <= v <= 1e38, "above 0, from 1e-8 to 1e38"),
    "dpo.label_smoothing": (lambda v: 0 <= v < 1, "at least 0 and below 0.5"),
    "dpo.ld_alpha": (lambda v: 0 <= v <= 1, "0 to 1, or null"),
    "dpo.gamma_ratio": (lambda v: 0 <= v <= 1e6, "at least 0"),
    **{
        f"dpo.{name}": (lambda v: 0 <= v <= 1e6, "at least 0, at most 1000000")
        for name in ("cpo_alpha", "desirable_weight", "undesirable_weight")
    },
    "dpo.samples": (lambda v: 2 <= v <= 1024, "2 to 1024: an answer is set against the others to its prompt"),
    "dpo.max_new_tokens": (lambda v: 1 <= v <= 10**6, "1 to 1000000"),
    "dpo.cut_penalty": (lambda v: 0 <= v <= 1e6, "at least 0, at most 1000000"),
    "dpo.f_alpha_divergence_coef": (lambda v: abs(v) < float("inf"), "a finite number, or null"),
    "dpo.epochs": (lambda v: 0 < v < float("inf"), "above 0"),
    "dpo.max_steps": (lambda v: v >= 1, "at least 1, or null for whole epochs"),
    "dpo.batch_size": (lambda v: 1 <= v <= 10**6, "at least 1, at most 1000000"),
    "dpo.log_every": (lambda v: v >= 1, "at least 1"),
    "dpo.eval_every": (lambda v: v >= 0, "at least 0 (0: only before and after)"),
    "dpo.eval_limit": (lambda v: v >= 1, "at least 1, or null for all dev pairs"),
    "dpo.save_every": (lambda v: v >= 1, "at least 1"),
    "dpo.keep_checkpoints": (lambda v: v >= 1, "at least 1"),
    "hardware.token_budget": (lambda v: v >= 1, "at least 1, or null to size it from memory"),
    "hardware.memory_gb": (lambda v: 0 < v <= 10**5, "above 0, at most 100000, or null for all there is"),
    "hardware.processes": (lambda v: 1 <= v <= 64, "1 to 64 on this machine, or null for one a GPU"),
    "hardware.hourly_rate": (lambda v: v >= 0, "at least 0"),
    "hardware.attention": (lambda v: v in ("sdpa", "eager", "flash_attention_2"), "sdpa, eager or flash_attention_2"),
}
