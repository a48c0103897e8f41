"""A CUDA card that is not here: torch believes in it, and tensors on it have shapes, types and places but no contents.

For a process of its own, never beside a visible card: what is told to torch here is not taken back. Autograd asks
for a guard of the device and for a built accelerator before it computes a gradient there; both are answered in
libtorch's own tables (Linux; x86-64 and AArch64 share their layout).
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from dpo.errors import ConfigError
from dpo.planning.allocator import Allocator
from dpo.planning.stand_ins import answered, without_launches

WORD = ctypes.c_void_p
REGISTRY = "_ZN3c104impl26device_guard_impl_registryE"
HOOKS = "_ZN2at6detail12getCUDAHooksEv"
CUDA = 1
"""Its number among torch's device types."""
IS_BUILT, HAS_CONTEXT = 2, 4
"""Where `AcceleratorHooksInterface` has these methods, behind its two destructors."""
_within: list[Card] = []
"""Those that are faked now: a step is measured for an engine that is chosen on such a card."""
CONTEXT = 500 << 20
"""What driver and kernels of a process take before the first tensor: 0.4 to 0.6 GiB, by card and driver."""
AMPERE = (8, 0)


@dataclass(frozen=True)
class Card:
    """A device by its figures. `memory`: bytes. `capability`: CUDA's. bf16 is multiplied from 8.0 on."""

    name: str
    memory: int
    capability: tuple[int, int] = (9, 0)


class CannotFake(ConfigError):
    """This torch, or this machine, does not take a card that is not there."""


@contextlib.contextmanager
def fake_card(card: Card, allocator: Allocator) -> Iterator[None]:
    """Inside, torch sees one `card`, and new tensors are fake; `allocator` is its memory.

    Raises CannotFake beside a real card, or where torch's tables are not as known.
    """
    if torch.cuda.is_available() and not _within:
        raise CannotFake("a card is visible here; set CUDA_VISIBLE_DEVICES to nothing")
    register_guard()
    # Both look at torch.cuda once, when they are imported.
    import bitsandbytes  # noqa: F401

    _within.append(card)
    try:
        with answered(torch.cuda, _answers(card, allocator)), without_launches(), fake_host():
            yield
    finally:
        _within.pop()


@contextlib.contextmanager
def fake_host() -> Iterator[None]:
    """Inside, new tensors have no contents, whatever device they are on; one thread computes."""
    faked = _Mode(allow_non_fake_inputs=True)
    # Threads have modes of their own.
    alone = {"get_num_threads": lambda: 1}
    with answered(torch.nn.Module, {"_apply": _apply}), answered(torch, alone), _fresh_accelerator(), faked:
        yield


@contextlib.contextmanager
def _fresh_accelerator() -> Iterator[None]:
    """accelerate keeps device and precision of the first trainer of a process for all others."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        yield
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


class _Mode(FakeTensorMode):
    @property
    def avoid_device_init(self) -> bool:
        """`torch.tensor` makes its numbers on the CPU first, whatever torch.cuda says of a card."""
        return True


def register_guard() -> None:
    """Let autograd compute gradients of fake CUDA tensors."""
    if sys.platform != "linux":
        raise CannotFake(f"no card can be faked on {sys.platform}")
    home = f"{torch.__path__[0]}/lib"
    try:
        registry = (WORD * (CUDA + 1)).in_dll(ctypes.CDLL(f"{home}/libc10.so"), REGISTRY)
        hooks_of = getattr(ctypes.CDLL(f"{home}/libtorch_cpu.so"), HOOKS)
    except (OSError, ValueError, AttributeError) as error:
        raise CannotFake(f"torch {torch.__version__} has other tables than known: {error}") from None
    if not registry[CUDA]:
        # torch puts its own no-op guard over one that counts no devices.
        registry[CUDA] = _object([ctypes.cast(_NONE, WORD).value] * 40)
    torch._C._ensureCUDADeviceGuardSet()
    if torch.accelerator.current_accelerator() is None:
        hooks_of.restype = WORD
        hooks = WORD.from_address(hooks_of())
        # What tells its class stands before the methods.
        table = list((WORD * 82).from_address((hooks.value or 0) - 2 * ctypes.sizeof(WORD)))
        yes = ctypes.cast(ctypes.pythonapi.Py_IsInitialized, WORD).value
        table[2 + IS_BUILT] = table[2 + HAS_CONTEXT] = yes
        hooks.value = (WORD.from_address(_object(table)).value or 0) + 2 * ctypes.sizeof(WORD)
    if str(torch.accelerator.current_accelerator()) != "cuda":
        raise CannotFake(f"torch {torch.__version__} did not take the card")


# A function that answers 0 whatever it is called with. One in Python would be gone when torch last asks, at exit.
_NONE = ctypes.CDLL(None).sched_yield


def _object(methods: list[int | None]) -> int:
    """Address of a C++ object with these virtual methods, which lives as long as the process."""
    table = (WORD * len(methods))(*methods)
    made = (WORD * 1)(ctypes.addressof(table))
    for kept in (table, made):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(kept))
    return ctypes.addressof(made)


def _apply(module: torch.nn.Module, change: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Any:
    """`nn.Module._apply` by new parameters: torch's own exchanges what fake tensors do not let go of."""
    for child in module.children() if recurse else ():
        _apply(child, change)
    for name, parameter in module._parameters.items():
        if parameter is None:
            continue
        with torch.no_grad():
            changed = change(parameter)
        if changed is not parameter and changed.untyped_storage()._cdata != parameter.untyped_storage()._cdata:
            module._parameters[name] = torch.nn.Parameter(changed, parameter.requires_grad)
    for name, buffer in module._buffers.items():
        if buffer is not None:
            module._buffers[name] = change(buffer)
    return module


def _answers(card: Card, allocator: Allocator) -> dict[str, Callable[..., Any]]:
    properties = SimpleNamespace(
        name=card.name, total_memory=card.memory, major=card.capability[0], minor=card.capability[1], uuid="fake",
        multi_processor_count=100,
    )  # fmt: skip

    def nothing(*_: Any, **__: Any) -> None:
        pass

    state = torch.zeros(16, dtype=torch.uint8)
    silent: tuple[str, ...] = (
        "set_device",
        "empty_cache",
        "synchronize",
        "set_rng_state",
        "set_rng_state_all",
        "manual_seed",
    )
    silent += ("manual_seed_all", "_lazy_init", "init", "reset_peak_memory_stats", "set_per_process_memory_fraction")
    return {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "get_device_name": lambda *_: card.name,
        "get_device_properties": lambda *_: properties,
        "get_device_capability": lambda *_: card.capability,
        "is_bf16_supported": lambda including_emulation=True: including_emulation or card.capability >= AMPERE,
        "mem_get_info": lambda *_: (max(0, card.memory - CONTEXT - allocator.reserved), card.memory),
        "memory_reserved": lambda *_: allocator.reserved,
        "memory_allocated": lambda *_: allocator.allocated,
        "get_rng_state": lambda *_: state,
        "get_rng_state_all": lambda: [state],
        **dict.fromkeys(silent, nothing),
    }
