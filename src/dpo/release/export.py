"""One export, start to end: score what was trained, merge, write aside, load back, score again, certify, rename."""

from __future__ import annotations

import gc
import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np

import dpo
from dpo.config.export import Export, Format
from dpo.config.lora import FullTraining
from dpo.config.parse import plain
from dpo.config.read import read_config
from dpo.config.schema import Config
from dpo.engine.packed_forward import install
from dpo.errors import Refused
from dpo.evaluation.folder import file_digest
from dpo.evaluation.measure import held_out
from dpo.evaluation.sides import load_sides
from dpo.modeling.adapter import adapter_fingerprint
from dpo.modeling.device import Compute, choose_compute
from dpo.modeling.facts import FINAL, check_config, check_final, final_files
from dpo.modeling.policy import REFERENCE, base_of, tokenizer_of
from dpo.modeling.reward_head import check_writes
from dpo.modeling.safetensors import read_header
from dpo.records.files import sealed, sync, write_json, write_text
from dpo.records.run import read_record
from dpo.release import formats
from dpo.release.card import model_card
from dpo.release.certificate import excess, weight_files
from dpo.release.licences import public_name
from dpo.release.measure import Row, Scored, certify
from dpo.release.merge import cast, merge, prepare_settings
from dpo.release.rounding import StochasticRounding
from dpo.release.scorer import Scorer, score


def write_export(config: Export, run: Path, out: Path) -> Row:
    """Make `out` whole or not at all; returns its certificate.

    Raises Refused when the export differs from what was trained by more than `config.bound`, unless forced.
    """
    aside = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(aside, ignore_errors=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        certificate = _write_aside(config, run, aside)
        with formats.disk_full_named(aside):
            write_json(aside / "certificate.json", certificate)
            write_text(aside / "README.md", model_card(run, aside))
            _take_place(aside, out)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return certificate


def _take_place(aside: Path, out: Path) -> None:
    old = out.with_name(f".{out.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        out.rename(old)
    aside.rename(out)
    sync(out.parent)
    shutil.rmtree(old, ignore_errors=True)


def _write_aside(config: Export, run: Path, aside: Path) -> Row:
    trained, record, form = read_config(run / "config.yaml"), read_record(run), config.format
    compute = _compute(run)
    check_config(run, trained)
    check_writes(run, trained)
    check_final(run)
    tokenizer = tokenizer_of(run, trained)
    pairs, tokens = held_out(trained, tokenizer, config.split, config.pairs, run)
    weights = file_digest((run / "adapter").glob("*.safetensors"))
    scorer = Scorer(tokens, json.dumps([*_scored(run, trained), str(compute)]))
    models = []
    if trained.lora.quantization is not None:
        label = "adapter on the quantized base"
        models.append(scorer.both("quantized", label, lambda: load_sides(run, compute)))
        _free()
    sides = load_sides(run, compute, quantized=False)
    full = isinstance(trained.lora, FullTraining)
    name, label = ("unquantized", "adapter on the 16-bit base") if models else ("trained", "adapter on its base")
    models.append(scorer.both(name, "trained weights" if full else label, sides))
    reference, stop_ids = models[-1].reference, sides.stop_ids
    model, merged = sides.policy, None
    rounding = StochasticRounding(formats.merged_dtype(form, config.gguf_type), config.seed)
    del sides
    if not full:
        exact = str(compute.dtype) == "torch.float32"
        model = merge(model, (lambda total: total) if exact else rounding)
        if exact:
            install(model)
            merged = scorer.one("merged", "merged, before it is rounded", model)
    print(f"writing {_words(config)}", flush=True)
    cast(model, rounding)
    prepare_settings(model, tokenizer, stop_ids, public_name(trained.model.path))
    formats.write(model, tokenizer, form, config.gguf_type, aside)
    del model
    _free()
    exported = formats.load_back(aside, form, compute.device, compute.dtype)
    install(exported)
    scores = score(exported, f"exported model, loaded back from {_words(config)}", tokens)
    models.append(Scored("exported", f"exported {_words(config)} model", scores, reference))
    figures = certify(
        models,
        merged,
        np.array([p.counted for p in tokens], dtype=np.float64),
        [pair.group for pair in pairs],
        trained.dpo.beta,
        config.bound,
        config.resamples,
        config.confidence,
        config.seed,
    )
    if not figures["within_bound"] and not config.force:
        raise Refused(f"{_words(config)}: {excess(figures)}\n{_advice(form)}, which the certificate and the card tell")
    return sealed(
        {
            "format": form.name,
            "gguf_type": config.gguf_type.name if form is Format.gguf else None,
            "created": time.time(),
            "version": dpo.__version__,
            "run": run.resolve().name,
            "base": {
                "name": public_name(trained.model.path),
                "revision": record.get("revision"),
                "fingerprint": record["fingerprints"].get("base"),
                "quantization": plain(trained.lora.quantization),
            },
            "trained_weights": weights,
            "split": config.split.name,
            "scored_in": str(compute.dtype)[6:],
            "rounding": {
                "kind": "stochastic" if rounding.dtype.itemsize == 2 else "none",
                "seed": config.seed,
            },
            "forced": config.force and not figures["within_bound"],
            **figures,
            "files": weight_files(aside),
        }
    )


def _scored(run: Path, config: Config) -> list[Any]:
    """What the models of a certificate are made of, by content: all files of the final weights, the base and how it is
    held, and the adapter the run started from, if it did."""
    final, base = final_files(run / FINAL), base_of(run, config).fingerprint
    held = [plain(config.lora.quantization), config.hardware.attention]
    return [final, base, held, None if config.model.adapter is None else adapter_fingerprint(run / REFERENCE)]


def _advice(form: Format) -> str:
    finer = {Format.bf16: "format=fp16 rounds eight times finer, fp32 not at all; ", Format.fp32: ""}
    return finer.get(form, "format=fp32 does not round at all; ") + "force=true exports it all the same"


def _words(config: Export) -> str:
    return f"GGUF {config.gguf_type.name}" if config.format is Format.gguf else config.format.name


def _compute(run: Path) -> Compute:
    """fp32 where two copies fit in memory, else the run's own type: in bf16 the rounding of activations alone would
    be half of what a gentle training changed, and hide what happened to the weights."""
    import psutil
    import torch

    config = read_config(run / "config.yaml")
    compute = choose_compute(config.hardware.device, config.hardware.precision)
    folder = base_of(run, config).folder
    numbers = sum(t.numel for path in folder.glob("*.safetensors") for t in read_header(path).values())
    free = torch.cuda.mem_get_info()[0] if compute.device == "cuda" else psutil.virtual_memory().available
    if 2 * 4 * numbers < free:
        return Compute(compute.device, torch.float32)
    print(f"scored in {str(compute.dtype)[6:]}: {8 * numbers / 2**30:.0f} GB for fp32 are not free", flush=True)
    return compute


def _free() -> None:
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
