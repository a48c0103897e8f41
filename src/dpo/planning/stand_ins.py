"""What stands in for code that launches kernels by address or by Triton, which tensors without contents do not have."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import torch


@contextlib.contextmanager
def answered(owner: Any, answers: Mapping[str, Any]) -> Iterator[None]:
    """Attributes of `owner` replaced, and put back."""
    absent = object()
    kept = {name: vars(owner).get(name, absent) for name in answers}
    try:
        for name, answer in answers.items():
            setattr(owner, name, answer)
        yield
    finally:
        for name, value in kept.items():
            if value is absent:
                delattr(owner, name)
            else:
                setattr(owner, name, value)


@contextlib.contextmanager
def without_launches() -> Iterator[None]:
    """TRL's Triton kernels of the LM head, which write into what they are given, and bitsandbytes' paged memory."""
    import bitsandbytes.functional as functional
    from trl.kernels import chunked_logprob
    from trl.trainer import utils

    from dpo.engine.kernels import cuda

    uses = {"_use_triton": lambda device: device.type == "cuda"}
    head = {
        "_forward_kernel": _Launch("_forward_kernel"),
        "_backward_kernel": _Launch("_backward_kernel"),
        **uses,
        "triton": SimpleNamespace(cdiv=lambda x, y: -(-x // y)),
    }
    paged = {"get_paged": _paged, "fill": _nothing, "prefetch_tensor": _nothing}
    flex = {"_compiled_flex": lambda: _Flex.attend}
    with answered(chunked_logprob, head), answered(utils, uses), answered(functional, paged), answered(cuda, flex):
        yield


class _Launch:
    """A Triton kernel that is handed a grid and arguments."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        def launch(*arguments: Any, **options: Any) -> None:
            tensors = [value for value in (*arguments, *options.values()) if isinstance(value, torch.Tensor)]
            places = {str(tensor.device) for tensor in tensors}
            if any(not place.startswith("cuda") for place in places) or len(places) > 1:
                raise ValueError(f"{self.name}: Pointer argument on {', '.join(sorted(places))}")

        return launch


class _Flex(torch.autograd.Function):
    """FlexAttention as its compiled kernels hold memory: the result and a statistic a row are kept."""

    @staticmethod
    def attend(
        query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, block_mask: Any, scale: Any, enable_gqa: bool
    ) -> torch.Tensor:
        """[1, Hq, T, D]."""
        if query.shape[1] != key.shape[1] and not enable_gqa:
            raise ValueError(f"flex_attention: {query.shape[1]} heads on {key.shape[1]} without enable_gqa")
        if len({(x.dtype, x.device) for x in (query, key, value)}) > 1:
            raise ValueError("flex_attention: query, key and value must be of one type on one device")
        out: torch.Tensor = _Flex.apply(query, key, value)
        return out

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        out = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, out, torch.empty(query.shape[:-1], device=query.device))
        return out

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, ...]:  # type: ignore[override]
        query, key, value, *_ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


def _paged(*shape: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    # Managed memory, which lies on the card as long as there is room.
    found: Any = torch.empty(shape, dtype=dtype, device="cuda")
    found.is_paged, found.page_deviceid = True, 0
    return found


def _nothing(*_: Any, **__: Any) -> None:
    """Nothing to do without contents."""
