"""A checkpoint under the head of a task: which weights are new is told, and an encoder that lacks some is refused."""

from copy import deepcopy
from typing import Any

import torch

from fastbert.model.left_to_right import head_class
from fastbert.utils.checkpoints import Checkpoint
from fastbert.utils.errors import InputError

NEW_IS_FINE = ("bert.pooler.", "bert.last_token_pooler.")  # what pre-training without sentence pairs leaves out

# Where sentence-transformers writes how a CrossEncoder scores: of the head that was, not of the new one.
ACTIVATIONS = ("sentence_transformers", "sbert_ce_default_activation_function")


def load_model(checkpoint: Checkpoint, head: str, settings: dict[str, Any], *, dropout: float = 0.1) -> tuple[Any, list[str]]:
    """(model in float32, names of its new parameters). New ones are drawn from torch's generator: seed it before.

    head: a class of fastbert; over a left-to-right encoder the one of `direction` in its place. settings: for the
    configuration, such as num_labels and id2label. dropout: of hidden states, attention and the head. Raises
    InputError where the checkpoint lacks a weight of the encoder or has it in another shape, and as `Checkpoint.read`.
    """
    config = deepcopy(checkpoint.config)
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = dropout
    config.classifier_dropout = None  # the hidden one
    for name in ACTIVATIONS:
        vars(config).pop(name, None)
    for name, value in settings.items():
        setattr(config, name, value)
    model, found = checkpoint.read(
        head_class(head, config), config=config, dtype=torch.float32, ignore_mismatched_sizes=True
    )  # fmt: skip
    other = sorted(str(one[0] if isinstance(one, list | tuple) else one) for one in found["mismatched_keys"])
    for kind, names in (("all weights of the encoder", sorted(found["missing_keys"])), ("the encoder's own shapes", other)):
        wrong = [name for name in names if name.startswith("bert.") and not name.startswith(NEW_IS_FINE)]
        if wrong:
            got = "none for" if names is not other else "others for"
            more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
            raise InputError(f"expected {kind} in {checkpoint.path}, got {got} {wrong[0]}{more}")
    return model, sorted({*found["missing_keys"], *other})
