"""A text that a tokenizer cannot say, or says as another, is noted: the model is trained on what is left of it."""

from __future__ import annotations

import json
from typing import Any

import pytest
import tiny
from tokenizer_families import chatml
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from dpo.data.lossless import missing_bytes
from dpo.data.pair import Message, Pair
from dpo.data.sources.fields import says_something
from dpo.data.tokens import Encoder

NOTE = "text altered by the tokenizer or unknown to it"


def lowercases() -> Any:
    tokenizer = tiny.make_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    return tokenizer


def drops() -> Any:
    """A byte-level vocabulary without the bytes of most letters, as SmolLM2's lacks some control characters."""
    letters = sorted({*"aehnost\u0120\u010a.", *"ursin"})
    raw = Tokenizer(models.BPE({piece: i for i, piece in enumerate(letters)}, []))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    names = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, **names)
    tokenizer.chat_template = tiny.make_tokenizer().chat_template
    return tokenizer


@pytest.mark.parametrize(
    ("tokenizer", "known", "unknown"),
    [
        (tiny.make_tokenizer, "the cat ran", "the xyzzy ran"),
        (lowercases, "the cat ran", "the Cat ran"),
        (drops, "the sun", "the moon"),
        (chatml, "caf\u00e9 \u65e5\u672c", None),
    ],
)
def test_what_is_lost_between_text_and_ids_is_noted(tokenizer: Any, known: str, unknown: str | None) -> None:
    encoder = Encoder(tokenizer(), 200)
    for name, text in (("known", known), ("unknown", unknown)):
        if text is not None:
            encoder.encode(Pair(name, (Message("user", "the cat" if "cat" in known else "sun"),), text, "sat", "g"))
    assert encoder.cuts.notes()[NOTE] == ([] if unknown is None else ["unknown"])


def test_which_bytes_a_tokenizer_lacks() -> None:
    assert missing_bytes(json.loads(chatml().backend_tokenizer.to_str())) == b""
    assert b"m" in (missing_bytes(json.loads(drops().backend_tokenizer.to_str())) or b"")
    assert missing_bytes(json.loads(tiny.make_tokenizer().backend_tokenizer.to_str())) is None


@pytest.mark.parametrize(("text", "says"), [("\u200b\u200b", False), (" \u200d\n", False), ("\u200bx", True)])
def test_characters_without_width_say_nothing(text: str, says: bool) -> None:
    assert says_something(text) is says
