"""A checkpoint as the model of a task, with the names of its new weights; only the head and the pooler may be new."""

from copy import deepcopy
from typing import Any

import torch

from fastbert.model.variants.left_to_right import head_class
from fastbert.utils.checkpoints import Checkpoint
from fastbert.utils.errors import InputError

MAY_BE_NEW = ("bert.pooler.", "bert.last_token_pooler.")  # pre-training without sentence pairs has no pooler

# Of the head before, not of the new one: where sentence-transformers writes the activation of a CrossEncoder's scores.
ACTIVATION_KEYS = ("sentence_transformers", "sbert_ce_default_activation_function")


def load_model(checkpoint: Checkpoint, head: str, settings: dict[str, Any], *, dropout: float = 0.1) -> tuple[Any, list[str]]:
    """(model in float32, names of its new parameters). New ones are drawn from torch's generator: seed it before.

    head: the name of a class of fastbert; for a left-to-right encoder `left_to_right.head_class` replaces it. settings: for the
    configuration, such as num_labels and id2label. dropout: of hidden states, attention and the head. Raises
    InputError where the checkpoint lacks a weight of the encoder or has it in another shape, and as `Checkpoint.read`.
    """
    config = deepcopy(checkpoint.config)
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = dropout
    config.classifier_dropout = None  # then it is the hidden one
    for name in ACTIVATION_KEYS:
        vars(config).pop(name, None)
    for name, value in settings.items():
        setattr(config, name, value)
    model, found = checkpoint.read(head_class(head, config), config=config, dtype=torch.float32, ignore_mismatched_sizes=True)
    other = sorted(str(one[0] if isinstance(one, list | tuple) else one) for one in found["mismatched_keys"])
    for kind, names in (("all weights of the encoder", sorted(found["missing_keys"])), ("the encoder's own shapes", other)):
        wrong = [name for name in names if name.startswith("bert.") and not name.startswith(MAY_BE_NEW)]
        if wrong:
            got = "none for" if names is not other else "others for"
            more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
            raise InputError(f"expected {kind} in {checkpoint.path}, got {got} {wrong[0]}{more}")
    return model, sorted({*found["missing_keys"], *other})
