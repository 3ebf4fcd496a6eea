"""Contenders that run a BERT encoder on a padded batch: transformers with each attention, flash-attn, ONNX Runtime, fastbert.

All get the same weights, the same batch with its mask, and the exact GELU; each is checked against transformers in float32
before it is timed.
"""

import copy
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import fastbert
from benchmarks.harness.arena import Absent, Candidate, Prepared
from benchmarks.harness.work import Batch
from fastbert.kernels import fp8
from fastbert.model.construction import transformers_classes

from .compiled import Compilation, kernels_of
from .libraries import need_on_gpu

CHECKED_ROWS = 8  # four first, two middle and two last rows of the batch
FACTOR = 3.0  # how many times the error of transformers' SDPA in the same dtype
FP8_COSINE = 0.98
FLOOR = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}


class Encoders:
    """The models of one size and dtype on one device; weights are drawn once, and each model gets a copy."""

    def __init__(self, config: transformers.BertConfig, dtype: torch.dtype, device: torch.device) -> None:
        torch.manual_seed(0)
        config = copy.deepcopy(config)
        config._attn_implementation = "eager"
        self.config, self.dtype, self.device = config, dtype, device
        with transformers_classes():
            self.state = transformers.BertModel(config, add_pooling_layer=False).eval().state_dict()

    def transformers_model(self, attention: str, dtype: torch.dtype | None = None) -> nn.Module:
        """transformers' encoder with one of its attention implementations."""
        config = copy.deepcopy(self.config)
        config._attn_implementation = attention
        with transformers_classes():
            model = transformers.BertModel(config, add_pooling_layer=False)
        return self._load(model, dtype)

    def fastbert_model(self) -> nn.Module:
        return self._load(fastbert.BertModel(copy.deepcopy(self.config), add_pooling_layer=False))

    def _load(self, model: nn.Module, dtype: torch.dtype | None = None) -> nn.Module:
        model.load_state_dict(self.state)
        return model.eval().requires_grad_(False).to(self.device, dtype or self.dtype)


class Inference:
    """The contenders on one batch, the baseline (transformers with SDPA) first. modes: torch.compile's that take part."""

    def __init__(self, encoders: Encoders, batch: Batch, modes: Sequence[str]) -> None:
        self.encoders, self.batch, self.modes = encoders, batch, modes
        count = len(batch.seqlens)
        middle = range(count // 2, count // 2 + 2)
        rows = {*range(CHECKED_ROWS - 4), *middle, *range(count - 2, count)} & set(range(count))
        self.rows = torch.tensor(sorted(rows), device=encoders.device)
        self.checked = {name: tensor[self.rows] for name, tensor in batch.inputs.items()}
        self.real = self.checked["attention_mask"].bool()
        with torch.inference_mode():
            self.exact = self._states(encoders.transformers_model("eager", torch.float32)(**self.checked))[self.real]
            same_dtype = self._states(encoders.transformers_model("sdpa")(**self.checked))[self.real]
            self.allowed = FLOOR[encoders.dtype] + FACTOR * self._error_of(same_dtype)

    def candidates(self) -> Iterator[Candidate]:
        encoders = self.encoders
        yield Candidate("transformers, SDPA", lambda: self._plain(encoders.transformers_model("sdpa")))
        yield Candidate("transformers, eager", lambda: self._plain(encoders.transformers_model("eager")))
        yield Candidate("transformers, SDPA by cuDNN", self._cudnn)
        yield Candidate("transformers, flash_attention_2", self._flash_attention)
        yield Candidate("transformers, torch.compile", lambda: self._compiled("default"))
        yield Candidate("transformers, torch.compile max-autotune", lambda: self._compiled("max-autotune"))
        yield Candidate("flash-attn's BERT", self._flash_attn_bert)
        yield Candidate("ONNX Runtime", self._onnx)
        yield Candidate("fastbert.accelerate", lambda: self._plain(fastbert.accelerate(encoders.transformers_model("sdpa"))))
        yield Candidate("fastbert", lambda: self._plain(encoders.fastbert_model()))
        yield Candidate("fastbert, packed by the caller", self._packed)
        # A CPU emulates fp8, which says nothing about speed.
        if encoders.device.type != "cpu" and fp8.unsupported_reason(encoders.device) is None:
            yield Candidate("fastbert, fp8", self._fp8)

    def _plain(self, model: nn.Module, context: Callable[[], Any] = nullcontext, **details: Any) -> Prepared:
        inputs = self.batch.inputs

        @torch.inference_mode()
        def run(rows: dict[str, Tensor]) -> Any:
            with context():
                return model(**rows)

        return self._prepared(lambda: run(inputs), run(inputs), model, details)

    def _prepared(self, step: Callable[[], Any], output: Any, model: nn.Module, details: dict[str, Any]) -> Prepared:
        error = self._error(output)
        wrong = None
        if not error <= self.allowed:
            wrong = f"differs from transformers in float32 by {error:.2e}, allowed {self.allowed:.2e}"
        details = {"error": error, "allowed": self.allowed, **details}
        resident = sum(p.numel() * p.element_size() for p in model.parameters())
        return Prepared(step, wrong, details=details, resident_bytes=resident)

    def _fp8(self) -> Prepared:
        """Every product in fp8, whose rounding exceeds the dtype's: checked by cosine instead."""
        model = fastbert.quantize(self.encoders.fastbert_model())
        prepared = self._plain(model)
        with torch.inference_mode():
            states = self._states(model(**self.checked))[self.real].float()
        worst = F.cosine_similarity(states, self.exact, dim=-1).min().item()
        prepared.wrong = None if worst >= FP8_COSINE else f"a token's state is at cosine {worst:.4f}, {FP8_COSINE} allowed"
        prepared.details["worst cosine"] = worst
        prepared.resident_bytes += sum(buffer.numel() * buffer.element_size() for buffer in model.buffers())
        return prepared

    def _compiled(self, mode: str) -> Prepared:
        compilation = Compilation(mode, self.modes)
        model = self.encoders.transformers_model("sdpa")
        call = compilation(model)
        inputs = self.batch.inputs

        @torch.inference_mode()
        def step() -> Any:
            return call(**inputs)

        for _ in range(3):  # compiles, records the CUDA graph, replays it
            states = self._states(step()).clone()
        details = compilation.proof() | {"kernels": kernels_of(step, self.encoders.device)}
        prepared = self._prepared(step, states, model, details)
        prepared.counts_memory = mode != "max-autotune"  # its CUDA graph allocated when it was recorded
        return prepared

    def _cudnn(self) -> Prepared:
        if self.encoders.device.type != "cuda":
            raise Absent("cuDNN is a CUDA library")
        return self._plain(self.encoders.transformers_model("sdpa"), lambda: sdpa_kernel(SDPBackend.CUDNN_ATTENTION))

    def _flash_attention(self) -> Prepared:
        need_on_gpu("flash_attn", self.encoders.device)
        return self._plain(self.encoders.transformers_model("flash_attention_2"))

    def _flash_attn_bert(self) -> Prepared:
        need_on_gpu("flash_attn", self.encoders.device)
        from flash_attn.models.bert import BertModel, remap_state_dict

        config = copy.deepcopy(self.encoders.config)
        for name in ("use_flash_attn", "fused_bias_fc", "fused_dropout_add_ln"):
            setattr(config, name, True)
        model = BertModel(config, add_pooling_layer=False)
        state = {f"bert.{name}": tensor for name, tensor in self.encoders.state.items()}
        model.load_state_dict({k.removeprefix("bert."): v for k, v in remap_state_dict(state, config).items()}, strict=False)
        return self._plain(model.eval().to(self.encoders.device, self.encoders.dtype))

    def _onnx(self) -> Prepared:
        if importlib.util.find_spec("onnxruntime") is None or importlib.util.find_spec("onnxscript") is None:
            raise Absent("onnxruntime or onnxscript is not installed")
        import onnxruntime

        provider = "CUDAExecutionProvider" if self.encoders.device.type == "cuda" else "CPUExecutionProvider"
        if provider not in onnxruntime.get_available_providers():
            raise Absent(f"the installed ONNX Runtime {onnxruntime.__version__} has no {provider}")
        from .onnx import OnnxEncoder

        model = self.encoders.transformers_model("sdpa")
        session = OnnxEncoder(model, self.batch.inputs, provider)
        output = session(self.batch.inputs)
        prepared = self._prepared(lambda: session(self.batch.inputs), output, model, {"provider": provider})
        prepared.counts_memory = False
        return prepared

    def _packed(self) -> Prepared:
        model, inputs, seqlens = self.encoders.fastbert_model(), self.batch.inputs, self.batch.seqlens
        ids = inputs["input_ids"][inputs["attention_mask"].bool()]
        cu_seqlens = torch.tensor([0, *seqlens], device=self.encoders.device).cumsum(0).to(torch.int32)

        @torch.inference_mode()
        def step() -> Any:
            return model(input_ids=ids, cu_seqlens=cu_seqlens, max_seqlen=max(seqlens))

        pieces = self._states(step()).split(list(seqlens))
        return self._prepared(step, torch.cat([pieces[row] for row in self.rows.tolist()]), model, {})

    @staticmethod
    def _states(output: Any) -> Tensor:
        states = output if isinstance(output, Tensor) else output[0]
        return states.detach()

    def _error(self, output: Any) -> float:
        """Largest difference from float32 at real tokens of the checked rows, over the largest value."""
        states = self._states(output)
        return self._error_of(states[self.rows][self.real] if states.dim() == 3 else states)

    def _error_of(self, states: Tensor) -> float:
        exact = self.exact
        if states.shape != exact.shape:
            raise ValueError(f"expected states of shape {tuple(exact.shape)}, got {tuple(states.shape)}")
        return ((states.float() - exact).abs().max() / exact.abs().max()).item()
