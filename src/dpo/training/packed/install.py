"""Teaches a model's forward the packed layout; without one in the call it stays what it was."""

from __future__ import annotations

import functools
import types
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch

from dpo.training.packed import attention, head
from dpo.training.packed.allocator import keep_memory
from dpo.training.packed.lean import make_lean, undo_lean
from dpo.training.packed.modes import keep_4bit_layout
from dpo.training.packed.support import refusal, unwrapped

if TYPE_CHECKING:
    from dpo.training.packed.layout import PackedLayout

DEFAULT_OUTPUTS = ("log_probs", "entropy", "mean_logits", "is_top1")
_MARK = "_dpo_packed_outputs"


def install(model: torch.nn.Module, outputs: tuple[str, ...] = DEFAULT_OUTPUTS, *, lean: bool = True) -> str | None:
    """Let `model(**batch, labels=..., fused_lm_head=True)` use `batch["packed"]`.

    Call it after `trl.trainer.utils.add_fused_lm_head` (the trainer's constructor does that), with the same
    `outputs`. Calls without `packed`, generation included, run the forward found here. Installing twice only
    updates `outputs`.

    Args:
        model: a causal LM, plain or wrapped by PEFT.
        outputs: per-token figures to return, of log_probs, entropy, log_sum_sq_probs, mean_logits, is_top1.
        lean: also swap norms, MLPs and LoRA layers for the functions of `lean`; False is for comparisons.

    Returns:
        None, or why this model is not supported (nothing is changed then).
    """
    reason = refusal(model)
    if reason is not None:
        return reason
    base = unwrapped(model)
    keep_4bit_layout(base)
    if not installed(model):
        if next(base.parameters()).device.type == "cpu":
            keep_memory()
        attention.register()
        config = base.config
        config._attn_implementation_internal = attention.STAND_INS[config._attn_implementation]
        base.forward = types.MethodType(_forward_with_layout(base), base)
    if lean:
        make_lean(base)
    else:
        undo_lean(base)
    setattr(base, _MARK, tuple(outputs))
    return None


def installed(model: torch.nn.Module) -> bool:
    """True if `install` has been done on `model` or on the model inside it."""
    return getattr(unwrapped(model), _MARK, None) is not None


def _forward_with_layout(base: torch.nn.Module) -> Any:
    original = base.forward

    # `generate` checks its arguments against the signature, so it has to look like the class's own.
    @functools.wraps(type(base).forward)
    def forward(self: Any, *args: Any, packed: PackedLayout | None = None, **kwargs: Any) -> Any:
        if packed is None or not kwargs.get("fused_lm_head", False):
            return original(*args, **kwargs)
        return _packed_forward(self, packed, args[0] if args else kwargs["input_ids"])

    return forward


def _packed_forward(base: Any, layout: PackedLayout, input_ids: torch.Tensor) -> Any:
    """TRL's per-token figures in its padded layout, computed on the packed one."""
    from trl.trainer.utils import FusedCausalLMOutput

    if input_ids.shape[0] != layout.padded_shape[0] or input_ids.shape[1] != layout.padded_shape[1] + 1:
        raise ValueError(f"packed layout is for {layout.padded_shape}, the batch has {tuple(input_ids.shape)}")
    values = completion_statistics(base, layout.to(input_ids.device), getattr(base, _MARK))
    layout = layout.to(input_ids.device)
    padded = {name: None if x is None else layout.scatter(x) for name, x in values._asdict().items()}
    return FusedCausalLMOutput(loss=-values.log_probs.mean(), **padded)


def completion_statistics(base: Any, layout: PackedLayout, outputs: tuple[str, ...]) -> head.TokenStatistics:
    """[N] figures of every completion token of `layout`, which lies on the model's device."""
    hidden = base.base_model(
        input_ids=layout.token_ids,
        position_ids=layout.position_ids,
        attention_mask=attention.no_mask(layout.token_ids.device),
        use_cache=False,
        packed=layout,
    ).last_hidden_state
    return head_statistics(base, hidden[0].index_select(0, layout.predictor_rows), layout, outputs)


def head_statistics(
    base: Any, states: torch.Tensor, layout: PackedLayout, outputs: tuple[str, ...]
) -> head.TokenStatistics:
    """[N] figures from the [U, H] `states` of the predictor rows."""
    from torch.distributed.tensor import DTensor
    from trl.trainer.utils import maybe_gather_lm_head_ctx

    lm_head = base.get_output_embeddings()
    weight, bias = lm_head.weight, lm_head.bias
    if isinstance(weight, DTensor):
        weight = weight.full_tensor()
        bias = None if bias is None else bias.full_tensor()
    scale, softcap = logit_transform(base.config)
    gathered = maybe_gather_lm_head_ctx(weight, bias) if torch.distributed.is_initialized() else nullcontext()
    with gathered:
        return head.token_statistics(
            states,
            weight,
            bias,
            layout.target_rows,
            layout.targets,
            logit_scale=scale,
            softcap=softcap,
            outputs=outputs,
        )


def logit_transform(config: Any) -> tuple[float, float | None]:
    """(scale, soft cap) of the final logits, for the verified families."""
    scale = getattr(config, "logit_scale", None)
    return (1.0 if scale is None else float(scale)), getattr(config, "final_logit_softcapping", None)
