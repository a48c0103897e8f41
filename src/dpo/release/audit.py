"""Checks of an exported folder or an adapter folder from anywhere, without torch and without loading anything."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpo.config.plain_yaml import parse_yaml
from dpo.errors import CheckpointError, ConfigError
from dpo.modeling.safetensors import Tensor, read_header
from dpo.records.files import SEAL, sealed
from dpo.records.read import json_file
from dpo.release.adapter_layers import missing_layers
from dpo.release.certificate import CERTIFICATE, weight_files

PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz", ".msgpack", ".h5", ".dill")
CODE = (".py", ".pyc", ".so", ".sh", ".dll", ".exe", ".ipynb")
MODEL, ADAPTER, GGUF = "model", "adapter", "gguf"
LAYER = re.compile(r"(?:model\.)?(?:layers|h)\.(\d+)\.")
TYPES = {"float16": "F16", "bfloat16": "BF16", "float32": "F32"}


@dataclass(frozen=True)
class Check:
    """One line of an audit. `unsafe` marks what could run code when loaded."""

    name: str
    failed: bool
    detail: str
    unsafe: bool = False


class Fault(Exception):
    """What a check found wrong; its text is the detail."""


def audit(folder: Path) -> list[Check]:
    """All checks of a folder, in reading order; a check that cannot be made is a failed one."""
    checks = [_unsafe_files(folder)]
    kind = kind_of(folder)
    if kind is None:
        what = "no model (config.json and *.safetensors), adapter (adapter_config.json) or *.gguf in it"
        hint = f"; look at {folder / 'adapter'}" if (folder / "run.json").is_file() else ""
        return [*checks, Check("files", True, what + hint)]
    tensors: dict[str, Tensor] = {}

    def run(name: str, check: Callable[[], str]) -> None:
        try:
            checks.append(Check(name, False, check()))
        except Fault as fault:
            checks.append(Check(name, True, str(fault)))

    run("files", lambda: _files(folder, kind))
    run("weights", lambda: _weights(folder, kind, tensors))
    run("config", lambda: _config(folder, kind, tensors))
    if kind != ADAPTER:
        run("generation", lambda: _generation(folder))
    run("template", lambda: _template(folder))
    run("certificate", lambda: _certificate(folder, kind))
    run("card", lambda: _card(folder))
    return checks


def kind_of(folder: Path) -> str | None:
    """model, adapter or gguf; None when it is none of them."""
    if (folder / "adapter_config.json").is_file():
        return ADAPTER
    if any(folder.glob("*.gguf")):
        return GGUF
    return MODEL if (folder / "config.json").is_file() and any(folder.glob("*.safetensors")) else None


def _unsafe_files(folder: Path) -> Check:
    found = [p for p in sorted(folder.rglob("*")) if p.suffix.lower() in (*PICKLES, *CODE) or p.is_symlink()]
    if found:
        names = ", ".join(str(p.relative_to(folder)) for p in found[:5])
        return Check("safe files", True, f"{names}: pickles, code or links; loading them can run code", unsafe=True)
    for name in ("config.json", "tokenizer_config.json", "adapter_config.json"):
        try:
            asks = json_file(folder / name).get("auto_map")
        except CheckpointError:
            continue  # what is in it will not load; the checks of configs name it
        if asks:
            return Check("safe files", True, f"{name}: auto_map asks for remote code", unsafe=True)
    return Check("safe files", False, "no pickles, code, links or remote code")


def _files(folder: Path, kind: str) -> str:
    certificate = [] if _of_a_run(folder) else [CERTIFICATE]
    needed = {
        MODEL: ["config.json", "generation_config.json", "tokenizer_config.json", "README.md", *certificate],
        ADAPTER: ["adapter_config.json", "adapter_model.safetensors", "tokenizer_config.json", "README.md"],
        GGUF: ["tokenizer_config.json", "README.md", CERTIFICATE],
    }[kind]
    if missing := [name for name in needed if not (folder / name).is_file()]:
        raise Fault(f"missing: {', '.join(missing)}")
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise Fault("missing: the tokenizer (tokenizer.json, tokenizer.model or vocab.json)")
    files = [p for p in folder.rglob("*") if p.is_file()]
    return f"{len(files)} files, {sum(p.stat().st_size for p in files) / 2**20:.1f} MB"


def _of_a_run(folder: Path) -> bool:
    """Whether it is the folder a run left its final weights in."""
    return folder.resolve().name == "adapter" and (folder.resolve().parent / "run.json").is_file()


def _weights(folder: Path, kind: str, tensors: dict[str, Tensor]) -> str:
    if kind == GGUF:
        paths = sorted(folder.glob("*.gguf"))
        for path in paths:
            with path.open("rb") as file:
                if file.read(4) != b"GGUF":
                    raise Fault(f"{path.name}: does not begin with GGUF")
        return f"{len(paths)} GGUF file"
    for path in sorted(folder.glob("*.safetensors")):
        try:
            tensors |= read_header(path)
        except (ValueError, OSError) as error:
            raise Fault(f"{path.name}: {error}") from None
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        named = _read_json(index).get("weight_map", {})
        if lost := sorted(name for name in named if name not in tensors):
            raise Fault(f"{index.name}: names {lost[0]}, which no file holds")
    if kind == ADAPTER and (
        strange := [name for name in tensors if "lora_" not in name and "modules_to_save" not in name]
    ):
        raise Fault(f"{strange[0]}: not a tensor of a LoRA adapter")
    if not tensors:
        raise Fault("no tensor in it")
    types = ", ".join(sorted({t.dtype for t in tensors.values()}))
    return f"{len(tensors)} tensors, {sum(t.numel for t in tensors.values()):,} numbers, {types}"


def _config(folder: Path, kind: str, tensors: dict[str, Tensor]) -> str:
    if kind == ADAPTER:
        config = _read_json(folder / "adapter_config.json")
        if config.get("peft_type") != "LORA" or not config.get("base_model_name_or_path"):
            raise Fault("adapter_config.json: no LORA with a base_model_name_or_path")
        ranks = {t.shape[0] for name, t in tensors.items() if "lora_A" in name}
        if config.get("rank_pattern") == {} and ranks - {config.get("r")}:
            raise Fault(f"adapter_config.json: r is {config.get('r')}, the weights have rank {sorted(ranks)}")
        _whole_adapter(config, tensors)
        return f"LoRA of rank {config.get('r')} on {config['base_model_name_or_path']}"
    if not (folder / "config.json").is_file():
        return "in the GGUF file"
    config = _read_json(folder / "config.json")
    if not config.get("model_type") or not config.get("architectures"):
        raise Fault("config.json: no model_type or architectures")
    for name, tensor in tensors.items():
        if name.endswith(("embed_tokens.weight", "wte.weight")) and tensor.shape[0] != config.get("vocab_size"):
            raise Fault(f"config.json: vocab_size is {config.get('vocab_size')}, {name} has {tensor.shape[0]} rows")
        if name.endswith("embed_tokens.weight") and tensor.shape[1] != config.get("hidden_size", tensor.shape[1]):
            raise Fault(f"config.json: hidden_size is {config['hidden_size']}, {name} has {tensor.shape[1]} columns")
    layers = {int(found.group(1)) for name in tensors if (found := LAYER.match(name))}
    said = config.get("num_hidden_layers")
    if layers and isinstance(said, int) and layers != set(range(said + (config.get("num_nextn_predict_layers") or 0))):
        raise Fault(f"config.json: num_hidden_layers is {said}, the weights hold {len(layers)}")
    dtype, held = str(config.get("dtype") or config.get("torch_dtype")), {t.dtype for t in tensors.values()}
    if tensors and not config.get("quantization_config") and TYPES.get(dtype, "") not in {"", *held}:
        raise Fault(f"config.json: dtype is {dtype}, the weights are {', '.join(sorted(held))}")
    return f"{config['architectures'][0]}, {dtype}"


def _whole_adapter(config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Raise Fault where an adapter lacks what its other tensors or its settings ask for. Only the base tells all."""
    parts: dict[str, set[str]] = {}
    for name in tensors:
        module, found, part = name.partition(".lora_")
        if found:
            parts.setdefault(module, set()).add(part.partition(".")[0])
    needed = {"A", "B", *(["magnitude_vector"] if config.get("use_dora") else [])}
    plain = {module for module, has in parts.items() if has & {"A", "B"}}
    if short := sorted(module for module in plain if needed - parts[module]):
        lacking = sorted(needed - parts[short[0]])[0]
        raise Fault(f"{len(short)} of {len(plain)} adapted modules lack a tensor, the first {short[0]}.lora_{lacking}")
    targets = config.get("target_modules")
    for target in targets if isinstance(targets, list) else []:
        if not any(module == target or module.endswith(f".{target}") for module in parts):
            raise Fault(f"adapter_config.json: names {target}, which no tensor belongs to")
    if gaps := missing_layers(config, parts):
        raise Fault(f"adapter_model.safetensors: {gaps}")


def _generation(folder: Path) -> str:
    path = folder / "generation_config.json"
    if not path.is_file():
        raise Fault("no generation_config.json, so nothing says where an answer ends")
    ends = _read_json(path).get("eos_token_id")
    if ends is None:
        raise Fault("generation_config.json: no eos_token_id, so answers would not end")
    return f"answers end at token {ends}"


def _template(folder: Path) -> str:
    from jinja2 import TemplateSyntaxError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    path = folder / "chat_template.jinja"
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    text = text or _read_json(folder / "tokenizer_config.json").get("chat_template") or ""
    if not text or not isinstance(text, str):
        raise Fault("the tokenizer has no chat template")
    # transformers adds this tag to Jinja; it marks what the assistant said and prints nothing.
    for tag in ("{% generation %}", "{%- generation %}", "{% endgeneration %}", "{%- endgeneration %}"):
        text = text.replace(tag, "")
    try:
        ImmutableSandboxedEnvironment(extensions=["jinja2.ext.loopcontrols"]).parse(text)
    except TemplateSyntaxError as error:
        raise Fault(f"the chat template is not Jinja: line {error.lineno}: {error.message}") from None
    return "a chat template that parses"


def _certificate(folder: Path, kind: str) -> str:
    path = folder / CERTIFICATE
    if not path.is_file():
        if _of_a_run(folder):
            return _as_trained(folder)
        if kind == ADAPTER:
            return "none: nothing beside an adapter says what was trained"
        raise Fault(f"no {CERTIFICATE}: nothing says that these weights are what was trained")
    data = _read_json(path)
    known = data.get("files")
    if not isinstance(known, dict) or "within_bound" not in data:
        raise Fault(f"{CERTIFICATE}: not a certificate of an export")
    found = weight_files(folder)
    for name in sorted({*known, *found}):
        if known.get(name) != found.get(name):
            raise Fault(f"{name}: not the file that was certified")
    if sealed(data)[SEAL] != data.get(SEAL):
        raise Fault(f"{CERTIFICATE}: its figures were edited after it was written, or another version wrote it")
    forced = "" if data["within_bound"] else ", OUTSIDE its bound and forced"
    measured = f"{data.get('measured', float('nan')):.3f} of what training changed, bound {data.get('bound')}"
    return f"matches the SHA-256 of {len(found)} file{'s' * (len(found) > 1)}; off by {measured}{forced}"


def _as_trained(folder: Path) -> str:
    """A run's final weights against what its run.json says that training wrote."""
    known = json_file(folder.resolve().parent / "run.json").get("final")
    if not isinstance(known, dict):
        raise Fault("run.json: does not say which files training wrote")
    files = [path for path in folder.iterdir() if path.is_file() and path.name != "README.md"]
    found = {path.name: _sha256(path) for path in files}
    for name in sorted({*known, *found}):
        if known.get(name) != found.get(name):
            raise Fault(f"{name}: not the file that training wrote")
    return f"none needed: {len(found)} files are those that training wrote"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _card(folder: Path) -> str:
    path = folder / "README.md"
    if not path.is_file():
        raise Fault("no README.md")
    parts = path.read_text(encoding="utf-8", errors="replace").split("---\n", 2)
    try:
        meta: Any = parse_yaml(parts[1], str(path)) if len(parts) == 3 and not parts[0] else None
    except ConfigError:
        meta = None
    if not isinstance(meta, dict):
        raise Fault("README.md: no YAML block at its head")
    if missing := [key for key in ("base_model", "library_name") if not meta.get(key)]:
        raise Fault(f"README.md: its head does not name {', '.join(missing)}")
    return f"card of {meta['base_model']}, licence {meta.get('license', 'not stated')}"


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise Fault(f"{path.name}: missing or not JSON") from None
    if not isinstance(data, dict):
        raise Fault(f"{path.name}: not a mapping")
    return data
