"""RLOO on the packed engine: one forward with gradients gives log-probs, KL and loss of all samples of a prompt.

A step draws answers, has them scored, takes the reference's log-probs of them (adapters off, no gradient) and then is a
step of pairs like any other. As the policy is stepped once on what it drew, its log-probs of the drawing are those of
that forward: no second one is needed. All samples of a prompt are in one part of the step, as each is set against the
others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from dpo.data.pair import TokenPair
from dpo.engine.budget import cost
from dpo.engine.log_probs import sequence_log_probs
from dpo.engine.micro_batch import Computed, Figures, PartLoss, Reference, Whole
from dpo.engine.reward_model import RewardModel
from dpo.losses.completions import sums
from dpo.losses.rloo import leave_one_out, surrogate
from dpo.modeling.modes import keep_quantized_in_train_mode
from dpo.training.rlhf.draws import Drawing, Draws, draw, step_seed
from dpo.training.trainer import Trainer

SCORING_TOKENS = 4096
Rewards = Mapping[str, tuple[float, float, int]]
"""Pair id -> rewards of (chosen, rejected), penalties taken off, and how many of the two were cut."""


def rloo_loss(forward: Figures, beta: float, pairs_each: int, rewards: Callable[[], Rewards]) -> PartLoss:
    """Minus the objective, mean reward - beta KL, with RLOO's gradient; `pairs_each` consecutive pairs are a prompt's.

    KL is estimated by the log-ratio of each answer, nats, summed over its tokens (as TRL's RLOOTrainer does).
    """

    def compute(model: Any, part: Sequence[TokenPair], whole: Whole, reference: Reference) -> Computed:
        figures, _ = forward(model, part, ("log_probs", "entropy"), False)
        device = figures.log_probs.device
        lengths = torch.tensor([pair.counted for pair in part], device=device)
        log_probs = sums(figures.log_probs, lengths.view(-1))
        given = rewards()
        known = torch.tensor([[given[p.id][:2], reference[p.id]] for p in part], dtype=torch.float32, device=device)
        there = (lengths > 0).view(-1, 2 * pairs_each)
        reward, reference_log_probs = known[:, 0], known[:, 1]
        kl = log_probs.detach() - reference_log_probs
        returns = (reward - beta * kl).reshape(-1, 2 * pairs_each)
        advantages = leave_one_out(returns, there)
        samples = int(there.sum())
        gradient = surrogate(log_probs.view(-1, 2 * pairs_each), advantages, samples)
        mean = {
            "reward": (reward.reshape(returns.shape) * there).sum() / samples,
            "kl": (kl.reshape(returns.shape) * there).sum() / samples,
            "entropy": figures.entropy.mean() if figures.entropy is not None else log_probs.new_zeros(()),
            "frac_reward_zero_std": (advantages.abs().amax(dim=1) == 0).float().mean(),
        }
        values = torch.stack([value.float() for value in mean.values()]).tolist()
        counted = {
            "completions/mean_length": float(lengths.sum()) / samples,
            "completions/clipped_ratio": sum(given[pair.id][2] for pair in part) / samples,
        }
        objective = (returns * there).sum() / samples
        return gradient - gradient.detach() - objective, dict(zip(mean, values, strict=True)) | counted

    return compute


def in_groups(pairs_each: int, engine: str) -> Callable[[list[TokenPair], int, int], list[list[TokenPair]]]:
    """A split of a step that never parts a prompt's pairs: as few parts within the budget as greedy filling gives, at
    least `at_once` where there are prompts enough."""

    def split(pairs: list[TokenPair], budget: int, at_once: int) -> list[list[TokenPair]]:
        groups = [pairs[i : i + pairs_each] for i in range(0, len(pairs), pairs_each)]
        budget = min(budget, -(-cost(pairs, engine) // at_once))
        parts: list[list[TokenPair]] = []
        for group in groups:
            if parts and cost([*parts[-1], *group], engine) <= budget:
                parts[-1] += group
            else:
                parts.append(list(group))
        return parts

    return split


class RlooTrainer(Trainer):
    """The trainer whose pairs are what the policy draws for the prompts of the pairs it is given."""

    reward_model: RewardModel
    drawing: Drawing
    phase: Callable[[str], AbstractContextManager[None]] = staticmethod(lambda name: nullcontext())

    def __init__(self, **given: Any) -> None:
        self.rewards: dict[str, tuple[float, float, int]] = {}
        super().__init__(**given)

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """A step on what the policy draws now, with a seed of its own."""
        step = self.state.global_step + 1
        # Drawing runs in eval mode, which has silently cut gradients off elsewhere.
        self.check_gradients_at = step
        drawn = self._prepare(model, inputs["pairs"], step_seed(self.args.seed, "train", step))
        return super().training_step(model, {**inputs, "pairs": drawn.pairs}, num_items_in_batch)

    def evaluate(self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval") -> Any:
        """Reward and KL of answers drawn for the dev prompts, with the same seed at each look."""
        if not self.dev_pairs:
            return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        self.model.eval()
        prompts, kept = self.dev_pairs, (self.reference, self.rewards)
        try:
            self.dev_pairs = self._prepare(self.model, prompts, step_seed(self.args.seed, "dev", 0)).pairs
            return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        finally:
            self.dev_pairs, (self.reference, self.rewards) = prompts, kept

    def _prepare(self, model: Any, prompts: Sequence[TokenPair], seed: int) -> Draws:
        """Draw, score, and take the reference's log-probs."""
        training = model.training
        model.eval()
        keep_quantized_in_train_mode(model)
        with torch.no_grad(), self.compute_loss_context_manager():
            with self.phase("generate"):
                drawn = draw(self.accelerator.unwrap_model(model), prompts, self.drawing, seed, self.work)
                self.on_work(drawn.spent, "generate")
            with self.phase("score"):
                spent = self.reward_model.spent
                scores = self.reward_model.rewards(drawn.pairs)
                self.on_work(self.reward_model.spent - spent, "score")
            with self.accelerator.unwrap_model(model).disable_adapter():
                off = sequence_log_probs(model, drawn.pairs, SCORING_TOKENS)
        if self.work is not None:
            amounts = [self.work.of_pairs([pair], self.engine.name) for pair in drawn.pairs]
            self.on_work(sum(self.work.forward(amount, adapters=False) for amount in amounts))
        model.train(training)
        ids = [pair.id for pair in drawn.pairs]
        self.reference = dict(zip(ids, off, strict=True))
        lost, cut = drawn.penalties, drawn.cut
        self.rewards = {i: (s[0] - lost[i][0], s[1] - lost[i][1], cut[i]) for i, s in zip(ids, scores, strict=True)}
        return drawn
