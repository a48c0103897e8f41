"""Sampling answers in batches from a causal language model.

`transformers.generate` keeps finished rows in the batch until the last one ends and draws from the whole
vocabulary (on a CPU the draw alone costs as much as a third of the step). This loop drops finished rows and
draws among the top k, so that an evaluation of a few hundred prompts is bounded by the model itself.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from dpo.generation.stepping import Cached, Steps, Whole, sees_everything, uses_cache

SHORTEST_PREFIX = 8


@dataclass(frozen=True)
class Sampling:
    """How to draw: temperature 0 is greedy; otherwise among the `top_k` likeliest tokens, or all where it is 0."""

    temperature: float
    top_k: int
    max_new_tokens: int
    seed: int


@dataclass(frozen=True)
class Answer:
    """Token ids without the end-of-turn token, and whether the model ended the turn itself."""

    ids: list[int]
    finished: bool


def sample(
    model: Any,
    prompts: list[list[int]],
    sampling: Sampling,
    stop_ids: set[int],
    pad_id: int,
    batch_size: int,
    skip: int = 0,
    row_seeds: list[str] | None = None,
    share_prefix: bool = False,
    on_end: Callable[[int], None] | None = None,
) -> Iterator[tuple[list[int], list[Answer]]]:
    """Yield (prompt indices, answers) a batch; prompts of like length share a batch.

    Each batch draws from its own generator seeded with (seed, batch number): the answers depend on the prompts,
    the batch size and the seed, not on what else the process has drawn. The first `skip` batches are left out, to
    go on where an interrupted run stopped.

    With `row_seeds` each prompt instead draws from its own stream of random numbers, so that its answer depends on
    no other prompt, and two models asked with the same seeds are compared with common random numbers.

    `share_prefix` reads what all prompts of a batch begin with (a system prompt) once. It changes rounding, so
    answers drawn before without it may not come out the same. `on_end` is called with how many answers of the batch
    have just ended.
    """
    order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), i))
    for number, start in enumerate(range(0, len(order), batch_size)):
        if number < skip:
            continue
        indices = order[start : start + batch_size]
        generator = torch.Generator(device="cpu").manual_seed(sampling.seed * 1_000_003 + number)
        uniforms = None
        if row_seeds is not None:
            rows = [random.Random(f"{sampling.seed}:{row_seeds[i]}") for i in indices]
            uniforms = torch.tensor([[row.random() for _ in range(sampling.max_new_tokens)] for row in rows])
        batch = [prompts[i] for i in indices]
        shared = _common_prefix(batch) if share_prefix and sees_everything(model) else 0
        answers = _sample_batch(model, batch, sampling, stop_ids, pad_id, generator, uniforms, shared, on_end)
        yield indices, answers


@torch.no_grad()
def _sample_batch(
    model: Any,
    prompts: list[list[int]],
    sampling: Sampling,
    stop_ids: set[int],
    pad_id: int,
    generator: torch.Generator,
    uniforms: torch.Tensor | None = None,
    shared: int = 0,
    on_end: Callable[[int], None] | None = None,
) -> list[Answer]:
    if uses_cache(model):
        steps: Steps = Cached(model, prompts, pad_id, shared)
    else:
        steps = Whole(model, prompts, pad_id)
    stops = torch.tensor(sorted(stop_ids), device=model.device)
    tokens: list[list[int]] = [[] for _ in prompts]
    finished = [False] * len(prompts)
    alive = list(range(len(prompts)))
    for step in range(sampling.max_new_tokens):
        fate = None if uniforms is None else uniforms[alive, step]
        drawn = _draw(steps.logits(), sampling, generator, fate)
        ended = torch.isin(drawn, stops)
        for row, (token, stop) in enumerate(zip(drawn.tolist(), ended.tolist(), strict=True)):
            if stop:
                finished[alive[row]] = True
            else:
                tokens[alive[row]].append(token)
        if on_end is not None and bool(ended.any()):
            on_end(int(ended.sum()))
        keep = (~ended).nonzero().flatten()
        alive = [alive[i] for i in keep.tolist()]
        if not alive:
            break
        steps.extend(keep, drawn[keep])
    if on_end is not None:
        on_end(finished.count(False))
    return [Answer(t, f) for t, f in zip(tokens, finished, strict=True)]


@torch.no_grad()
def stream(model: Any, prompt: list[int], sampling: Sampling, stop_ids: set[int], row_seed: str) -> Iterator[int]:
    """Yield the tokens of one answer as they are drawn, the same that `sample` draws with this row seed.

    Ends before the token that ends the turn; the caller sees a cut answer by its length, `max_new_tokens`.
    """
    from transformers import DynamicCache

    numbers, unused = random.Random(f"{sampling.seed}:{row_seed}"), torch.Generator()
    if not uses_cache(model):
        whole = Whole(model, [prompt], 0)
        for _ in range(sampling.max_new_tokens):
            drawn = _draw(whole.logits(), sampling, unused, torch.tensor([numbers.random()]))
            if int(drawn) in stop_ids:
                return
            yield int(drawn)
            whole.extend(torch.tensor([0]), drawn)
        return
    cache = DynamicCache(config=model.config)
    ids = torch.tensor([prompt], device=model.device)
    for _ in range(sampling.max_new_tokens):
        out = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        drawn = _draw(out.logits[:, -1].float(), sampling, unused, torch.tensor([numbers.random()]))
        token = int(drawn)
        if token in stop_ids:
            return
        yield token
        ids = drawn.unsqueeze(1)


def _common_prefix(prompts: list[list[int]]) -> int:
    """Tokens all prompts begin with, leaving at least one of each; 0 when they are too few to pay for a forward."""
    most = min(map(len, prompts)) - 1
    count = next((i for i in range(most) if any(p[i] != prompts[0][i] for p in prompts)), most)
    return count if count >= SHORTEST_PREFIX else 0


def _draw(
    logits: torch.Tensor, sampling: Sampling, generator: torch.Generator, uniforms: torch.Tensor | None
) -> torch.Tensor:
    """(rows, vocabulary) logits -> (rows,) token ids; `uniforms` (rows,) in [0, 1) decide the draws when given."""
    if sampling.temperature == 0:
        return logits.argmax(-1)
    if sampling.top_k == 0:
        # Gumbel-max: the largest of logits with Gumbel noise is a draw from their softmax, and nothing is sorted.
        noise = torch.empty(logits.shape).exponential_(generator=generator).clamp_min(1e-38).log()
        return (logits / sampling.temperature - noise.to(logits.device)).argmax(-1)
    top, index = logits.topk(min(sampling.top_k, logits.shape[-1]), dim=-1)
    probabilities = torch.softmax(top / sampling.temperature, dim=-1).cpu()
    if uniforms is None:
        pick = torch.multinomial(probabilities, 1, generator=generator)
    else:
        reached = probabilities.double().cumsum(-1) <= uniforms.double().unsqueeze(1)
        pick = reached.sum(-1, keepdim=True).clamp_max(probabilities.shape[-1] - 1)
    return index.gather(1, pick.to(index.device)).squeeze(1)
