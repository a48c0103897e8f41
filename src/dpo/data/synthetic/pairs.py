"""Judged answers become preference pairs: the best that meets the rule against the worst that does not."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

SPLITS = ("train", "dev", "test")


def split_subjects(pairs: Iterable[Mapping[str, Any]], dev_pairs: int, test_pairs: int) -> dict[str, str]:
    """Subject -> split. Subjects in the order of a hash of their text fill test, then dev, to those many pairs
    (one that would overshoot goes on); the rest is train."""
    sizes = Counter(pair["subject"] for pair in pairs)
    order = sorted(sizes, key=lambda subject: hashlib.sha256(subject.encode()).hexdigest())
    room = {"test": test_pairs, "dev": dev_pairs}
    place = {}
    for subject in order:
        split = next((name for name in room if sizes[subject] <= room[name]), "train")
        place[subject] = split
        if split in room:
            room[split] -= sizes[subject]
    return place


def pairs_of(samples: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One pair for each prompt that has an answer meeting the rule and one that does not.

    A sample has prompt, subject, answer, finished, meets, score. Equal scores: the earlier sample. The rejected
    answer keeps the text it had when it was cut off.
    """
    by_prompt: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for sample in samples:
        by_prompt[sample["prompt"]].append(sample)
    pairs = []
    for prompt, answers in sorted(by_prompt.items()):
        good = [a for a in answers if a["meets"]]
        bad = [a for a in answers if not a["meets"] and a["answer"].strip()]
        if good and bad:
            best = max(good, key=lambda a: a["score"])
            worst = min(bad, key=lambda a: a["score"])
            pairs.append(
                {
                    "prompt": prompt,
                    "chosen": best["answer"].strip(),
                    "rejected": worst["answer"].strip(),
                    "subject": best["subject"],
                    "rejected_failed": list(worst["failed"]),
                    "rejected_finished": worst["finished"],
                }
            )
    return pairs
