"""What a tool wrote inside an answer is seen and not counted, alike in both engines and in whatever counts tokens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import test_beyond_dpo
import test_losses
import torch
from packed_models import gradients, random_pairs, tiny_model
from tiny_trainers import move

from dpo.caches.keys import entry_key
from dpo.config.schema import Config
from dpo.data.id_bytes import EncodedPair, to_bytes
from dpo.data.lengths import length_bias
from dpo.data.pair import Spans, TokenPair
from dpo.data.token_file import TokenFile, TokenWriter
from dpo.engine.kto_divergence import mismatched
from dpo.engine.log_probs import sequence_log_probs
from dpo.engine.micro_batch import share_of_step
from dpo.engine.packed_forward import install
from dpo.training.checks.probe import token_log_probs
from dpo.training.checks.start_value import start_value


def given(pair: TokenPair) -> TokenPair:
    """The same pair with a run of tokens, or two, given in each answer that is long enough."""

    def spans(length: int) -> Spans:
        return ((1, 3), (5, length - 1)) if length > 8 else ((1, 2),) if length > 2 else ()

    both = spans(len(pair.chosen_ids)), spans(len(pair.rejected_ids))
    return TokenPair(pair.id, pair.prompt_ids, pair.chosen_ids, pair.rejected_ids, pair.strength, both)


PAIRS = [given(pair) for pair in test_losses.PAIRS]


def by_the_textbook(model: torch.nn.Module, pair: TokenPair) -> list[float]:
    sums = []
    for ids, spans in zip((pair.chosen_ids, pair.rejected_ids), pair.given, strict=True):
        rows = model(input_ids=torch.tensor([pair.prompt_ids + ids]), use_cache=False).logits[0].log_softmax(-1)
        counted = [i for i in range(len(ids)) if not any(first <= i < end for first, end in spans)]
        sums.append(float(sum(rows[len(pair.prompt_ids) + i - 1, ids[i]] for i in counted)))
    return sums


def test_log_probs_leave_them_out() -> None:
    model = tiny_model("llama", torch.float64).eval()
    with torch.no_grad():
        want = torch.tensor([by_the_textbook(model, pair) for pair in PAIRS])
    plain = torch.tensor(sequence_log_probs(model, PAIRS, 100))
    assert install(model) is None
    packed = torch.tensor(sequence_log_probs(model, PAIRS, 100))
    assert torch.allclose(plain, want, atol=1e-4)
    assert torch.allclose(packed, want, atol=1e-4)
    assert not torch.allclose(torch.tensor(sequence_log_probs(model, test_losses.PAIRS, 100)), want, atol=0.1)


@pytest.mark.parametrize(
    "words",
    [
        ("dpo=sigmoid", "dpo.ld_alpha=0.3"),
        ("dpo=ipo", "dpo.use_weighting=true"),
        ("dpo=mpo", "dpo.loss=[sigmoid_norm,sft]", "dpo.loss_weights=[0.5,1.0]"),
    ],
    ids=lambda words: words[0],
)
def test_both_engines_take_the_same_step(
    words: tuple[str, ...], compose: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(test_losses, "PAIRS", PAIRS)
    config = compose(*words)
    steps = [test_losses.step_of(test_losses.build(config, tmp_path / name, name, 3)) for name in ("packed", "plain")]
    (loss, gradients), (other, others) = steps
    assert loss == pytest.approx(other, rel=1e-4)
    assert all(torch.allclose(gradients[name], others[name], atol=1e-4) for name in gradients)


@pytest.mark.parametrize("name", ["simpo", "cpo", "orpo", "kto"])
def test_losses_without_trls_dpo_leave_them_out_too(name: str, compose: Callable[..., Config], tmp_path: Path) -> None:
    """Both engines take one step, in parts and whole, and no reward or likelihood moves with what a tool wrote."""
    config = compose(*test_beyond_dpo.LOSSES[name])
    found = []
    for number, (engine, size) in enumerate([("packed", 7), ("packed", 3), ("plain", 7)]):
        trainer = test_beyond_dpo.ours(config, tmp_path / f"{number}", engine, size, PAIRS)
        move(trainer.model)
        trainer.model.train()
        loss = float(trainer._forward_backward(trainer.model, PAIRS, 1))
        found.append((loss, gradients(trainer.model), trainer._drain()))
    (loss, grads, figures), *others = found
    for other, theirs, logged in others:
        assert loss == pytest.approx(other, rel=1e-4)
        assert all(torch.allclose(grads[leaf], theirs[leaf], atol=1e-4) for leaf in grads)
        # Means over tokens are means of the parts' means.
        for key in [name for name in figures if name.startswith(("rewards/", "logps/"))]:
            assert figures[key] == pytest.approx(logged[key], rel=1e-3, abs=1e-3)
    if name == "kto":
        assert [pair.given for pair in mismatched(PAIRS, 1000)] == [PAIRS[i - 1].given for i in range(len(PAIRS))]
    else:
        by_hand = start_value(config.dpo, [token_log_probs(trainer.model.eval(), pair) for pair in PAIRS])
        assert loss == pytest.approx(by_hand, rel=1e-4)


def test_lengths_shares_and_keys_count_them_out(tmp_path: Path) -> None:
    pair = TokenPair("a", [1], [2, 3, 4, 5], [6, 7], 1.0, (((1, 3),), ()))
    whole = TokenPair("a", [1], [2, 3, 4, 5], [6, 7])
    assert pair.counted == (2, 2)
    assert share_of_step([pair], [pair, whole]) == (2 / 6) / (1 / 2)
    assert entry_key("c", pair) != entry_key("c", whole)
    assert pair.content != whole.content
    writer = TokenWriter(tmp_path)
    for one in (pair, whole):
        writer.write(EncodedPair("a", to_bytes([1]), to_bytes([2, 3, 4, 5]), to_bytes([6, 7]), 1.0, one.given))
    for split in ("train", "dev", "test"):
        writer.end_split(split)
    writer.close()
    read = TokenFile(tmp_path, "train")
    assert list(read) == [pair, whole]
    assert read.counted.tolist() == [[2, 2], [4, 2]]
    bias = length_bias(np.array([[2, 2], [4, 2]]))
    assert bias is not None
    assert bias["mean_tokens"] == 1.0


def test_the_first_token_of_an_answer_is_the_policys() -> None:
    (pair,) = random_pairs(1)
    with pytest.raises(ValueError, match="the policy's own"):
        sequence_log_probs(
            tiny_model("llama", torch.float32),
            [TokenPair("a", [1], [2], pair.rejected_ids, 1.0, (((0, 1),), ()))],
            10,
        )
