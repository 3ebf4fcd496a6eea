"""What fine-tuning with transformers needs: rows as its collators take them, and its model's outputs by example."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import transformers

from fastbert.tasks.features import Feature

BATCH = 32


def rows_of(features: Sequence[Feature]) -> list[dict[str, Any]]:
    """As a tokenized data set of transformers has them; labels of tokens as lists. Raises ValueError for multiple choice."""
    rows = []
    for feature in features:
        if len(feature.sequences) != 1:
            raise ValueError(f"expected one sequence a row, got {len(feature.sequences)}")
        ((ids, types),) = feature.sequences
        labels = {name: one.tolist() if isinstance(one, np.ndarray) else one for name, one in feature.labels.items()}
        rows.append({"input_ids": ids.tolist(), "token_type_ids": types.tolist(), **labels})
    return rows


class PaddedBatches:
    """Batches by transformers' collators, padded to the longest row. tokens: whether labels are of tokens."""

    def __init__(self, tokenizer: Any, *, tokens: bool) -> None:
        collator = transformers.DataCollatorForTokenClassification if tokens else transformers.DataCollatorWithPadding
        self.collate = collator(tokenizer)

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        return dict(self.collate(rows))


@torch.no_grad()
def predict_padded(model: Any, features: Sequence[Feature]) -> list[np.ndarray]:
    """The logits of each feature as `fastbert.tasks.features.predict` gives them, by batches of like length."""
    model.eval()
    outputs: list[np.ndarray] = [np.empty(0)] * len(features)
    order = sorted(range(len(features)), key=lambda one: len(features[one]))
    for first in range(0, len(order), BATCH):
        numbers = order[first : first + BATCH]
        lengths = torch.tensor([len(features[one]) for one in numbers])
        longest = int(lengths.max())
        ids, types = torch.zeros(2, len(numbers), longest, dtype=torch.int64)
        for row, number in enumerate(numbers):
            ((found_ids, found_types),) = features[number].sequences
            ids[row, : len(found_ids)] = torch.from_numpy(found_ids)
            types[row, : len(found_types)] = torch.from_numpy(found_types)
        mask = (torch.arange(longest) < lengths[:, None]).long()
        inputs = {"input_ids": ids, "token_type_ids": types, "attention_mask": mask}
        found = model(**{name: value.to(model.device) for name, value in inputs.items()})
        logits = found.logits if "logits" in found else torch.stack([found.start_logits, found.end_logits], -1)
        for row, number in enumerate(numbers):
            one = logits[row].float().cpu().numpy()
            outputs[number] = one if one.ndim == 1 else one[: len(features[number])]
    return outputs
