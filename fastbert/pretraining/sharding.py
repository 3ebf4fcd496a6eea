"""FSDP2 for a pre-training run: weights, gradients and optimizer state cut over the processes, whole again on the disk.

PyTorch's own `fully_shard` and state-dict functions, so that it works on GPUs (nccl) and CPUs (gloo) alike. Each layer is one
unit, gathered around its call; the embeddings and heads are the root's.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from transformers.models.bert.modeling_bert import BertLayer

WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


def shard(model: nn.Module, device: torch.device) -> None:
    """Cuts the parameters of model, which becomes FSDP2's; an optimizer is to be made after this.

    device: where model is; its default process group holds all processes.
    """
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    for module in model.modules():
        if isinstance(module, BertLayer):
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)


def whole(tensor: Any) -> Any:
    """A cut tensor gathered, on every process; any other as it is."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


@contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """Inside, all weights are whole and no call waits for another process, so that each may call model as often as it has to.

    Every process enters and leaves together. For reading only: no gradient survives. A model that is not cut stays as it is.
    """
    units = [module for module in model.modules() if isinstance(module, FSDPModule)]  # the root first, as its own state demands
    for unit in units:
        unit.set_reshard_after_forward(False, recurse=False)
        unit.unshard()
    try:
        yield
    finally:
        for unit in units:
            unit.reshard()
            unit.set_reshard_after_forward(unit is not model, recurse=False)


def model_state(model: nn.Module) -> dict[str, Tensor]:
    """All weights, whole, tied ones once, on the first process; an empty dict on the others. Every process calls it."""
    once = dict(model.named_parameters())
    state: dict[str, Any] = get_model_state_dict(model, options=WHOLE)
    return {name: tensor for name, tensor in state.items() if name in once}


def optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The optimizer's state by parameter name, whole, on the first process. Every process calls it."""
    return get_optimizer_state_dict(model, optimizer, options=WHOLE)  # type: ignore[return-value]


def load_optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """What `optimizer_state` gave, cut again. Every process calls it with the whole state."""
    set_optimizer_state_dict(model, optimizer, state, options=WHOLE)  # type: ignore[arg-type]
