"""The arms of the step benchmark: TRL's trainer as it comes, TRL tuned, and ours with its levers."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DataCollatorForPreference, DPOTrainer

from dpo.caches.keys import context_key
from dpo.caches.reference import ReferenceCache
from dpo.data.pair import TokenPair
from dpo.engine.budget import split
from dpo.engine.choice import Engine
from dpo.engine.lean_linear import keep_dequantized
from dpo.engine.log_probs import sequence_log_probs
from dpo.engine.memory import free_memory
from dpo.engine.micro_batch import packed_loss
from dpo.engine.packed_forward import install
from dpo.engine.workers import Workers, most_at_once
from dpo.losses.objective import Objective
from dpo.training import trainer as trainers
from dpo.training.interrupts import Interrupts

ARMS = ("trl_default", "trl_tuned", "packed", "ours")
"""`packed` is ours without the lean layers."""
Step = Callable[[list[TokenPair]], float]


def build_model(path: str, dtype: torch.dtype, quant: str, rank: int, seed: int) -> Any:
    """The base with a fresh LoRA on all linear layers, the same for every arm."""
    extra: dict[str, Any] = {}
    if quant == "nf4":
        extra["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
        )
    if torch.cuda.is_available():
        extra["device_map"] = {"": 0}
    model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, attn_implementation="sdpa", **extra)
    model.config.use_cache = False
    torch.manual_seed(seed)
    return get_peft_model(
        model.requires_grad_(False),
        LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM"),
    )


class _Trl(DPOTrainer):
    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset


def _arguments(beta: float, bf16: bool, **changes: Any) -> DPOConfig:
    return DPOConfig(
        output_dir=tempfile.mkdtemp(prefix="bench-"), beta=beta, report_to="none", bf16=bf16, disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(), remove_unused_columns=False, max_length=None, **changes,
    )  # fmt: skip


def build_step(
    arm: str,
    model: Any,
    tokenizer: Any,
    pairs: list[TokenPair],
    options: Any,
    beta: float = 0.1,
    cache: Path | None = None,
) -> Step:
    """A function that does one optimizer step on its pairs and returns the loss.

    Ours takes its reference log-probs from the file `cache` where one is given; `misses` of the function then says how
    many pairs it had to compute.
    """
    misses = 0
    if arm in ("ours", "packed"):
        backward, misses = _ours(model, tokenizer, pairs, options, arm == "ours", beta, cache)
    else:
        backward = _trl(model, tokenizer, pairs, options, arm == "trl_tuned", beta)
    trainable = []
    for parameter in model.parameters():
        if parameter.requires_grad:
            # TRL holds the adapters of a quantized base in bf16; one dtype for all arms makes their losses comparable.
            parameter.data = parameter.data.float()
            trainable.append(parameter)
    optimizer = torch.optim.AdamW(trainable, lr=1e-4, weight_decay=0.0, fused=True)

    def step(batch: list[TokenPair]) -> float:
        loss = backward(batch)
        torch.nn.utils.clip_grad_norm_(trainable, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss

    step.misses = misses  # type: ignore[attr-defined]
    return step


def _rows(pairs: list[TokenPair]) -> list[dict[str, Any]]:
    return [{"prompt_ids": p.prompt_ids, "chosen_ids": p.chosen_ids, "rejected_ids": p.rejected_ids} for p in pairs]


def _trl(model: Any, tokenizer: Any, pairs: list[TokenPair], options: Any, tuned: bool, beta: float) -> Step:
    changes: dict[str, Any] = {"activation_checkpointing": False} if tuned else {}
    arguments = _arguments(beta, options.dtype == "bfloat16", **changes)
    trainer = _Trl(
        model=model, args=arguments, processing_class=tokenizer, train_dataset=Dataset.from_list(_rows(pairs[:2]))
    )
    collator = DataCollatorForPreference(pad_token_id=tokenizer.pad_token_id)
    reference: dict[str, tuple[float, float]] = {}
    if tuned:
        trainer.precompute_ref_logps = True
        for pair in pairs:
            chosen, rejected = trainer.compute_ref_log_probs(trainer.model, collator(_rows([pair])))
            reference[pair.id] = (float(chosen), float(rejected))
    part = options.micro_batch if tuned and options.micro_batch else options.batch

    def step(batch: list[TokenPair]) -> float:
        parts = [batch[i : i + part] for i in range(0, len(batch), part)]
        trainer.current_gradient_accumulation_steps = len(parts)
        total = 0.0
        for group in parts:
            rows = _rows(group)
            for row, pair in zip(rows, group, strict=True):
                if tuned:
                    row["ref_chosen_logps"], row["ref_rejected_logps"] = reference[pair.id]
            total += float(trainer.training_step(trainer.model, collator(rows)))
        return total

    return step


def _ours(
    model: Any,
    tokenizer: Any,
    pairs: list[TokenPair],
    options: Any,
    lean: bool,
    beta: float,
    cache: Path | None,
) -> tuple[Step, int]:
    arguments = _arguments(beta, options.dtype == "bfloat16", activation_checkpointing=False)
    refused = install(model, lean=lean)
    if refused is not None:
        raise SystemExit(f"error: {options.model}: {refused}")
    if lean:
        keep_dequantized(model, getattr(torch, options.dtype), free_memory(arguments.device))
    budget, loss = options.token_budget, packed_loss(Objective(("sigmoid",), beta))
    at_once = most_at_once(model, arguments.device.type, options.batch) if lean else 1
    trainer = trainers.Trainer(
        model=model, args=arguments, engine=Engine(loss, lambda p, b, n: split(p, b, at_once=n), budget,
        Workers.of(at_once)), tokenizer=tokenizer, train_pairs=pairs, dev_pairs=pairs[:1], interrupts=Interrupts(),
        checkpoint_root=Path(tempfile.mkdtemp(prefix="bench-")), fingerprints={},
    )  # fmt: skip
    store = ReferenceCache(cache or Path(tempfile.mkdtemp(prefix="bench-")) / "reference.sqlite")
    context = context_key(
        base=options.model, quantization=options.quant, adapter="none", precision=options.dtype,
        device=trainer.args.device.type, attention="packed-sdpa",
    )  # fmt: skip
    with model.disable_adapter(), trainer.accelerator.autocast():
        trainer.reference = store.fill(pairs, context, lambda p: sequence_log_probs(model, p, budget))
    step = lambda batch: float(trainer.training_step(trainer.model, {"pairs": batch}))  # noqa: E731
    return step, store.counters.misses
