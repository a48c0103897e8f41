"""Verdicts of a judge through the cache: only what is missing is asked for, and each batch is kept as it comes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from dpo.caches.folder import cache_folder
from dpo.evaluation.judges.cache import VerdictCache, verdict_key, with_ids
from dpo.evaluation.judges.interface import Item, Judge, PairItem, PairJudge, Verdict
from dpo.records.progress import StageProgress

Asked = TypeVar("Asked", Item, PairItem)
SAME = "the answers are the same"


def default_cache() -> VerdictCache:
    """The one that all verbs share."""
    return VerdictCache(cache_folder("verdicts") / "verdicts.sqlite")


def verdicts(judge: Judge, items: Sequence[Item], cache: VerdictCache | None = None) -> list[Verdict]:
    """One verdict an item, in their order."""
    return _cached(judge, items, judge.judge, cache or default_cache())


def preferences(judge: PairJudge, items: Sequence[PairItem], cache: VerdictCache | None = None) -> list[Verdict]:
    """One verdict a pair, in their order, over both orders where the judge wants them; see `PairJudge`."""
    cache = cache or default_cache()
    differing = [i for i in items if i.first.strip() != i.second.strip()]
    orders = [differing, [i.turned for i in differing]] if judge.both_orders else [differing]
    # Both orders in one call, so that a judge may ask for them side by side.
    asked = [
        PairItem(f"{order}:{item.id}", item.prompt, item.first, item.second, item.group, item.meta, item.tools)
        for order, shown in enumerate(orders)
        for item in shown
    ]
    found = {v.id: v for v in _cached(judge, asked, judge.compare, cache)}
    made = []
    for item in items:
        if f"0:{item.id}" not in found:
            made.append(Verdict(item.id, 0.5, None, SAME, 0.0, SAME))
        elif judge.both_orders:
            made.append(_of_both(item.id, found[f"0:{item.id}"], found[f"1:{item.id}"]))
        else:
            made += with_ids([(item.id, found[f"0:{item.id}"])])
    return made


def _of_both(name: str, forward: Verdict, backward: Verdict) -> Verdict:
    """A win only where both orders prefer the same answer, else a tie; undecided where either order is."""
    cost = forward.cost + backward.cost
    if forward.score is None or backward.score is None:
        undecided = forward if forward.score is None else backward
        return Verdict(name, None, None, undecided.reason, cost, undecided.provenance)
    turned = 1 - backward.score
    agree = (forward.score > 0.5 and turned > 0.5) or (forward.score < 0.5 and turned < 0.5)
    score = float(forward.score > 0.5) if agree else 0.5
    reason = forward.reason if agree else f"{forward.reason} / turned: {backward.reason}"
    details = {**forward.details, "turned": dict(backward.details), "forward": forward.score, "backward": turned}
    return Verdict(name, score, None, reason, cost, forward.provenance, details)


def _cached(
    judge: Judge | PairJudge,
    items: Sequence[Asked],
    ask: Callable[[Sequence[Asked]], Iterator[list[Verdict]]],
    cache: VerdictCache,
) -> list[Verdict]:
    keys = [verdict_key(judge, item) for item in items]
    first: dict[bytes, Asked] = {}
    for key, item in zip(keys, items, strict=True):
        first.setdefault(key, item)
    found = cache.read(list(first))
    missing = [item for key, item in first.items() if key not in found]
    if missing:
        key_of = {item.id: key for key, item in first.items()}
        if len(key_of) < len(first):
            raise AssertionError(f"{judge.name}: ids of items are not unique")
        with StageProgress(f"verdicts of {judge.name}", len(first), len(first) - len(missing)) as progress:
            for batch in ask(missing):
                made = {key_of[verdict.id]: verdict for verdict in batch}
                cache.write(judge.name, {key: v for key, v in made.items() if v.score is not None})
                found |= made
                progress.advance(len(batch))
    if absent := [item.id for key, item in first.items() if key not in found]:
        raise AssertionError(f"{judge.name}: no verdict on {absent[0]} and {len(absent) - 1} more")
    return with_ids((item.id, found[key]) for key, item in zip(keys, items, strict=True))
