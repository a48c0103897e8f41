"""Whatever a text contains, only the template makes control tokens, and no character of the text is lost."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_families import FAMILIES

from dpo.data.control_tokens import Codec
from dpo.data.measured import visible
from dpo.data.pair import Message, Pair, TokenPair
from dpo.data.tokens import Encoder

ENCODERS: dict[str, Encoder] = {}


def encoder(family: str) -> Encoder:
    if family not in ENCODERS:
        ENCODERS[family] = Encoder(FAMILIES[family](), max_length=100_000)
    return ENCODERS[family]


def texts(family: str) -> st.SearchStrategy[str]:
    """Random text thick with control tokens, whole and in pieces that only touch in the middle."""
    control = sorted(encoder(family).codec.control)
    halves = [part for token in control for part in (token[: len(token) // 2], token[len(token) // 2 :])]
    pieces = st.one_of(st.sampled_from(control + halves), st.text(max_size=8), st.sampled_from([" ", "\n", "<", "|>"]))
    return st.lists(pieces, min_size=1, max_size=8).map("".join).filter(lambda text: text.strip() != "")


def control_count(family: str, ids: list[int]) -> int:
    unknown = FAMILIES[family]().unk_token_id
    control = set(encoder(family).codec.control.values()) - {unknown}
    return sum(token_id in control for token_id in ids)


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=120, deadline=None)
@given(data=st.data())
def test_typed_control_tokens_stay_text(family: str, data: st.DataObject) -> None:
    user, chosen, rejected = (data.draw(texts(family)) for _ in range(3))
    if chosen.split() == rejected.split():
        rejected += "!"
    result = encoder(family).encode(Pair("x", (Message("user", user),), chosen, rejected, "g"))
    plain = encoder(family).encode(Pair("x", (Message("user", "a"),), "b", "c", "g"))
    assert isinstance(result, TokenPair)
    assert isinstance(plain, TokenPair)
    assert control_count(family, result.prompt_ids) == control_count(family, plain.prompt_ids)
    for ids, text in ((result.chosen_ids, chosen), (result.rejected_ids, rejected)):
        assert control_count(family, ids) == 1
        assert ids[-1] == encoder(family).end_id
        if family != "gemma":  # byte-level decoding is exact; the unigram family has its own pieces for white space
            assert FAMILIES[family]().decode(ids[:-1]).strip() == text.strip()
    if family == "chatml":
        assert user in FAMILIES[family]().decode(result.prompt_ids)


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=80, deadline=None)
@given(text=st.text(max_size=60))
def test_the_twin_tokenizer_reads_ordinary_text_alike(family: str, text: str) -> None:
    codec = encoder(family).codec
    if not codec.needs_sealing(text):
        assert codec.encode(text, sealed=True) == codec.encode(text)


def test_a_unigram_vocabulary_would_make_control_tokens_from_text() -> None:
    """The case that cutting off added tokens does not cover: the model itself holds the piece."""
    tokenizer = FAMILIES["gemma"]()
    naive = tokenizer.encode("</s>", add_special_tokens=False, split_special_tokens=True)
    assert tokenizer.convert_tokens_to_ids("</s>") in naive
    codec = Codec(tokenizer)
    ids = codec.encode(codec.seal(codec.hide("a </s> b")), sealed=True)
    assert tokenizer.convert_tokens_to_ids("</s>") not in ids


def test_typed_tokens_look_different_in_examples() -> None:
    pair = encoder("chatml").encode(Pair("x", (Message("user", "say <|im_end|>"),), "no", "yes", "g"))
    assert isinstance(pair, TokenPair)
    shown = visible(encoder("chatml").codec, pair)
    assert "say <|im_end|>⟦<|im_end|>⟧" in shown["prompt"]
    assert shown["chosen"] == "no⟦<|im_end|>⟧"


def test_rows_with_typed_control_tokens_are_counted() -> None:
    own = Encoder(FAMILIES["chatml"](), 200)
    own.encode_batch(
        [
            Pair("plain", (Message("user", "hello"),), "a", "b", "g"),
            Pair("typed", (Message("user", "hello"),), "a <|im_start|>", "b", "g"),
        ]
    )
    assert own.cuts.control_text == ["typed"]
