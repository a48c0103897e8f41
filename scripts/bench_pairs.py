"""Real preference rows as token pairs, for the benchmarks: HH transcripts, SHP posts, UltraFeedback conversations, or
prompt/chosen/rejected."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dpo.data.pair import TokenPair

TURN = re.compile(r"\n\n(Human|Assistant): ?")


def read_pairs(path: Path, tokenizer: Any, count: int, max_length: int) -> list[TokenPair]:
    """The first `count` usable pairs of a .jsonl or .jsonl.gz; longer ones than `max_length` tokens are left out."""
    pairs: list[TokenPair] = []
    for number, row in enumerate(_rows(path)):
        texts = _texts(row)
        if texts is None:
            continue
        messages, chosen, rejected = texts
        prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=True)
        taken, left = (
            [*tokenizer(text, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
            for text in (chosen, rejected)
        )
        ids = list(prompt["input_ids"])
        if taken != left and len(ids) + max(len(taken), len(left)) <= max_length:
            pairs.append(TokenPair(f"{path.name}:{number}", ids, taken, left))
        if len(pairs) == count:
            break
    return pairs


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
        for line in file:
            yield json.loads(line)


def _texts(row: dict[str, Any]) -> tuple[list[dict[str, str]], str, str] | None:
    if "history" in row:
        sides = [row["human_ref_A"], row["human_ref_B"]]
        chosen, rejected = sides if int(row["labels"]) == 1 else sides[::-1]
        return [{"role": "user", "content": row["history"]}], chosen, rejected
    if "prompt" in row:
        # UltraFeedback's sides are conversations: the prompt again, then the answer.
        sides = [row[s][-1]["content"] if isinstance(row[s], list) else str(row[s]) for s in ("chosen", "rejected")]
        return [{"role": "user", "content": str(row["prompt"])}], sides[0], sides[1]
    chosen_turns, rejected_turns = (TURN.split(row[side])[1:] for side in ("chosen", "rejected"))
    if chosen_turns[:-1] != rejected_turns[:-1] or len(chosen_turns) < 4:
        return None
    roles = {"Human": "user", "Assistant": "assistant"}
    turns = [
        {"role": roles[role], "content": text.strip()}
        for role, text in zip(chosen_turns[:-2:2], chosen_turns[1:-2:2], strict=True)
    ]
    return turns, chosen_turns[-1].strip(), rejected_turns[-1].strip()
