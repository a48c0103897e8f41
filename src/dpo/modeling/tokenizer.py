"""A tokenizer with a pad token and a chat template, whatever the model came with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dpo.config.nearest import nearest
from dpo.errors import ConfigError


def load_tokenizer(folder: Path, fallback_template: str | None, templates: Path) -> Any:
    """Load a folder's tokenizer; `fallback_template` names a file of `templates`, used only when it has none."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    if tokenizer.pad_token is None:
        # Padding is masked everywhere, so any token will do; the end token is the field's habit.
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    if tokenizer.chat_template is None:
        if fallback_template is None:
            raise ConfigError(
                f"{folder}: its tokenizer has no chat template\n"
                f"name a fallback: model.chat_template=NAME, one of {', '.join(_names(templates))}"
            )
        path = templates / f"{fallback_template}.jinja"
        if not path.is_file():
            near = nearest(fallback_template, _names(templates))
            raise ConfigError(f"model.chat_template={fallback_template}: no such template{near}")
        tokenizer.chat_template = path.read_text()
    return tokenizer


def _names(templates: Path) -> list[str]:
    return sorted(path.stem for path in templates.glob("*.jinja"))
