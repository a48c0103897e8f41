"""The code that only a GPU would run, run without one: reference pass, dev evaluation and two steps of the trainer.

Shapes, types and places of tensors are real, their contents are not: what values come out only a card can show.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
from fake_runs import Case, outcomes

from dpo.config.folder import conf_folder

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma3_text")
STORAGES = (
    "lora=qlora",
    "lora=lora",
    "lora=int8",
    "lora=full",
    "lora=qlora lora.dropout=0.1",
    "lora=qlora lora.dora=true",
)
ENGINES = ("hardware.engine=packed", "hardware.engine=plain")
PRECISIONS = ("hardware.precision=bf16", "hardware.precision=fp32")
CHECKPOINTING = ("hardware.activation_checkpointing=off", "hardware.activation_checkpointing=on")
OPTIMIZERS = ("dpo.optimizer=adamw", "dpo.optimizer=paged_adamw_8bit")
KERNELS = ("varlen", "flex", None)
LOSSES = sorted(path.stem for path in (conf_folder() / "dpo").glob("*.yaml") if not path.stem.startswith("shared"))

LAYOUT, CUDA = "dpo.engine.layout", "dpo.engine.kernels.cuda"
LINEAR = "dpo.engine.lean_linear"
INT32 = "dtype=torch.int32"
MOVED = ".to(device, non_blocking=non_blocking)"
MUTANTS = {
    "rows of keys on the CPU": (CUDA, "torch.tensor(rows, device=device)", "torch.tensor(rows)"),
    "ends of queries in int64": (CUDA, f"accumulate(queries)], {INT32}", "accumulate(queries)], dtype=torch.int64"),
    "ends of keys in int64": (CUDA, f"accumulate(keys)], {INT32}", "accumulate(keys)], dtype=torch.int64"),
    "ends of keys on the CPU": (CUDA, f"accumulate(keys)], {INT32}, device=device", f"accumulate(keys)], {INT32}"),
    "no GQA flag": (CUDA, "enable_gqa=query.shape[1] != key.shape[1],\n", "enable_gqa=False,\n"),
    "scales left quantized": (LINEAR, "if state.nested:", "if False:"),
    "scales of another block": (LINEAR, "packed, scales, state.blocksize", "packed, scales, 2 * state.blocksize"),
    **{
        f"layout leaves {name} behind": (LAYOUT, f"self.{name}{MOVED}", f"self.{name}")
        for name in ("token_ids", "position_ids", "predictor_rows", "target_rows", "targets")
    },
    "weights in another type": (
        LINEAR,
        "branch.weight(x.dtype), branch.layer.bias",
        "branch.weight(torch.float32), None",
    ),
    "reference on the CPU": ("dpo.engine.micro_batch", "dtype=torch.float32, device=device)", "dtype=torch.float32)"),
}
"""Each would fail, or read what is not there, on a card."""


def check(cases: Sequence[Case]) -> None:
    failed = {str(case): error for case, error in zip(cases, outcomes(cases), strict=True) if error is not None}
    assert failed == {}


def spread() -> list[Case]:
    """Each value of each choice several times, beside others each time."""
    return [
        Case(
            FAMILIES[i % 6],
            tuple(
                " ".join(
                    (
                        STORAGES[i % 4],
                        ENGINES[(i // 2) % 2],
                        PRECISIONS[(i // 3) % 2],
                        CHECKPOINTING[(i // 5) % 2],
                        OPTIMIZERS[i % 2],
                    )
                ).split()
            ),
            KERNELS[i % 3],
        )
        for i in range(8)
    ]


def test_a_few_of_all_run() -> None:
    check(spread())


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_every_combination_runs(family: str) -> None:
    """Of the choices a command has, for one family."""
    every = itertools.product(STORAGES, ENGINES, PRECISIONS, CHECKPOINTING, OPTIMIZERS)
    check([Case(family, tuple(" ".join(words).split())) for words in every])


@pytest.mark.slow
@pytest.mark.parametrize("kernel", KERNELS)
def test_every_family_runs_on_every_kernel(kernel: str | None) -> None:
    check([Case(family, ("lora=qlora",), kernel) for family in FAMILIES])


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_every_loss_runs(engine: str) -> None:
    check([Case("llama", (f"dpo={loss}", engine)) for loss in LOSSES])


@pytest.mark.slow
def test_planted_faults_are_found() -> None:
    """Each of them would fail, or read what is not there, on a card."""
    cases = [Case("llama", ("lora=qlora", "hardware.precision=bf16"), mutant=mutant) for mutant in MUTANTS.values()]
    found = outcomes(cases)
    missed = [name for name, error in zip(MUTANTS, found, strict=True) if error is None]
    assert len(missed) <= 1, missed
    after = outcomes([*cases[:1], Case("llama", ("lora=qlora", "hardware.precision=bf16"))])
    assert after[0] is not None
    assert after[1] is None, "what was planted is taken out again"


def test_a_planted_fault_is_found() -> None:
    """One of them, and none where none is."""
    words = ("lora=qlora", "hardware.precision=bf16")
    found = outcomes([Case("qwen2", words, mutant=MUTANTS["no GQA flag"]), Case("qwen2", words)])
    assert found[0] is not None
    assert "enable_gqa" in found[0]
    assert found[1] is None
