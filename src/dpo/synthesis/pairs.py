"""Ranked answers become preference pairs, and pairs become files that `dataset=local` reads."""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dpo.records.files import write_text

SPLITS = ("train", "dev", "test")
# However many pairs are asked for, each held-out split gets at most this share of them.
LARGEST_SHARE = 6


def split_subjects(pairs: Sequence[Mapping[str, Any]], dev_pairs: int, test_pairs: int) -> dict[str, str]:
    """Subject -> split. Subjects in the order of a hash of their text fill test, then dev, to those many pairs
    (one that would overshoot goes on) or a sixth of all; the rest is train."""
    sizes = Counter(pair["subject"] for pair in pairs)
    order = sorted(sizes, key=lambda subject: hashlib.sha256(subject.encode()).hexdigest())
    most = len(pairs) // LARGEST_SHARE
    room = {"test": min(test_pairs, most), "dev": min(dev_pairs, most)}
    place = {}
    for subject in order:
        split = next((name for name in room if sizes[subject] <= room[name]), "train")
        place[subject] = split
        if split in room:
            room[split] -= sizes[subject]
    return place


def pairs_of(ranked: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """At most one pair a prompt: the best answer against the worst. A tie is no pair, nor are two equal texts.

    Where the judge decides, the best must pass and the worst must fail. Equal scores: the earlier sample. `cost` is
    what all answers of the prompt and all verdicts on them cost. The rejected answer keeps the text it had when it
    was cut off.
    """
    by_prompt: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for row in ranked:
        by_prompt[row["prompt"]].append(row)
    pairs = []
    for prompt, answers in sorted(by_prompt.items()):
        good = [a for a in answers if a["meets"] is not False]
        bad = [a for a in answers if a["meets"] is not True]
        if not good or not bad:
            continue
        best, worst = max(good, key=lambda a: a["score"]), min(bad, key=lambda a: a["score"])
        chosen, rejected = best["answer"].strip(), worst["answer"].strip()
        decided = best["meets"] is True and worst["meets"] is False
        if chosen.split() == rejected.split() or not (decided or best["score"] > worst["score"]):
            continue
        pairs.append(
            {
                "prompt": prompt,
                "chosen": chosen,
                "rejected": rejected,
                "subject": best["subject"],
                "rejected_failed": list(worst["failed"]),
                "rejected_finished": worst["finished"],
                "chosen_score": best["score"],
                "rejected_score": worst["score"],
                "judged_by": best["judged_by"],
                "cost": sum(a["cost"] + a["judge_cost"] for a in answers),
            }
        )
    return pairs


def write_pairs(
    pairs: Sequence[Mapping[str, Any]], place: Mapping[str, str], provenance: Mapping[str, Any], folder: Path
) -> dict[str, int]:
    """Write train, dev and test.jsonl; returns how many pairs are in each. A split without pairs has no file."""
    rows: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
    for pair in pairs:
        split = place[pair["subject"]]
        rows[split].append({"id": f"synthetic:{split}:{len(rows[split])}", **pair, **provenance})
    folder.mkdir(exist_ok=True)
    for split, chosen in rows.items():
        path = folder / f"{split}.jsonl"
        if chosen:
            write_text(path, "".join(json.dumps(pair, ensure_ascii=False) + "\n" for pair in chosen))
        else:
            path.unlink(missing_ok=True)
    return {split: len(chosen) for split, chosen in rows.items()}
