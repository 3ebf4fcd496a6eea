"""Pre-training objectives: masked tokens from both sides (BERT), the next token from those before it (GPT), or two language
models, one in each direction (ELMo).

The first two optionally with BERT's next-sentence prediction. Samples are the same for all: [CLS] A [SEP] B [SEP], B random in
half of them.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import transformers

from fastbert.data.masking import Masker
from fastbert.data.shards import Sample
from fastbert.kernels.limits import IGNORE_INDEX
from fastbert.model.heads import BertForPreTraining
from fastbert.model.variants.shallow import DIRECTION as SHALLOW
from fastbert.utils.errors import InputError

from .models import BertForMaskedLM, BertLMHeadModel
from .shallow import ShallowForPreTraining

DIRECTIONS = ("both", "left", SHALLOW)


class NextTokens(Masker):
    """A Masker that masks nothing: the label of every token but the last is the token after it."""

    def __call__(self, sample: Sample, number: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """(input_ids, labels), int64 (length,)."""
        return sample.input_ids.copy(), np.append(sample.input_ids[1:], IGNORE_INDEX)


@dataclass(frozen=True)
class Objective:
    """What is predicted from what.

    direction: one of DIRECTIONS. next_sentence: whether the next-sentence loss is added. Raises InputError for another
    direction, and for shallow with next sentences, as neither of its halves sees a whole sample.
    """

    direction: str = "both"
    next_sentence: bool = True

    def __post_init__(self) -> None:
        if self.direction not in DIRECTIONS:
            raise InputError(f"expected a direction among {', '.join(DIRECTIONS)}, got {self.direction!r}")
        if self.direction == SHALLOW and self.next_sentence:
            raise InputError("expected --no-next-sentence beside direction shallow, got next sentences")

    @property
    def title(self) -> str:
        what = {
            "both": "masked tokens from both sides",
            "left": "the next token from those before it",
            SHALLOW: "the next token from those before it and, by a second encoder, the token before from those after it",
        }[self.direction]
        return f"predicts {what}{', and the next sentence' if self.next_sentence else ''}"

    @property
    def name(self) -> str:
        """The name of the token loss in logs and metrics: mlm, or lm for a language model."""
        return "mlm" if self.direction == "both" else "lm"

    def prepare(self, config: transformers.BertConfig) -> None:
        """Writes into the configuration what is needed to load the checkpoint."""
        if self.direction == "left":
            config.is_decoder = True
        elif self.direction == SHALLOW:
            config.fastbert_direction = SHALLOW

    def model(self, config: transformers.BertConfig) -> Any:
        """A new model, drawn from torch's generator; its checkpoints load as the class of transformers with its name."""
        if self.direction == "left":
            return BertLMHeadModel(config, self.next_sentence)
        if self.direction == SHALLOW:
            return ShallowForPreTraining(config)
        return BertForPreTraining(config) if self.next_sentence else BertForMaskedLM(config)

    def masker(self, tokenizer: Any, **options: Any) -> Masker:
        """Turns samples into inputs and labels. Raises InputError for options of masks where nothing is masked."""
        if self.direction == "both":
            return Masker.of(tokenizer, **options)
        for name in ("whole_words", "max_predictions"):
            if options.get(name):
                raise InputError(
                    f"expected no {name} beside direction {self.direction}, which masks nothing, got {options[name]}"
                )
        return NextTokens.of(tokenizer, **options)

    def named(self, values: dict[str, float]) -> dict[str, float]:
        """Readings or metrics under this objective's names, without those of losses that it does not have.

        Of shallow models lm_loss, accuracy and perplexity are means over the directions; loss is the sum.
        """
        if self.direction == SHALLOW and "loss" in values:
            values = {**values, "loss": 2 * values["loss"]}
        return {
            self.name + key.removeprefix("mlm") if key.startswith("mlm") else key: value
            for key, value in values.items()
            if self.next_sentence or not key.startswith("next_sentence")
        }
