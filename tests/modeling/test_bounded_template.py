"""A stranger's chat template cannot go on for ever, fill the memory, or end a verb in a traceback."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from transformers.utils import chat_template_utils

from dpo.config.folder import conf_folder
from dpo.data.chat.template import ChatTemplate
from dpo.errors import ConfigError
from dpo.modeling.templates.bounded_template import bound_templates

TURNS = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "a <think>b</think> c"}]
ENDLESS = (
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{% for i in range(99999)|map('string') %}{% for j in range(99999)|select %}{% endfor %}{% endfor %}",
    "{% macro a(n) %}{% if n %}{{ a(n - 1) }}{{ a(n - 1) }}{% endif %}{% endmacro %}{{ a(60) }}",
    "{{ 'x' * 10**10 }}",
    "{{ 99 ** 999999999 }}",
    "{{ 'x'|center(10000000000) }}",
    "{{ 'x'.ljust(10000000000) }}",
    "{{ '{:>9999999999}'.format(1) }}",
    "{{ '{:{w}}'.format(1, w=10**9) }}",
    "{{ '%099999999999d' % 1 }}",
    "{% set n = namespace(x='ab') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "{% set n = namespace(x=[1]) %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "{% set n = namespace(x='a') %}{% for i in range(60) %}{% set n.x = n.x|replace('a', 'aa') %}{% endfor %}",
    "{% for i in range(99999) %}" + "x" * 9999 + "{% endfor %}",
    "{{ messages|tojson(indent=1000000000) }}",
    "{{ lipsum(n=1000000) }}",
)
FAULTY = {
    "{{ 1 / 0 }}": "ZeroDivisionError: division by zero",
    "{% for m in messages %}": "in line 1: TemplateSyntaxError",
    "{{ messages + 1 }}": "TypeError",
    "{{ messages.a.b }}": "UndefinedError",
    "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}": "RecursionError",
    "{{ raise_exception('roles must alternate') }}": "chat template: roles must alternate",
    "{{" + "(" * 3000 + "1" + ")" * 3000 + "}}": "RecursionError",
    "{# " + "x" * 1_000_001 + " #}": "at most",
}


def render(source: str, turns: list[dict[str, str]] = TURNS, generation: bool = False) -> str:
    bound_templates()
    template = chat_template_utils._compile_jinja_template(source)
    values = {"bos_token": "<s>", "eos_token": "</s>", "tools": None, "documents": None}
    return str(template.render(messages=turns, add_generation_prompt=generation, **values))


@pytest.mark.parametrize("source", ENDLESS, ids=range(len(ENDLESS)))
def test_work_and_size_are_bounded(source):
    began = time.process_time()
    with pytest.raises(ConfigError, match="chat template: "):
        render(source)
    assert time.process_time() - began < 10


@pytest.mark.parametrize("source", FAULTY, ids=range(len(FAULTY)))
def test_a_fault_in_a_template_is_one_line(source):
    with pytest.raises(ConfigError) as caught:
        render(source)
    assert FAULTY[source] in str(caught.value)
    assert str(caught.value).count("\n") == 0


@pytest.mark.parametrize("path", sorted((conf_folder() / "model" / "templates").glob("*.jinja")), ids=lambda p: p.stem)
@pytest.mark.parametrize("generation", [True, False])
def test_what_fits_is_rendered_as_ever(path, generation):
    bound_templates()
    plain = chat_template_utils._cached_compile_jinja_template(path.read_text())
    values = {"bos_token": "<s>", "eos_token": "</s>", "tools": None, "documents": None}
    for turns in (TURNS, TURNS[:1], TURNS * 40):
        expected = plain.render(messages=turns, add_generation_prompt=generation, **values)
        assert render(path.read_text(), turns, generation) == expected


def test_a_long_conversation_has_room():
    turns = [{"role": "user", "content": "word " * 20_000}] * 200
    assert len(render("{% for m in messages %}{{ m.content }}{% endfor %}", turns)) == 20_000_000


class OnlyTemplate:
    """A tokenizer as far as ChatTemplate asks for one."""

    def __init__(self, source: str) -> None:
        self.special_tokens_map: dict[str, str] = {}
        self.chat_template = source

    def get_chat_template(self) -> str:
        return self.chat_template

    def apply_chat_template(self, turns: list[dict[str, str]], add_generation_prompt: bool, **_: object) -> str:
        return render(self.chat_template, turns, add_generation_prompt)


@pytest.mark.parametrize("source", [ENDLESS[0], *list(FAULTY)[:6]])
def test_preparing_data_with_it_is_refused(source):
    bound_templates()
    with pytest.raises(ConfigError, match="chat template"):
        ChatTemplate(OnlyTemplate(source), {})


def test_every_tokenizer_is_loaded_with_bounds(tmp_path: Path):
    """Loading is the boundary: whoever renders afterwards, also transformers itself, is bounded."""
    import tiny

    from dpo.modeling.tokenizer import load_tokenizer

    folder = tiny.make_model(tmp_path / "model")
    tokenizer = load_tokenizer(folder, None, conf_folder() / "model" / "templates")
    tokenizer.chat_template = ENDLESS[0]
    with pytest.raises(ConfigError, match="more loop steps"):
        tokenizer.apply_chat_template(TURNS, tokenize=False)
