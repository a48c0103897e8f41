"""Rendering a conversation with the tokenizer's chat template, and what of the text belongs to the answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dpo.data.chat.answers import NOT_A_START
from dpo.data.chat.dialect import Dialect, Tools, Turns
from dpo.data.pair import Message
from dpo.data.refusal import Reason, RowRefused
from dpo.data.sources.messages import message_dict
from dpo.errors import ConfigError

QUESTION, ANSWER = "A question?", "An answer."


class ChatTemplate:
    """The tokenizer's template with fixed keyword arguments."""

    def __init__(self, tokenizer: Any, kwargs: Mapping[str, Any]) -> None:
        if not tokenizer.chat_template:
            raise ConfigError("the tokenizer has no chat template; name one: model.chat_template=chatml")
        self._tokenizer = tokenizer
        self.source: str = tokenizer.get_chat_template()
        self.kwargs = dict(kwargs)
        day = getattr(tokenizer, "pinned_day", None)
        self._day: dict[str, Any] = {} if day is None else {"strftime_now": day}
        self._render = self._compiled()
        self._dialect = Dialect(self._render)
        probe: Turns = [{"role": "user", "content": QUESTION}]
        try:
            self.probe = self.prompt(probe)
            for thought in ({}, {"reasoning_content": "A thought."}):
                # Some end the prompt inside a thought: then answers have to begin with one.
                whole = self.text([*probe, {"role": "assistant", "content": ANSWER, **thought}], None, False)
                if whole.startswith(self.probe):
                    break
        except RowRefused as error:
            raise ConfigError(
                f"chat template: {error.refusal.detail} (rendering one question and its answer)"
            ) from None
        if not whole.startswith(self.probe):
            raise ConfigError(
                "chat template: a prompt rendered for generation is not the start of the whole conversation\n"
                "choose its other mode with dataset.chat_template_kwargs, or another template with model.chat_template"
            )
        before, found, self.suffix = whole[len(self.probe) :].rpartition(ANSWER)
        if not found:
            raise ConfigError("chat template: the assistant's answer does not appear in what it renders")
        if ANSWER in before or QUESTION in before + self.suffix:
            twice = "answer stands twice" if ANSWER in before else "question stands again"
            raise ConfigError(
                f"chat template: the {twice} in what it renders as the answer, so that would be learned\n"
                "name another template with model.chat_template"
            )
        self.before = "" if thought else before.strip()
        """What stands before an answer without reasoning, and counts as the answer's."""

    @property
    def date(self) -> str | None:
        """The date that this template prints, where it prints one and it is pinned."""
        day = self._day.get("strftime_now")
        return day.iso if day is not None and "strftime_now" in self.source else None

    def prompt(self, turns: Turns, tools: Tools = None) -> str:
        """The text up to where the model starts to answer."""
        return self.text(turns, tools, True)

    def answered(self, turns: Turns, prompt: str, answer: str, tools: Tools = None) -> str:
        """What follows `prompt`, which is `turns` rendered, once the assistant has said a text; without the suffix.

        Refused when the prompt is not a prefix of the whole conversation: the model would be trained after another
        text than it is asked with.
        """
        whole = self.text([*turns, {"role": "assistant", "content": answer}], tools, False)
        if not whole.startswith(prompt):
            raise RowRefused(Reason.template, "prompt", NOT_A_START)
        if not whole.endswith(self.suffix):
            raise RowRefused(Reason.template, "chosen", "the rendered answer does not end like others")
        return whole[len(prompt) : len(whole) - len(self.suffix)]

    def text(self, turns: Turns, tools: Tools, generation: bool) -> str:
        """Turns rendered, with what makes the model answer behind them if `generation`."""
        import jinja2

        try:
            return self._render(self._dialect.adapted(turns), tools, generation)
        except (jinja2.TemplateError, ConfigError) as error:
            raise RowRefused(
                Reason.template, "prompt", str(error).strip().removeprefix("chat template: ")[:200]
            ) from None

    def _compiled(self) -> Any:
        """The compiled template itself where it gives what the tokenizer's method gives: half the time a call."""
        from transformers.utils import chat_template_utils

        def by_method(turns: Turns, tools: Tools, generation: bool) -> str:
            return self._tokenizer.apply_chat_template(
                turns, tools=tools, tokenize=False, add_generation_prompt=generation, **self.kwargs
            )

        compile_template = getattr(chat_template_utils, "_compile_jinja_template", None)
        if compile_template is None:
            return by_method
        template = compile_template(self.source)
        variables = {**self._tokenizer.special_tokens_map, **self._day, **self.kwargs}

        def by_template(turns: Turns, tools: Tools, generation: bool) -> str:
            return template.render(
                messages=turns, tools=tools, documents=None, add_generation_prompt=generation, **variables
            )

        probe = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}]
        try:
            same = all(by_template(probe, None, g) == by_method(probe, None, g) for g in (True, False))
        except Exception:  # noqa: BLE001 - whatever it cannot do, the public method is the reference
            same = False
        return by_template if same else by_method


def join_turns(prompt: Sequence[Message]) -> tuple[Turns, str, bool]:
    """(turns with texts of one role in a row joined by a blank line, what the assistant had said, whether any were).

    Strict templates refuse two turns of one role in a row. When the prompt ends with an assistant turn, that text
    stands before both answers and comes back as the second value.
    """
    turns: Turns = []
    joined = False
    for turn in prompt:
        said = message_dict(turn)
        if turns and turns[-1]["role"] == turn.role and only_text(turns[-1]) and only_text(said):
            turns[-1]["content"] += f"\n\n{turn.content}"
            joined = True
        else:
            turns.append(said)
    if turns and turns[-1]["role"] == "assistant" and only_text(turns[-1]):
        return turns[:-1], turns[-1]["content"] + "\n\n", True
    return turns, "", joined


def only_text(turn: dict[str, Any]) -> bool:
    """Results of parallel calls stay apart, and so does what is more than a text."""
    return len(turn) == 2 and isinstance(turn["content"], str) and turn["role"] not in ("tool", "function")


def begins_with_bos(tokenizer: Any) -> bool:
    """Whether the tokenizer's own encoding of a text begins with its begin token."""
    bos = tokenizer.bos_token_id
    return bos is not None and list(tokenizer("x")["input_ids"])[:1] == [bos]
