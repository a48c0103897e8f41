"""The token ids of rendered pairs, and which of them were given to the policy."""

from __future__ import annotations

from itertools import accumulate

from dpo.data.chat.plan import SIDES, Plan
from dpo.data.control_tokens import Codec
from dpo.data.id_bytes import WIDTH, to_bytes
from dpo.data.pair import Spans
from dpo.errors import ConfigError

# Templates whose tail holds the user's text would fill the memory of tails without end.
MOST_TAILS = 4096


class PlanIds:
    """Encodes plans with a codec; an answer that nothing ends gets `end_id`."""

    def __init__(self, codec: Codec, end_id: int | None, count_given: bool) -> None:
        self._codec = codec
        self._end_id = end_id
        self._count_given = count_given
        self._tails: dict[tuple[str, bool], bytes] = {}

    def encode(self, plans: list[Plan]) -> None:
        """Fill `ids` and `given` of plans that are all sealed or all not."""
        texts: list[str] = []
        for plan in plans:
            tail = plan.texts["tail"]
            texts += plan.texts["prompt"], tail + plan.texts["chosen"], tail + plan.texts["rejected"]
        encoded = self._codec.encode_batch(texts, bool(plans) and plans[0].sealed)
        for index, plan in enumerate(plans):
            plan.ids = {"prompt": encoded[3 * index]}
            for side, ids in zip(SIDES, encoded[3 * index + 1 : 3 * index + 3], strict=True):
                plan.ids[side], plan.given[side] = self._side(plan, ids, side)
            if not plan.unknown:
                parts = ("prompt", *SIDES)
                plan.unknown = not all(self._codec.gives_back(plan.texts[part], plan.ids[part]) for part in parts)

    def _side(self, plan: Plan, ids: bytes, side: str) -> tuple[bytes, Spans]:
        text, given = plan.texts[side], Spans()
        if not text:
            return b"", given
        if plan.cuts[side]:
            own, given = self._in_pieces(plan, ids, side)
        else:
            own = self._behind_tail(plan, ids, text)
        return own + self._end(plan) if side in plan.open_ends else own, given

    def _end(self, plan: Plan) -> bytes:
        if self._end_id is None:
            raise ConfigError(f"chat template: nothing ends the answer of {plan.pair.id}, and there is no eos token")
        return to_bytes([self._end_id])

    def _behind_tail(self, plan: Plan, ids: bytes, answer: str) -> bytes:
        tail = self._tail_ids(plan.texts["tail"], plan.sealed)
        if ids.startswith(tail):
            return ids[len(tail) :]
        # A token spans the boundary. At inference the prompt stands alone, so the answer starts a token here.
        plan.forced = True
        [ids] = self._codec.encode_batch([answer], plan.sealed)
        return ids

    def _in_pieces(self, plan: Plan, ids: bytes, side: str) -> tuple[bytes, Spans]:
        """Ids of an answer of several messages, and the spans of those that were given to the policy.

        Where a token spans a boundary, each piece is encoded by itself: so the policy met them.
        """
        text, bounds = plan.texts[side], [place for span in plan.cuts[side] for place in span]
        pieces = [text[first:end] for first, end in zip([0, *bounds], [*bounds, len(text)], strict=True)]
        tail = plan.texts["tail"]
        before = self._codec.encode_batch([*accumulate(pieces[:-1], initial=tail)], plan.sealed)
        if all(ids.startswith(start) for start in before):
            places = [(len(start) - len(before[0])) // WIDTH for start in before]
            own = ids[len(before[0]) :]
        else:
            plan.forced = True
            encoded = self._codec.encode_batch(pieces, plan.sealed)
            places = [length // WIDTH for length in accumulate(map(len, encoded[:-1]), initial=0)]
            own = b"".join(encoded)
        return own, () if self._count_given else tuple(zip(places[1::2], places[2::2], strict=True))

    def _tail_ids(self, tail: str, sealed: bool) -> bytes:
        if (tail, sealed) not in self._tails:
            if len(self._tails) >= MOST_TAILS:
                self._tails.clear()
            [self._tails[tail, sealed]] = self._codec.encode_batch([tail], sealed)
        return self._tails[tail, sealed]
