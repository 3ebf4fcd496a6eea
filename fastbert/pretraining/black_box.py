"""The record of a step that failed: its samples, masks and random states, its largest values, and the weights before it.

`fastbert replay FILE` repeats the step from that file and shows where the first number that is not finite appears.
"""

import base64
import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from torch import Tensor, nn

from fastbert.data.batches import collate
from fastbert.data.shards import TOKENIZER, Shards, fingerprint
from fastbert.utils.errors import DataError
from fastbert.utils.files import write_whole

from .objectives import Objective
from .sharding import whole

FILE = "black-box.json"


class Reading(NamedTuple):
    """The largest absolute value of a part of the step: of the loss, a module's output, or a gradient."""

    micro_batch: int
    part: str
    value: float


def write(folder: Path, trainer: Any, reason: str) -> Path:
    """Writes the black box of a PreTrainer's step under way; returns its file. The weights are those before the step."""
    folder.mkdir(parents=True, exist_ok=True)
    model = trainer.accelerator.unwrap_model(trainer.model)
    state = {name: whole(tensor.detach()).cpu().clone() for name, tensor in model.state_dict().items()}
    write_whole(folder / "weights.safetensors", safetensors.torch.save(state))
    batches, step = trainer.batches, trainer.state.global_step
    steps = []
    for i in range(batches.accumulation):
        phase, epoch, samples = batches.locate(step * batches.accumulation + i)
        steps.append({"data": str(phase.shards.folder.resolve()), "epoch": epoch, "samples": samples.tolist()})
        masker, tokenizer = phase.masker, phase.shards.meta.fingerprint
    content = {
        "reason": reason,
        "step": step + 1,
        "process": [trainer.args.process_index, trainer.args.world_size],
        "micro-batches": steps,
        "masks": {
            "seed": masker.seed,
            "static": masker.static,
            "max_predictions": masker.max_predictions,
            "probability": masker.probability,
            "whole_words": masker.continues is not None,
        },
        "objective": asdict(trainer.objective),
        "tokenizer": tokenizer,
        "config": model.config.to_dict(),
        "autocast": bool(trainer.args.bf16),
        "random states before the step": {name: _text(state) for name, state in trainer.random_states.items()},
        "largest weight and gradient": {
            name: [_number(parameter), None if parameter.grad is None else _number(parameter.grad)]
            for name, parameter in model.named_parameters()
        },
    }
    write_whole(folder / FILE, json.dumps(content, indent=1) + "\n")
    return folder / FILE


def repeat_step(file: Path, *, modules: bool) -> list[Reading]:
    """Repeats the forward and backward of the step; returns readings in the order of computing.

    Parts are 'loss' and 'gradient of NAME'. modules: the outputs of every module as well; fused operations have none, so this
    runs transformers' modules. Raises DataError where the file, its weights or the data it names are missing or differ.
    """
    content, shards = _read(file)
    from transformers import AutoTokenizer, BertConfig

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    objective = Objective(**content.get("objective", {}))
    model = objective.model(BertConfig(**content["config"])).train()
    model.load_state_dict(safetensors.torch.load_file(file.parent / "weights.safetensors"))
    model.to(device)
    tokenizer = AutoTokenizer.from_pretrained(next(iter(shards.values())).folder / TOKENIZER)
    if fingerprint(tokenizer) != content["tokenizer"]:
        raise DataError(f"expected the tokenizer of the run in {next(iter(shards))}, got another")
    masker = objective.masker(tokenizer, **content["masks"])
    readings: list[Reading] = []
    micro_batch = 0

    def record(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            tensors = output if isinstance(output, tuple) else (output,)
            readings.extend(Reading(micro_batch, name, _largest(one)) for one in tensors if isinstance(one, Tensor))

        return hook

    for name, module in model.named_modules() if modules else ():
        if name and not list(module.children()):
            module.register_forward_hook(record(name))
    states = content["random states before the step"]
    torch.set_rng_state(_bytes(states["cpu"]))
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(_bytes(states["cuda"]))
    for micro_batch, one in enumerate(content["micro-batches"]):
        batch = collate(shards[one["data"]], masker, one["samples"], one["epoch"])
        batch = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}
        model.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=content["autocast"]):
            loss = model(**batch, return_logits=False).loss
        readings.append(Reading(micro_batch, "loss", _largest(loss)))
        loss.backward()
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                readings.append(Reading(micro_batch, f"gradient of {name}", _largest(parameter.grad)))
    return readings


def first_non_finite(readings: list[Reading]) -> Reading | None:
    """The first reading that is not finite, or None."""
    return next((one for one in readings if not math.isfinite(one.value)), None)


def _read(file: Path) -> tuple[dict[str, Any], dict[str, Shards]]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        folders = dict.fromkeys(one["data"] for one in content["micro-batches"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"expected a {FILE} of a stopped run in {file}, got {type(error).__name__}: {error}") from error
    if not (file.parent / "weights.safetensors").is_file():
        raise DataError(f"expected weights.safetensors beside {file}, got none")
    return content, {folder: Shards(folder) for folder in folders}


def _largest(tensor: Tensor) -> float:
    """The largest absolute value, NaN where there is one."""
    tensor = whole(tensor)
    return tensor.detach().abs().max().float().item() if tensor.numel() else 0.0


def _number(tensor: Tensor) -> float | str:
    """The largest absolute value for JSON, which has neither NaN nor infinity."""
    value = _largest(tensor)
    return value if math.isfinite(value) else str(value)


def _text(state: Tensor) -> str:
    return base64.b64encode(bytes(state.tolist())).decode()


def _bytes(text: str) -> Tensor:
    return torch.tensor(list(base64.b64decode(text)), dtype=torch.uint8)
