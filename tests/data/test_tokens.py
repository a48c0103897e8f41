"""Token pairs equal the whole conversation's own tokenization, and cutting follows the stated order."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizer_families import CHATML, FAMILIES, chatml, gemma, llama3

from dpo.config.datasets import Keep
from dpo.data.pair import Message, Pair, TokenPair
from dpo.data.refusal import Reason, Refusal
from dpo.data.tokens import Encoder
from dpo.errors import ConfigError

WORDS = "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho sigma tau".split()


def text(words: int, start: int = 0) -> str:
    return " ".join(WORDS[(start + i) % len(WORDS)] for i in range(words))


def pair(*turns: tuple[str, str], chosen: str = "yes, of course", rejected: str = "no", name: str = "x") -> Pair:
    return Pair(name, tuple(Message(role, content) for role, content in turns), chosen, rejected, "g", 0.75)


def encoded(encoder: Encoder, one: Pair) -> TokenPair:
    result = encoder.encode(one)
    assert isinstance(result, TokenPair), result
    return result


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("chosen", ["yes, of course", "Paragraph one.\n\nParagraph two.", "42"])
def test_ids_are_those_of_the_whole_conversation(family: str, chosen: str) -> None:
    tokenizer = FAMILIES[family]()
    turns = [("user", "Where is it?"), ("assistant", "Here."), ("user", "And now?")]
    got = encoded(Encoder(tokenizer, 500), pair(*turns, chosen=chosen))
    messages = [{"role": role, "content": content} for role, content in turns]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    whole = tokenizer.apply_chat_template([*messages, {"role": "assistant", "content": chosen}])["input_ids"]
    assert got.prompt_ids == prompt
    after = whole[len(prompt) + len(got.chosen_ids) :]
    assert whole == prompt + got.chosen_ids + after
    assert tokenizer.decode(after).strip() == ""  # only white space follows the end of turn
    assert got.strength == 0.75


@pytest.mark.parametrize("family", FAMILIES)
def test_one_begin_of_text_at_most(family: str) -> None:
    tokenizer = FAMILIES[family]()
    ids = encoded(Encoder(tokenizer, 500), pair(("user", "hello"))).prompt_ids
    assert tokenizer.encode("hello")[0] == tokenizer.bos_token_id or family != "llama3"
    assert ids[0] == tokenizer.bos_token_id
    assert ids[1] != tokenizer.bos_token_id


def test_a_template_that_doubles_the_begin_of_text_is_refused() -> None:
    tokenizer = _with_template(llama3(), "{{ bos_token }}" + llama3().chat_template)
    with pytest.raises(ConfigError, match="begin-of-text token twice"):
        Encoder(tokenizer, 100)


def test_a_template_whose_prompt_is_no_prefix_is_refused() -> None:
    template = "{% if add_generation_prompt %}ASK {% endif %}" + CHATML
    with pytest.raises(ConfigError, match="not the start of the whole conversation"):
        Encoder(_with_template(chatml(), template), 100)


def test_a_pair_whose_prompt_is_no_prefix_is_refused_alone() -> None:
    """Like templates that drop the thinking of earlier turns once an answer follows."""
    template = (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
        "{{ m['content'].split('THINK')[0] if messages[-1]['role'] == 'assistant' else m['content'] }}"
        "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    encoder = Encoder(_with_template(chatml(), template), 200)
    bad, good = encoder.encode_batch([pair(("user", "a THINK b")), pair(("user", "a b"))])
    assert isinstance(bad, Refusal)
    assert bad.reason is Reason.template
    assert isinstance(good, TokenPair)


def test_an_answer_without_a_closing_token_gets_the_end_of_text() -> None:
    template = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    template += "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
    tokenizer = _with_template(chatml(), template)
    encoder = Encoder(tokenizer, 200)
    got = encoded(encoder, pair(("user", "hello")))
    assert encoder.appended_end
    assert got.chosen_ids[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(got.chosen_ids[:-1]) == " yes, of course\n"


def test_neighbours_of_one_role_are_joined_and_counted() -> None:
    encoder = Encoder(gemma(), 500)  # a strict template: it raises on two turns of one role
    twice = encoded(encoder, pair(("user", "one"), ("user", "two"), name="twice"))
    once = encoded(encoder, pair(("user", "one\n\ntwo"), name="once"))
    assert twice.prompt_ids == once.prompt_ids
    assert encoder.cuts.joined_turns == ["twice"]


def test_an_assistant_turn_before_the_answer_stands_before_both() -> None:
    encoder = Encoder(chatml(), 500)
    got = encoded(encoder, pair(("user", "one"), ("assistant", "Well."), chosen="good", rejected="bad"))
    decode = encoder.codec.visible
    assert decode(got.chosen_ids) == "Well.\n\ngood⟦<|im_end|>⟧"
    assert decode(got.rejected_ids) == "Well.\n\nbad⟦<|im_end|>⟧"


def test_what_a_strict_template_refuses_is_a_named_refusal() -> None:
    result = Encoder(gemma(), 500).encode(pair(("system", "be brief"), ("user", "hi")))
    assert isinstance(result, Refusal)
    assert str(result) == "the chat template refuses it: System role not supported"


def test_template_arguments_reach_the_template() -> None:
    template = "{{ mode }}" + CHATML
    encoder = Encoder(_with_template(chatml(), template), 200, chat_template_kwargs={"mode": "BRIEF"})
    assert encoder.codec.visible(encoded(encoder, pair(("user", "hi"))).prompt_ids).startswith("BRIEF⟦<|im_start|>⟧")
    assert encoder.key != Encoder(_with_template(chatml(), template), 200).key


def test_an_answer_that_begins_inside_a_token_starts_one_of_its_own() -> None:
    template = CHATML.replace("'<|im_start|>assistant\n'", "'<|im_start|>assistant\nAnswer: the qu'").replace(
        "+ message['content'] +",
        "+ ('Answer: the qu' if message['role'] == 'assistant' else '') + message['content'] +",
    )
    encoder = Encoder(_with_template(chatml(), template), 200)
    got = encoded(encoder, pair(("user", "hi"), chosen="ick fox", rejected="estion", name="inside"))
    assert encoder.cuts.forced_boundary == ["inside"]
    assert got.prompt_ids == encoder.encode_prompt([Message("user", "hi")])
    assert encoder.codec.visible(got.chosen_ids) == "ick fox⟦<|im_end|>⟧"


def _with_template(tokenizer: Any, template: str) -> Any:
    import copy

    changed = copy.copy(tokenizer)
    changed.chat_template = template
    return changed


# Truncation, in its order.


def lengths(one: TokenPair) -> int:
    return len(one.prompt_ids) + max(len(one.chosen_ids), len(one.rejected_ids))


TALK = [("system", "Be kind."), *((role, text(20, i)) for i in range(3) for role in ("user", "assistant"))]
TALK = [*TALK, ("user", "And finally?")]


def test_oldest_turns_go_first_and_whole() -> None:
    whole = encoded(Encoder(chatml(), 10_000), pair(*TALK))
    encoder = Encoder(chatml(), lengths(whole) - 1, min_prompt_tokens=4)
    got = encoded(encoder, pair(*TALK))
    shorter = encoded(Encoder(chatml(), 10_000), pair(TALK[0], *TALK[3:]))
    assert got.prompt_ids == shorter.prompt_ids
    assert got.chosen_ids == whole.chosen_ids
    assert encoder.cuts.dropped_turns == {"x": len(whole.prompt_ids) - len(shorter.prompt_ids)}
    assert not encoder.cuts.shortened_user_turn
    assert not encoder.cuts.cut_chosen
    assert not encoder.cuts.cut_rejected


@pytest.mark.parametrize(("keep", "stays"), [(Keep.start, "alpha beta"), (Keep.end, "rho sigma tau")])
def test_then_the_last_user_turn_is_shortened_at_the_end_that_may_go(keep: Keep, stays: str) -> None:
    question = text(19)
    whole = encoded(Encoder(chatml(), 10_000), pair(("user", question)))
    limit = lengths(whole) - 10
    encoder = Encoder(chatml(), limit, keep=keep, min_prompt_tokens=4)
    got = encoded(encoder, pair(("user", "first"), ("assistant", "ok"), ("user", question)))
    kept = encoder.codec.visible(got.prompt_ids)
    assert limit - 3 <= lengths(got) <= limit
    assert stays in kept
    assert ("alpha" in kept) != ("tau" in kept)
    assert "first" not in kept
    assert got.chosen_ids == whole.chosen_ids
    assert encoder.cuts.shortened_user_turn == {"x": len(whole.prompt_ids) - len(got.prompt_ids)}


def test_then_both_answers_lose_their_end_and_its_token() -> None:
    question, chosen, rejected = text(40), text(60, 3), text(30, 5)
    whole = encoded(Encoder(chatml(), 10_000), pair(("user", question), chosen=chosen, rejected=rejected))
    encoder = Encoder(chatml(), 100, min_prompt_tokens=30)
    got = encoded(encoder, pair(("user", question), chosen=chosen, rejected=rejected))
    assert lengths(got) == 100
    room = 100 - len(got.prompt_ids)
    assert got.chosen_ids == whole.chosen_ids[:room]
    assert got.chosen_ids[-1] != encoder.end_id
    assert encoder.cuts.cut_chosen == {"x": len(whole.chosen_ids) - room}
    if len(whole.rejected_ids) <= room:
        assert got.rejected_ids == whole.rejected_ids
        assert got.rejected_ids[-1] == encoder.end_id
        assert not encoder.cuts.cut_rejected


def test_the_user_turn_keeps_its_floor() -> None:
    encoder = Encoder(chatml(), 200, min_prompt_tokens=25)
    got = encoded(encoder, pair(("user", text(60)), chosen=text(150), rejected=text(150, 1)))
    empty = len(encoder.encode_prompt([Message("user", "")]))
    assert len(got.prompt_ids) - empty in (24, 25, 26)


def test_a_pair_without_room_for_an_answer_is_refused() -> None:
    result = Encoder(chatml(), 20).encode(pair(("system", text(30)), ("user", "hi")))
    assert isinstance(result, Refusal)
    assert result.reason is Reason.completion_lost


def test_answers_that_cutting_made_equal_are_refused() -> None:
    same = text(60)
    result = Encoder(chatml(), 60).encode(pair(("user", "hi"), chosen=same + " good", rejected=same + " bad"))
    assert isinstance(result, Refusal)
    assert result.reason is Reason.equal_after_cutting


def test_a_pair_that_fits_exactly_is_not_cut() -> None:
    whole = encoded(Encoder(chatml(), 10_000), pair(*TALK))
    encoder = Encoder(chatml(), lengths(whole))
    assert encoded(encoder, pair(*TALK)) == whole
    cuts = encoder.cuts
    assert not any((cuts.dropped_turns, cuts.shortened_user_turn, cuts.cut_chosen, cuts.cut_rejected))


def test_batches_give_what_single_pairs_give() -> None:
    pairs = [pair(("user", text(i + 1)), name=str(i), chosen=text(3 * i + 1, 2)) for i in range(20)]
    pairs.append(pair(("user", "a <|im_end|> b"), name="typed"))
    assert Encoder(chatml(), 40).encode_batch(pairs) == [Encoder(chatml(), 40).encode(one) for one in pairs]
