"""Weights, gradients and optimizer states spread over the ranks by torch's FSDP2 (arXiv:2304.11277).

A decoder layer is gathered for its forward and for its backward, and its gradient is summed over ranks in the backward.
fsdp and zero3 are one thing with two names: they give a layer's weights up in between. zero2 keeps them (stages 3 and
2 of ZeRO, arXiv:1910.02054, section 5; without DeepSpeed).
Each rank must take every forward and backward together with the others, so ranks get equally many micro-batches, and
nothing that one rank alone notices (a signal, an allocation that failed, a NaN) may end a pass on that rank.

The model is spread when the optimizer is made: until then it is whole on each rank, for the reference pass, the
evaluation at step 0 and the weights of a checkpoint. Checkpoints hold whole tensors, in the files of one process.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from dpo.data.pair import TokenPair
from dpo.distributed.ranks import losing
from dpo.engine.support import unwrapped
from dpo.errors import ConfigError, OutOfMemory, is_out_of_memory
from dpo.modeling.modes import is_4bit
from dpo.training.resumable import AS_HERE
from dpo.training.trainer import Trainer

CONNECTION = {"Connection", "connection", "[gloo]", "gloo"}
"""Words of gloo's errors about a rank that is gone."""


class ShardedTrainer(Trainer):
    """`reshard`: whether a layer's weights are given up between its forward and its backward."""

    optimizer: Any

    def __init__(self, *, reshard: bool, **more: Any) -> None:
        self.reshard = reshard
        self.spread = False
        self._weights: dict[str, torch.Tensor] = {}
        self._state: dict[str, Any] = {}
        super().__init__(**more)

    def create_optimizer(self, model: Any = None) -> Any:
        """Spread the model, then make the optimizer of this rank's parts."""
        if not self.spread:
            spread(self.model, self.reshard)
            self.spread = True
        optimizer = super().create_optimizer(model)
        optimizer.register_load_state_dict_pre_hook(own_part)
        return optimizer

    def _parts(self, pairs: Sequence[TokenPair]) -> list[tuple[list[TokenPair], int]]:
        parts = super()._parts(pairs)
        if self.spread:
            parts += [([pairs[0]], 0)] * (max(self.ranks.gather(len(parts))) - len(parts))
        return parts

    def _forward_backward(self, model: Any, pairs: list[TokenPair], step: int) -> torch.Tensor:
        try:
            return super()._forward_backward(model, pairs, step)
        except (MemoryError, RuntimeError) as error:
            if isinstance(error, torch.distributed.DistBackendError) or CONNECTION & set(str(error).split()):
                with losing():
                    raise
            if not is_out_of_memory(error):
                raise
            raise OutOfMemory(
                f"step {step}: a micro-batch of {self.engine.budget} tokens does not fit the memory; with spread "
                f"weights a step is not retried\ntry hardware.token_budget={self.engine.budget // 2}, or "
                "hardware.activation_checkpointing=on"
            ) from None

    def _sum_gradients(self) -> None:
        """Done, in the backward."""

    def _may_cut(self) -> bool:
        return not self.spread

    def collect(self) -> None:
        """Whole weights and optimizer states, on rank 0."""
        if not self.spread:
            return
        keep = self.ranks.first
        named = self.model.named_parameters()
        self._weights = {name: whole(parameter, keep) for name, parameter in named if parameter.requires_grad}
        saved = self.optimizer.state_dict()
        states = {i: {key: whole(value, keep) for key, value in of.items()} for i, of in saved["state"].items()}
        self._state = {**saved, "state": states}

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        self._weights, self._state = {}, {}

    def save_weights(self, folder: Path, published: bool = True) -> None:
        """What the last `collect` found."""
        if not self.spread:
            super().save_weights(folder, published)
        elif hasattr(self.model, "peft_config"):
            self.model.save_pretrained(folder, state_dict=self._weights, save_embedding_layers=False)
        else:
            self.model.save_pretrained(folder, state_dict=self._weights, **({} if published else AS_HERE))

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        own = self.optimizer
        if self.spread:
            self.optimizer = SimpleNamespace(state_dict=lambda: self._state)
        try:
            super()._save_optimizer_and_scheduler(output_dir)
        finally:
            self.optimizer = own


def spread(model: Any, reshard: bool) -> None:
    """Spread each decoder layer, and what is left, over all ranks; gradients become sums over them.

    Raises ConfigError when the architecture does not say which of its modules are layers.
    """
    base = unwrapped(model)
    names = set(getattr(base, "_no_split_modules", None) or ())
    layers = [module for module in base.modules() if type(module).__name__ in names]
    if not layers:
        raise ConfigError(f"hardware.parallel: {type(base).__name__} names no layers to spread; use ddp")
    # FSDP2 warns of outputs that are views; nothing writes into ours.
    warnings.filterwarnings("ignore", message=".*returned a view tensor")
    _keep_4bit_state(base)
    device = next(base.parameters()).device.type
    mesh = init_device_mesh(device, (torch.distributed.get_world_size(),))
    for module in [*layers, model]:
        # The root's embeddings and head are needed first and last: given up after a backward only.
        fully_shard(module, mesh=mesh, reshard_after_forward=None if module is model else reshard)
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)
    for module in base.modules():
        if is_4bit(module):
            setattr(module.weight, "quant_state", module.quant_state)  # noqa: B010 - as bitsandbytes has it


def _keep_4bit_state(base: Any) -> None:
    """Packed weights as plain bytes, which can be cut anywhere; their scales stay whole beside them.

    FSDP2 gathers tensors of any type, so bitsandbytes' `quant_storage` may stay uint8 (FSDP1 needed a floating one).
    """
    for module in base.modules():
        if is_4bit(module):
            module.quant_state = module.weight.quant_state
            module.weight = torch.nn.Parameter(module.weight.data, requires_grad=False)


def whole(value: Any, keep: bool) -> Any:
    """A spread tensor with all its parts, on the CPU of a rank that keeps it; anything else as it is.

    All ranks must call it, and only one keeps what it gets: their host may not hold it once a rank.
    """
    if not isinstance(value, DTensor):
        return value
    full = value.full_tensor()
    return full.cpu() if keep else None


def own_part(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> dict[str, Any]:
    """`saved` (of one process) with this rank's part of each tensor that has the shape of its parameter."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]

    def cut(value: Any, parameter: Any) -> Any:
        if not isinstance(parameter, DTensor) or not torch.is_tensor(value) or value.shape != parameter.shape:
            return value
        there = value.to(parameter.device)
        return distribute_tensor(there, parameter.device_mesh, parameter.placements, src_data_rank=None)

    state = {i: {key: cut(v, parameters[i]) for key, v in values.items()} for i, values in saved["state"].items()}
    return {**saved, "state": state}
