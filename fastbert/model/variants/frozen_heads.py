"""Heads on the features of a frozen encoder: a weighting of its layers, then a linear classifier or a BiLSTM.

The choices are those of Devlin et al. (2019), section 5.3: which layers, and a two-layer BiLSTM before the classifier.

T tokens of a packed batch, D hidden size of the encoder.
"""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import rnn

from fastbert.utils.errors import InputError

# Choice -> the slice of hidden states, from the embeddings on.
LAYERS = {
    "embeddings": (0, 1),
    "second-to-last": (-2, -1),
    "last": (-1, None),
    "weighted-sum-last-four": (-4, None),
    "concat-last-four": (-4, None),
    "weighted-sum-all": (1, None),
}
HEADS, POOLINGS = ("linear", "bilstm"), ("mean", "cls")
KINDS = {
    "BertForSequenceClassification": "rows",
    "BertForMultipleChoice": "choices",
    "BertForTokenClassification": "tokens",
    "BertForQuestionAnswering": "spans",
}


@dataclass(frozen=True)
class Frozen:
    """What a user chooses of a head.

    layers: one of LAYERS, the hidden states that are its features. head: one of HEADS. pooling: one of POOLINGS for a task
    with one answer per sequence; None for mean. lstm_size: of each direction; None for the hidden size.
    """

    layers: str
    head: str = "linear"
    pooling: str | None = None
    lstm_size: int | None = None


@dataclass(frozen=True)
class Shape:
    """All that is needed to build a head.

    task_class: name of the class whose outputs it returns. layers: one of LAYERS. states: indices of the hidden states that
    are its features, 0 for the embeddings. hidden_size: D. outputs: logits per token or sequence. pooling: None where tokens
    are classified. lstm_size: None for a linear head. regression: the label is a number.
    """

    task_class: str
    layers: str
    states: tuple[int, ...]
    hidden_size: int
    outputs: int
    pooling: str | None
    lstm_size: int | None
    regression: bool

    @classmethod
    def of(cls, frozen: Frozen, task_class: str, config: Any, settings: dict[str, Any]) -> "Shape":
        """The shape that a user's choices have for a task and an encoder.

        config: the encoder's. settings: of the task, such as num_labels.
        Raises InputError where the choices do not fit the task or the model.
        """
        kind = KINDS[task_class]
        for name, value, known in (
            ("--frozen", frozen.layers, tuple(LAYERS)),
            ("--head", frozen.head, HEADS),
            ("--pooling", frozen.pooling or "mean", POOLINGS),
        ):
            if value not in known:
                raise InputError(f"expected {name} among {', '.join(known)}, got {value!r}")
        if kind in ("tokens", "spans") and frozen.pooling is not None:
            raise InputError(f"expected no --pooling where each token is classified, got {frozen.pooling}")
        if frozen.head == "linear" and frozen.lstm_size is not None:
            raise InputError(f"expected --lstm-size beside --head bilstm, got {frozen.lstm_size} beside linear")
        if frozen.lstm_size is not None and frozen.lstm_size < 1:
            raise InputError(f"expected an --lstm-size of at least 1, got {frozen.lstm_size}")
        first, last = LAYERS[frozen.layers]
        count = config.num_hidden_layers
        if count < max(-first, 1):
            raise InputError(f"expected a model of at least {max(-first, 1)} layers for {frozen.layers}, got {count}")
        return cls(
            task_class,
            frozen.layers,
            tuple(range(count + 1)[slice(first, last)]),
            config.hidden_size,
            {"spans": 2, "choices": 1}.get(kind) or settings["num_labels"],
            (frozen.pooling or "mean") if kind in ("rows", "choices") else None,
            (frozen.lstm_size or config.hidden_size) if frozen.head == "bilstm" else None,
            settings.get("problem_type") == "regression",
        )

    @property
    def kind(self) -> str:
        return KINDS[self.task_class]

    @property
    def pools_features(self) -> bool:
        """Whether features are pooled before anything trained: a linear head and a weighted sum commute with pooling."""
        return self.pooling is not None and self.lstm_size is None

    @property
    def is_plain(self) -> bool:
        """Whether the head is that of transformers' class."""
        return self.layers == "last" and self.lstm_size is None and self.pooling is None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"states": list(self.states)}


class FrozenHead(nn.Module):
    """From features to logits and a loss. A weighted sum has softmax weights over layers, equal at first, and a scale."""

    def __init__(self, shape: Shape, dropout: float = 0.1) -> None:
        super().__init__()
        self.shape = shape
        width = shape.hidden_size
        if shape.layers.startswith("weighted-sum"):
            self.layer_weights = nn.Parameter(torch.zeros(len(shape.states)))
            self.scale = nn.Parameter(torch.ones(()))
        else:
            width *= len(shape.states)
        self.lstm = None
        if shape.lstm_size is not None:
            self.lstm = nn.LSTM(width, shape.lstm_size, num_layers=2, bidirectional=True, dropout=dropout)
            width = 2 * shape.lstm_size
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(width, shape.outputs)

    def forward(self, features: Tensor, cu_seqlens: Tensor, num_choices: int = 1, **labels: Tensor) -> dict[str, Tensor]:
        """logits, and with labels a loss.

        features: (T, states, D), or (sequences, states, D) where the shape pools features. cu_seqlens: int32 (sequences + 1,).
        labels: arguments of the task's class. logits: (T, outputs), (sequences, outputs), or
        (sequences / num_choices, num_choices).
        """
        x = self.mix(features.to(self.classifier.weight.dtype))
        if self.lstm is not None:
            sequences = rnn.pack_sequence(list(x.split(cu_seqlens.diff().tolist())), enforce_sorted=False)
            x = torch.cat(rnn.unpack_sequence(self.lstm(sequences)[0]))
        if self.shape.pooling is not None and not self.shape.pools_features:
            x = pool(x, cu_seqlens, self.shape.pooling)
        logits = self.classifier(self.dropout(x))
        if self.shape.kind == "choices":
            logits = logits.view(-1, num_choices)
        outputs = {"logits": logits}
        return {"loss": self._loss(logits.float(), cu_seqlens, labels), **outputs} if labels else outputs

    def mix(self, features: Tensor) -> Tensor:
        """(rows, states, D) -> (rows, width): the weighted sum, or the states concatenated."""
        if not self.shape.layers.startswith("weighted-sum"):
            return features.flatten(1)
        return self.scale * torch.einsum("s,rsd->rd", self.layer_weights.softmax(0), features)

    def _loss(self, logits: Tensor, cu_seqlens: Tensor, labels: dict[str, Tensor]) -> Tensor:
        if self.shape.kind == "spans":
            rows = logits.split(cu_seqlens.diff().tolist())
            padded = rnn.pad_sequence(list(rows), batch_first=True, padding_value=torch.finfo(logits.dtype).min)
            starts, ends = padded.unbind(-1)
            return (F.cross_entropy(starts, labels["start_positions"]) + F.cross_entropy(ends, labels["end_positions"])) / 2
        if self.shape.regression:
            return F.mse_loss(logits.squeeze(-1), labels["labels"])
        return F.cross_entropy(logits, labels["labels"])


def pool(x: Tensor, cu_seqlens: Tensor, pooling: str) -> Tensor:
    """(T, ...) -> (sequences, ...): the first token of each sequence, or the mean of all, special tokens included."""
    if pooling == "cls":
        return x[cu_seqlens[:-1].long()]
    lengths = cu_seqlens.diff().long()
    rows = torch.repeat_interleave(torch.arange(len(lengths), device=x.device), lengths)
    total = torch.zeros(len(lengths), *x.shape[1:], dtype=torch.float32, device=x.device).index_add_(0, rows, x.float())
    return (total / lengths.view(-1, *[1] * (x.dim() - 1))).to(x.dtype)
