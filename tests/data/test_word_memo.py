"""Encoding word by word gives the ids of encoding whole, for every tokenizer it is used with, on any text."""

from __future__ import annotations

import functools
import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_families import CORPUS, chatml, gemma
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from dpo.data.control_tokens import Codec
from dpo.data.id_bytes import to_ids
from dpo.data.word_memo import SPLITS, WordMemo, cuts_at_spaces

BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False)


def split(pattern: str) -> Any:
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), BYTES])


# So that runs of white space become tokens, which a wrong cut would break.
BLANKS = ["a  b   c    d\n e \n f\n\n  g\t h\t\ti 1  2   3\r\n 4 \u00a0 5\n\n\n6  ,  ' \n  \n  x"] * 200
STEPS = {
    "gpt2": GPT2,
    **{f"split {number}": split(pattern) for number, pattern in enumerate(sorted(SPLITS))},
}


@functools.cache
def trained(step: str) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = STEPS[step]
    trainer = trainers.BpeTrainer(
        vocab_size=900, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(CORPUS + BLANKS, trainer)
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    tokenizer.add_tokens([AddedToken("<tool>", normalized=False)])
    return tokenizer


@functools.cache
def codec(step: str) -> Codec:
    from transformers import PreTrainedTokenizerFast

    return Codec(PreTrainedTokenizerFast(tokenizer_object=trained(step), eos_token="<|im_end|>"))


def encode(one: Codec, texts: list[str]) -> list[list[int]]:
    return [to_ids(ids) for ids in one.encode_batch(texts)]


SPACES = [
    " ",
    "  ",
    "\n",
    "\n\n",
    "\t",
    "\r\n",
    "\u00a0",
    "\u2003",
    "\u180e",
    "\u200b",
    "\u3000",
    "\x1c",
    "\x85",
    "\0",
    "\x7f",
]
PIECES = [
    "word",
    "don't",
    "I'LL",
    "a.",
    "(x)",
    "12345",
    "é",
    "e\u0301",
    "\u0301",
    "—",
    "日本",
    "🙂",
    "<tool>",
    "<|im_end|>",
    "$",
    "_",
]
TEXTS = st.lists(st.one_of(st.sampled_from(SPACES), st.sampled_from(PIECES), st.text(max_size=4)), max_size=25)


@pytest.mark.parametrize("step", STEPS)
@settings(max_examples=150, deadline=None)
@given(batch=st.lists(TEXTS.map("".join), min_size=1, max_size=4))
def test_words_give_the_ids_of_the_whole(step: str, batch: list[str]) -> None:
    assert codec(step)._memo is not None
    whole = [encoding.ids for encoding in trained(step).encode_batch(batch, add_special_tokens=False)]
    assert encode(codec(step), batch) == whole
    assert encode(codec(step), batch) == whole  # and from memory


@pytest.mark.parametrize("step", STEPS)
def test_real_rows_give_the_ids_of_the_whole(step: str, real_data: Path) -> None:
    with gzip.open(real_data / "hh_rlhf" / "helpful_base.jsonl.gz", "rt") as file:
        texts = [json.loads(line)["chosen"] for line in file][:300]
    whole = [encoding.ids for encoding in trained(step).encode_batch(texts, add_special_tokens=False)]
    assert encode(codec(step), texts) == whole


def test_a_word_seen_at_an_end_is_not_taken_for_one_in_the_middle() -> None:
    own = codec("gpt2")
    for text in ("end\n", "a end\n", "\nfoo", "<|im_end|>a \n"):
        own.encode(text)
    for text in ("end\n bar", "a end\n bar", "x \nfoo bar", "foo", " foo", "a <|im_end|> \nfoo"):
        assert [own.encode(text)] == [trained("gpt2").encode(text, add_special_tokens=False).ids]


def test_a_word_that_makes_another_token_with_the_separator_is_still_a_word() -> None:
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer.from_str(trained("gpt2").to_str())
    separator = next(iter(tokenizer.get_added_tokens_decoder().values())).content
    tokenizer.add_tokens([AddedToken(f"o{separator}", normalized=False)])
    own = Codec(PreTrainedTokenizerFast(tokenizer_object=tokenizer))
    assert own._memo is not None
    assert own._memo._separator == separator
    text = f"so no go so{separator} then no more"
    whole = tokenizer.encode(text, add_special_tokens=False).ids
    assert tokenizer.token_to_id(f"o{separator}") in whole
    assert own.encode(text) == whole == own.encode(text)


def test_the_memory_stays_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dpo.data.word_memo.CAPACITY", 50)
    own = Codec(chatml())
    memo = own._memo
    assert isinstance(memo, WordMemo)
    for start in range(0, 400, 20):
        texts = [f"word{start + i} and {start * i} more" for i in range(10)]
        assert encode(own, texts) == [chatml().encode(text, add_special_tokens=False) for text in texts]
        assert len(memo._memory) < 120


def changed(**parts: Any) -> dict[str, Any]:
    return {**json.loads(trained("gpt2").to_str()), **parts}


def test_tokenizers_that_may_join_words_are_encoded_whole() -> None:
    assert cuts_at_spaces(changed())
    assert cuts_at_spaces(changed(normalizer=None))
    definition = json.loads(trained("split 0").to_str())
    definition["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] += "|x y"
    refused = [
        json.loads(gemma().backend_tokenizer.to_str()),
        definition,
        changed(normalizer={"type": "Lowercase"}),
        changed(pre_tokenizer=None),
        # SmolLM's own: a run of spaces before a digit is one match there, and two when the last is cut off.
        changed(pre_tokenizer=json.loads(pre_tokenizers.Sequence([pre_tokenizers.Digits(), GPT2]).__getstate__())),
        changed(pre_tokenizer={"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}),
        changed(
            pre_tokenizer={"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
        ),
        changed(model={**changed()["model"], "dropout": 0.1}),
    ]
    for added in (
        AddedToken("<t>", lstrip=True),
        AddedToken("<t>", single_word=True),
        AddedToken("a b"),
        AddedToken("K"),
    ):
        tokenizer = Tokenizer.from_str(trained("gpt2").to_str())
        tokenizer.add_tokens([added])
        refused.append(json.loads(tokenizer.to_str()))
    assert not [one for one in refused if cuts_at_spaces(one)]
