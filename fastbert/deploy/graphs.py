"""`fastbert.compile`: the forward of a model captured once per bucket of tokens and sequences, and replayed.

At small batches the limit is the host that launches kernels, not the GPU; a CUDA graph launches all of them at once. Shapes in
a graph are fixed: a batch is packed into the smallest bucket that holds it, and the bucket's free tokens form further
sequences, whose outputs are dropped.
"""

import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers.utils import ModelOutput

from fastbert.deploy.buckets import DEFAULT_BUCKETS, Bucket, Packed, copy_outputs, pack
from fastbert.kernels.batch_invariance import is_batch_invariant
from fastbert.model.bert import berts
from fastbert.model.fallback.plan import is_flash_attention
from fastbert.model.padding.policy import policy_of

WARM_UPS = 2  # forwards before a capture, in which kernels are compiled and libraries allocate workspaces
ON_CPU = "the model is on the CPU, where there are no CUDA graphs"


class Runner(Protocol):
    """The forward of one bucket on static buffers, which the next call overwrites."""

    def fill(self, packed: Packed) -> None:
        """Copies a batch into the input buffers."""

    def run(self) -> Mapping[str, Tensor]:
        """The outputs of all of the bucket."""


class BucketInputs:
    """A bucket's static inputs, and the model's forward on them.

    The bucket's free tokens form sequences of at most max_seqlen behind the real ones, so that every row of every kernel is
    defined; sequences without tokens come last.
    """

    def __init__(self, model: nn.Module, bucket: Bucket) -> None:
        self.model, self.bucket = model, bucket
        config: Any = model.config
        device = next(model.parameters()).device
        self.max_seqlen = min(bucket.tokens, config.max_position_embeddings)
        self.slots = bucket.sequences + -(-bucket.tokens // self.max_seqlen)
        if self.slots >= bucket.tokens:
            raise ValueError(f"expected more tokens than {self.slots} sequences, free ones included, got {bucket}")
        self.input_ids, self.token_type_ids, self.position_ids = (
            torch.zeros(bucket.tokens, dtype=torch.int64, device=device) for _ in range(3)
        )
        self.cu_seqlens = torch.zeros(self.slots + 1, dtype=torch.int32, device=device)
        self.cu_seqlens.copy_(self._bounds(()))

    def _bounds(self, lengths: tuple[int, ...]) -> Tensor:
        bounds = [0]
        for length in lengths:
            bounds.append(bounds[-1] + length)
        while bounds[-1] < self.bucket.tokens:
            bounds.append(min(bounds[-1] + self.max_seqlen, self.bucket.tokens))
        return torch.tensor(bounds + [self.bucket.tokens] * (self.slots + 1 - len(bounds)), dtype=torch.int32)

    def fill(self, packed: Packed) -> None:
        """Copies a batch into the input buffers. Free tokens keep the ids of an earlier call: any valid id will do."""
        for name in ("input_ids", "token_type_ids", "position_ids"):
            getattr(self, name)[: packed.tokens].copy_(getattr(packed, name), non_blocking=True)
        self.cu_seqlens.copy_(self._bounds(packed.lengths), non_blocking=True)

    @torch.no_grad()
    def forward(self) -> ModelOutput:
        """The model's outputs for all of the bucket.

        Raises ValueError for an output whose first axis is neither the bucket's tokens nor its sequences.
        """
        outputs = self.model(
            self.input_ids,
            token_type_ids=self.token_type_ids,
            position_ids=self.position_ids,
            cu_seqlens=self.cu_seqlens,
            max_seqlen=self.max_seqlen,
            return_dict=True,
        )
        for name, value in outputs.items():
            if not isinstance(value, Tensor) or value.shape[:1] not in ((self.bucket.tokens,), (self.slots,)):
                got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise ValueError(
                    f"expected outputs of {self.bucket.tokens} tokens or {self.slots} sequences, got {name}: {got}"
                )
        return outputs


class GraphRunner(BucketInputs):
    """The forward as a CUDA graph. pool: memory shared by several graphs, from torch.cuda.graph_pool_handle()."""

    def __init__(self, model: nn.Module, bucket: Bucket, pool: Any, stream: torch.cuda.Stream) -> None:
        super().__init__(model, bucket)
        stream.wait_stream(torch.cuda.current_stream(stream.device))
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                self.forward()
            self.graph = torch.cuda.CUDAGraph()
            # The default mode lets an allocation of any other thread, a data loader's say, invalidate the capture.
            with torch.cuda.graph(self.graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
                self.outputs = self.forward()

    def run(self) -> Mapping[str, Tensor]:
        self.graph.replay()
        return self.outputs


class CompiledModel:
    """A model whose inference calls replay CUDA graphs; see `compile`, which returns one.

    calls: how many calls went to each bucket, and to the model itself by reason. Any other attribute is the model's.
    """

    def __init__(
        self,
        model: nn.Module,
        buckets: Iterable[Bucket],
        make_runner: Callable[[Bucket], Runner] | None,
        stream: torch.cuda.Stream | None = None,
    ) -> None:
        self.model = model
        self.buckets = tuple(sorted(set(buckets)))
        self.calls: Counter[str] = Counter()
        self._stream, self._lock = stream, threading.Lock()
        config: Any = model.config
        self._positions: int = config.max_position_embeddings
        self._words = next(berts(model)).embeddings.word_embeddings
        self._captured_from, self._invariant = self._state(), is_batch_invariant()
        # The largest first, so that the smaller ones fit into its memory.
        self._runners = {} if make_runner is None else {bucket: make_runner(bucket) for bucket in reversed(self.buckets)}

    def __getattr__(self, name: str) -> Any:
        if name == "model":
            raise AttributeError(name)
        return getattr(self.model, name)

    def __call__(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        *,
        cu_seqlens: Tensor | None = None,
        max_seqlen: int | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """As the model's forward; see `compile`."""
        inputs = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "token_type_ids": token_type_ids,
            "position_ids": position_ids,
            "cu_seqlens": cu_seqlens,
            "max_seqlen": max_seqlen,
        }
        reason = self._why_not_replay(inputs, kwargs)
        packed, bucket = None, None
        if reason is None:
            packed = pack(inputs, self._positions)
            reason = packed if isinstance(packed, str) else None
        if isinstance(packed, Packed):
            bucket = self.bucket_for(packed)
            reason = None if bucket else "no bucket holds so many tokens and sequences"
        if bucket is None or not isinstance(packed, Packed):
            self._count_model_call(str(reason))
            given = {name: value for name, value in inputs.items() if value is not None}
            return self.model(**given, **kwargs, **({} if return_dict is None else {"return_dict": return_dict}))
        self.calls[f"{bucket.tokens} tokens, {bucket.sequences} sequences"] += 1
        outputs = self._replay(self._runners[bucket], packed, bucket)
        wanted = getattr(self.model.config, "return_dict", True) if return_dict is None else return_dict
        return outputs if wanted else outputs.to_tuple()

    def bucket_for(self, packed: Packed) -> Bucket | None:
        """The smallest bucket that holds the batch, or None."""
        for bucket in self.buckets:
            if packed.tokens <= bucket.tokens and len(packed.lengths) <= bucket.sequences:
                return bucket
        return None

    def _replay(self, runner: Runner, packed: Packed, bucket: Bucket) -> ModelOutput:
        if self._stream is None:
            with self._lock:
                runner.fill(packed)
                return copy_outputs(runner.run(), packed, bucket)
        caller = torch.cuda.current_stream(self._stream.device)
        # One stream for all callers: the next call may use the buffers once this one's work on them is queued.
        with self._lock, torch.cuda.stream(self._stream):
            self._stream.wait_stream(caller)
            runner.fill(packed)
            outputs = copy_outputs(runner.run(), packed, bucket)
            for tensor in (packed.input_ids, packed.token_type_ids, packed.position_ids):
                if tensor.is_cuda:
                    tensor.record_stream(self._stream)
        caller.wait_stream(self._stream)
        for value in outputs.values():
            value.record_stream(caller)
        return outputs

    def _why_not_replay(self, inputs: dict[str, Any], kwargs: dict[str, Any]) -> str | None:
        """Why the call goes to the model instead of a graph, or None."""
        if not self._runners:
            return ON_CPU
        if self.model.training:
            return "the model is in training mode"
        if torch.is_grad_enabled():
            return "gradients are on: call under torch.no_grad() or torch.inference_mode()"
        device = self._words.weight.device
        if torch.is_autocast_enabled(device.type):
            return "autocast is on, and was not when the graphs were captured"
        if is_batch_invariant() != self._invariant:
            return "batch-invariant mode is not as it was when the graphs were captured"
        if self._state() != self._captured_from:
            return "the model was moved or its weights were replaced since the graphs were captured: compile it again"
        given = sorted(name for name, value in kwargs.items() if value is not None and value is not False)
        if given:
            return f"{', '.join(given)} cannot be given to a graph"
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        if ids is None:
            return "input_ids are not given"
        packed = inputs["cu_seqlens"] is not None
        if mask is not None and any(policy_of(bert).exact for bert in berts(self.model)):
            return "padding='exact': padding positions are computed"
        config: Any = self.model.config
        alone = not packed and ids.shape[:1] == (1,)
        if alone and inputs["position_ids"] is not None and is_flash_attention(config._attn_implementation):
            return "position_ids under flash attention may start again in a row"
        if ids.dim() != (1 if packed else 2) or (mask is not None and (packed or mask.shape != ids.shape)):
            return "the shapes are not those of a graph's inputs"
        return None

    def _state(self) -> tuple[Any, ...]:
        weight = self._words.weight
        return weight.data_ptr(), weight.dtype, weight.device

    def _count_model_call(self, reason: str) -> None:
        key = f"model: {reason}"
        if key not in self.calls and reason != ON_CPU:
            warnings.warn(f"fastbert.compile: this call goes to the model without a graph: {reason}", stacklevel=3)
        self.calls[key] += 1


def compile(model: nn.Module, buckets: Iterable[Bucket | tuple[int, int]] | None = None) -> CompiledModel:
    """The model with its inference calls run as CUDA graphs, one per bucket, captured now.

    model: one of fastbert's BERT classes in eval mode, on the device it will stay on.
    buckets: (most tokens, most sequences) of a batch. None for DEFAULT_BUCKETS, without those for a single sequence longer
        than the model has positions.
    The result is called like the model, with input_ids, attention_mask, token_type_ids and position_ids, or packed with
    cu_seqlens, and returns what the model returns. Inputs may be on the CPU; no later call writes to the outputs. Token
    outputs are zero at padding, question-answering logits there lie below all others of their row. Threads may call at the
    same time; they take turns. A call that no graph can run (more tokens than any bucket, labels, gradients, a sequence that
    begins with padding, padding="exact") goes to the model, with one warning per reason; `calls` counts both kinds.
    Weights may be changed in place; a model that was moved or cast must be compiled again.
    On a CPU there are no graphs: every call goes to the model, and `calls` says so.
    Each graph keeps its outputs in memory: for a head over the vocabulary choose buckets of few tokens.
    Raises ValueError for a model in training mode, without an encoder of fastbert's, or for buckets it cannot fill.
    """
    if model.training:
        raise ValueError("expected a model in eval mode, got one in training mode: call model.eval()")
    if not any(berts(model)):
        raise ValueError(f"expected one of fastbert's BERT classes, got {type(model).__name__}: see fastbert.accelerate")
    config: Any = model.config
    if buckets is None:
        chosen = [one for one in DEFAULT_BUCKETS if one.sequences > 1 or one.tokens <= config.max_position_embeddings]
    else:
        chosen = [one if isinstance(one, Bucket) else Bucket(*one) for one in buckets]
        if not chosen:
            raise ValueError("expected at least one bucket, got none")
    device = next(model.parameters()).device
    if device.type != "cuda":
        return CompiledModel(model, chosen, None)
    stream, pool = torch.cuda.Stream(device), torch.cuda.graph_pool_handle()
    return CompiledModel(model, chosen, lambda bucket: GraphRunner(model, bucket, pool, stream), stream)
