"""Token ids as bytes, four a token: what full datasets are encoded, counted and written as."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass

from dpo.data.pair import TokenPair

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

    @property
    def lengths(self) -> tuple[int, int, int]:
        """Tokens of prompt, chosen, rejected."""
        return len(self.prompt) // WIDTH, len(self.chosen) // WIDTH, len(self.rejected) // WIDTH

    def token_pair(self) -> TokenPair:
        """The pair with ids as lists."""
        return TokenPair(self.id, to_ids(self.prompt), to_ids(self.chosen), to_ids(self.rejected), self.strength)
