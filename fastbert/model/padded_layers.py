"""Layers that have no packed form, called as transformers calls them: on padded states with an attention mask."""

from typing import Any

from torch import Tensor, nn

from fastbert.model.cache_name import CACHE
from fastbert.model.padding.packed_batch import PackedBatch
from fastbert.model.padding.padding_free import VARLEN_ARGUMENTS


class PaddedLayers:
    """Calls single layers on one batch as transformers would: rows (R, D) in and out, padded (B, S, D) in between."""

    def __init__(self, model: Any, batch: PackedBatch, kwargs: dict[str, Any]) -> None:
        """kwargs: of the model's call, which transformers passes on to each layer."""
        self.model, self.batch, self.kwargs = model, batch, kwargs
        self.masks: list[Any] = []  # transformers' attention mask, once a layer has needed it

    def __call__(self, layer: nn.Module, x: Tensor) -> Tensor:
        """(R, D) -> (R, D)."""
        padded = self.batch.layout.to(x.device).unpack(x)  # (B, S, D)
        dropped = ("return_dict", *VARLEN_ARGUMENTS)
        kwargs = {name: value for name, value in self.kwargs.items() if name not in dropped}
        mask, positions = self._attention_mask(padded), self.batch.position_ids
        y = layer(padded, mask, None, encoder_attention_mask=None, position_ids=positions, **kwargs)  # (B, S, D)
        return self.batch.layout.to(y.device).pack(y)

    def _attention_mask(self, padded: Tensor) -> Any:
        if not self.masks:
            given = self.batch.attention_mask
            mask, _ = self.model._create_attention_masks(
                attention_mask=self.batch.layout.real_tokens() if given is None else given,
                encoder_attention_mask=None,
                embedding_output=padded,
                encoder_hidden_states=None,
                **{CACHE: None},
            )
            self.masks.append(mask)
        mask = self.masks[0]
        return mask.to(padded.device) if isinstance(mask, Tensor) else mask
