"""Answers of both sides to the same prompts, drawn with the same random numbers, written as they come."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dpo.config.evaluation import Evaluation
from dpo.data.pair import Message, Pair, TokenPair
from dpo.evaluation.folder import EvaluationFolder
from dpo.evaluation.sides import SIDES, Sides
from dpo.modeling.shape import shape_of
from dpo.records.progress import StageProgress

MEMORY_SHARE = 0.25
LARGEST_BATCH = {"cpu": 96, "cuda": 512}


@dataclass(frozen=True)
class Prompt:
    """One prompt to answer: its id, turns, token ids up to where the answer begins, and what it is about if known.

    `tools` are those the model may call, as JSON text. `group` and `meta` are for judges, see `judges.interface.Item`.
    """

    id: str
    messages: tuple[Message, ...]
    ids: list[int]
    subject: str | None
    group: str | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)
    tools: str = ""


Asked = list[tuple[Prompt, int]]
# (side, prompts with sample numbers, progress) -> (indices, answers as dicts) as they are done; `progress` is told
# how many answers have just ended, in all once for each.
Drawer = Callable[[str, Asked, Callable[[int], None]], Iterator[tuple[list[int], list[dict[str, Any]]]]]


def prompts_of(pairs: Sequence[Pair], tokens: Sequence[TokenPair], limit: int | None) -> list[Prompt]:
    """The first `limit` distinct prompts of held-out pairs; a prompt's id is that of its first pair."""
    found: dict[tuple[int, ...], Prompt] = {}
    for pair, token_pair in zip(pairs, tokens, strict=True):
        if limit is not None and len(found) >= limit:
            break
        key = tuple(token_pair.prompt_ids)
        if key not in found:
            subject = pair.meta.get("subject")
            subject = subject if isinstance(subject, str) else None
            found[key] = Prompt(pair.id, pair.prompt, list(key), subject, tools=pair.tools)
    return list(found.values())


def draw_answers(
    folder: EvaluationFolder, prompts: Sequence[Prompt], config: Evaluation, draw: Drawer
) -> list[dict[str, Any]]:
    """All answers of both sides, continuing where answers.jsonl ends.

    Returns rows with side, prompt (id), sample, answer, ids, tokens, finished, in the order side, prompt, sample.
    """
    rows = {(r["side"], r["prompt"], r["sample"]): r for r in folder.rows("answers")}
    wanted = [(prompt, sample) for prompt in prompts for sample in range(config.samples_per_prompt)]
    for side in SIDES:
        missing = [(p, s) for p, s in wanted if (side, p.id, s) not in rows]
        if not missing:
            continue
        with StageProgress(f"answers of the {side}", len(wanted), len(wanted) - len(missing)) as progress:
            for indices, answers in draw(side, missing, progress.advance):
                made = [
                    {"side": side, "prompt": missing[i][0].id, "sample": missing[i][1], **answer}
                    for i, answer in zip(indices, answers, strict=True)
                ]
                folder.append("answers", made)
                rows |= {(r["side"], r["prompt"], r["sample"]): r for r in made}
    return [rows[side, prompt.id, sample] for side in SIDES for prompt, sample in wanted]


def local_drawer(sides: Sides, config: Evaluation, most: int) -> Drawer:
    """Draw from the loaded models, at most `most` answers at once."""
    from dpo.generation.sampling import Sampling, sample

    assert config.max_new_tokens is not None, "settled by asked.settings_asked"
    sampling = Sampling(config.temperature, config.top_k, config.max_new_tokens, config.seed)
    tokenizer = sides.tokenizer

    def draw(
        side: str, asked: Asked, progress: Callable[[int], None]
    ) -> Iterator[tuple[list[int], list[dict[str, Any]]]]:
        ids = [prompt.ids for prompt, _ in asked]
        # The stream of a sample hangs on its prompt and number alone, so both sides draw with the same numbers.
        seeds = [f"{prompt.id}:{number}" for prompt, number in asked]
        # Batches of like size: a small last one costs nearly as many steps as a full one.
        size = math.ceil(len(ids) / math.ceil(len(ids) / most))
        with sides.use(side) as model:
            batches = sample(
                model,
                ids,
                sampling,
                sides.stop_ids,
                tokenizer.pad_token_id,
                size,
                row_seeds=seeds,
                share_prefix=True,
                on_end=progress,
            )
            for indices, answers in batches:
                yield (
                    indices,
                    [
                        {
                            "answer": tokenizer.decode(answer.ids, skip_special_tokens=True),
                            "ids": answer.ids,
                            "tokens": len(answer.ids),
                            "finished": answer.finished,
                        }
                        for answer in answers
                    ],
                )

    return draw


def batch_size(sides: Sides, tokens: int) -> int:
    """Rows whose key-value cache takes at most a quarter of the memory that is free now."""
    import psutil
    import torch

    shape = shape_of(sides.policy.config)
    # Growing the cache by a token copies it, so for a moment there are two; 4 bytes a number at most.
    row = 2 * 2 * 4 * shape.layers * shape.key_heads * shape.head * tokens
    if sides.device.type == "cuda":
        free = torch.cuda.mem_get_info(sides.device)[0]
    else:
        free = psutil.virtual_memory().available
    return max(1, min(LARGEST_BATCH.get(sides.device.type, LARGEST_BATCH["cpu"]), int(free * MEMORY_SHARE // row)))
