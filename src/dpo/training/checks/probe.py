"""Before anything is trained: does what the trainer computes agree with what the model itself says?

A family may read what follows (BERT), scale its logits in a way of its own, or fail on plain text. Each would train
without a word, or end in a traceback; here it is found with a few tokens.
"""

from __future__ import annotations

from typing import Any

import torch

from dpo.data.pair import TokenPair
from dpo.engine.collate import pad
from dpo.engine.log_probs import sequence_log_probs
from dpo.engine.packed_forward import installed
from dpo.engine.support import unwrapped
from dpo.errors import ConfigError, is_out_of_memory
from dpo.modeling.modes import scoring_mode
from dpo.modeling.randomness import draws_at_random

TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3}
"""Of a log-prob, and of the logits' deviation; 16-bit types round."""
ROUGH = 0.15
CAUSAL = 1e-4
"""Of the logits' deviation, by which a family moves them that does not call itself a decoder, and may be none."""
TOKENS = 6


def check_scores(model: Any, pair: TokenPair, dtype: torch.dtype, source: str) -> None:
    """Raise ConfigError unless the log-probs that are trained are the model's own, and it sees only what came before.

    Args:
        model: with the engine it will be trained with.
        pair: any pair of the data; its first tokens are enough.
        dtype: of the activations.
    """
    chosen, rejected = pair.chosen_ids or pair.rejected_ids, pair.rejected_ids or pair.chosen_ids
    pair = TokenPair(pair.id, pair.prompt_ids[:TOKENS], chosen[:TOKENS], rejected[: TOKENS // 2])
    base, bound = unwrapped(model), TOLERANCE.get(dtype, ROUGH)
    what = f"model.path={source}: {base.config.model_type}"
    try:
        with scoring_mode(model):
            own = [_logits(base, pair.prompt_ids + ids) for ids in (pair.chosen_ids, pair.rejected_ids)]
            other = _logits(base, [*pair.prompt_ids, *pair.chosen_ids[:-1], pair.prompt_ids[0]])
            wanted = [_log_prob(logits, pair, i) for i, logits in enumerate(own)]
            scored = list(sequence_log_probs(model, [pair], 4096)[0])
        with scoring_mode(model, training=not draws_at_random(model)):
            trained = scored if installed(model) else _trained(model, pair)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise ConfigError(f"{what} cannot be trained here, its forward pass fails: {first_line(error)}") from error
    deviation = float(own[0].std())
    moved = float((own[0][:-1] - other[:-1]).abs().max())
    # An encoder may move them little, less than 16 bits round where a token's experts are multiplied together.
    if not moved <= deviation * (CAUSAL if _may_be_an_encoder(base.config) else bound):
        raise ConfigError(
            f"{what} reads the tokens that follow (a later one moves earlier logits by {moved / deviation:.2g} "
            "of their deviation), so it is no causal language model"
        )
    for found in (scored, trained):
        far = max(abs(x - y) for x, y in zip(found, wanted, strict=True)) / TOKENS
        if not far <= (bound * deviation if bound == ROUGH else bound * max(1.0, max(map(abs, wanted)) / TOKENS)):
            raise ConfigError(
                f"{what} computes its logits in a way that the trainer does not know (log-probs differ by {far:.2g} a "
                "token), so another model would be trained"
            )


def _may_be_an_encoder(config: Any) -> bool:
    return getattr(config, "is_decoder", None) is False or getattr(config, "attn_type", None) == "bi"


def router_loss_fails(model: Any, pair: TokenPair) -> bool:
    """Whether TRL cannot compute the loss that balances the experts of this family, as it names them its own way."""
    try:
        with scoring_mode(model):
            _trained(model, pair, output_router_logits=True)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        return True
    return False


def logits_deviation(model: Any, pair: TokenPair) -> float:
    """Deviation of the logits over the vocabulary, nats: what their roundings are relative to."""
    with scoring_mode(model):
        logits = _logits(unwrapped(model), [*pair.prompt_ids[:TOKENS], *pair.chosen_ids[:TOKENS]])
    return float(logits.std(-1).mean())


def _logits(base: Any, ids: list[int]) -> torch.Tensor:
    device = next(base.get_input_embeddings().parameters()).device
    logits: torch.Tensor = base(input_ids=torch.tensor([ids], device=device), use_cache=False).logits[0]
    return logits.float()


def token_log_probs(model: Any, pair: TokenPair) -> tuple[list[float], list[float], list[float]]:
    """Log-probs in nats of the tokens of the prompt (all but its first), and of those of chosen and of rejected that
    count, by plain logits."""
    found = []
    for ids in (pair.chosen_ids, pair.rejected_ids):
        whole = pair.prompt_ids + ids
        rows = _logits(unwrapped(model), whole)[:-1].log_softmax(-1)
        found.append(rows.gather(1, torch.tensor(whole[1:], device=rows.device).unsqueeze(1)).squeeze(1).tolist())
    first = len(pair.prompt_ids) - 1
    chosen, rejected = ([row[first + i] for i in places] for row, places in zip(found, pair.places, strict=True))
    return found[0][:first], chosen, rejected


def _log_prob(logits: torch.Tensor, pair: TokenPair, side: int) -> float:
    answer = torch.tensor((pair.chosen_ids, pair.rejected_ids)[side], device=logits.device)
    rows = logits[len(pair.prompt_ids) - 1 : -1].log_softmax(-1)
    return float(rows.gather(1, answer.unsqueeze(1)).sum())


def _trained(model: Any, pair: TokenPair, **asked: bool) -> list[float]:
    """(chosen, rejected) through TRL's own forward, as a plain engine trains."""
    device = next(unwrapped(model).get_input_embeddings().parameters()).device
    batch = {name: tensor.to(device) for name, tensor in pad([pair], 0).items()}
    labels = batch["input_ids"].masked_fill(batch.pop("completion_mask") == 0, -100)
    out = model(**batch, **asked, labels=labels, use_cache=False, fused_lm_head=True)
    found: list[float] = out.log_probs.sum(1).tolist()
    return found


def first_line(error: BaseException) -> str:
    """What an error says, in one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
