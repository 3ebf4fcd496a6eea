"""FSDP2 for a pre-training run: weights, gradients and optimizer state are sharded over the processes, and saved whole.

PyTorch's `fully_shard` and state-dict functions, which work on GPUs (nccl) and CPUs (gloo) alike. Each layer is one unit,
gathered around its call; embeddings and heads belong to the root.
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
    """Shards the parameters of model in place, over the default process group. Create the optimizer after this.

    device: where model is.
    """
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    for module in model.modules():
        if isinstance(module, BertLayer):
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)


def whole(tensor: Any) -> Any:
    """The whole of a sharded tensor, on every process; any other tensor as it is."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


@contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """Inside, all weights are whole and no call waits for another process: each may call model a different number of times.

    All processes must enter and leave together. For inference only: gradients are lost. A model that is not sharded is
    unchanged.
    """
    units = [module for module in model.modules() if isinstance(module, FSDPModule)]  # the root first, as FSDP2 requires
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
    """All weights, whole, tied ones once, on rank 0; an empty dict on the others. Every rank calls it."""
    once = dict(model.named_parameters())
    state: dict[str, Any] = get_model_state_dict(model, options=WHOLE)
    return {name: tensor for name, tensor in state.items() if name in once}


def optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The optimizer's state by parameter name, whole, on rank 0. Every rank calls it."""
    state: Any = get_optimizer_state_dict(model, optimizer, options=WHOLE)
    return state


def load_optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer, state: Any) -> None:
    """Loads the whole state of `optimizer_state`, sharded. Every rank calls it."""
    set_optimizer_state_dict(model, optimizer, state, options=WHOLE)
