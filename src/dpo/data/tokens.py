"""Pairs become token ids: rendered with the chat template, encoded whole, cut to fit by a fixed order of sacrifice."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from dpo.config.datasets import Keep
from dpo.data.chat.dialect import strings
from dpo.data.chat.ids import PlanIds
from dpo.data.chat.plan import SIDES, Plan, Renderer, lost, said
from dpo.data.chat.template import ChatTemplate, begins_with_bos, join_turns
from dpo.data.control_tokens import Codec
from dpo.data.id_bytes import WIDTH, EncodedPair
from dpo.data.pair import Message, Pair, TokenPair, within
from dpo.data.refusal import Reason, Refusal, RowRefused
from dpo.data.truncation import Cuts
from dpo.errors import ConfigError

MARK = re.compile(r"[<\[{|].*[>\]}|]")
"""A turn's end where the tokenizer has no token for it."""


class Encoder:
    """Turns pairs into token ids for one tokenizer and `max_length` (tokens of prompt and completion together).

    What does not fit goes in this order: the oldest turns, whole (a system message stays); the last user turn from
    the end that `keep` does not name, down to `min_prompt_tokens` or half of `max_length`; the ends of both
    completions, which then lack their end-of-turn token. `cuts` counts all of it.
    """

    def __init__(
        self,
        tokenizer: Any,
        max_length: int,
        keep: Keep = Keep.end,
        min_prompt_tokens: int = 128,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        count_tool_tokens: bool = False,
    ) -> None:
        self.max_length = max_length
        self.keep = keep
        self.count_tool_tokens = count_tool_tokens
        self.floor = max(1, min(min_prompt_tokens, max_length // 2))
        self.cuts = Cuts()
        self.codec = Codec(tokenizer)
        try:
            self.template = ChatTemplate(tokenizer, chat_template_kwargs or {})
        except RowRefused as refused:
            raise ConfigError(f"chat template: {refused.refusal}") from None
        probe = self.codec.encode(self.template.probe)
        bos = tokenizer.bos_token_id
        if bos is not None and probe[:2] == [bos, bos]:
            raise ConfigError("chat template: it begins with the begin-of-text token twice")
        self.warnings = _about_bos(tokenizer, probe[:1] == [bos], "bos_token" in self.template.source)
        # The answer ends with the first control token behind it: what a model emits to hand over the turn.
        end = self.codec.end_of_first_control(self.template.suffix)
        self.ending = self.template.suffix if end is None else self.template.suffix[:end]
        self.appended_end = end is None
        if self.appended_end and tokenizer.eos_token_id is None:
            raise ConfigError("chat template: no control token ends an answer, and the tokenizer has no eos token")
        self.end_id: int = tokenizer.eos_token_id if end is None else self.codec.encode(self.ending)[-1]
        self.warnings += _about_reasoning(self.template) + self._about_ending()
        self._renderer = Renderer(self.template, self.codec, self.ending, self.appended_end)
        self._ids = PlanIds(self.codec, tokenizer.eos_token_id, count_tool_tokens)

    def _about_ending(self) -> list[str]:
        """Whether words stand behind each answer that no one said and the model has to write; marks of a turn's end
        are what it ends with."""
        control = self.codec.last_control(self.ending)
        words = self.ending[: None if control is None else control[0]].strip()
        if not words or MARK.fullmatch(words):
            return []
        return [f"the chat template puts {words!r:.60} behind each answer, and it counts as the answer's"]

    @property
    def key(self) -> str:
        """Hex digest of all that decides the ids of a pair; with a template that prints the date, the date too."""
        state = hashlib.sha256(self.codec.definition.encode())
        facts = [
            self.template.source,
            self.template.kwargs,
            self.template.probe,
            self.template.date,
            sorted(self.codec.control),
            self.max_length,
            self.keep.name,
            self.floor,
            self.end_id,
            self.count_tool_tokens,
        ]
        state.update(json.dumps(facts, sort_keys=True, default=str).encode())
        return state.hexdigest()

    def encode(self, pair: Pair) -> TokenPair | Refusal:
        """One pair; see `encode_batch`."""
        return self.encode_batch([pair])[0]

    def encode_prompt(self, prompt: Sequence[Message], tools: str = "") -> list[int]:
        """Token ids of a conversation up to where the model answers, uncut: what generation starts from.

        `tools` are those it may call, a list as JSON text. Control tokens typed in its texts stay text. Raises
        ConfigError when the template refuses the conversation or leaves out its system message or the question, tools,
        calls or results.
        """
        turns, lead, _ = join_turns(prompt)
        offered = json.loads(tools) if tools else None
        sealed = any(self.codec.needs_sealing(text) for text in (lead, *said(turns), *strings(offered)))
        if sealed:
            turns, lead, offered = self._renderer.hidden(turns), self.codec.hide(lead), self._renderer.hidden(offered)
        try:
            text = self.template.prompt(turns, offered)
            found = self._renderer.coverage.lost(turns, text, offered)
            lost(found, turns)
        except RowRefused as refused:
            raise ConfigError(f"chat template: {refused.refusal}") from None
        for index in found:
            role = turns[index]["role"]
            # What an assistant said before may lose its reasoning: models were trained to see it so.
            if role == "system" or index == len(turns) - 1:
                raise ConfigError(f"chat template: the {role} message is not, or not whole, in what it renders")
        text += lead
        return self.codec.encode(self.codec.seal(text) if sealed else text, sealed)

    def encode_batch(self, pairs: Sequence[Pair]) -> list[TokenPair | Refusal]:
        """Each pair as token ids or the reason why not, in order."""
        return [one if isinstance(one, Refusal) else one.token_pair() for one in self.encode_to_bytes(pairs)]

    def encode_to_bytes(self, pairs: Sequence[Pair]) -> list[EncodedPair | Refusal]:
        """`encode_batch` with packed ids; large batches are faster."""
        batch = [self._plan(pair) for pair in pairs]
        for sealed in (False, True):
            self._ids.encode([plan for plan in batch if isinstance(plan, Plan) and plan.sealed is sealed])
        return [plan if isinstance(plan, Refusal) else self._finish(plan) for plan in batch]

    def _plan(self, pair: Pair) -> Plan | Refusal:
        try:
            return self._renderer.plan(pair)
        except RowRefused as refused:
            return refused.refusal

    def _finish(self, plan: Plan) -> EncodedPair | Refusal:
        forced = plan.forced
        try:
            cuts = self._cut(plan) if plan.over(self.max_length) > 0 else {}
        except RowRefused as refused:
            return refused.refusal
        if plan.ids["chosen"] == plan.ids["rejected"]:
            cut = any(cuts.get(f"cut_{side}", 0) > 0 for side in SIDES)
            return Refusal(Reason.equal_after_cutting if cut else Reason.same_tokens, "rejected")
        met = {
            "joined_turns": plan.joined,
            "control_text": plan.typed,
            "forced_boundary": forced,
            "system_left_out": "system" in plan.lost,
            "turn_altered": bool(plan.lost - {"system", "reasoning"}),
            "reasoning_left_out": "reasoning" in plan.lost,
            "spaces_altered": plan.spaces,
            "text_unknown": plan.unknown,
            "answer_added": plan.added,
        }
        self.cuts.record(plan.pair.id, cuts, [name for name, is_so in met.items() if is_so])
        chosen, rejected = (within(plan.given[side], plan.tokens(side)) for side in SIDES)
        return EncodedPair(plan.pair.id, strength=plan.pair.strength, given=(chosen, rejected), **plan.ids)

    def _cut(self, plan: Plan) -> dict[str, int]:
        """Bring an encoded pair under `max_length`; tokens cut, by the heads of `Cuts`.

        Raises RowRefused when no token of an answer would be left.
        """
        before = plan.tokens("prompt")
        while plan.over(self.max_length) > 0 and self._drop_oldest(plan):
            self._again(plan)
        dropped = before - plan.tokens("prompt")
        self._shorten_user(plan)
        shortened = before - dropped - plan.tokens("prompt")
        room = self.max_length - plan.tokens("prompt")
        if room < 1:
            raise RowRefused(Reason.completion_lost, "prompt", f"{plan.tokens('prompt')} tokens of prompt remain")
        cuts = {"dropped_turns": dropped, "shortened_user_turn": shortened}
        for side in SIDES:
            cuts[f"cut_{side}"] = plan.tokens(side) - room
            plan.ids[side] = plan.ids[side][: room * WIDTH]
        return cuts

    def _drop_oldest(self, plan: Plan) -> bool:
        """Drop the first exchange of a conversation, up to the next user turn; False when only one is left."""
        first = 1 if plan.turns[0]["role"] == "system" else 0
        for index in range(first + 1, len(plan.turns)):
            if plan.turns[index]["role"] == "user":
                plan.turns = plan.turns[:first] + plan.turns[index:]
                return True
        return False

    def _shorten_user(self, plan: Plan) -> None:
        """Cut the last user turn token by token, never below the floor, until the pair fits."""
        asked = plan.asked()
        content = plan.turns[asked]["content"]
        content = content if isinstance(content, str) else "".join(part["text"] for part in content)
        offsets = self.codec.offsets(content, plan.sealed)
        size = len(offsets)
        while (over := plan.over(self.max_length)) > 0 and size > self.floor:
            size = max(self.floor, size - over)
            start = self.keep is Keep.start
            left = content[: offsets[size - 1][1]] if start else content[offsets[-size][0] :]
            plan.turns = [*plan.turns[:asked], {**plan.turns[asked], "content": left}, *plan.turns[asked + 1 :]]
            self._again(plan)

    def _again(self, plan: Plan) -> None:
        self._renderer.render(plan)
        self._ids.encode([plan])


def _about_reasoning(template: ChatTemplate) -> list[str]:
    """Whether something stands before each answer that no one said and the model has to write, as an empty thought."""
    if not template.before:
        return []
    switch = "; dataset.chat_template_kwargs={enable_thinking:false} puts it into the prompt"
    return [
        f"the chat template puts {template.before!r:.60} before an answer without reasoning, and it counts as "
        f"the answer's{switch if 'enable_thinking' in template.source else ''}"
    ]


def _about_bos(tokenizer: Any, begins: bool, named: bool) -> list[str]:
    """Whether the template begins as the tokenizer's own encoding does; a begin token can be a turn's start as well."""
    bos, own = tokenizer.bos_token, begins_with_bos(tokenizer)
    if own and not begins:
        return [f"the chat template begins without {bos}, with which the tokenizer's own encoding of any text begins"]
    if begins and named and not own:
        return [f"the chat template begins with {bos}, with which the tokenizer's own encoding does not begin"]
    return []
