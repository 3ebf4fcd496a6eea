"""An encoder of one's own on the kernels alone: packed sentences of bytes, some masked and predicted, nothing padded."""

import torch
import typer
from torch import Tensor, nn

from fastbert.kernels import functional as F
from fastbert.utils.sample_text import SENTENCES

WIDTH, HEADS, LAYERS, MASK, VOCAB, LENGTH = 64, 2, 2, 256, 257, 256


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.wide, self.narrow = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)
        self.first, self.second = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor, cu_seqlens: Tensor, longest: int) -> Tensor:  # (tokens, WIDTH); where each sentence begins
        weights, biases = zip(*((one.weight, one.bias) for one in (self.query, self.key, self.value)))
        qkv = F.qkv_linear(x, weights, biases)
        mixed = F.attention(qkv.view(-1, 3, HEADS, WIDTH // HEADS), cu_seqlens, longest).flatten(1)
        mixed = F.linear(mixed, self.out.weight)  # its bias goes into the layer norm, in one pass with the residual
        x = F.layer_norm(mixed, self.first.weight, self.first.bias, x, x_bias=self.out.bias)
        inner = F.feed_forward(x, self.wide.weight, self.wide.bias, self.narrow.weight)
        return F.layer_norm(inner, self.second.weight, self.second.bias, x, x_bias=self.narrow.bias)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bytes, self.places = nn.Embedding(VOCAB, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))

    def forward(self, ids: Tensor, labels: Tensor, lengths: list[int]) -> Tensor:
        bounds = torch.tensor([0, *lengths]).cumsum(0).int()
        x = self.bytes(ids) + self.places(torch.cat([torch.arange(length) for length in lengths]))
        for layer in self.layers:
            x = layer(x, bounds, max(lengths))
        return F.cross_entropy(x, self.bytes.weight, None, labels)  # at the labelled tokens alone


def main(steps: int = 200) -> None:  # each on all of the built-in sentences
    torch.manual_seed(0)
    model, texts = Model(), [sentence.encode()[:LENGTH] for sentence in SENTENCES]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    ids, lengths = torch.tensor(list(b"".join(texts))), [len(text) for text in texts]
    for step in range(steps):
        hidden = torch.rand(len(ids)) < 0.15
        loss = model(ids.masked_fill(hidden, MASK), ids.masked_fill(~hidden, -100), lengths)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 50 == 0 or step == steps - 1:
            print(f"step {step + 1}: {loss.item():.3f} nats a masked byte")


if __name__ == "__main__":
    typer.run(main)
