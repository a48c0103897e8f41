"""Pairs become token ids: rendered with the chat template, encoded whole, cut to fit by a fixed order of sacrifice."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dpo.config.datasets import Keep
from dpo.data.chat_template import ChatTemplate, Turns, begins_with_bos, join_turns
from dpo.data.control_tokens import Codec
from dpo.data.coverage import Coverage, stands, stands_as_given
from dpo.data.id_bytes import WIDTH, EncodedPair, to_bytes
from dpo.data.pair import Message, Pair, TokenPair
from dpo.data.refusal import Reason, Refusal, RowRefused
from dpo.data.truncation import Cuts
from dpo.errors import ConfigError


@dataclass
class _Rendered:
    """A pair rendered, on its way to token ids."""

    pair: Pair
    turns: Turns
    lead: str
    sealed: bool
    prompt: str = ""
    chosen: str = ""
    rejected: str = ""
    tail: str = ""
    joined: bool = False
    typed: bool = False
    forced: bool = False
    spaces: bool = False
    unknown: bool = False
    lost: set[str] = field(default_factory=set)
    ids: dict[str, bytes] = field(default_factory=dict)

    def over(self, max_length: int) -> int:
        """Tokens by which the longer sequence exceeds the limit; negative is room."""
        return self.tokens("prompt") + max(self.tokens("chosen"), self.tokens("rejected")) - max_length

    def tokens(self, part: str) -> int:
        """Length of prompt, chosen or rejected."""
        return len(self.ids[part]) // WIDTH


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
    ) -> None:
        self.max_length = max_length
        self.keep = keep
        self.floor = max(1, min(min_prompt_tokens, max_length // 2))
        self.cuts = Cuts()
        self.codec = Codec(tokenizer)
        try:
            self.template = ChatTemplate(tokenizer, chat_template_kwargs or {})
        except RowRefused as refused:
            raise ConfigError(f"chat template: {refused.refusal}") from None
        self._coverage = Coverage(self.template.prompt)
        self._tails: dict[tuple[str, bool], bytes] = {}
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
        ]
        state.update(json.dumps(facts, sort_keys=True, default=str).encode())
        return state.hexdigest()

    def encode(self, pair: Pair) -> TokenPair | Refusal:
        """One pair; see `encode_batch`."""
        return self.encode_batch([pair])[0]

    def encode_prompt(self, prompt: Sequence[Message]) -> list[int]:
        """Token ids of a conversation up to where the model answers, uncut: what generation starts from.

        Control tokens typed in its texts stay text. Raises ConfigError when the template refuses the conversation or
        leaves out its system message or the question.
        """
        turns, lead, _ = join_turns(prompt)
        sealed = any(self.codec.needs_sealing(text) for text in (lead, *(turn["content"] for turn in turns)))
        turns, lead = (self._hidden(turns), self.codec.hide(lead)) if sealed else (turns, lead)
        try:
            text = self.template.prompt(turns)
            lost = {index: turns[index]["role"] for index in self._coverage.lost(turns, text)}
        except RowRefused as refused:
            raise ConfigError(f"chat template: {refused.refusal}") from None
        for index, role in lost.items():
            # What an assistant said before may lose its reasoning: models were trained to see it so.
            if role == "system" or index == len(turns) - 1:
                raise ConfigError(f"chat template: the {role} message is not, or not whole, in what it renders")
        text += lead
        return self.codec.encode(self.codec.seal(text) if sealed else text, sealed)

    def visible(self, pair: TokenPair) -> dict[str, str]:
        """A token pair as text again, control tokens between \u27e6 and \u27e7 so that typed ones look different."""
        return {
            "id": pair.id,
            "prompt": self.codec.visible(pair.prompt_ids),
            "chosen": self.codec.visible(pair.chosen_ids),
            "rejected": self.codec.visible(pair.rejected_ids),
        }

    def encode_batch(self, pairs: Sequence[Pair]) -> list[TokenPair | Refusal]:
        """Each pair as token ids or the reason why not, in order."""
        return [one if isinstance(one, Refusal) else one.token_pair() for one in self.encode_to_bytes(pairs)]

    def encode_to_bytes(self, pairs: Sequence[Pair]) -> list[EncodedPair | Refusal]:
        """`encode_batch` with packed ids; large batches are faster."""
        batch = [self._rendered(pair) for pair in pairs]
        for sealed in (False, True):
            self._encode([one for one in batch if isinstance(one, _Rendered) and one.sealed is sealed], sealed)
        return [one if isinstance(one, Refusal) else self._finish(one) for one in batch]

    def _rendered(self, pair: Pair) -> _Rendered | Refusal:
        turns, lead, joined = join_turns(pair.prompt)
        texts = [pair.chosen, pair.rejected, lead, *(turn["content"] for turn in turns)]
        one = _Rendered(pair, turns, lead, any(self.codec.needs_sealing(text) for text in texts), joined=joined)
        try:
            self._render(one, check=True)
        except RowRefused as refused:
            return refused.refusal
        one.typed = one.sealed and any(self.codec.hide(text) != text for text in texts)
        return one

    def _hidden(self, turns: Turns) -> Turns:
        return [{"role": turn["role"], "content": self.codec.hide(turn["content"])} for turn in turns]

    def _render(self, one: _Rendered, check: bool = False) -> None:
        turns, (chosen, rejected) = one.turns, (one.lead + one.pair.chosen, one.lead + one.pair.rejected)
        if one.sealed:
            turns, chosen, rejected = self._hidden(turns), self.codec.hide(chosen), self.codec.hide(rejected)
        one.prompt = self.template.prompt(turns)
        # A single answer lacks a side.
        there = [(side, text) for side, text in (("chosen", chosen), ("rejected", rejected)) if getattr(one.pair, side)]
        for side, answer in there:
            setattr(one, side, self.template.answered(turns, one.prompt, answer) + self.ending)
            if check and not stands(answer, getattr(one, side)):
                raise RowRefused(Reason.altered, side, "name another with model.chat_template")
        if check:
            lost = self._coverage.lost(turns, one.prompt)
            one.lost = {turns[index]["role"] for index in lost}
            kept = [(turn["content"], one.prompt) for index, turn in enumerate(turns) if index not in lost]
            texts = [*((text, getattr(one, side)) for side, text in there), *kept]
            one.spaces = not all(stands_as_given(text, rendered) for text, rendered in texts)
        # From its last control token on, the prompt is encoded again in front of each answer: control tokens cut
        # the text before anything else looks at it, so the answer's ids are those it has in the whole conversation.
        one.tail = one.prompt[self.codec.last_control(one.prompt) :]
        if one.sealed:
            one.prompt, one.tail, one.chosen, one.rejected = (
                self.codec.seal(text) for text in (one.prompt, one.tail, one.chosen, one.rejected)
            )

    def _encode(self, batch: list[_Rendered], sealed: bool) -> None:
        texts: list[str] = []
        for one in batch:
            texts += one.prompt, one.tail + one.chosen, one.tail + one.rejected
        encoded = self.codec.encode_batch(texts, sealed)
        for index, one in enumerate(batch):
            prompt, chosen, rejected = encoded[3 * index : 3 * index + 3]
            one.ids = {"prompt": prompt}
            for side, ids in (("chosen", chosen), ("rejected", rejected)):
                one.ids[side] = self._behind_tail(one, ids, getattr(one, side)) if getattr(one, side) else b""
            if not one.unknown:
                parts = (one.prompt, prompt), (one.chosen, one.ids["chosen"]), (one.rejected, one.ids["rejected"])
                one.unknown = not all(self.codec.gives_back(text, ids) for text, ids in parts)

    def _behind_tail(self, one: _Rendered, ids: bytes, answer: str) -> bytes:
        tail = self._tail_ids(one.tail, one.sealed)
        if ids.startswith(tail):
            ids = ids[len(tail) :]
        else:
            # A token spans the boundary. At inference the prompt stands alone, so the answer starts a token here.
            one.forced = True
            [ids] = self.codec.encode_batch([answer], one.sealed)
        return ids + to_bytes([self.end_id]) if self.appended_end else ids

    def _tail_ids(self, tail: str, sealed: bool) -> bytes:
        if (tail, sealed) not in self._tails:
            if len(self._tails) >= 4096:  # templates whose tail holds the user's text would fill it without end
                self._tails.clear()
            [self._tails[tail, sealed]] = self.codec.encode_batch([tail], sealed)
        return self._tails[tail, sealed]

    def _finish(self, one: _Rendered) -> EncodedPair | Refusal:
        forced = one.forced
        try:
            cuts = self._cut(one) if one.over(self.max_length) > 0 else {}
        except RowRefused as refused:
            return refused.refusal
        if one.ids["chosen"] == one.ids["rejected"]:
            cut = any(cuts.get(f"cut_{side}", 0) > 0 for side in ("chosen", "rejected"))
            return Refusal(Reason.equal_after_cutting if cut else Reason.same_tokens, "rejected")
        met = {
            "joined_turns": one.joined,
            "control_text": one.typed,
            "forced_boundary": forced,
            "system_left_out": "system" in one.lost,
            "turn_altered": bool(one.lost - {"system"}),
            "spaces_altered": one.spaces,
            "text_unknown": one.unknown,
        }
        self.cuts.record(one.pair.id, cuts, [name for name, is_so in met.items() if is_so])
        return EncodedPair(id=one.pair.id, strength=one.pair.strength, **one.ids)

    def _cut(self, one: _Rendered) -> dict[str, int]:
        """Bring an encoded pair under `max_length`; tokens cut, by the heads of `Cuts`.

        Raises RowRefused when no token of an answer would be left.
        """
        before = one.tokens("prompt")
        while one.over(self.max_length) > 0 and self._drop_oldest(one):
            self._again(one)
        dropped = before - one.tokens("prompt")
        self._shorten_user(one)
        shortened = before - dropped - one.tokens("prompt")
        room = self.max_length - one.tokens("prompt")
        if room < 1:
            raise RowRefused(Reason.completion_lost, "prompt", f"{one.tokens('prompt')} tokens of prompt remain")
        cuts = {"dropped_turns": dropped, "shortened_user_turn": shortened}
        for side in ("chosen", "rejected"):
            cuts[f"cut_{side}"] = one.tokens(side) - room
            one.ids[side] = one.ids[side][: room * WIDTH]
        return cuts

    def _drop_oldest(self, one: _Rendered) -> bool:
        """Drop the first exchange of a conversation, up to the next user turn; False when only one is left."""
        first = 1 if one.turns[0]["role"] == "system" else 0
        for index in range(first + 1, len(one.turns)):
            if one.turns[index]["role"] == "user":
                one.turns = one.turns[:first] + one.turns[index:]
                return True
        return False

    def _shorten_user(self, one: _Rendered) -> None:
        """Cut the last user turn token by token, never below the floor, until the pair fits."""
        content = one.turns[-1]["content"]
        offsets = self.codec.offsets(content, one.sealed)
        size = len(offsets)
        while (over := one.over(self.max_length)) > 0 and size > self.floor:
            size = max(self.floor, size - over)
            start = self.keep is Keep.start
            left = content[: offsets[size - 1][1]] if start else content[offsets[-size][0] :]
            one.turns = [*one.turns[:-1], {**one.turns[-1], "content": left}]
            self._again(one)

    def _again(self, one: _Rendered) -> None:
        self._render(one)
        self._encode([one], one.sealed)


def _about_bos(tokenizer: Any, begins: bool, named: bool) -> list[str]:
    """Whether the template begins as the tokenizer's own encoding does; a begin token can be a turn's start as well."""
    bos, own = tokenizer.bos_token, begins_with_bos(tokenizer)
    if own and not begins:
        return [f"the chat template begins without {bos}, with which the tokenizer's own encoding of any text begins"]
    if begins and named and not own:
        return [f"the chat template begins with {bos}, with which the tokenizer's own encoding does not begin"]
    return []
