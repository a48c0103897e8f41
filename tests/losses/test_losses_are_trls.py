"""Each loss and each metric against TRL's own `_compute_loss`, on random figures of tokens."""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from trl.trainer.dpo_trainer import DPOTrainer

from dpo.losses.objective import Objective, sft_share
from dpo.losses.table import LOSSES as ALL

LOSSES = {name: loss for name, loss in ALL.items() if loss.in_dpo_trainer}
WHOLE_STEP = {name for name, loss in LOSSES.items() if loss.whole_step}
LENGTHS = [(3, 5), (1, 1), (7, 2), (4, 9), (6, 6), (2, 8)]
PROMPTS = [2, 5, 1, 3, 4, 1]
STRENGTHS = torch.tensor([0.5, 0.6, 0.75, 0.9, 1.0, 0.55], dtype=torch.float64)


class Figures(NamedTuple):
    log_probs: torch.Tensor
    entropy: torch.Tensor
    log_sum_sq_probs: torch.Tensor
    mean_logits: torch.Tensor
    is_top1: torch.Tensor


def drawn(dtype: torch.dtype, scale: float = 0.6) -> tuple[Figures, torch.Tensor]:
    """Figures of all completion tokens, and [B, 2] reference log-probs some nats away from the policy's."""
    draw = torch.Generator().manual_seed(7)
    count = sum(chosen + rejected for chosen, rejected in LENGTHS)
    values = [torch.rand(count, generator=draw, dtype=torch.float64) for _ in range(4)]
    figures = Figures(
        (-2 * values[0]).to(dtype).requires_grad_(),
        values[1].to(dtype),
        (-values[2]).to(dtype),
        (values[3] - 0.5).to(dtype),
        torch.rand(count, generator=draw) < 0.4,
    )
    own = torch.tensor([float(part.sum()) for part in figures.log_probs.detach().double().split(flat())])
    reference = own.view(-1, 2) + scale * torch.randn(len(LENGTHS), 2, generator=draw, dtype=torch.float64)
    return figures, reference.to(dtype)


def flat() -> list[int]:
    return [length for pair in LENGTHS for length in pair]


def trls(objective: Objective, figures: Figures, reference: torch.Tensor) -> tuple[torch.Tensor, dict[str, float]]:
    """TRL's loss and metrics of the same figures in its padded layout."""
    width = max(p + max(pair) for p, pair in zip(PROMPTS, LENGTHS, strict=True))
    rows = [2 * i + side for side in (0, 1) for i in range(len(LENGTHS))]
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    for row, source in enumerate(rows):
        prompt, length = PROMPTS[source // 2], flat()[source]
        mask[row, prompt : prompt + length] = 1

    def padded(values: torch.Tensor) -> torch.Tensor:
        parts = values.split(flat())
        into = values.new_zeros(len(rows), width - 1)
        return into.masked_scatter(mask[:, 1:].bool(), torch.cat([parts[source] for source in rows]))

    gather = SimpleNamespace(device="cpu", gather=lambda x: x, gather_for_metrics=lambda x: x)
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=True),
        accelerator=gather,
        aux_loss_enabled=False,
        precompute_ref_logps=True,
        ld_alpha=objective.ld_alpha,
        beta=objective.beta,
        f_divergence_type=objective.f_divergence_type,
        f_alpha_divergence_coef=objective.f_alpha_divergence_coef,
        loss_types=list(objective.losses),
        loss_weights=list(objective.weights or [1.0] * len(objective.losses)),
        label_smoothing=objective.label_smoothing,
        args=SimpleNamespace(discopop_tau=objective.discopop_tau),
        use_weighting=objective.use_weighting,
        _metrics={"train": defaultdict(list)},
        _total_train_tokens=0,
        _tp_size=1,
    )
    inputs = {
        "input_ids": torch.zeros_like(mask),
        "attention_mask": mask,
        "completion_mask": mask,
        "ref_chosen_logps": reference[:, 0],
        "ref_rejected_logps": reference[:, 1],
    }
    outputs = SimpleNamespace(**{name: padded(value) for name, value in figures._asdict().items()})
    compute: Any = DPOTrainer._compute_loss
    loss = compute(trainer, lambda **_: outputs, inputs, False)
    found = {name: values[-1] for name, values in trainer._metrics["train"].items()}
    found.pop("num_tokens")
    return loss, found


MARGINS = ("sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "discopop")
CASES = [
    *[Objective((name,), 0.3, label_smoothing=0.1) for name in LOSSES],
    *[Objective((name,), 0.3, label_smoothing=0.1, ld_alpha=0.4) for name in LOSSES],
    *[
        Objective((name,), 0.3, label_smoothing=0.1, use_weighting=True)
        # TRL multiplies in place what its hinge keeps for the backward, which then fails.
        for name in sorted(LOSSES.keys() - WHOLE_STEP - {"sft", "hinge"})
    ],
    *[
        Objective((name,), 0.3, label_smoothing=0.1, f_divergence_type=kind, f_alpha_divergence_coef=alpha)
        for name in MARGINS
        for kind, alpha in [
            ("forward_kl", 0.5),
            ("js_divergence", 0.5),
            ("alpha_divergence", 0.5),
            ("alpha_divergence", 1.7),
            ("alpha_divergence", 1.0),
        ]
    ],
    Objective(("sigmoid", "bco_pair", "sft"), 0.1, weights=(0.8, 0.2, 1.0)),
    Objective(("sigmoid", "sft"), 0.1, weights=(1.0, 0.3), ld_alpha=0.0),
    Objective(("aot", "aot_unpaired", "hinge"), 0.5, weights=(1.0, 0.5, 2.0)),
    Objective(("exo_pair",), 0.3, label_smoothing=0.001),
    Objective(("discopop",), 0.3, discopop_tau=0.4),
    Objective(("sppo_hard",), 0.001),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("objective", CASES, ids=str)
def test_value_gradient_and_metrics_are_trls(objective: Objective, dtype: torch.dtype) -> None:
    """In bf16 at most as far from the fp32 truth as half again TRL's own distance."""
    figures, reference = drawn(torch.float32)
    expected, expected_metrics = trls(objective, figures, reference)
    (slope,) = torch.autograd.grad(expected, figures.log_probs)
    assert slope.abs().max() > 0
    if dtype == torch.float32:
        loss, metrics = objective(figures, LENGTHS, reference)
        assert float(loss) == pytest.approx(float(expected), rel=3e-6)
        assert metrics.keys() == expected_metrics.keys()
        assert metrics == pytest.approx(expected_metrics, rel=1e-5, abs=1e-6)
        (got,) = torch.autograd.grad(loss, figures.log_probs)
        assert float((got - slope).abs().max()) <= 1e-5 * float(slope.abs().max())
        return
    halves, half_reference = drawn(dtype)
    theirs, _ = trls(objective, halves, half_reference)
    (rough,) = torch.autograd.grad(theirs, halves.log_probs)
    loss, _ = objective(halves, LENGTHS, half_reference)
    (got,) = torch.autograd.grad(loss, halves.log_probs)
    truth, floor = float(expected.detach()), 2**-8
    distance = abs(float(loss) - truth)
    assert distance <= 1.5 * abs(float(theirs) - truth) + floor * abs(truth)
    error, own = float((got.float() - slope).norm()), float((rough.float() - slope).norm())
    assert error <= 1.5 * own + floor * float(slope.norm())


def test_soft_labels_are_the_cross_entropy_with_them() -> None:
    figures, reference = drawn(torch.float64)
    objective = Objective(("sigmoid",), 0.3, soft_labels=True)
    loss, _ = objective(figures, LENGTHS, reference, STRENGTHS)
    own = torch.stack([part.sum() for part in figures.log_probs.split(flat())]).view(-1, 2) - reference
    z = 0.3 * (own[:, 0] - own[:, 1])
    expected = -(STRENGTHS * torch.sigmoid(z).log() + (1 - STRENGTHS) * torch.sigmoid(-z).log()).mean()
    assert float(loss) == pytest.approx(float(expected), rel=1e-9)
    certain, _ = objective(figures, LENGTHS, reference, torch.ones(len(LENGTHS)))
    assert float(certain) == pytest.approx(float(Objective(("sigmoid",), 0.3)(figures, LENGTHS, reference)[0]))


@pytest.mark.parametrize("name", sorted(LOSSES.keys() - WHOLE_STEP))
def test_parts_add_up_to_the_whole_step(name: str) -> None:
    """Each part's loss times its share of the pairs; so no split changes the step."""
    figures, reference = drawn(torch.float64)
    objective = Objective((name,), 0.3, label_smoothing=0.1)
    whole, _ = objective(figures, LENGTHS, reference)
    tokens = [chosen for chosen, _ in LENGTHS]
    total, start = torch.zeros(()), 0
    for part in (slice(0, 1), slice(1, 4), slice(4, 6)):
        end = start + sum(map(sum, LENGTHS[part]))
        own = Figures(*(values[start:end] for values in figures))
        share = sft_share(tokens[part], tokens)
        loss, _ = objective(own, LENGTHS[part], reference[part], sft_share=share)
        total = total + loss * len(LENGTHS[part]) / len(LENGTHS)
        start = end
    assert float(total) == pytest.approx(float(whole), rel=1e-9)


def test_the_config_says_of_each_loss_what_the_table_does() -> None:
    from dpo.config.losses import ALONE, EXAMPLES, REFERENCE_FREE, RLHF, SINGLE, SORTED

    assert ALL.keys() == SINGLE.keys() - RLHF
    assert WHOLE_STEP == SORTED
    assert {name for name, loss in ALL.items() if not loss.reference} == REFERENCE_FREE - RLHF
    assert {name for name, loss in ALL.items() if not loss.in_dpo_trainer} == ALONE - RLHF
    assert {name for name, loss in ALL.items() if loss.examples} == EXAMPLES
