"""Every loss of TRL: our step is TRL's own, whatever it is split into, in both engines; and its value at the start."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from packed_models import gradients, random_pairs, tiny_model
from tiny_trainers import make_trainer, move, rows_of, same, trls

from dpo.config.folder import options
from dpo.config.losses import ALONE, PARAMETERS, SINGLE, SORTED, reads
from dpo.config.schema import Config
from dpo.data.pair import TokenPair
from dpo.engine.choice import Engine
from dpo.engine.log_probs import sequence_log_probs
from dpo.engine.micro_batch import packed_loss
from dpo.errors import ConfigError, Diverged
from dpo.losses.table import LOSSES
from dpo.modeling.device import Compute
from dpo.training import trainer as trainers
from dpo.training.arguments import build_arguments, objective
from dpo.training.checks import guards

CPU = Compute("cpu", torch.float32)
PAIRS = [
    TokenPair(p.id, p.prompt_ids, p.chosen_ids, p.rejected_ids, strength=0.5 + 0.05 * i)
    for i, p in enumerate(random_pairs(7, seed=3, longest=16))
]
STRIKING = {  # everything a loss can read, off its neutral value
    "label_smoothing": "0.1",
    "discopop_tau": "0.2",
    "f_divergence_type": "js_divergence",
    "ld_alpha": "0.3",
    "use_weighting": "true",
}
CASES = [
    *[(f"dpo={name}",) for name in options("dpo") if name not in ALONE],
    *[
        pytest.param(
            (f"dpo={name}", f"dpo.{parameter}={STRIKING[parameter]}"),
            # The same lines of TRL again; one loss shows them by default.
            marks=[pytest.mark.slow] if name in ("ipo", "discopop") and parameter in reads("sigmoid") else [],
        )
        for name in ("sigmoid", "ipo", "discopop", "robust", "aot")
        for parameter in PARAMETERS
        if parameter in STRIKING and parameter in reads(name)
    ],
    ("dpo=sigmoid", "dpo.f_divergence_type=forward_kl"),
    ("dpo=sigmoid", "dpo.f_divergence_type=alpha_divergence", "dpo.f_alpha_divergence_coef=0.5"),
    ("dpo=mpo", "dpo.loss=[hinge,sft,robust]", "dpo.loss_weights=[0.5,2.0,0.1]", "dpo.label_smoothing=0.2"),
    ("dpo=mpo", "dpo.loss=[aot,sft]", "dpo.loss_weights=[1.0,0.5]", "dpo.label_smoothing=0.0"),
]


def build(config: Config, folder: Path, engine: str, size: int, trained: bool = True) -> trainers.Trainer:
    """Our trainer on a tiny model whose adapter has moved (B is not zero), parts of at most `size` pairs."""
    soft = config.dataset.soft_labels
    loss = packed_loss(objective(config.dpo, soft)) if engine == "packed" else None
    cut = Engine(loss, lambda pairs, *_: [pairs[i : i + size] for i in range(0, len(pairs), size)], 1, name=engine)
    trainer = make_trainer(
        tiny_model("llama", torch.float32), build_arguments(config, CPU, folder), PAIRS, folder, cut, soft
    )
    if trained:
        move(trainer.model)
    return trainer


def step_of(trainer: trainers.Trainer) -> tuple[float, dict[str, torch.Tensor]]:
    trainer.model.train()
    loss = trainer._forward_backward(trainer.model, PAIRS, 1)
    return float(loss), gradients(trainer.model)


def trl_step(config: Config, folder: Path) -> tuple[tuple[float, dict[str, torch.Tensor]], dict[str, float]]:
    """TRL's own trainer, all pairs in one padded batch, its reference computed by its own forward: the step, and what
    it would log."""
    theirs = trls(tiny_model("llama", torch.float32), build_arguments(config, CPU, folder), PAIRS)
    move(theirs.model)
    theirs.model.train()
    loss = theirs.compute_loss(theirs.model, theirs.data_collator(rows_of(PAIRS)))
    loss.backward()
    metrics = {name: values[-1] for name, values in theirs._metrics["train"].items() if name != "num_tokens"}
    return (float(loss.detach()), gradients(theirs.model)), {**metrics, "loss": float(loss.detach())}


@pytest.mark.parametrize("overrides", CASES, ids=lambda case: ",".join(o.removeprefix("dpo.") for o in case))
def test_a_step_is_trls_in_one_part_and_in_several_in_both_engines(
    compose: Callable[..., Config], tmp_path: Path, overrides: tuple[str, ...]
) -> None:
    # A beta at which no loss is flat; sppo_hard's own would drown everything else.
    config = compose(*overrides, "dpo.beta=0.3", "dpo.batch_size=7")
    truth, metrics = trl_step(config, tmp_path / "trl")
    for engine in ("packed", "plain"):
        whole = build(config, tmp_path / engine, engine, len(PAIRS))
        same(step_of(whole), truth)
        assert whole._drain() == pytest.approx(metrics, rel=2e-4, abs=2e-4)
        if not any(LOSSES[name].whole_step for name in config.dpo.loss):
            size = 3
            whole.engine = Engine(
                whole.engine.loss, lambda p, *_, n=size: [p[i : i + n] for i in range(0, len(p), n)], 1
            )
            same(step_of(whole), truth)
            # The dev loss does not depend on the split either.
            assert whole.evaluate_now()["loss"] == pytest.approx(truth[0], rel=2e-5)


@pytest.mark.parametrize("engine", ["packed", "plain"])
def test_soft_labels_are_the_hand_computed_loss(compose: Callable[..., Config], tmp_path: Path, engine: str) -> None:
    config = compose("dataset=shp", "dataset.soft_labels=true", "dpo.beta=0.3")
    trainer = build(config, tmp_path, engine, len(PAIRS))
    policy = sequence_log_probs(trainer.model, PAIRS, 1000)
    expected = 0.0
    for pair, (chosen, rejected) in zip(PAIRS, policy, strict=True):
        ref_chosen, ref_rejected = trainer.reference[pair.id]
        z = 0.3 * ((chosen - ref_chosen) - (rejected - ref_rejected))
        sigma = 1 / (1 + math.exp(-z))
        expected -= (pair.strength * math.log(sigma) + (1 - pair.strength) * math.log(1 - sigma)) / len(PAIRS)
    whole = step_of(trainer)
    assert whole[0] == pytest.approx(expected, rel=1e-4)
    hard = build(compose("dataset=shp", "dpo.beta=0.3"), tmp_path / "hard", engine, len(PAIRS))
    assert step_of(hard)[0] != pytest.approx(expected, rel=1e-2)
    # Its gradient is that of the same formula on autograd's own terms, and no split changes it.
    trainer.engine = Engine(trainer.engine.loss, lambda p, *_: [p[:2], p[2:3], p[3:]], 1)
    same(step_of(trainer), whole)
    assert trainer.evaluate_now()["loss"] == pytest.approx(expected, rel=1e-4)
    # Where all labels are certain, it is TRL's sigmoid.
    certain = [TokenPair(p.id, p.prompt_ids, p.chosen_ids, p.rejected_ids, strength=1.0) for p in PAIRS]
    loss = trainer._forward_backward(trainer.model, certain, 1)
    assert float(loss) == pytest.approx(step_of(hard)[0], rel=1e-5)


@pytest.mark.parametrize(
    "name",
    [
        *sorted(set(options("dpo")) - ALONE),
        "exo_pair,dpo.label_smoothing=0.2",
        "robust,dpo.label_smoothing=0.3",
    ],
)
def test_the_value_at_the_start_is_known_and_is_the_one_trained_on(
    compose: Callable[..., Config], tmp_path: Path, name: str
) -> None:
    config = compose(*f"dpo={name}".split(","))
    trainer = build(config, tmp_path, "packed", 7, trained=False)
    loss = trainer.evaluate_now()["loss"]
    expected = guards.loss_at_zero(config.dpo)
    if "sft" in config.dpo.loss:
        assert expected is None
        return
    assert expected is not None
    assert loss == pytest.approx(expected, rel=1e-4)
    guards.check_start_loss(loss, config.dpo, torch.float32)
    with pytest.raises(Diverged, match="before step 1"):
        guards.check_start_loss(1.5 * loss + 0.1, config.dpo, torch.float32)


def test_the_tables_of_losses_are_trls() -> None:
    """TRL's own source says which losses there are and which read label_smoothing and discopop_tau."""
    import inspect

    from trl.trainer.dpo_trainer import DPOTrainer

    source = inspect.getsource(DPOTrainer._compute_loss)
    bodies = dict(
        re.findall(r'loss_type == "(\w+)":\n(.*?)(?=\n            el|\n            if self\.use)', source, re.S)
    )
    assert bodies.keys() == SINGLE.keys() - ALONE
    for name, body in bodies.items():
        for parameter in ("label_smoothing", "discopop_tau"):
            assert (f"self.{parameter}" in body or f"self.args.{parameter}" in body) == (parameter in reads(name)), name
        # Only what is built on scores sees another divergence.
        assert bool(re.search(r"_scores|delta_score", body)) == ("f_divergence_type" in reads(name)), name


WRONG = {
    "dpo=sigmoid dpo.loss=[hinge]": "this option is the loss sigmoid",
    "dpo=mpo dpo.loss=[sigmod]": "there is no loss sigmod; nearest: sigmoid",
    "dpo=mpo dpo.loss=[]": "must name at least one loss",
    "dpo=mpo dpo.loss=[sft,sft,sft]": "names a loss twice",
    "dpo=mpo dpo.loss_weights=[1.0]": "must be 3 numbers",
    "dpo=mpo dpo.loss_weights=[1.0,0.0,1.0]": "each must be above 0",
    "dpo=mpo dpo.label_smoothing=0.1": "none of sigmoid, bco_pair, sft reads it",
    "dpo=mpo dpo.f_divergence_type=js_divergence": "bco_pair is not a function of the reward",
    "dpo=sigmoid_sft dpo.use_weighting=true": "sft has no term per pair to weigh",
    "dpo=mpo dpo.loss=[robust] dpo.loss_weights=[1.0]": "dpo.label_smoothing: needs a value",
    "dpo=robust dpo.label_smoothing=0.5": "must be below 0.5",
    "dpo=exo_pair dpo.label_smoothing=0": "exo_pair needs it above 0",
    "dpo=simpo dpo.loss=[sigmoid]": "this option is the loss simpo",
    "dpo=mpo dpo.loss=[sigmoid,orpo,sft]": "orpo goes with no other loss; take dpo=orpo",
    "dpo=kto dpo.batch_size=1": "each prompt is compared with another's answers; at least 2",
    "dpo=cpo dataset=shp dataset.soft_labels=true": "only dpo=sigmoid learns from soft labels",
    "dpo=simpo +dpo.ld_alpha=0.5": "dpo.ld_alpha: unknown key; simpo, which has no reference, does not read it",
    "dpo=kto +dpo.gamma_ratio=0.5": "dpo.gamma_ratio: unknown key; kto does not read it, as simpo does",
    "dpo.f_divergence_type=alpha_divergence": "needs dpo.f_alpha_divergence_coef",
    "dpo.f_alpha_divergence_coef=0.5": "only alpha_divergence reads it",
    "dpo=ipo dataset=shp dataset.soft_labels=true": "only dpo=sigmoid learns from soft labels",
    "dpo.ld_alpha=0.5 dataset=shp dataset.soft_labels=true": "soft labels go without it",
}


@pytest.mark.parametrize("overrides", WRONG)
def test_losses_that_cannot_be_are_refused(compose: Callable[..., Config], overrides: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(WRONG[overrides])) as caught:
        compose(*overrides.split())
    assert len(str(caught.value).splitlines()) == 1


NEEDS = {"rloo": ["dpo.reward=RUN"]}


def test_a_sorting_loss_keeps_a_step_in_one_part(compose: Callable[..., Config]) -> None:
    assert {name for name in options("dpo") if SORTED & set(compose(f"dpo={name}", *NEEDS.get(name, [])).dpo.loss)} == {
        "aot",
        "aot_unpaired",
    }
