"""The dpo group: objective and optimization, one dataclass per loss with just what that loss reads.

The losses, and which parameter each of them reads, are those of TRL's trainers; a test compares both tables with them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from omegaconf import MISSING


class Optimizer(Enum):
    """Names of optimizers, in the Trainer's words."""

    adamw = "adamw_torch_fused"
    paged_adamw_8bit = "paged_adamw_8bit"


class Scheduler(Enum):
    """Learning-rate schedules, in the Trainer's words."""

    constant = "constant"
    constant_with_warmup = "constant_with_warmup"
    linear = "linear"
    cosine = "cosine"


class FDivergence(Enum):
    """Which divergence holds the policy to its reference (f-DPO, arXiv:2309.16240, table 1)."""

    reverse_kl = "reverse_kl"
    forward_kl = "forward_kl"
    js_divergence = "js_divergence"
    alpha_divergence = "alpha_divergence"


@dataclass
class Dpo:
    """Objective and optimization. `batch_size` is pairs per optimizer step, over all devices."""

    loss: list[str] = MISSING
    beta: float = MISSING
    learning_rate: float = MISSING
    optimizer: Optimizer = MISSING
    weight_decay: float = MISSING
    max_grad_norm: float = MISSING
    scheduler: Scheduler = MISSING
    warmup_ratio: float = MISSING
    epochs: float = MISSING
    max_steps: int | None = None
    batch_size: int = MISSING
    log_every: int = MISSING
    eval_every: int = MISSING
    eval_limit: int | None = None
    save_every: int = MISSING
    keep_checkpoints: int = MISSING
    trainer: dict[str, Any] = field(default_factory=dict)


@dataclass
class LengthDebiased(Dpo):
    """`ld_alpha` weighs the tokens beyond the shorter answer's length (LD-DPO, arXiv:2409.06411); null: as 1."""

    ld_alpha: float | None = MISSING


@dataclass
class PairLoss(LengthDebiased):
    """`use_weighting` weighs a pair by how likely the policy is to write it (WPO, arXiv:2406.11827, equation 2)."""

    use_weighting: bool = MISSING


@dataclass
class MarginLoss(PairLoss):
    """A function of the reward difference, so that another f-divergence may define the reward."""

    f_divergence_type: FDivergence = MISSING
    f_alpha_divergence_coef: float | None = MISSING


@dataclass
class Sigmoid(MarginLoss):
    """-log sigmoid(beta (chosen - rejected log-ratio)) (DPO, arXiv:2305.18290, equation 7)."""


@dataclass
class SigmoidNorm(MarginLoss):
    """The DPO loss on log-ratios per token (Tulu 3, arXiv:2411.15124, section 5.1)."""


@dataclass
class Hinge(MarginLoss):
    """max(0, 1 - beta (log-ratio difference)) (SLiC, arXiv:2305.10425; RSO, arXiv:2309.06657)."""


@dataclass
class Ipo(MarginLoss):
    """(log-ratio difference - 1/(2 beta))^2 (IPO, arXiv:2310.12036, equation 17)."""


@dataclass
class ExoPair(MarginLoss):
    """Reverse KL to the smoothed preference (EXO, arXiv:2402.00856, equation 16); `label_smoothing` above 0."""

    label_smoothing: float = MISSING


@dataclass
class Robust(MarginLoss):
    """Unbiased under labels flipped with probability `label_smoothing` (Robust DPO, arXiv:2403.00409)."""

    label_smoothing: float = MISSING


@dataclass
class DiscoPop(MarginLoss):
    """Log-ratio modulated loss (DiscoPOP, arXiv:2406.08414, equation 5); `discopop_tau` is its temperature."""

    discopop_tau: float = MISSING


@dataclass
class NcaPair(PairLoss):
    """Noise-contrastive alignment: absolute likelihoods (NCA, arXiv:2402.05369)."""


@dataclass
class BcoPair(PairLoss):
    """Binary classifier of chosen and of rejected (BCO, arXiv:2404.04656)."""


@dataclass
class SppoHard(PairLoss):
    """Squared distance of each log-ratio to +-1/(2 beta) (SPPO with hard labels, arXiv:2405.00675)."""


@dataclass
class ApoZero(PairLoss):
    """Chosen up, rejected down (APO-zero, arXiv:2408.06266, equation 7)."""


@dataclass
class ApoDown(PairLoss):
    """Both down, rejected more (APO-down, arXiv:2408.06266, equation 8)."""


@dataclass
class Aot(LengthDebiased):
    """First-order dominance of the sorted log-ratios of a step (AOT, arXiv:2406.05882); never split."""

    label_smoothing: float = MISSING


@dataclass
class AotUnpaired(LengthDebiased):
    """AOT with chosen and rejected sorted apart (arXiv:2406.05882); never split."""

    label_smoothing: float = MISSING


@dataclass
class Sft(Dpo):
    """Mean negative log-likelihood of the chosen tokens of a step; no reference in it."""


@dataclass
class Simpo(Dpo):
    """-log sigmoid(beta (difference of log-probs per token - `gamma_ratio`)) (SimPO, arXiv:2405.14734, equation 6)."""

    gamma_ratio: float = MISSING


@dataclass
class Cpo(Dpo):
    """DPO without its reference, plus `cpo_alpha` times the likelihood of chosen (CPO, arXiv:2401.08417)."""

    cpo_alpha: float = MISSING


@dataclass
class Orpo(Dpo):
    """Likelihood of prompt and chosen plus beta times the odds-ratio term (ORPO, arXiv:2403.07691, equation 6)."""


@dataclass
class Kto(Dpo):
    """Each side an example of its own, weighted by whether it is wanted (KTO, arXiv:2402.01306, equation 8)."""

    desirable_weight: float = MISSING
    undesirable_weight: float = MISSING


@dataclass
class Reward(Dpo):
    """A classifier that scores answers, no policy: -log sigmoid(chosen - rejected) (arXiv:2203.02155, equation 1)."""


@dataclass
class Rloo(Dpo):
    """REINFORCE on a reward model's scores, less beta KL, with the mean of a prompt's other `samples` as baseline
    (arXiv:2402.14740, equation 9). `batch_size` is prompts a step."""

    reward: str = MISSING
    samples: int = MISSING
    max_new_tokens: int = MISSING
    cut_penalty: float = MISSING


@dataclass
class Mix(Dpo):
    """A weighted sum of losses (MPO, arXiv:2411.10442, is one); null is a parameter that none of them reads."""

    loss_weights: list[float] = MISSING
    label_smoothing: float | None = MISSING
    discopop_tau: float | None = MISSING
    f_divergence_type: FDivergence | None = MISSING
    f_alpha_divergence_coef: float | None = MISSING
    ld_alpha: float | None = MISSING
    use_weighting: bool = MISSING


SINGLE: dict[str, type[Dpo]] = {
    "sigmoid": Sigmoid,
    "sigmoid_norm": SigmoidNorm,
    "hinge": Hinge,
    "ipo": Ipo,
    "exo_pair": ExoPair,
    "robust": Robust,
    "discopop": DiscoPop,
    "nca_pair": NcaPair,
    "bco_pair": BcoPair,
    "sppo_hard": SppoHard,
    "apo_zero": ApoZero,
    "apo_down": ApoDown,
    "aot": Aot,
    "aot_unpaired": AotUnpaired,
    "sft": Sft,
    "simpo": Simpo,
    "cpo": Cpo,
    "orpo": Orpo,
    "kto": Kto,
    "reward": Reward,
    "rloo": Rloo,
}
"""Name of a loss -> its dataclass, whose fields beyond Dpo's are what the loss reads."""

PARAMETERS = (
    "label_smoothing",
    "discopop_tau",
    "f_divergence_type",
    "f_alpha_divergence_coef",
    "ld_alpha",
    "use_weighting",
)
"""Parameters of the losses of TRL's DPOTrainer, under its names."""

OWN_PARAMETERS = ("gamma_ratio", "cpo_alpha", "desirable_weight", "undesirable_weight")
"""Parameters of losses of other trainers."""

RLHF = frozenset({"reward", "rloo"})
"""What RLHF takes in place of a loss of pairs' log-probs."""

ALONE = frozenset({"simpo", "cpo", "orpo", "kto", *RLHF})
"""Losses of other trainers than TRL's DPOTrainer: they go with no other loss."""

EXAMPLES = frozenset({"kto"})
"""Losses that take each answer as an example of its own, and so single answers too."""

REFERENCE_FREE = frozenset({"simpo", "cpo", "orpo", "reward"})
"""Losses that compare the policy with no reference: none is computed."""

SORTED = frozenset({"aot", "aot_unpaired"})
"""Losses that sort the log-ratios of their batch: a step cannot be split."""


def reads(loss: str) -> set[str]:
    """The names of PARAMETERS that a loss reads."""
    return set(PARAMETERS) & set(SINGLE[loss].__dataclass_fields__)


def unread(key: str, losses: Sequence[str]) -> str:
    """Of a key that these losses' option does not have: that others read it, where they do."""
    name = key.removeprefix("dpo.")
    others = [loss for loss, schema in SINGLE.items() if name in schema.__dataclass_fields__]
    if not others or not losses or name == key:
        return ""
    free = ", which has no reference," if REFERENCE_FREE & set(losses) else ""
    return f"; {'+'.join(losses)}{free} does not read it, as {others[0]} does"
