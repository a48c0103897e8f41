"""A tokenizer with a pad token and a chat template, whatever the model came with."""

from __future__ import annotations

import datetime
import functools
import hashlib
import json
from pathlib import Path
from typing import Any

from dpo.config.nearest import nearest
from dpo.data.chat.template import begins_with_bos
from dpo.errors import ConfigError


class Day:
    """What a template's strftime_now(format) prints: the beginning of one day, `iso` such as 2026-11-30."""

    def __init__(self, iso: str) -> None:
        self.iso = iso

    def __call__(self, form: str) -> str:
        return datetime.datetime.fromisoformat(self.iso).strftime(form)


def today() -> str:
    """Today's date here, as `load_tokenizer` takes it."""
    return datetime.date.today().isoformat()


def load_tokenizer(
    folder: Path,
    template: str | None,
    templates: Path,
    remote_code: bool = False,
    date: str | None = None,
) -> Any:
    """Load a folder's tokenizer; `template` names a file of `templates`, which goes before its own.

    Templates that print the date print `date` (ISO, default today's), whenever they are rendered.

    Raises ConfigError when there is none, it cannot be read, or it belongs to a model of more tokens.
    """
    from transformers import AutoTokenizer

    from dpo.modeling.templates.bounded_template import bound_templates

    bound_templates()
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=remote_code)
    except Exception as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigError(f"{folder}: its tokenizer cannot be loaded: {first[:200]}") from error
    check_vocabulary(folder, tokenizer)
    if tokenizer.pad_token is None:
        # Padding is masked everywhere, so any token will do; the end token is the field's habit.
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    if template is not None:
        path = templates / f"{template}.jinja"
        if template not in _names(templates):
            near = nearest(template, _names(templates))
            raise ConfigError(f"model.chat_template={template}: no such template{near}")
        # Those files say nothing of the begin token: models differ in whether they were trained with one.
        tokenizer.chat_template = ("{{ bos_token }}" if begins_with_bos(tokenizer) else "") + path.read_text()
    if tokenizer.chat_template is None:
        raise ConfigError(
            f"{folder}: its tokenizer has no chat template\n"
            f"name a fallback: model.chat_template=NAME, one of {', '.join(_names(templates))}"
        )
    pin_date(tokenizer, date or today())
    return tokenizer


def pin_date(tokenizer: Any, iso: str) -> None:
    """Make every rendering of this object's chat template print this date.

    transformers takes no functions among a template's variables; the environment it keeps of a template is told before
    each rendering, as another object may have the same template and another date.
    """
    try:
        datetime.date.fromisoformat(iso)
    except (TypeError, ValueError):
        raise ConfigError(f"date {iso!s:.40}: is no date such as 2026-11-30") from None
    tokenizer.pinned_day = Day(iso)
    tokenizer.apply_chat_template = functools.partial(_render_pinned, tokenizer)


def _render_pinned(tokenizer: Any, *arguments: Any, **settings: Any) -> Any:
    from transformers.utils.chat_template_utils import _compile_jinja_template

    source = tokenizer.get_chat_template(settings.get("chat_template"), settings.get("tools"))
    _compile_jinja_template(source).environment.globals["strftime_now"] = tokenizer.pinned_day
    return type(tokenizer).apply_chat_template(tokenizer, *arguments, **settings)


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """SHA-256 over the tokenizer's definition, its named tokens and its chat template, 16 hex digits."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    definition = json.loads(backend.to_str()) if backend is not None else sorted(tokenizer.get_vocab().items())
    if isinstance(definition, dict):
        # Set by calls, not by what the tokenizer is.
        definition["truncation"] = definition["padding"] = None
    names = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    facts = [definition, names, tokenizer.chat_template]
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def stop_tokens(model: Any, tokenizer: Any, end_id: int | None) -> set[int]:
    """Tokens that end an answer: `end_id`, which the chat template puts behind one, and what model and tokenizer call
    their end of sequence. Base models often know only the latter, chat templates only the former."""
    found = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ids = found if isinstance(found, list) else [found]
    return {int(i) for i in [*ids, tokenizer.eos_token_id, end_id] if i is not None}


def check_vocabulary(folder: Path, tokenizer: Any) -> None:
    """Raise ConfigError when the model beside the tokenizer has no row for its last token."""
    path = folder / "config.json"
    if not path.is_file():
        return
    config = json.loads(path.read_text(encoding="utf-8"))
    rows = config.get("vocab_size") or config.get("text_config", {}).get("vocab_size")
    ids = tokenizer.get_vocab().values()
    if rows is not None and ids and max(ids) >= rows:
        raise ConfigError(
            f"{folder}: its tokenizer has token ids up to {max(ids)}, its model {rows} rows: they do not fit together"
        )


def _names(templates: Path) -> list[str]:
    return sorted(path.stem for path in templates.glob("*.jinja"))
