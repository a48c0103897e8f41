"""Floating point operations of what a model computes, counted from tokens: the same on any machine, however busy.

Counted are the matrix products of the linear layers, the adapters, attention and LM head, a multiply-add as two; what
is done element by element (norms, activations, softmax, the optimizer) is left out. With N the parameters of the
linear layers a token passes, A those of its adapters, V the head's and D = layers x heads x head size:

    forward   2 (N + A) a token, 4 D a query and key that see each other, 2 V a row whose logits are computed
    backward  2 N + 4 A a token (4 N where the layers train), 8 D and 2 V (4 V where the head trains)

Tokens are those that the engine lays out: packed, each prompt once a pair; plain, both rows padded to the longest. With
activation checkpointing each forward is done again. A gradient that the lowest layer's input does not need, and masked
scores that a kernel computes all the same, are not looked into.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dpo.engine.support import unwrapped
from dpo.modeling.shape import shape_of

if TYPE_CHECKING:
    from dpo.data.pair import TokenPair

ANSWERS, PROMPTS, NOTHING = "answers", "prompts and answers", "nothing"
"""What logits are computed of."""


@dataclass(frozen=True)
class Amount:
    """What a forward goes over: tokens, pairs of a query and a key that it sees, rows whose logits are computed."""

    tokens: int
    seen: int
    rows: int


@dataclass(frozen=True)
class Work:
    """Operations by amount. `layers`, `adapters` and `head` are parameters that a token is multiplied with, `scores` is
    D; `trains`: layers and head are trained, not only adapters. `window`: most keys that a query sees."""

    layers: int
    adapters: int
    head: int
    scores: int
    trains: bool = False
    window: int | None = None
    checkpointing: bool = False

    def forward(self, amount: Amount, adapters: bool = True) -> int:
        """Without a graph behind it; `adapters` off is the reference of a fresh adapter."""
        products = self.layers + (self.adapters if adapters else 0)
        return 2 * products * amount.tokens + 4 * self.scores * amount.seen + 2 * self.head * amount.rows

    def step(self, amount: Amount) -> int:
        """Forward and backward."""
        times = 4 if self.trains else 2
        backward = (times * self.layers + 4 * self.adapters) * amount.tokens
        backward += 8 * self.scores * amount.seen + times * self.head * amount.rows
        forward = self.forward(amount)
        # The head is not among what is done again.
        again = forward - 2 * self.head * amount.rows if self.checkpointing else 0
        return forward + again + backward

    def of_pairs(self, pairs: Sequence[TokenPair], engine: str, logits: str = ANSWERS) -> Amount:
        """One forward of `pairs` in `engine`, packed or plain, with the logits of what `logits` says.

        A plain batch has them in every row but the last of each sequence.
        """
        if engine != "packed":
            rows = 2 * len(pairs)
            longest = max((len(p.prompt_ids) + max(len(p.chosen_ids), len(p.rejected_ids)) for p in pairs), default=0)
            projected = 0 if logits == NOTHING else rows * (longest - 1)
            return Amount(rows * longest, rows * self._triangle(longest), projected)
        tokens = seen = rows = 0
        for pair in pairs:
            prompt, answers = len(pair.prompt_ids), [len(pair.chosen_ids), len(pair.rejected_ids)]
            tokens += prompt + sum(answers)
            seen += self._triangle(prompt) + sum(self._from(prompt, answer) for answer in answers)
            # The last row of the prompt predicts the first token of both answers.
            rows += 1 + sum(max(0, counted - 1) for counted in pair.counted)
            rows += prompt - 1 if logits == PROMPTS else 0
        return Amount(tokens, seen, 0 if logits == NOTHING else rows)

    def drawn(self, prompts: Sequence[Sequence[int]], answers: Sequence[int]) -> Amount:
        """One batch of sampling with kept keys: each distinct prompt read once, padded to the longest; then a token of
        each unfinished answer at a time.

        Args:
            answers: how often each answer was continued: the tokens read after its prompt.
        """
        distinct = set(map(tuple, prompts))
        width = max(map(len, distinct), default=0)
        tokens = width * len(distinct) + sum(answers)
        seen = len(distinct) * self._triangle(width) + sum(self._from(width, more) for more in answers)
        return Amount(tokens, seen, len(distinct) + sum(answers))

    def _triangle(self, tokens: int) -> int:
        return self._from(0, tokens)

    def _from(self, before: int, more: int) -> int:
        """Keys that `more` tokens after `before` others see, each itself too."""
        if self.window is None or before + more <= self.window:
            return more * before + more * (more + 1) // 2
        return sum(min(self.window, before + place) for place in range(1, more + 1))


def work_of(model: Any, checkpointing: bool = False) -> Work:
    """How much a token is multiplied with in `model`, plain or with adapters, quantized or not.

    Of experts that lie in one tensor, those that a token takes count. Windows count where every layer has one.
    """
    base = unwrapped(model)
    head = base.get_output_embeddings()
    layers = adapters = 0
    for name, module in base.named_modules():
        if module is head or not _is_linear(module):
            continue
        size = module.in_features * module.out_features
        if "lora_" in name:
            # Another adapter beside it (the start of a continued one) is not computed with.
            adapters += size if name.endswith(".default") else 0
        elif ".experts." in f".{name}.":
            layers += int(size * _share_of_experts(base.config))
        else:
            layers += size
    stacked = sum(p.numel() for n, p in base.named_parameters() if ".experts." in n and p.ndim == 3 and "lora" not in n)
    layers += int(stacked * _share_of_experts(base.config)) if stacked else 0
    text = base.config.get_text_config()
    shape = shape_of(text)
    kinds = set(getattr(text, "layer_types", None) or [])
    windows = not kinds or kinds == {"sliding_attention"}
    window = getattr(text, "sliding_window", None) if windows and getattr(text, "use_sliding_window", True) else None
    return Work(
        layers=layers,
        adapters=adapters,
        head=0 if head is None else head.in_features * head.out_features,
        scores=shape.layers * shape.heads * shape.head,
        trains=adapters == 0 and any(p.requires_grad for p in base.parameters()),
        window=window,
        checkpointing=checkpointing,
    )


def _is_linear(module: Any) -> bool:
    # Those inside a LoRA layer are seen by themselves.
    return hasattr(module, "in_features") and hasattr(module, "out_features") and not hasattr(module, "base_layer")


def _share_of_experts(config: Any) -> float:
    text = config.get_text_config()
    taken = getattr(text, "num_experts_per_tok", None) or 1
    there = getattr(text, "num_local_experts", None) or getattr(text, "num_experts", None) or taken
    return float(taken / there)
