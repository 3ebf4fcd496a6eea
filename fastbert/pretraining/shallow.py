"""Pre-training of shallowly bidirectional models: two language models with one word embedding, one on reversed samples."""

from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import nn
from transformers.models.bert.configuration_bert import BertConfig

from fastbert.kernels.limits import IGNORE_INDEX
from fastbert.model.heads import BertForPreTrainingOutput
from fastbert.model.variants.shallow import HALVES, WEIGHTS, half_config, reverse

from .models import BertLMHeadModel


class ShallowForPreTraining(nn.Module):
    """Two BertLMHeadModels of half the width, whose losses are added. config: of the pair."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.config = config
        self.left, self.right = (BertLMHeadModel(deepcopy(half_config(config))) for _ in HALVES)
        self.right.bert.embeddings.word_embeddings = self.left.bert.embeddings.word_embeddings
        self.right.tie_weights()

    def forward(self, **batch: Any) -> BertForPreTrainingOutput:
        """The losses of a packed batch whose labels are the next tokens. loss: the sum of both; mlm_loss: their mean."""
        left, right = (model(**inputs).loss for model, inputs in self.halves(batch))
        return BertForPreTrainingOutput(loss=left + right, mlm_loss=(left + right).detach() / 2)

    def halves(self, batch: dict[str, Any]) -> Iterator[tuple[BertLMHeadModel, dict[str, Any]]]:
        """(model, its batch) of each half; the batch of the right one has every sequence reversed."""
        yield self.left, batch
        back = reverse(batch["cu_seqlens"], len(batch["input_ids"]))
        ids = batch["input_ids"][back]
        labels = ids.roll(-1).index_fill(0, batch["cu_seqlens"][1:].long() - 1, IGNORE_INDEX)
        yield self.right, {**batch, "input_ids": ids, "token_type_ids": batch["token_type_ids"][back], "labels": labels}

    def save_pretrained(self, folder: Path) -> None:
        """Saves the halves, each as transformers loads it, and the configuration of the pair."""
        self.config.save_pretrained(folder)
        for name in HALVES:
            getattr(self, name).save_pretrained(folder / name)

    def load(self, folder: Path) -> None:
        """Loads what `save_pretrained` saved. Raises RuntimeError where it does not fit."""
        for name in HALVES:
            model = getattr(self, name)
            loaded = model.load_state_dict(load_file(folder / name / WEIGHTS), strict=False)
            state = model.state_dict()
            found = {value.data_ptr() for key, value in state.items() if key not in loaded.missing_keys}
            missing = [key for key in loaded.missing_keys if state[key].data_ptr() not in found]  # tied weights are saved once
            if missing or loaded.unexpected_keys:
                raise RuntimeError(
                    f"expected the weights of {name} in {folder}, got none for {missing}, {loaded.unexpected_keys} more"
                )
