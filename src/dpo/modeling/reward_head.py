"""The head that makes a reward model of a causal one: a linear layer with one output, fp32, zero at the start.

It lies where transformers' sequence classifiers have theirs (`score` beside the decoder), and PEFT trains and saves it
with the adapter, so that a run's adapter/ is also one of AutoModelForSequenceClassification with one label.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dpo.errors import ConfigError

HEAD = "score"


def is_reward(config: Any) -> bool:
    """Whether a run's config trains a reward model."""
    return list(config.dpo.loss) == ["reward"]


def check_writes(run: Path, config: Any) -> None:
    """Raise ConfigError for a run whose model writes no answers."""
    if is_reward(config):
        raise ConfigError(
            f"{run}: a reward model, which writes no answers; it scores those of others:\n"
            f"python -m dpo.judge ANOTHER_RUN judge=[reward_model] judge.reward_model.path={run}"
        )


def without_head(excluded: str | list[str] | None) -> str | list[str]:
    """PEFT's exclude_modules with the head among them: it is trained whole."""
    return f"(?:{excluded})|{HEAD}" if isinstance(excluded, str) else [*(excluded or []), HEAD]


def add_head(model: Any) -> Any:
    """Put a zero head on a loaded base; returns it."""
    import torch

    embedding = model.get_input_embeddings().weight
    width = model.get_output_embeddings().in_features
    head = torch.nn.Linear(width, 1, bias=False, dtype=torch.float32, device=embedding.device)
    torch.nn.init.zeros_(head.weight)
    setattr(model, HEAD, head.requires_grad_(False))
    return model
