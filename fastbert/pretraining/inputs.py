"""What a pre-training run reads: prepared data, its tokenizer, the configuration of the model, and the objective."""

from dataclasses import dataclass
from typing import Any

import transformers

from fastbert.data.masking import Masker
from fastbert.data.shards import TOKENIZER, Shards, fingerprint
from fastbert.utils.errors import DataError

from .configuration import model_config
from .objectives import Objective
from .options import Options


@dataclass(frozen=True)
class Inputs:
    """shards: of each folder of `Options.data`. held_out: of the data to evaluate on, or None."""

    shards: list[Shards]
    held_out: Shards | None
    tokenizer: Any
    config: transformers.BertConfig
    objective: Objective
    masker: Masker

    @property
    def entropy(self) -> float | None:
        """Of single tokens in the training text, in nats; None where it is not known."""
        return self.shards[0].meta.audit.get("entropy")


def open_inputs(options: Options) -> Inputs:
    """Opens the data and makes the configuration. Raises InputError or DataError where they do not fit each other."""
    objective = Objective(options.direction, options.next_sentence)
    shards = [Shards(folder) for folder in options.data]
    held_out = None if options.held_out is None else Shards(options.held_out)
    every = [*shards, *([held_out] if held_out else [])]
    tokenizer = _tokenizer_of(every)
    config = model_config(options.config, len(tokenizer), max(one.meta.seq_len for one in every))
    config.pad_token_id = tokenizer.pad_token_id
    objective.prepare(config)
    masker = objective.masker(
        tokenizer,
        whole_words=options.whole_words,
        max_predictions=options.max_predictions,
        seed=options.seed,
        static=options.recipe.static_masking,
    )
    return Inputs(shards, held_out, tokenizer, config, objective, masker)


def _tokenizer_of(shards: list[Shards]) -> Any:
    """The tokenizer that all folders were prepared with."""
    first = shards[0]
    for other in shards[1:]:
        if other.meta.fingerprint != first.meta.fingerprint:
            raise DataError(f"expected one tokenizer for all folders, got another in {other.folder} than in {first.folder}")
    tokenizer = transformers.AutoTokenizer.from_pretrained(first.folder / TOKENIZER)
    if fingerprint(tokenizer) != first.meta.fingerprint:
        raise DataError(f"expected the tokenizer that {first.folder} was prepared with, got another in its {TOKENIZER}/")
    return tokenizer
