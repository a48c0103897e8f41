"""Checks that need more than one row: duplicates, contradictions, held-out prompts, pairs a post."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from dpo.data.pair import Answer, Pair
from dpo.data.refusal import Reason, Refusal
from dpo.data.sources.fields import as_text, prompt_key


def digest(*texts: str) -> bytes:
    """16 bytes that stand for some texts, in this order."""
    whole = "\0".join((*texts, ""))
    return hashlib.blake2b(whole.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def answer_digest(answer: Answer) -> bytes:
    """16 bytes that stand for an answer, whatever its white space."""
    if isinstance(answer, str):
        return digest(" ".join(answer.split()))
    return digest(*(part for turn in answer for part in (turn.role, " ".join(as_text(turn).split()))))


@dataclass
class Seen:
    """What was kept so far. Feed test first, then dev, then train: the later split gives way.

    A full dataset passes through here, so a pair leaves two or three short digests behind and nothing else.
    """

    pairs_per_post: int | None = None
    ids: list[str] = field(default_factory=list)
    repeated_prompts: list[str] = field(default_factory=list)
    # (prompt, both answers) -> 4 * index into ids + 2 if it is a tie + 1 if the answer that sorts first is better.
    _answers: dict[bytes, int] = field(default_factory=dict)
    _owner: dict[bytes, str] = field(default_factory=dict)
    _per_group: dict[bytes, int] = field(default_factory=dict)

    def admit(self, pair: Pair, split: str) -> tuple[Refusal | None, int | None]:
        """(why the pair is not kept, or None; index into `ids` of an earlier pair that has to go with it, or None)."""
        key = prompt_key(pair.prompt)
        prompt = digest(key)
        group = prompt if pair.group == key else digest(pair.group)
        for mark, name in ((group, "group"), (prompt, "prompt")):
            owner = self._owner.get(mark)
            if owner is not None and owner != split:
                return Refusal(Reason.leak, name, f"also in {owner}"), None
        chosen, rejected = answer_digest(pair.chosen), answer_digest(pair.rejected)
        first_better, tie = chosen < rejected, pair.strength == 0.5
        offered = digest(pair.tools) if pair.tools else b""
        sides = min(chosen, rejected) + max(chosen, rejected)
        pair_key = hashlib.blake2b(prompt + sides + offered, digest_size=16).digest()
        earlier = self._answers.get(pair_key)
        if earlier is not None:
            index, same = earlier >> 2, bool(earlier & 1) == first_better
            # Asked twice which is better, the same answer says nothing new, opposite ones say nothing at all.
            if same or (tie and earlier & 2):
                return Refusal(Reason.duplicate, "", f"same as {self.ids[index]}"), None
            return Refusal(Reason.contradiction, "", f"opposite of {self.ids[index]}"), index
        if self.pairs_per_post is not None:
            count = self._per_group.get(group, 0)
            if count >= self.pairs_per_post:
                return Refusal(Reason.post_cap, "post_id", pair.group), None
            self._per_group[group] = count + 1
        if prompt in self._owner:
            self.repeated_prompts.append(pair.id)
        self._owner[group] = self._owner[prompt] = split
        self._answers[pair_key] = len(self.ids) << 2 | tie << 1 | first_better
        self.ids.append(pair.id)
        return None, None


def held_out(group: str, dev_fraction: float, test_fraction: float) -> str:
    """The split of a group when the source has none: by a hash of its text, so that no seed moves it."""
    place = int.from_bytes(digest("split", group)[:8], "big") / 2**64
    if place < test_fraction:
        return "test"
    return "dev" if place < test_fraction + dev_fraction else "train"
