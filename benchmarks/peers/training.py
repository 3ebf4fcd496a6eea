"""Contenders that pre-train BERT: one full step each (forward, backward, clip, AdamW), MLM and next-sentence loss.

All start from the same weights. Each is checked with dropout off: loss and gradient norm against transformers in float32.
Then dropout is 0.1, and each runs the micro-batch size at which it reaches the most real tokens per second.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
import transformers
from torch import Tensor, nn

import fastbert
from benchmarks.harness.arena import Candidate, Prepared
from benchmarks.harness.work import Batch, pretraining_batch
from fastbert.model.construction import transformers_classes
from fastbert.utils.flops import pretraining_flops
from fastbert.utils.timing import Timer

from .compiled import Compilation, kernels_of
from .libraries import need_on_gpu

FACTOR = 3.0  # how many times the error of transformers' SDPA in the same precision
FLOOR = 2e-3  # of the loss or the gradient norm
CLIP = 1.0


class Pretraining:
    """The contenders of one model size.

    precision: 'bf16', weights in bfloat16; 'autocast', weights in float32 and autocast to bfloat16; 'float32'. lengths:
    draws the lengths of a batch of so many sequences. micro_batches: sizes to try, ascending. modes: torch.compile's that
    take part.
    """

    def __init__(
        self,
        config: transformers.BertConfig,
        precision: str,
        device: torch.device,
        lengths: Callable[[int], Sequence[int]],
        micro_batches: Sequence[int],
        modes: Sequence[str],
    ) -> None:
        torch.manual_seed(0)
        self.config, self.precision, self.device = copy.deepcopy(config), precision, device
        self.config._attn_implementation = "sdpa"
        self.lengths, self.micro_batches, self.modes = lengths, micro_batches, modes
        self.live: list[tuple[list[nn.Parameter], torch.optim.Optimizer]] = []
        with transformers_classes():
            self.state = transformers.BertForPreTraining(self.config).state_dict()
        self.small = self.batch(min(4, micro_batches[0]))
        self.exact = self._loss_and_norm(self._load(transformers.BertForPreTraining, dropout=0.0, float32=True), float32=True)
        same_precision = self._loss_and_norm(self._load(transformers.BertForPreTraining, dropout=0.0))
        self.allowed = tuple(
            FACTOR * abs(value - exact) + FLOOR * abs(exact) for value, exact in zip(same_precision, self.exact)
        )

    def batch(self, size: int) -> Batch:
        return pretraining_batch(self.lengths(size), self.config.vocab_size, self.device)

    def candidates(self) -> Iterator[Candidate]:
        peer = transformers.BertForPreTraining
        yield Candidate("transformers, SDPA", lambda: self._contender(peer))
        yield Candidate("transformers, torch.compile", lambda: self._contender(peer, mode="default"))
        autotune = "max-autotune-no-cudagraphs"
        yield Candidate("transformers, torch.compile max-autotune", lambda: self._contender(peer, mode=autotune))
        yield Candidate("flash-attn's BERT, masked-only heads", self._flash_attn_bert)
        yield Candidate("fastbert.accelerate", lambda: self._contender(peer, accelerate=True))
        yield Candidate("fastbert", lambda: self._contender(fastbert.BertForPreTraining))
        yield Candidate(
            "fastbert, masked-only heads", lambda: self._contender(fastbert.BertForPreTraining, return_logits=False)
        )

    def _load(self, cls: type[nn.Module], *, dropout: float, float32: bool = False) -> nn.Module:
        config = copy.deepcopy(self.config)
        config.hidden_dropout_prob = config.attention_probs_dropout_prob = dropout
        with transformers_classes():  # a class of fastbert builds its own all the same
            model = cls(config)
        model.load_state_dict(self.state)
        narrow = self.precision == "bf16" and not float32
        return model.train().to(self.device, torch.bfloat16 if narrow else torch.float32)

    def _loss_and_norm(
        self, model: nn.Module, call: Callable[..., Any] | None = None, *, float32: bool = False, **options: Any
    ) -> tuple[float, float]:
        """On the small batch. call: the model as the contender calls it."""
        loss = self._backward(call or model, self.small.inputs, float32=float32, **options)
        norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
        return loss.item(), norm.item()

    def _backward(
        self, model: Callable[..., Any], inputs: dict[str, Tensor], *, float32: bool = False, **options: Any
    ) -> Tensor:
        autocast = self.precision == "autocast" and not float32
        with torch.autocast(self.device.type, torch.bfloat16, enabled=autocast):
            loss = model(**inputs, **options).loss
        loss.backward()
        return loss

    def _contender(
        self, cls: type[nn.Module], *, accelerate: bool = False, mode: str | None = None, **options: Any
    ) -> Prepared:
        compilation = None if mode is None else Compilation(mode, self.modes)

        def load(dropout: float) -> nn.Module:
            model = self._load(cls, dropout=dropout)
            return fastbert.accelerate(model) if accelerate else model

        without_dropout = load(0.0)
        call = without_dropout if compilation is None else compilation(without_dropout)
        checked = self._loss_and_norm(without_dropout, call, **options)
        wrong = self._wrong(*checked)
        if wrong is not None:
            return Prepared(lambda: None, wrong)
        del without_dropout, call
        model = load(0.1)
        call = model if compilation is None else compilation(model)
        return self._swept(model, lambda inputs: self._backward(call, inputs, **options), compilation)

    def _wrong(self, loss: float, norm: float) -> str | None:
        for name, value, exact, allowed in zip(("loss", "gradient norm"), (loss, norm), self.exact, self.allowed):
            if not abs(value - exact) <= allowed:
                return f"{name} {value:.5g}, transformers in float32 {exact:.5g}, allowed difference {allowed:.2g}"
        return None

    def _swept(
        self, model: nn.Module, backward: Callable[[dict[str, Tensor]], Tensor], compilation: Compilation | None
    ) -> Prepared:
        """The contender at the micro-batch size that gives it the most real tokens per second."""
        parameters = list(model.parameters())
        optimizer = torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0.01, fused=True)

        def step(inputs: dict[str, Tensor]) -> None:
            backward(inputs)
            torch.nn.utils.clip_grad_norm_(parameters, CLIP)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        self._move_others(torch.device("cpu"))  # every contender searches with the whole device to itself
        rates = self._rates(step, optimizer)
        self._move_others(self.device)
        self.live.append((parameters, optimizer))
        if not rates:
            raise torch.OutOfMemoryError(f"micro-batch {self.micro_batches[0]} does not fit")
        best = self.batch(max(rates, key=rates.__getitem__))
        too_large = self.micro_batches[len(rates) :]
        details: dict[str, Any] = {
            "micro-batch": len(best.seqlens),
            "real tokens/s by micro-batch": rates,
            "largest micro-batch": f"micro-batch {too_large[0]} does not fit"
            if too_large
            else f"{self.micro_batches[-1]} fits, the largest tried",
        }
        if compilation is not None:
            details |= compilation.proof() | {"kernels": kernels_of(lambda: step(best.inputs), self.device)}
        state = _state_of(optimizer)
        return Prepared(
            lambda: step(best.inputs),
            real_tokens=best.real_tokens,
            flops=pretraining_flops(self.config, best.seqlens, best.num_labels),
            resident_bytes=sum(t.numel() * t.element_size() for t in (*parameters, *state)),
            details=details,
        )

    def _rates(self, step: Callable[[dict[str, Tensor]], None], optimizer: torch.optim.Optimizer) -> dict[int, float]:
        """Real tokens per second by micro-batch size, up to the largest that fits."""
        timer, rates = Timer(self.device, kernel=False), {}
        for size in self.micro_batches:
            batch = self.batch(size)
            try:
                for _ in range(2):
                    step(batch.inputs)
                rates[size] = batch.real_tokens / min(timer(partial(step, batch.inputs)) for _ in range(3))
            except torch.OutOfMemoryError:
                optimizer.zero_grad(set_to_none=True)
                torch.cuda.empty_cache()
                break
        return rates

    def _move_others(self, device: torch.device) -> None:
        """Moves weights and optimizer state of the contenders built before."""
        if self.device.type != "cuda":
            return
        for parameters, optimizer in self.live:
            for tensor in (*parameters, *_state_of(optimizer)):
                tensor.data = tensor.data.to(device)
        torch.cuda.empty_cache()

    def _flash_attn_bert(self) -> Prepared:
        need_on_gpu("flash_attn", self.device)
        from flash_attn.models.bert import BertForPreTraining, remap_state_dict

        def load(dropout: float) -> nn.Module:
            config = copy.deepcopy(self.config)
            config.hidden_dropout_prob = config.attention_probs_dropout_prob = dropout
            for name in (
                "use_flash_attn",
                "fused_bias_fc",
                "fused_dropout_add_ln",
                "dense_seq_output",
                "last_layer_subset",
                "use_xentropy",
            ):
                setattr(config, name, True)
            model = BertForPreTraining(config)
            model.load_state_dict(remap_state_dict(self.state, config), strict=False)
            return model.train().to(self.device, torch.bfloat16 if self.precision == "bf16" else torch.float32)

        wrong = self._wrong(*self._loss_and_norm(load(0.0)))
        if wrong is not None:
            return Prepared(lambda: None, wrong)
        model = load(0.1)
        return self._swept(model, lambda inputs: self._backward(model, inputs), None)


def _state_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [value for values in optimizer.state.values() for value in values.values() if isinstance(value, Tensor)]
