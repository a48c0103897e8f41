"""Text that was given reaches the model, or somebody is told; and it begins as the tokenizer itself begins."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from data_options import REPOSITORY, dataset
from tokenizer_families import CHATML, chatml, llama3
from tokenizers.normalizers import Lowercase
from tokenizers.processors import TemplateProcessing

from dpo.data.chat.coverage import Coverage, stands
from dpo.data.chat.template import begins_with_bos
from dpo.data.pair import Message, Pair
from dpo.data.prepare import prepare
from dpo.data.refusal import Reason, Refusal
from dpo.data.remarks import check_positions, remarks
from dpo.data.tokens import Encoder
from dpo.errors import ConfigError, DataError
from dpo.modeling.positions import positions, steady
from dpo.modeling.tokenizer import load_tokenizer

TEMPLATES = REPOSITORY / "conf" / "model" / "templates"
# What reasoning models' templates do: the part up to </think> goes, and there is no branch for a system message.
STRIPS = (
    "{% for m in messages %}{% if m['role'] != 'system' %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{{ m['content'].split('</think>')[-1] if m['role'] == 'assistant' else m['content'] }}{{ '<|im_end|>\n' }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def with_template(template: str | None) -> Any:
    tokenizer = copy.deepcopy(chatml())
    tokenizer.chat_template = template
    return tokenizer


def pair(*turns: tuple[str, str], chosen: str = "yes", rejected: str = "no", name: str = "x") -> Pair:
    return Pair(name, tuple(Message(role, content) for role, content in turns), chosen, rejected, "g")


def test_an_answer_the_template_cuts_is_refused_and_not_called_equal() -> None:
    encoder = Encoder(with_template(STRIPS), 200)
    both = pair(("user", "q"), chosen="<think>\nA\n</think>\n\nyes", rejected="<think>\nB\n</think>\n\nyes")
    one = pair(("user", "q"), rejected="you close it with </think> and no")
    for bad, side in ((both, "chosen"), (one, "rejected")):
        result = encoder.encode(bad)
        assert isinstance(result, Refusal)
        assert (result.reason, result.field) == (Reason.altered, side)
    assert Reason.altered.structural


def test_answers_of_the_same_tokens_are_called_that() -> None:
    tokenizer = with_template(CHATML)
    tokenizer.backend_tokenizer.normalizer = Lowercase()
    result = Encoder(tokenizer, 200).encode(pair(("user", "q"), chosen="Yes", rejected="yes"))
    assert isinstance(result, Refusal)
    assert result.reason is Reason.same_tokens


def test_a_prompt_that_loses_text_is_noted_even_where_the_text_is_short() -> None:
    encoder = Encoder(with_template(STRIPS), 200)
    # The letter stands in <|im_start|>, so that looking for it would find it.
    encoder.encode(pair(("system", "a"), ("user", "q"), name="system"))
    encoder.encode(pair(("user", "q"), ("assistant", "x</think>y"), ("user", "q"), name="turn"))
    encoder.encode(pair(("user", " q \n"), ("assistant", "y"), ("user", "q"), name="whole"))
    notes = encoder.cuts.notes()
    assert notes["system message left out by the chat template"] == ["system"]
    assert notes["turn altered by the chat template"] == ["turn"]


def test_generation_refuses_a_prompt_that_would_lose_text() -> None:
    encoder = Encoder(with_template(STRIPS), 200)
    with pytest.raises(ConfigError, match="chat template: the system message is not"):
        encoder.encode_prompt([Message("system", "be brief"), Message("user", "q")])
    assert encoder.encode_prompt([Message("user", "q"), Message("assistant", "x</think>y"), Message("user", "q")])


def test_white_space_is_the_templates_own_business() -> None:
    assert stands("\n a  b\n", "<x>a  b</x>")
    assert stands("<think>a</think>b", "<think>\na\n</think>\n\nb")
    assert not stands("<think>a</think>b", "b")
    assert (
        Coverage(lambda turns, tools, generation: "".join(turn["content"] for turn in reversed(turns))).lost(
            [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}], "us"
        )
        == {}
    )


def test_a_turn_that_is_shortened_keeps_its_role() -> None:
    encoder = Encoder(chatml(), 60, min_prompt_tokens=8)
    words = " ".join(f"word{i}" for i in range(60))
    got = encoder.encode(pair(("user", "q"), ("system", words)))
    assert not isinstance(got, Refusal)
    assert "⟦<|im_start|>⟧system" in encoder.codec.visible(got.prompt_ids)
    assert encoder.cuts.shortened_user_turn


def test_typed_control_tokens_stay_text_in_every_prompt() -> None:
    encoder = Encoder(chatml(), 200)
    typed = [Message("system", "s <|im_end|>"), Message("user", "u <|im_end|>"), Message("assistant", "a <|im_end|>")]
    end = encoder.codec.control["<|im_end|>"]
    assert encoder.encode_prompt(typed).count(end) == 2  # the template's own, behind system and user


@pytest.fixture(params=[True, False], ids=["with begin token", "without"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, bool]:
    """A model's folder whose tokenizer has no template, and puts its begin token before a text or does not."""
    tokenizer = copy.deepcopy(llama3())
    tokenizer.chat_template = None
    bos = (tokenizer.bos_token, tokenizer.bos_token_id)
    single = f"{bos[0]} $A" if request.param else "$A"
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=single, special_tokens=[bos])
    tokenizer.save_pretrained(tmp_path)
    return tmp_path, request.param


@pytest.mark.parametrize("name", sorted(path.stem for path in TEMPLATES.glob("*.jinja")))
def test_a_named_template_begins_as_the_tokenizer_does(name: str, folder: tuple[Path, bool]) -> None:
    tokenizer = load_tokenizer(folder[0], name, TEMPLATES)
    assert begins_with_bos(tokenizer) is folder[1]
    encoder = Encoder(tokenizer, 200)
    ids = encoder.encode_prompt([Message("user", "hi")])
    assert ids.count(tokenizer.bos_token_id) == (1 if folder[1] else 0)
    assert (ids[0] == tokenizer.bos_token_id) is folder[1]
    assert encoder.warnings == []


def test_a_template_of_its_own_that_begins_otherwise_is_a_warning(folder: tuple[Path, bool]) -> None:
    tokenizer = load_tokenizer(folder[0], "chatml", TEMPLATES)
    tokenizer.chat_template = CHATML if folder[1] else "{{ bos_token }}" + CHATML
    [line] = Encoder(tokenizer, 200).warnings
    assert line.startswith(f"the chat template begins with{'out' if folder[1] else ''} {tokenizer.bos_token}")


def test_the_template_of_a_name_goes_before_the_tokenizers_own(tmp_path: Path) -> None:
    with_template(STRIPS).save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path, None, TEMPLATES).chat_template == STRIPS
    assert load_tokenizer(tmp_path, "chatml", TEMPLATES).chat_template == (TEMPLATES / "chatml.jinja").read_text()
    with pytest.raises(ConfigError, match=r"model\.chat_template=chatm: no such template; nearest: chatml"):
        load_tokenizer(tmp_path, "chatm", TEMPLATES)


def test_the_report_says_it_and_so_does_training(tmp_path: Path) -> None:
    rows = [
        {
            "system": "Answer in French",
            "prompt": f"<|im_start|>user\nquestion {i}<|im_end|>\n",
            "question": "?",
            "chosen": f"good {i}<|im_end|>",
            "rejected": f"bad {i}<|im_end|>",
        }
        for i in range(40)
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = prepare(dataset("local", path=str(path)), with_template(STRIPS), tmp_path / "cache").report
    assert report["noted"]["system message left out by the chat template"]["count"] == 40
    assert report["noted"]["column question not read"]["count"] == 40
    lines = remarks(report)
    assert "40 system message left out by the chat template" in lines[0]
    assert "40 control token typed in text" in lines[0]
    assert lines[1].startswith("control tokens stand in 40 of 40 pairs and are read as text")


def test_sequences_beyond_a_models_positions() -> None:
    report = {"max_length": 1024, "longest": 700}
    assert check_positions(report, None, None, "m") is None
    assert check_positions(report, 1024, None, "m") is None
    assert "no pair is longer" in (check_positions(report, 900, 700, "m") or "")
    with pytest.raises(DataError, match=r"dataset\.max_length=1024: .* 700 tokens, m was made for 512\nset .*=512"):
        check_positions(report, 512, None, "m")


def test_positions_that_hang_on_the_batch_bound_a_pair() -> None:
    from transformers import LlamaConfig, Phi3Config

    assert steady(LlamaConfig()) is None
    dynamic = LlamaConfig(max_position_embeddings=256, rope_parameters={"rope_type": "dynamic", "factor": 4.0})
    long = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    small = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 4}
    phi = Phi3Config(**small, original_max_position_embeddings=128, rope_parameters=long)
    assert (steady(dynamic), positions(dynamic), steady(phi)) == (256, 1024, 128)
    with pytest.raises(DataError, match=r"beyond 128 .* of m change .*\nset dataset\.max_length=128"):
        check_positions({"max_length": 1024, "longest": 129}, 4096, 128, "m")


def test_positions_count_what_a_scaling_adds() -> None:
    from transformers import BloomConfig, Gemma3Config, GPT2Config, LlamaConfig

    assert positions(LlamaConfig(max_position_embeddings=256)) == 256
    assert positions(GPT2Config(n_positions=128)) == 128
    assert positions(BloomConfig()) is None
    assert positions(SimpleNamespace(get_text_config=lambda: SimpleNamespace(max_seq_len=64))) == 64
    linear = LlamaConfig(max_position_embeddings=256, rope_parameters={"rope_type": "linear", "factor": 4.0})
    assert positions(linear) == 1024
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256}
    assert positions(LlamaConfig(max_position_embeddings=1024, rope_parameters=yarn)) == 1024
    assert positions(LlamaConfig(max_position_embeddings=256, rope_parameters=yarn)) == 1024
    assert positions(Gemma3Config()) == 131072


CHAT = "{{% for m in messages %}}{{{{ '<|im_start|>' + m['role'] + '\n' + {} + '<|im_end|>\n' }}}}{{% endfor %}}" + (
    "{{% if add_generation_prompt %}}{{{{ '<|im_start|>assistant\n' }}}}{{% endif %}}"
)


def test_a_template_that_says_more_than_the_answer_is_refused() -> None:
    echo = "(messages[0]['content'] if m['role'] == 'assistant' else '') + m['content']"
    for inner, says in (("m['content'] + m['content']", "answer stands twice"), (echo, "question stands again")):
        with pytest.raises(ConfigError, match=says):
            Encoder(with_template(CHAT.format(inner)), 200)


def test_what_a_template_adds_to_an_answer_is_said() -> None:
    end = Encoder(with_template(CHAT.format("m['content'] + (' The end.' if m['role'] == 'assistant' else '')")), 200)
    assert end.warnings == ["the chat template puts 'The end.' behind each answer, and it counts as the answer's"]
    short = Encoder(with_template(CHAT.format("('Long: ' if m['content'] | length > 40 else '') + m['content']")), 200)
    question = ("user", "What?")
    short.encode_batch([pair(question, name="as given"), pair(question, chosen="word " * 9 + "end", name="added to")])
    assert short.cuts.notes()["answer to which the chat template adds, by what it says"] == ["added to"]
    assert short.warnings == []


@pytest.mark.parametrize("inner", ["m['content'].split() | join(' ')", "m['content'] | indent", "m['content'] | trim"])
def test_white_space_that_a_template_alters_inside_a_text_is_noted(inner: str) -> None:
    encoder = Encoder(with_template(CHAT.format(f"({inner})")), 200)
    one = pair(("user", "code:\n\n    x = 1"), name="spaces")
    assert not isinstance(encoder.encode(one), Refusal)
    assert not isinstance(encoder.encode(pair(("user", " plain "))), Refusal)
    found = encoder.cuts.notes()["white space altered by the chat template"]
    assert found == ([] if "trim" in inner else ["spaces"])
