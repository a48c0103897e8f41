"""A pair rendered by a chat template, on its way to token ids."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from dpo.data.chat.answers import Answers
from dpo.data.chat.coverage import Coverage, Lost, stands, stands_as_given
from dpo.data.chat.dialect import Tools, Turns, mapped, strings
from dpo.data.chat.template import ChatTemplate, join_turns, only_text
from dpo.data.control_tokens import Codec
from dpo.data.id_bytes import WIDTH
from dpo.data.pair import Pair, Spans, messages_of
from dpo.data.refusal import Reason, RowRefused
from dpo.data.sources.messages import message_dict

SIDES = ("chosen", "rejected")
OTHER_TEMPLATE = "name another with model.chat_template"


@dataclass
class Plan:
    """`turns` come before the `answers`, of which a single answer has one; `texts` are prompt, tail and answers;
    `cuts` where in the text of an answer what was given to the policy begins and ends; `given` the same in tokens,
    `ids` those of the texts."""

    pair: Pair
    turns: Turns
    answers: dict[str, Turns]
    tools: Tools
    sealed: bool
    texts: dict[str, str] = field(default_factory=dict)
    cuts: dict[str, Spans] = field(default_factory=dict)
    open_ends: set[str] = field(default_factory=set)
    joined: bool = False
    typed: bool = False
    forced: bool = False
    spaces: bool = False
    unknown: bool = False
    added: bool = False
    lost: set[str] = field(default_factory=set)
    ids: dict[str, bytes] = field(default_factory=dict)
    given: dict[str, Spans] = field(default_factory=lambda: dict.fromkeys(SIDES, ()))

    def over(self, max_length: int) -> int:
        """Tokens by which the longer sequence exceeds the limit; negative is room."""
        return self.tokens("prompt") + max(self.tokens("chosen"), self.tokens("rejected")) - max_length

    def tokens(self, part: str) -> int:
        """Length of prompt, chosen or rejected."""
        return len(self.ids[part]) // WIDTH

    def asked(self) -> int:
        """Index of the turn that asks: the last one that is neither the assistant's nor a result."""
        return max(i for i, turn in enumerate(self.turns) if turn["role"] not in ("assistant", "tool", "function"))


class Renderer:
    """Renders plans; control tokens that were typed in a text are hidden from the template's own."""

    def __init__(self, template: ChatTemplate, codec: Codec, ending: str, appended_end: bool) -> None:
        self.template, self.codec, self.ending = template, codec, ending
        self.appended_end = appended_end
        self.coverage = Coverage(template.text)
        self._answers = Answers(template.text, codec.last_control)

    def plan(self, pair: Pair) -> Plan:
        """A pair rendered; raises RowRefused where the template refuses it or leaves out what may not be."""
        turns, lead, joined = join_turns(pair.prompt)
        # A single answer lacks a side.
        there = [(side, answer) for side in SIDES if (answer := getattr(pair, side))]
        answers = {side: [message_dict(turn) for turn in messages_of(answer)] for side, answer in there}
        for answer in answers.values() if lead else ():
            content = answer[0]["content"]
            answer[0]["content"] = lead + content if isinstance(content, str) else [_text(lead), *content]
        tools: Tools = json.loads(pair.tools) if pair.tools else None
        texts = [*said(turns), *(text for answer in answers.values() for text in said(answer)), *strings(tools)]
        sealed = any(self.codec.needs_sealing(text) for text in texts)
        plan = Plan(pair, turns, answers, tools, sealed, joined=joined)
        self.render(plan, check=True)
        plan.typed = sealed and any(self.codec.hide(text) != text for text in texts)
        return plan

    def hidden(self, turns: Any) -> Any:
        """Turns, tools or neither with typed control tokens hidden; roles are ours."""
        hide = self.codec.hide
        return turns and [{k: v if k == "role" else mapped(v, hide) for k, v in turn.items()} for turn in turns]

    def render(self, plan: Plan, check: bool = False) -> None:
        """Fill `texts` and `cuts`."""
        turns, tools, answers = plan.turns, plan.tools, plan.answers
        if plan.sealed:
            turns, tools = self.hidden(turns), self.hidden(tools)
            answers = {side: self.hidden(answer) for side, answer in answers.items()}
        prompt = self.template.prompt(turns, tools)
        plan.texts = {"prompt": prompt, **dict.fromkeys(SIDES, "")}
        plan.cuts = dict.fromkeys(SIDES, ())
        for side, answer in answers.items():
            plan.texts[side] = self._side(plan, side, turns, prompt, answer, tools)
            if check:
                self._check_answer(side, plan.texts[side], turns, answer, tools)
                plan.added = plan.added or (_is_text(answer) and self._adds(plan.texts[side], answer[0]["content"]))
        if check:
            found = self.coverage.lost(turns, prompt, tools)
            plan.lost = lost(found, turns)
            kept = [(turn, prompt) for index, turn in enumerate(turns) if index not in found]
            kept += [(turn, plan.texts[side]) for side, answer in answers.items() for turn in answer]
            plan.spaces = not all(
                stands_as_given(turn["content"], text) for turn, text in kept if isinstance(turn["content"], str)
            )
        # From its last control token on, the prompt is encoded again in front of each answer: control tokens cut
        # the text before anything else looks at it, so the answer's ids are those it has in the whole conversation.
        last = self.codec.last_control(prompt)
        plan.texts["tail"] = prompt[0 if last is None else last[0] :]
        if plan.sealed:
            self._seal(plan)

    def _seal(self, plan: Plan) -> None:
        seal = self.codec.seal
        for side, spans in plan.cuts.items():
            text = plan.texts[side]
            plan.cuts[side] = tuple((len(seal(text[:first])), len(seal(text[:end]))) for first, end in spans)
        plan.texts = {name: seal(text) for name, text in plan.texts.items()}

    def _side(self, plan: Plan, side: str, turns: Turns, prompt: str, answer: Turns, tools: Tools) -> str:
        plan.open_ends.discard(side)
        if _is_text(answer):
            if self.appended_end:
                plan.open_ends.add(side)
            return self.template.answered(turns, prompt, answer[0]["content"], tools) + self.ending
        found = self._answers.text(turns, prompt, answer, tools)
        plan.cuts[side] = found.given
        if not found.closed:
            plan.open_ends.add(side)
        return found.text

    def _check_answer(self, side: str, text: str, turns: Turns, answer: Turns, tools: Tools) -> None:
        if _is_text(answer):
            if not stands(answer[0]["content"], text):
                raise RowRefused(Reason.altered, side, OTHER_TEMPLATE)
            return
        whole = [*turns, *answer]
        rendered = self.template.text(whole, tools, False)
        found = self.coverage.lost(whole, rendered, tools, False)
        gone = sorted({field for index, fields in found.items() if index >= len(turns) for field in fields})
        if gone:
            raise RowRefused(Reason.altered, side, f"it leaves out {', '.join(gone)}; {OTHER_TEMPLATE}")

    def _adds(self, text: str, content: str) -> bool:
        """Whether more stands in what is learned as an answer than it, and what stands around each."""
        body = text.removesuffix(self.ending).strip()
        given, before = content.strip(), self.template.before
        if body.endswith(given) and body[: len(body) - len(given)].strip() in ("", before):
            return False
        around = "".join(body.split())
        return around not in ("".join(given.split()), "".join((before + given).split()))


def lost(found: Lost, turns: Turns) -> set[str]:
    """What of a prompt the template leaves out and models are used to miss, for the notes.

    Raises RowRefused for tools, calls and results: without them the conversation is another one.
    """
    noted = set()
    for index, fields in found.items():
        if index < 0:
            raise RowRefused(Reason.altered, "tools", f"it leaves them out; {OTHER_TEMPLATE}")
        turn = turns[index]
        if "tool_calls" in turn and fields - {"reasoning_content"}:
            raise RowRefused(Reason.altered, "prompt", f"it leaves out {', '.join(sorted(fields))}; {OTHER_TEMPLATE}")
        if turn["role"] in ("tool", "function"):
            raise RowRefused(Reason.altered, "prompt", f"it leaves out what a {turn['role']} said; {OTHER_TEMPLATE}")
        if "content" in fields:
            noted.add(turn["role"])
        if "reasoning_content" in fields:
            noted.add("reasoning")
    return noted


def said(turns: Sequence[dict[str, Any]]) -> Iterable[str]:
    """Every text of turns but their roles."""
    for turn in turns:
        yield from strings([value for key, value in turn.items() if key != "role"])


def _is_text(answer: Turns) -> bool:
    return len(answer) == 1 and only_text(answer[0])


def _text(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}
