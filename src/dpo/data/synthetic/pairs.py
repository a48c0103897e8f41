"""Judged answers become preference pairs: the best that meets the rule against the worst that does not."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

SPLITS = ("train", "dev", "test")


def split_of(subject: str, dev_share: float, test_share: float) -> str:
    """The split of a subject: a hash of its text alone, so more prompts never move one."""
    place = int(hashlib.sha256(subject.encode()).hexdigest()[:8], 16) / 2**32
    return "test" if place < test_share else "dev" if place < test_share + dev_share else "train"


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


def without_a_pair(samples: Iterable[Mapping[str, Any]]) -> set[str]:
    """Prompts whose answers all meet the rule, or all do not."""
    meets: dict[str, set[bool]] = defaultdict(set)
    for sample in samples:
        meets[sample["prompt"]].add(bool(sample["meets"]))
    return {prompt for prompt, seen in meets.items() if len(seen) == 1}
