"""A mixture of prepared datasets: which pairs of each, in an order that no seed changes, no prompt on two sides."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dpo
from dpo.config.datasets import Mixture
from dpo.data.checks import Seen, answer_digest, digest
from dpo.data.control_tokens import Codec
from dpo.data.id_bytes import encoded
from dpo.data.measured import measured
from dpo.data.pair import Pair
from dpo.data.pair_file import PairWriter
from dpo.data.refusal import Reason
from dpo.data.report import SPLITS
from dpo.data.single import said
from dpo.data.sources.fields import prompt_key
from dpo.data.token_file import TokenWriter
from dpo.errors import DataError
from dpo.records.files import write_json

if TYPE_CHECKING:
    from dpo.data.prepare import Prepared

Parts = Mapping[str, "Prepared"]


def mixture_key(version: int, dataset: Mixture, parts: Parts) -> str:
    """Hex digest of everything that decides the entry: the entries of its parts, their names, shares and the limit."""
    own = [(name, part.folder.name) for name, part in parts.items()]
    facts = [version, own, dataset.weights, dataset.limit]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:40]


def renamed(part: str, pair_id: str) -> str:
    """The id of a part's pair in the mixture: the name of the part where that of the source stands."""
    return f"{part}:{pair_id.partition(':')[2]}"


@dataclass
class _Taken:
    """What became of one part's pairs: those that may be used, each with its mark, and those refused here."""

    pairs: dict[str, dict[int, bytes]] = field(default_factory=lambda: {split: {} for split in SPLITS})
    refused: dict[str, list[str]] = field(default_factory=dict)

    def refuse(self, row_id: str, reason: Reason) -> None:
        self.refused.setdefault(reason.value, []).append(row_id)


def mix(dataset: Mixture, parts: Parts, codec: Codec, folder: Path) -> None:
    """Write the mixture of `parts` into `folder`, as an entry of any dataset. Raises DataError where nothing is left
    to train on."""
    taken = _admit(parts)
    train = _sampled(dataset.weights, {name: one.pairs["train"] for name, one in taken.items()})
    chosen = {split: {name: one.pairs[split] for name, one in taken.items()} for split in SPLITS} | {"train": train}
    if not any(train.values()):
        raise DataError(f"a mixture of {', '.join(parts)}: no pair to train on; see the refusals of each part")
    writer, used = TokenWriter(folder), {name: dict.fromkeys(SPLITS, 0) for name in parts}
    ids: set[str] = set()
    for split in SPLITS:
        kept = PairWriter(folder / f"{split}.jsonl")
        # By the marks' order, so that the first pairs of a split are a sample of it.
        order = sorted((mark, name, index) for name, found in chosen[split].items() for index, mark in found.items())
        for _, name, index in order[: dataset.limit]:
            pair = parts[name].pairs[split][index]
            pair_id = renamed(name, pair.id)
            kept.write(replace(pair, id=pair_id))
            writer.write(replace(encoded(getattr(parts[name], split)[index]), id=pair_id))
            used[name][split] += 1
            ids.add(pair_id)
        kept.close(sync=True)
        writer.end_split(split)
    fingerprint = writer.close()
    write_json(folder / "report.json", _report(dataset, parts, taken, used, ids, codec, folder, fingerprint))


def _admit(parts: Parts) -> dict[str, _Taken]:
    """Held-out splits first, part by part: a pair whose prompt another split holds gives way, and so do repetitions."""
    seen, taken = Seen(), {name: _Taken() for name in parts}
    places: list[tuple[str, str, int]] = []
    for split in reversed(SPLITS):
        for name, index, pair in _pairs(parts, split):
            refusal, earlier = seen.admit(pair, split)
            if earlier is not None:
                other, where, place = places[earlier]
                if taken[other].pairs[where].pop(place, None) is not None:
                    taken[other].refuse(seen.ids[earlier], Reason.contradiction)
            if refusal is not None:
                taken[name].refuse(pair.id, refusal.reason)
                continue
            places.append((name, split, index))
            taken[name].pairs[split][index] = _mark(pair)
    return taken


def _pairs(parts: Parts, split: str) -> Iterator[tuple[str, int, Pair]]:
    for name, part in parts.items():
        for index, pair in enumerate(part.pairs[split]):
            yield name, index, replace(pair, id=renamed(name, pair.id))


def _mark(pair: Pair) -> bytes:
    """A pair's place in the order of all: by its text alone, so that rows and parts added later move nobody."""
    return digest("mixture", prompt_key(pair.prompt)) + answer_digest(pair.chosen) + answer_digest(pair.rejected)


def _sampled(weights: list[float] | None, found: dict[str, dict[int, bytes]]) -> dict[str, dict[int, bytes]]:
    """As many pairs of each part as its weight allows, without replacement, until the first part runs out."""
    if weights is None:
        return found
    shares = dict(zip(found, (weight / sum(weights) for weight in weights), strict=True))
    total = min(len(pairs) / shares[name] for name, pairs in found.items())
    sampled = {}
    for name, pairs in found.items():
        # Shares such as 0.7 are not what their product with a whole number should be.
        first = sorted(pairs, key=pairs.__getitem__)[: int(total * shares[name] + 1e-6)]
        sampled[name] = {index: pairs[index] for index in first}
    return sampled


def _report(
    dataset: Mixture,
    parts: Parts,
    taken: Mapping[str, _Taken],
    used: Mapping[str, Mapping[str, int]],
    ids: set[str],
    codec: Codec,
    folder: Path,
    fingerprint: str,
) -> dict[str, Any]:
    of_parts = {name: _of_part(name, part.report, taken[name], used[name]) for name, part in parts.items()}
    each, first = list(of_parts.values()), next(iter(parts.values())).report
    found = measured(folder, codec)
    warnings = [line for part in parts.values() for line in part.report["warnings"]]
    return {
        "source": dataset.source,
        "origin": f"a mixture of {', '.join(parts)}",
        "revision": None,
        "licence": None,
        "rows": {split: sum(one["rows"][split] for one in each) for split in SPLITS},
        "kept": {split: sum(one["used"][split] for one in each) for split in SPLITS},
        "stopped_at_limit": any(one["stopped_at_limit"] for one in each)
        or any(sum(one["kept"][split] for one in each) > (dataset.limit or 10**12) for split in SPLITS),
        "refused": _summed([one["refused"] for one in each]),
        "noted": _summed([_within(_noted(name, part.report), ids) for name, part in parts.items()]),
        "fingerprint": fingerprint,
        "max_length": dataset.max_length,
        **found,
        "truncation": _truncation(parts, ids),
        "warnings": [*dict.fromkeys(warnings), *said(found["single_answers"])],
        "template": first["template"],
        "parts": of_parts,
        "version": dpo.__version__,
    }


def _of_part(name: str, report: Mapping[str, Any], taken: _Taken, used: Mapping[str, int]) -> dict[str, Any]:
    """A part's own report in short, with what the mixture refused and used of it."""
    refused = {key: [renamed(name, row) for row in one["ids"]] for key, one in report["refused"].items()}
    for reason, rows in taken.refused.items():
        refused[reason] = [*refused.get(reason, []), *rows]
    whole = ("source", "origin", "revision", "licence", "rows", "stopped_at_limit", "longest", "lengths", "length_bias")
    return {
        **{key: report[key] for key in whole},
        "kept": {split: len(taken.pairs[split]) for split in SPLITS},
        "used": dict(used),
        "refused": {key: {"count": len(rows), "ids": rows} for key, rows in sorted(refused.items())},
    }


Counted = dict[str, dict[str, Any]]


def _noted(name: str, report: Mapping[str, Any]) -> Counted:
    return {key: {"ids": [renamed(name, row) for row in one["ids"]]} for key, one in report["noted"].items()}


def _within(found: Counted, ids: set[str]) -> Counted:
    return {key: {"ids": [row for row in one["ids"] if row in ids]} for key, one in found.items()}


def _summed(each: list[Counted]) -> Counted:
    rows: dict[str, list[str]] = {}
    for found in each:
        for key, one in found.items():
            rows.setdefault(key, []).extend(one["ids"])
    return {key: {"count": len(ids), "ids": ids} for key, ids in sorted(rows.items())}


def _truncation(parts: Parts, ids: set[str]) -> dict[str, Any]:
    """What was cut of the pairs that are used."""
    cuts: dict[str, dict[str, int]] = {}
    for name, part in parts.items():
        for head, cut in part.report["truncation"].items():
            here = {renamed(name, row): tokens for row, tokens in cut["tokens_by_id"].items()}
            cuts.setdefault(head, {}).update({row: tokens for row, tokens in here.items() if row in ids})
    return {head: {"pairs": len(cut), "tokens": sum(cut.values()), "tokens_by_id": cut} for head, cut in cuts.items()}
