"""A run's own adapter put back on its base with the settings saved beside it; every tensor is counted."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from dpo.errors import CheckpointError
from dpo.modeling.adapter import CONFIG, TENSORS, read_settings
from dpo.modeling.safetensors import read_header

Shapes = dict[str, tuple[int, ...]]


def put_on(model: Any, folder: Path, name: str = "default") -> Any:
    """The trained adapter of `folder` on a base, or beside the adapters of a PeftModel; returns the PeftModel.

    Raises CheckpointError where its settings are damaged, or a tensor is missing, left over or of another shape.
    """
    from peft import LoraConfig, PeftModel

    settings = read_settings(folder, str(folder), CheckpointError)
    if settings.get("peft_type") != "LORA":
        raise CheckpointError(f"{folder}: its {CONFIG} says peft_type={settings.get('peft_type')!s:.60}, not LORA")
    held = shapes_of(folder / TENSORS)
    try:
        config = LoraConfig.from_pretrained(str(folder))
        # How the adapter once began is no matter: initializations such as PiSSA's would change the base here.
        config.init_lora_weights = True
        config.inference_mode = True
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Found missing adapter keys")  # counted below
            if isinstance(model, PeftModel):
                model.add_adapter(name, config)
                model.load_adapter(folder, name, use_safetensors=True)
            else:
                model = PeftModel.from_pretrained(model, folder, name, config=config, use_safetensors=True)
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError) as fault:
        if type(fault) is RuntimeError and "size mismatch" not in str(fault):
            raise
        lines = [line.strip() for line in str(fault).splitlines() if line.strip()] or [type(fault).__name__]
        raise CheckpointError(f"{folder}: does not fit its base ({lines[-1]:.200})") from None
    check_counted(model, folder, held, name)
    return model


def check_counted(model: Any, folder: Path, held: Shapes | None = None, name: str = "default") -> None:
    """Raise CheckpointError unless `folder` holds the very tensors that an adapter of a PeftModel consists of."""
    from peft import get_peft_model_state_dict

    expected = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    needed = {key: tuple(tensor.shape) for key, tensor in expected.items()}
    _check_fits(str(folder / TENSORS), shapes_of(folder / TENSORS) if held is None else held, needed)


def shapes_of(path: Path) -> Shapes:
    """Shapes of a file's tensors by name; raises CheckpointError."""
    try:
        return {name: tensor.shape for name, tensor in read_header(path).items()}
    except (ValueError, OSError) as fault:
        raise CheckpointError(f"{path}: {fault}") from None


def _check_fits(what: str, held: Shapes, needed: Shapes) -> None:
    odd = {
        "lacks": sorted(needed.keys() - held.keys()),
        "has, and its adapter_config.json does not name,": sorted(held.keys() - needed.keys()),
        "has in another shape": sorted(key for key in held.keys() & needed.keys() if held[key] != needed[key]),
    }
    faults = [
        f"{what}: {says} {len(names)} of {len(needed)} tensors, the first {names[0]}"
        for says, names in odd.items()
        if names
    ]
    if faults:
        raise CheckpointError("\n".join(faults))
