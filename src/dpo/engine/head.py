"""The LM head on completion rows: log-probs of the tokens that count, with no row of logits ever stored."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

TILE_BYTES = 4 << 20
"""A tile of logits should stay in the cache between the matrix product and the reductions over it."""
FEW = 64
"""Rows of a tile that are copied at one time."""


class TokenStatistics(NamedTuple):
    """One value for each of N completion tokens; None where it was not asked for. Only `log_probs` has a gradient."""

    log_probs: torch.Tensor
    entropy: torch.Tensor | None
    log_sum_sq_probs: torch.Tensor | None
    mean_logits: torch.Tensor | None
    is_top1: torch.Tensor | None


def token_statistics(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    rows: torch.Tensor,
    targets: torch.Tensor,
    *,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    outputs: tuple[str, ...] = ("log_probs",),
) -> TokenStatistics:
    """Log-probs (nats) of `targets` under softmax(cap(scale * (hidden @ weight.T + bias))), and TRL's side figures.

    Args:
        hidden: [U, H] states of the rows that predict something.
        weight: [V, H] and bias: [V] or None, of the LM head.
        rows: [N] which row of `hidden` predicts each target; targets: [N] token ids.
        logit_scale, softcap: as `trl.trainer.utils.add_fused_lm_head` reads them from the config.
        outputs: of log_probs, entropy, log_sum_sq_probs, mean_logits, is_top1.
    """
    if hidden.device.type == "cpu":
        return TokenStatistics(
            *_CompletionHead.apply(hidden, weight, bias, rows, targets, logit_scale, softcap, outputs)
        )
    from trl.kernels import ChunkedLogProbFunction

    values = ChunkedLogProbFunction.apply(
        hidden.index_select(0, rows), weight, bias, targets, 1.0, 32768, softcap, logit_scale, tuple(outputs)
    )
    return TokenStatistics(*values)


def _tile_columns(rows: int, vocabulary: int, itemsize: int) -> int:
    columns = TILE_BYTES // max(1, rows * itemsize)
    return min(vocabulary, max(512, columns // 256 * 256))


class _CompletionHead(torch.autograd.Function):
    """Walks the vocabulary in tiles with an online softmax.

    The gradient of one log-prob to its hidden state is scale * (W[target] - sum_v p_v W_v): a fixed vector times the
    incoming scalar. So the forward accumulates sum_v p_v W_v while a tile is in the cache, and the backward needs no
    pass over the vocabulary (two matrix products a tile in all, where recomputing takes three). Entropy falls out of
    the same sum: E_p[z] = scale * hidden . sum_v p_v W_v.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        rows: torch.Tensor,
        targets: torch.Tensor,
        logit_scale: float,
        softcap: float | None,
        outputs: tuple[str, ...],
    ) -> tuple[torch.Tensor | None, ...]:
        ctx.set_materialize_grads(False)
        count, vocabulary = hidden.shape[0], weight.shape[0]
        compute = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else hidden.dtype
        exact = torch.float64 if compute == torch.float64 else torch.float32
        states = hidden.detach().to(compute)
        with_gradient = ctx.needs_input_grad[0]
        mean_weight = torch.zeros(hidden.shape, dtype=exact) if with_gradient else None
        free_entropy = "entropy" in outputs and with_gradient and softcap is None and bias is None

        peak = torch.full((count,), -torch.inf, dtype=exact)
        sum_exp = torch.zeros(count, dtype=exact)
        sum_exp_z = torch.zeros(count, dtype=exact)
        sum_exp_sq = torch.zeros(count, dtype=exact)
        sum_z = torch.zeros(count, dtype=exact)
        target_logit = torch.zeros(rows.shape, dtype=exact)
        peak_before = torch.full(rows.shape, -torch.inf, dtype=exact)
        columns = _tile_columns(count, vocabulary, torch.finfo(exact).bits // 8)

        for start in range(0, vocabulary, columns):
            tile_weight = weight[start : start + columns].to(compute)
            z = _logits(states, tile_weight, bias, start, logit_scale, softcap, exact)
            here = ((targets >= start) & (targets < start + z.shape[1])).nonzero().squeeze(1)
            if here.numel():
                source, column = rows[here], targets[here] - start
                target_logit[here] = z[source, column]
                if "is_top1" in outputs:
                    # The first of equal maxima is the argmax, so only earlier columns can beat an equal target.
                    for some in range(0, here.shape[0], FEW):
                        few = slice(some, some + FEW)
                        before = torch.arange(z.shape[1]).unsqueeze(0) < column[few].unsqueeze(1)
                        earlier = z[source[few]].masked_fill_(~before, -torch.inf).amax(1)
                        peak_before[here[few]] = torch.maximum(peak[source[few]], earlier)
            new_peak = torch.maximum(peak, z.amax(1))
            rescale = torch.exp(peak - new_peak)
            if "mean_logits" in outputs:
                sum_z += z.sum(1)
            keeps_z = (("entropy" in outputs) and not free_entropy) or (softcap is not None and with_gradient)
            exp = torch.exp(z - new_peak.unsqueeze(1)) if keeps_z else z.sub_(new_peak.unsqueeze(1)).exp_()
            sum_exp.mul_(rescale).add_(exp.sum(1))
            if "entropy" in outputs and not free_entropy:
                sum_exp_z.mul_(rescale).add_((exp * z).sum(1))
            if "log_sum_sq_probs" in outputs:
                sum_exp_sq.mul_(rescale * rescale).add_(exp.square().sum(1))
            if mean_weight is not None:
                if softcap is not None:
                    exp.mul_(1 - (z / softcap).square_())
                mean_weight.mul_(rescale.unsqueeze(1))
                _accumulate(mean_weight, exp, tile_weight)
            peak = new_peak

        log_z = peak + torch.log(sum_exp)
        log_probs = target_logit - log_z[rows]
        entropy = log_sum_sq = mean_logits = is_top1 = None
        if mean_weight is not None:
            mean_weight.div_(sum_exp.unsqueeze(1))
        if "entropy" in outputs:
            if free_entropy and mean_weight is not None:
                mean_z = (mean_weight * states.to(exact)).sum(1) * logit_scale
            else:
                mean_z = sum_exp_z / sum_exp
            entropy = (log_z - mean_z)[rows]
        if "log_sum_sq_probs" in outputs:
            log_sum_sq = (torch.log(sum_exp_sq) - 2 * torch.log(sum_exp))[rows]
        if "mean_logits" in outputs:
            mean_logits = (sum_z / vocabulary)[rows]
        if "is_top1" in outputs:
            is_top1 = (target_logit >= peak[rows]) & (target_logit > peak_before)

        ctx.save_for_backward(hidden, weight, bias, rows, targets, target_logit, log_z, mean_weight)
        ctx.scale, ctx.softcap, ctx.compute, ctx.exact, ctx.columns = logit_scale, softcap, compute, exact, columns
        ctx.mark_non_differentiable(*(x for x in (entropy, log_sum_sq, mean_logits, is_top1) if x is not None))
        return log_probs, entropy, log_sum_sq, mean_logits, is_top1

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor | None, *_: Any) -> tuple[torch.Tensor | None, ...]:
        hidden, weight, bias, rows, targets, target_logit, log_z, mean_weight = ctx.saved_tensors
        nothing: tuple[None, ...] = (None,) * 5
        if grad is None:
            return (None, None, None, *nothing)
        exact = ctx.exact
        grad = grad.to(exact)
        row_grad = torch.zeros(hidden.shape[0], dtype=exact).index_add_(0, rows, grad)
        target_grad = grad * ctx.scale
        if ctx.softcap is not None:
            target_grad = target_grad * (1 - (target_logit / ctx.softcap).square())
        grad_hidden = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            total = mean_weight * (-row_grad * ctx.scale).unsqueeze(1)
            total.index_add_(0, rows, weight.index_select(0, targets).to(exact) * target_grad.unsqueeze(1))
            grad_hidden = total.to(hidden.dtype)
        needs_bias = bias is not None and ctx.needs_input_grad[2]
        if ctx.needs_input_grad[1] or needs_bias:
            grad_weight, grad_bias = _weight_gradient(ctx, hidden, weight, bias, row_grad, log_z, needs_bias)
            grad_weight.index_add_(0, targets, hidden.index_select(0, rows).to(exact) * target_grad.unsqueeze(1))
            grad_weight = grad_weight.to(weight.dtype)
            if grad_bias is not None:
                grad_bias = grad_bias.index_add_(0, targets, target_grad).to(bias.dtype)
        return (grad_hidden, grad_weight if ctx.needs_input_grad[1] else None, grad_bias, *nothing)


def _logits(
    states: torch.Tensor,
    tile_weight: torch.Tensor,
    bias: torch.Tensor | None,
    start: int,
    logit_scale: float,
    softcap: float | None,
    exact: torch.dtype,
) -> torch.Tensor:
    z = torch.mm(states, tile_weight.t())
    if bias is not None:
        z.add_(bias[start : start + z.shape[1]].to(z.dtype))
    z = z.to(exact)
    if logit_scale != 1.0:
        z.mul_(logit_scale)
    if softcap is not None:
        z.div_(softcap).tanh_().mul_(softcap)
    return z


def _accumulate(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    # Rounding each tile's product to bf16 before adding it up would bias the gradient over many tiles.
    if right.dtype == total.dtype:
        total.addmm_(left, right)
    else:
        total.add_(torch.mm(left.to(right.dtype), right).to(total.dtype))


def _weight_gradient(
    ctx: Any,
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    row_grad: torch.Tensor,
    log_z: torch.Tensor,
    needs_bias: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    # Only a trainable head (full fine-tuning) comes here; it needs the probabilities again.
    states = hidden.detach().to(ctx.compute)
    exact_states = states.to(ctx.exact)
    grad_weight = torch.empty(weight.shape, dtype=ctx.exact)
    grad_bias = torch.empty(weight.shape[0], dtype=ctx.exact) if needs_bias else None
    for start in range(0, weight.shape[0], ctx.columns):
        tile_weight = weight[start : start + ctx.columns].to(ctx.compute)
        z = _logits(states, tile_weight, bias, start, ctx.scale, ctx.softcap, ctx.exact)
        slope = None if ctx.softcap is None else 1 - (z / ctx.softcap).square_()
        z.sub_(log_z.unsqueeze(1)).exp_().mul_((-row_grad * ctx.scale).unsqueeze(1))
        if slope is not None:
            z.mul_(slope)
        end = start + z.shape[1]
        torch.mm(z.t(), exact_states, out=grad_weight[start:end])
        if grad_bias is not None:
            grad_bias[start:end] = z.sum(0)
    return grad_weight, grad_bias
