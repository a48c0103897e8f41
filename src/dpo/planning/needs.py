"""What the tokens of a micro-batch take, measured on the run's own step without contents, and remembered.

`engine.choice` asks here before it settles a budget. The answer is two numbers, from a step of one pair and a step of
two, kept by model, lora, engine, precision and versions: so that every later run of the same kind finds them.
"""

from __future__ import annotations

import base64
import contextlib
import copy
import hashlib
import json
import os
import pickle
import random
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import _disable_current_modes

from dpo.caches.folder import cache_folder
from dpo.config.hardware import Checkpointing, Parallel
from dpo.config.lora import Lora
from dpo.config.parse import plain
from dpo.config.schema import Config
from dpo.data.pair import TokenPair
from dpo.engine import choice
from dpo.engine.kernels import cuda
from dpo.engine.kernels.cpu import KEPT_KEYS
from dpo.engine.memory import Need
from dpo.modeling.device import Compute
from dpo.planning.allocator import Allocator, Host
from dpo.planning.card import Card, fake_card, fake_host
from dpo.planning.rehearsal import Rehearsal
from dpo.planning.stand_ins import answered
from dpo.planning.trace import Trace
from dpo.records.files import write_json

VERSION = 1
"""Raised when the same step would be measured otherwise."""
PROMPT, FEWEST_KEYS = 16, 128
PACKAGES = ("torch", "transformers", "trl", "peft", "bitsandbytes")
UNBOUNDED = 1 << 50
UNSHAPED = (
    "_name_or_path", "architectures", "dtype", "use_cache", "transformers_version", "quantization_config",
    "bos_token_id", "eos_token_id", "pad_token_id",
)  # fmt: skip
"""Of a model's config, what no step's memory depends on."""
PATIENCE = 600.0
"""Seconds that another process may measure for."""


@dataclass(frozen=True)
class Asked:
    """Everything that decides the answer. `kernel`: of packed attention on a card; `kept`: whether 4-bit weights stay
    dequantized; `keys`: of the longest sequence, in powers of two where memory grows faster than with it."""

    config: Config
    shape: Any
    compute: Compute
    kept: bool
    checkpointing: bool
    kernel: str | None
    keys: int
    capability: tuple[int, int]

    @property
    def key(self) -> str:
        """Hex digest of it."""
        hardware, dpo = self.config.hardware, self.config.dpo
        facts = {
            "version": VERSION,
            "packages": {name: version(name) for name in PACKAGES},
            "shape": {name: value for name, value in self.shape.to_dict().items() if name not in UNSHAPED},
            "lora": plain(self.config.lora),
            "loss": list(dpo.loss),
            "trainer": plain(dpo.trainer),
            "engine": hardware.engine.value,
            "attention": hardware.attention,
            "compute": [self.compute.device, str(self.compute.dtype)],
            "rest": [self.kept, self.checkpointing, self.kernel, self.keys, self.capability],
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:40]


def need_of(config: Config, shape: Any, compute: Compute, kept: bool, checkpointing: bool, longest: int) -> Need | None:
    """Bytes that a micro-batch takes beside model, gradients and moments; None where no step can be measured here.

    Args:
        shape: transformers' config of the model.
        kept: whether 4-bit weights stay dequantized from their first use on.
        longest: tokens of the longest sequence.
    """
    if compute.device not in ("cpu", "cuda") or config.model.trust_remote_code:
        return None
    kernel, capability = None, (0, 0)
    if compute.device == "cuda":
        text = shape.get_text_config()
        head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        kernel = cuda.probe(0, compute.dtype, head).name if compute.bf16 else None
        capability = torch.cuda.get_device_capability()
    # What is kept of scores grows with the keys: on a CPU to a bound, on a card without flash attention to no bound.
    keys = KEPT_KEYS
    if compute.device == "cpu" or kernel != "varlen":
        keys = 1 << (max(longest, FEWEST_KEYS) - 1).bit_length()
        keys = min(keys, KEPT_KEYS) if compute.device == "cpu" else keys
    # A rehearsal writes into the config it is given; this one is a model's that is about to be trained.
    shape = copy.deepcopy(shape)
    if hasattr(shape, "quantization_config"):
        del shape.quantization_config
    asked = Asked(config, shape, compute, kept, checkpointing, kernel, keys, capability)
    place = cache_folder("needs") / f"{asked.key}.json"
    with contextlib.suppress(OSError, ValueError, TypeError, RecursionError):
        return Need(**json.loads(place.read_text(encoding="utf-8")))
    found = _measured(asked)
    if found is not None:
        write_json(place, asdict(found))
    return found


def _measured(asked: Asked) -> Need | None:
    faked = torch._C._len_torch_dispatch_stack() > 0
    alone = asked.compute.device == "cpu" and not torch.distributed.is_initialized()
    if not faked and not alone:
        return _elsewhere(asked)
    try:
        with _undisturbed(), _disable_current_modes():
            return measure(asked)
    except Exception as error:  # noqa: BLE001 - a forecast stops no run
        print(
            f"memory of a step by rule: it cannot be measured here ({type(error).__name__}: {error!s:.80})", flush=True
        )
        return None


def measure(asked: Asked) -> Need:
    """The measurement itself, in this process."""
    hardware = replace(
        asked.config.hardware,
        token_budget=UNBOUNDED,
        memory_gb=None,
        parallel=Parallel.none,
        activation_checkpointing=Checkpointing.on if asked.checkpointing else Checkpointing.off,
    )
    config = replace(asked.config, hardware=hardware, model=replace(asked.config.model, adapter=None))
    side = [1] * (asked.keys - PROMPT)
    pairs = [TokenPair(f"need:{i}", [1] * PROMPT, side, side) for i in range(2)]
    keep = {} if asked.kept else {"keep_dequantized": lambda *_: 0}
    with contextlib.ExitStack() as inside:
        allocator: Allocator | Host = Host()
        if asked.compute.device == "cuda":
            allocator = Allocator(UNBOUNDED)
            inside.enter_context(fake_card(Card("a card", UNBOUNDED, asked.capability), allocator))
            serves = cuda.Probe(asked.kernel)
            inside.enter_context(answered(cuda, {"probe": lambda *_: serves}))
        else:
            inside.enter_context(fake_host())
        inside.enter_context(answered(choice, keep))
        trace = Trace(allocator, asked.compute.device)
        inside.enter_context(trace)
        made = Rehearsal(config, asked.shape, asked.compute, pairs, trace, probe=False)
        if asked.kept:
            made.reference(pairs[:1])
        # Of adapters, the moments are few beside what a step holds; of all weights they have to lie there first.
        before = [] if isinstance(config.lora, Lora) else [pairs[:1]]
        *_, one, two = made.train([*before, pairs[:1], pairs], gradients=True)
    small, large = one.peak - one.held, two.peak - two.held
    tokens = made.tokens(pairs[:1])
    slope = max(1.0, (large - small) / tokens)
    return Need(fixed=max(0.0, small - slope * tokens), per_token=slope, flops=(two.flops - one.flops) / tokens)


def _elsewhere(asked: Asked) -> Need | None:
    """In a process that sees no card and belongs to no run."""
    print("measuring the memory of a step, once for this model and lora", flush=True)
    left_out = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    environment = {name: value for name, value in os.environ.items() if name not in left_out}
    try:
        done = subprocess.run(
            [sys.executable, "-m", "dpo.planning.needs"],
            input=base64.b64encode(pickle.dumps(asked)),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=PATIENCE,
            check=True,
            env={**environment, "CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": ""},
        )
        return Need(**json.loads(done.stdout.splitlines()[-1]))
    except (OSError, subprocess.SubprocessError, ValueError, TypeError, IndexError) as error:
        print(f"memory of a step by rule: it cannot be measured here ({type(error).__name__})", flush=True)
        return None


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """A run's random numbers are what they would be had nothing been measured."""
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])


if __name__ == "__main__":
    from dpo.records.quiet import quiet

    quiet()
    # Of this very machine's own process, which it was started by.
    print(json.dumps(asdict(measure(pickle.loads(base64.b64decode(sys.stdin.buffer.read()))))))  # noqa: S301
