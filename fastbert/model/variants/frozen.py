"""A frozen encoder with the head that was trained on its features: called as one model, saved and loaded.

A saved folder holds the encoder as a BertModel with its tokenizer (`config.json`, `model.safetensors`), unless the head is one
of transformers' own; beside it `head.safetensors` and `frozen.json`, from which `load_frozen` builds the whole.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.modeling_outputs import QuestionAnsweringModelOutput, SequenceClassifierOutput

from fastbert.model.bert import BertModel
from fastbert.model.variants.frozen_features import encode
from fastbert.model.variants.frozen_heads import KINDS, FrozenHead, Shape
from fastbert.utils.checkpoints import quiet
from fastbert.utils.errors import InputError
from fastbert.utils.files import write_whole
from fastbert.utils.folders import reading

HEAD, SHAPE = "head.safetensors", "frozen.json"
FORMAT = 1


class FrozenModel(nn.Module):
    """A frozen encoder under a trained head, with the interface that fastbert's heads have for a packed batch.

    config: the encoder's, with the task's labels. task_class: name of the class whose outputs it returns.
    """

    def __init__(self, encoder: Any, head: FrozenHead) -> None:
        super().__init__()
        self.encoder, self.head = encoder.eval().requires_grad_(False), head
        self.config: Any = encoder.config
        self.task_class = head.shape.task_class
        self.name_or_path = str(getattr(encoder, "name_or_path", ""))

    @property
    def device(self) -> torch.device:
        return self.head.classifier.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.head.classifier.weight.dtype

    def train(self, mode: bool = True) -> "FrozenModel":
        super().train(mode)
        self.encoder.eval()
        return self

    def forward(
        self,
        input_ids: Tensor,
        token_type_ids: Tensor | None = None,
        *,
        cu_seqlens: Tensor,
        max_seqlen: int,
        num_choices: int = 1,
        **labels: Tensor,
    ) -> Any:
        """logits, or start_logits and end_logits, as its task's class returns them; with labels also the loss."""
        batch = {"input_ids": input_ids, "cu_seqlens": cu_seqlens, "max_seqlen": max_seqlen}
        if token_type_ids is not None:
            batch["token_type_ids"] = token_type_ids
        features = encode(self.encoder, self.head.shape, batch)
        outputs: dict[str, Any] = self.head(features, cu_seqlens, num_choices, **labels)
        loss, logits = outputs.get("loss"), outputs["logits"]
        if self.head.shape.kind == "spans":
            starts, ends = logits.unbind(-1)
            return QuestionAnsweringModelOutput(loss=loss, start_logits=starts, end_logits=ends)
        return SequenceClassifierOutput(loss=loss, logits=logits)


def save_frozen(model: FrozenModel, folder: Path) -> None:
    """Writes encoder, head and `frozen.json` into the folder."""
    encoder: Any = model.encoder
    with quiet():
        encoder.save_pretrained(folder)
    state = {name: value.detach().cpu().contiguous() for name, value in model.head.state_dict().items()}
    save_file(state, folder / HEAD)
    content = {"format": FORMAT, "dropout": model.head.dropout.p, **model.head.shape.as_dict()}
    write_whole(folder / SHAPE, json.dumps(content, indent=1) + "\n")


def is_frozen(path: str | Path) -> bool:
    """Whether the folder holds a frozen encoder with a head of fastbert's."""
    return (Path(path) / SHAPE).is_file()


def load_frozen(folder: str | Path, *, dtype: torch.dtype = torch.float32) -> FrozenModel:
    """Loads what `fastbert finetune --frozen` saved, in eval mode on the CPU.

    Call it with a packed batch (`features.collate`), or give the folder to `fastbert.classify`, `tag` or `answer`.
    Raises InputError, naming the file, where the folder holds no frozen model or a part does not fit.
    """
    folder = Path(folder)
    if not is_frozen(folder):
        raise InputError(f"expected {SHAPE} in {folder}, got none")
    try:
        content = json.loads((folder / SHAPE).read_text(encoding="utf-8"))
        version, dropout = content.pop("format"), float(content.pop("dropout"))
        shape = Shape(**content | {"states": tuple(content["states"])})
        if version != FORMAT or shape.task_class not in KINDS:
            raise ValueError(f"format {version!r} and task_class {shape.task_class!r}")
        head = FrozenHead(shape, dropout)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"expected what fastbert wrote, of format {FORMAT}, in {folder / SHAPE}, got: {error}") from error
    try:
        head.load_state_dict(load_file(folder / HEAD))
    except (RuntimeError, OSError, SafetensorError) as error:
        raise InputError(f"expected the weights of {folder / SHAPE} in {folder / HEAD}, got: {error}") from error
    with quiet(), reading("weights of the shapes that config.json names", str(folder)):
        encoder, found = BertModel.from_pretrained(str(folder), add_pooling_layer=False, dtype=dtype, output_loading_info=True)
    if found["missing_keys"]:
        raise InputError(f"expected all weights of the encoder in {folder}, got none for {sorted(found['missing_keys'])[0]}")
    if encoder.config.hidden_size != shape.hidden_size or encoder.config.num_hidden_layers < max(shape.states):
        raise InputError(f"expected an encoder of hidden size {shape.hidden_size} in {folder}, got another")
    return FrozenModel(encoder, head.to(dtype)).eval()
