"""Token ids as bytes, four a token: what full datasets are encoded, counted and written as."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass

from dpo.data.pair import Spans, TokenPair

WIDTH = 4


def to_bytes(ids: Iterable[int]) -> bytes:
    """32-bit ids in this machine's byte order."""
    return array("i", ids).tobytes()


def to_ids(packed: bytes) -> list[int]:
    """The ids again."""
    ids = array("i")
    ids.frombytes(packed)
    return ids.tolist()


@dataclass(frozen=True)
class EncodedPair:
    """A TokenPair whose ids are packed."""

    id: str
    prompt: bytes
    chosen: bytes
    rejected: bytes
    strength: float
    given: tuple[Spans, Spans] = ((), ())

    @property
    def lengths(self) -> tuple[int, int, int]:
        """Tokens of prompt, chosen, rejected."""
        return len(self.prompt) // WIDTH, len(self.chosen) // WIDTH, len(self.rejected) // WIDTH

    def token_pair(self) -> TokenPair:
        """The pair with ids as lists."""
        ids = (to_ids(self.prompt), to_ids(self.chosen), to_ids(self.rejected))
        return TokenPair(self.id, *ids, self.strength, self.given)

    @property
    def counted(self) -> tuple[int, int]:
        """Tokens of chosen and rejected that count."""
        _, *lengths = self.lengths
        chosen, rejected = (
            length - sum(end - first for first, end in spans) for length, spans in zip(lengths, self.given, strict=True)
        )
        return chosen, rejected

    @property
    def stored(self) -> bytes:
        """Prompt, chosen and rejected in one, the complement of an id where a token does not count."""
        if not any(self.given):
            return self.prompt + self.chosen + self.rejected
        sides = (self.chosen, self.rejected)
        return self.prompt + b"".join(map(_complemented, sides, self.given))


def encoded(pair: TokenPair) -> EncodedPair:
    """A pair's ids packed."""
    ids = (to_bytes(pair.prompt_ids), to_bytes(pair.chosen_ids), to_bytes(pair.rejected_ids))
    return EncodedPair(pair.id, *ids, pair.strength, pair.given)


def _complemented(packed: bytes, spans: Spans) -> bytes:
    ids = to_ids(packed)
    for first, end in spans:
        ids[first:end] = [~one for one in ids[first:end]]
    return to_bytes(ids)


def spans_of(ids: list[int]) -> Spans:
    """Where ids are complements; they are set right in place."""
    spans: list[tuple[int, int]] = []
    for place, one in enumerate(ids):
        if one < 0:
            ids[place] = ~one
            if spans and spans[-1][1] == place:
                spans[-1] = (spans[-1][0], place + 1)
            else:
                spans.append((place, place + 1))
    return tuple(spans)
