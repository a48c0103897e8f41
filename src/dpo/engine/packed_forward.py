"""Teaches a model's forward the packed layout; without one in the call it stays what it was."""

from __future__ import annotations

import functools
import types
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch

from dpo.engine import attention, head
from dpo.engine.allocator import keep_memory
from dpo.engine.lean import make_lean, undo_lean
from dpo.engine.rewards import REWARDS, answer_rewards
from dpo.engine.support import refusal, unwrapped
from dpo.modeling.modes import keep_4bit_layout

if TYPE_CHECKING:
    from dpo.engine.layout import PackedLayout

_MARK = "_dpo_packed"


def install(model: torch.nn.Module, *, lean: bool = True) -> str | None:
    """Let `model(input_ids=layout.token_ids, packed=layout, figures=(...))` give a layout's `head.TokenStatistics`.

    Before or after `trl.trainer.utils.add_fused_lm_head`, which hands on what it does not know. Calls without
    `packed`, generation included, run the forward found here.

    Args:
        model: a causal LM, plain or wrapped by PEFT.
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
    setattr(base, _MARK, True)
    return None


def installed(model: torch.nn.Module) -> bool:
    """True if `install` has been done on `model` or on the model inside it."""
    return getattr(unwrapped(model), _MARK, False)


def _forward_with_layout(base: torch.nn.Module) -> Any:
    original = base.forward

    # `generate` checks its arguments against the signature, so it has to look like the class's own. Wrappers of the
    # model (PEFT, autocast, FSDP) see this call as any other.
    @functools.wraps(type(base).forward)
    def forward(
        self: Any,
        *args: Any,
        packed: PackedLayout | None = None,
        figures: tuple[str, ...] = ("log_probs",),
        **kwargs: Any,
    ) -> Any:
        if packed is None:
            return original(*args, **kwargs)
        if figures == REWARDS:
            return answer_rewards(base, packed)
        return completion_statistics(base, packed, figures)

    return forward


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
    """(scale, soft cap) of the final logits, as TRL's fused head reads them from the families' configs."""
    text = config.get_text_config()
    names = ("logit_scale", "output_multiplier", "lm_head_multiplier")
    scale = next((value for name in names if (value := getattr(text, name, None)) is not None), None)
    divisor = getattr(text, "logits_scaling", None)
    if scale is None and divisor is not None:
        scale = divisor if text.model_type == "hyperclovax" else 1 / divisor
    return (1.0 if scale is None else float(scale)), getattr(text, "final_logit_softcapping", None)
