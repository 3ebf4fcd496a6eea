"""transformers' encoder in ONNX Runtime, tensors bound on the device so that nothing is copied to the host."""

import tempfile
from pathlib import Path

import onnxruntime
import torch
from torch import Tensor, nn


class OnnxEncoder:
    """Exported once with dynamic batch and sequence axes. provider: ONNX Runtime's name of the execution provider."""

    def __init__(self, model: nn.Module, inputs: dict[str, Tensor], provider: str) -> None:
        self.names = ("input_ids", "attention_mask")
        self.device = inputs["input_ids"].device
        self.dtype = next(model.parameters()).dtype
        self.hidden_size = model.config.hidden_size
        batch, seq = torch.export.Dim("batch", min=1), torch.export.Dim("seq", min=2)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "model.onnx"
            torch.onnx.export(
                _Encoder(model),
                tuple(inputs[name] for name in self.names),
                file,
                dynamo=True,
                external_data=True,
                input_names=list(self.names),
                output_names=["states"],
                dynamic_shapes=tuple({0: batch, 1: seq} for _ in self.names),
            )
            self.session = onnxruntime.InferenceSession(file, providers=[provider])

    def __call__(self, inputs: dict[str, Tensor]) -> Tensor:
        """last_hidden_state (B, S, D)."""
        binding, device = self.session.io_binding(), (self.device.type, self.device.index or 0)
        shape = inputs["input_ids"].shape
        for name in self.names:
            tensor = inputs[name].contiguous()
            binding.bind_input(name, *device, "int64", tuple(shape), tensor.data_ptr())
        states = torch.empty((*shape, self.hidden_size), dtype=self.dtype, device=self.device)
        element = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: 16}[self.dtype]  # 16: ONNX's bfloat16
        binding.bind_output("states", *device, element, tuple(states.shape), states.data_ptr())
        self.session.run_with_iobinding(binding)
        return states


class _Encoder(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
