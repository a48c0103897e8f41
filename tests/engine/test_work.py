"""Operations are counted from tokens: equal to a count by hand, and to the products that torch sees being made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from packed_models import random_pairs, tiny_model, with_lora
from torch.utils._python_dispatch import TorchDispatchMode

from dpo.config.read import read_config
from dpo.data.pair import TokenPair
from dpo.data.prepare import prepare
from dpo.engine.collate import pad
from dpo.engine.micro_batch import packed_figures
from dpo.engine.packed_forward import install
from dpo.engine.work import NOTHING, PROMPTS, Amount, Work, work_of
from dpo.generation.sampling import Sampling, sample
from dpo.modeling.policy import tokenizer_of
from dpo.training.order import epoch_order

# Llama of `packed_models`: 3 layers, 32 wide, 4 heads of 8, 2 of keys and values, 48 inside, 97 words; rank 4.
LAYER = 32 * 32 + 2 * 32 * 16 + 32 * 32 + 3 * 32 * 48
ADAPTERS = 4 * (2 * (32 + 32) + 2 * (32 + 16) + 3 * (32 + 48))


class Products(TorchDispatchMode):
    """Operations of the products of two matrices that torch makes, in place ones among them; attention makes others."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.addmm_):
            left, right = args[-2:]
            self.count += 2 * left.shape[0] * left.shape[1] * right.shape[1]
        return func(*args, **(kwargs or {}))


def test_a_model_by_hand() -> None:
    model = with_lora(tiny_model("llama"))
    assert work_of(model) == Work(layers=3 * LAYER, adapters=3 * ADAPTERS, head=32 * 97, scores=3 * 32)
    full = tiny_model("llama").requires_grad_(True)
    assert work_of(full) == Work(3 * LAYER, 0, 32 * 97, 3 * 32, trains=True)


def test_pairs_by_hand() -> None:
    work = Work(layers=100, adapters=10, head=1000, scores=5)
    pair = TokenPair("p", [1] * 3, [1] * 2, [1] * 4)
    # The prompt's tokens see 1 + 2 + 3 keys, chosen's 4 + 5, rejected's 4 + 5 + 6 + 7; rows: 1, chosen 1, rejected 3.
    packed = work.of_pairs([pair], "packed")
    assert packed == Amount(tokens=9, seen=6 + 9 + 22, rows=5)
    assert work.forward(packed) == 2 * 110 * 9 + 4 * 5 * 37 + 2 * 1000 * 5
    assert work.forward(packed, adapters=False) == 2 * 100 * 9 + 4 * 5 * 37 + 2 * 1000 * 5
    assert work.step(packed) == work.forward(packed) + (200 + 40) * 9 + 8 * 5 * 37 + 2 * 1000 * 5
    assert work.of_pairs([pair], "packed", PROMPTS).rows == 5 + 2
    assert work.of_pairs([pair], "packed", NOTHING).rows == 0
    assert work.of_pairs([pair], "plain") == Amount(tokens=14, seen=2 * 28, rows=12)
    single = TokenPair("s", [1] * 3, [], [1] * 4)
    assert work.of_pairs([single], "packed") == Amount(7, 6 + 22, 4)
    windowed = Work(layers=100, adapters=10, head=1000, scores=5, window=4)
    assert windowed.of_pairs([pair], "packed").seen == 6 + (4 + 4) + 4 * 4
    again = Work(layers=100, adapters=10, head=1000, scores=5, checkpointing=True)
    assert again.step(packed) == work.step(packed) + 2 * 110 * 9 + 4 * 5 * 37


def test_torch_sees_as_many_products() -> None:
    model = with_lora(tiny_model("llama", torch.float32))
    pairs, work = random_pairs(5, seed=3), work_of(model)
    plain = tiny_model("llama", torch.float32)
    with Products() as made, torch.no_grad():
        batch = pad(pairs, 0)
        plain(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    amount = work.of_pairs(pairs, "plain")
    # transformers' head also computes the last row of each sequence.
    assert made.count == 2 * work.layers * amount.tokens + 2 * work.head * amount.tokens

    assert install(model) is None
    amount = work.of_pairs(pairs, "packed")
    with Products() as made:
        figures, _ = packed_figures(model, pairs, ("log_probs",))
        figures.log_probs.sum().backward()
    attention = 12 * work.scores * amount.seen
    lowest = 2 * (32 * 32 + 2 * 32 * 16 + 4 * 3 * 32) * amount.tokens  # whose input needs no gradient
    assert made.count == work.step(amount) - attention - lowest


def test_torch_sees_as_many_while_sampling() -> None:
    model = tiny_model("llama", torch.float32)
    work = work_of(model)
    prompts = [[5, 6, 7], [5, 6, 7], [9, 8, 7, 6, 5]]
    with Products() as made:
        [(_, answers)] = sample(model, prompts, Sampling(1.0, 97, 9, 0), set(range(30)), 0, 3)
    lengths = [len(answer.ids) for answer in answers]
    assert min(lengths) < max(lengths)
    # A finished answer's last token was read to draw its end, a cut one's was not.
    continued = [length if answer.finished else length - 1 for length, answer in zip(lengths, answers, strict=True)]
    amount = work.drawn(prompts, continued)
    assert made.count == 2 * work.layers * amount.tokens + 2 * work.head * amount.rows


def test_a_run_counts_each_token_it_reads(tiny_run: Path) -> None:
    config = read_config(tiny_run / "config.yaml")
    phases = json.loads((tiny_run / "ledger.json").read_text())["phases"]
    data = prepare(config.dataset, tokenizer_of(tiny_run, config))
    layer = 64 * 64 + 2 * 64 * 32 + 64 * 64 + 3 * 64 * 128
    adapter = config.lora.rank * (2 * (64 + 64) + 2 * (64 + 32) + 3 * (64 + 128))  # type: ignore[attr-defined]
    vocabulary = len(tokenizer_of(tiny_run, config))
    work = Work(2 * layer, 2 * adapter, 64 * vocabulary, 2 * 64)
    size = len(data.train)
    steps = [epoch_order(size, config.seed, epoch)[i : i + 4] for epoch in range(2) for i in range(0, size, 4)][:8]
    read = [data.train[row] for step in steps for row in step]
    dev = list(data.dev[: config.dpo.eval_limit])
    looks = 3  # before step 1, at step 4 and at the end
    wanted = work.step(work.of_pairs(read, "packed")) + looks * work.forward(work.of_pairs(dev, "packed"))
    assert phases["train"]["flops"] == wanted
    once = {pair.id: pair for pair in [*read, *data.train, *dev]}.values()
    assert phases["reference"]["pair_flops"] == work.forward(work.of_pairs(list(once), "packed"), adapters=False)
