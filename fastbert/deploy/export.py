"""A checkpoint as an ONNX file or a torch.export program, written by PyTorch's exporters and run to check it.

fastbert's class is exported, whose code while tracing is plain PyTorch, and the file is compared with transformers' class.
Either file holds a model of padded batches of any size and length; hidden states at padding are zeros, as in fastbert.
"""

import importlib.util
import io
import logging
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.export import Dim

from fastbert.model import heads
from fastbert.model.bert import BertModel
from fastbert.model.construction import transformers_classes
from fastbert.model.variants.frozen import is_frozen
from fastbert.utils.checkpoints import CLASS_NAMES, open_checkpoint, refuse_missing
from fastbert.utils.errors import InputError
from fastbert.utils.files import write_whole
from fastbert.utils.installation import install_command

from .export_checks import check_export

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
MAX_ONNX_BYTES = 2**31 - 2**24  # of weights: a protobuf file ends at 2**31, and holds the graph too
TOLERANCE = 1e-4  # of the largest output, or of 1 where all are smaller: float32 sums in another order
CHECKED_LENGTHS = ((5, 9, 2), (17,), (3, 33, 64, 21), (10**9, 4))  # of each batch's sequences, cut at the model's limit
CHOICES = 2

Batch = dict[str, Tensor]


def export_checkpoint(
    checkpoint: str, to: str, out: Path, *, check: bool = True, overwrite: bool = False, say: Callable[[str], None]
) -> bool:
    """Writes the file, whole or not at all; returns whether it was checked and agrees, or no check was asked for.

    to: "onnx" or "torch-export". say: called with each line for the user. A file that differs from transformers' model is not
    written. Without onnxruntime an ONNX file is written unchecked. Raises InputError for a checkpoint of no class of
    transformers, a missing exporter, or weights too large for the format.
    """
    check_export(to, out, overwrite)
    model, reference, class_name = _load_models(checkpoint)
    if to == "onnx" and (size := sum(one.nbytes for one in model.parameters())) > MAX_ONNX_BYTES:
        raise InputError(f"expected at most {MAX_ONNX_BYTES:,} bytes of weights for an ONNX file, got {size:,} in {checkpoint}")
    with torch.no_grad():
        example = next(_batches(model))
        names = [name for name, value in model(**example, **_options(model)).items() if isinstance(value, Tensor)]
        with _quiet_exporters():
            content = (_to_onnx if to == "onnx" else _to_program)(_WithNamedOutputs(model, names).eval(), example, names)
        say(f"fastbert.{class_name}: {', '.join(INPUTS)} -> {', '.join(names)}, float32, {len(content):,} bytes")
        passed = True
        if not check:
            say("not run: --no-check")
        elif to == "onnx" and importlib.util.find_spec("onnxruntime") is None:
            say(f"not run: onnxruntime is not installed: {install_command('export')}, or --no-check")
            passed = False
        else:
            difference, share = _differences(reference, _runner(content, to, names), names)
            say(
                f"run against transformers.{class_name} on {len(CHECKED_LENGTHS)} ragged batches: largest difference "
                f"{difference:.2g}, {share:.2g} of the largest output"
            )
            if not share <= TOLERANCE:
                say(f"{out}: not written: expected at most {TOLERANCE:g} of the largest output")
                return False
    write_whole(out, content)
    say(f"{out}: written")
    return passed


def _load_models(checkpoint: str) -> tuple[Any, Any, str]:
    """(fastbert's model, transformers' model, the name of their class), in float32 on the CPU."""
    source = open_checkpoint(checkpoint)
    class_name = source.saved_from or "BertModel"
    if class_name not in CLASS_NAMES or is_frozen(checkpoint):
        got = "an encoder with the head of --frozen" if is_frozen(checkpoint) else class_name
        raise InputError(f"expected a checkpoint of a class among {', '.join(CLASS_NAMES)}, got {got} in {checkpoint}")
    if source.misfit is not None:  # no tokenizer is fine: the export holds none
        source.require_tokenizer()
    options: dict[str, Any] = {}
    models = []
    model_class = BertModel if class_name == "BertModel" else getattr(heads, class_name)
    with transformers_classes():
        for cls in (model_class, getattr(transformers, class_name)):
            model, info = source.read(cls, dtype=torch.float32, **options)
            missing = sorted(info["missing_keys"])
            if class_name == "BertModel" and missing and all(name.startswith("pooler.") for name in missing):
                options = {"add_pooling_layer": False}  # a pooler of random weights is of no use
                model, _ = source.read(cls, dtype=torch.float32, **options)
            else:
                refuse_missing(checkpoint, class_name, missing)
            models.append(model.eval())
    return models[0], models[1], class_name


class _WithNamedOutputs(nn.Module):
    """A model whose output is a dict of tensors, so that the file can be loaded without transformers."""

    def __init__(self, model: Any, names: list[str]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Batch:
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
        outputs = self.model(**inputs, **_options(self.model))
        return {name: outputs[name] for name in self.names}


def _options(model: Any) -> dict[str, Any]:
    return {"use_cache": False} if model.config.is_decoder else {}


def _dynamic_shapes(model: Any, example: Batch) -> dict[str, Any]:
    dims = [Dim("batch"), Dim("sequence", max=model.model.config.max_position_embeddings)]
    if example["input_ids"].dim() == 3:
        dims.insert(1, Dim("choices"))
    return {name: dict(enumerate(dims)) for name in INPUTS}


@contextmanager
def _quiet_exporters() -> Iterator[None]:
    """Silences the exporters' log and warnings; their errors stay."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


def _to_onnx(model: Any, example: Batch, names: list[str]) -> bytes:
    program = torch.onnx.export(
        model,
        (),
        kwargs=example,
        dynamic_shapes=_dynamic_shapes(model, example),
        input_names=list(INPUTS),
        output_names=names,
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    return program.model_proto.SerializeToString()


def _to_program(model: Any, example: Batch, names: list[str]) -> bytes:
    program = torch.export.export(model, (), example, dynamic_shapes=_dynamic_shapes(model, example))
    file = io.BytesIO()
    torch.export.save(program, file)
    return file.getvalue()


def _differences(reference: Any, run_file: Callable[[Batch], Batch], names: list[str]) -> tuple[float, float]:
    """The largest difference of the file and the reference on real tokens: absolute, and as the share that TOLERANCE bounds."""
    errors, shares = [0.0], [0.0]
    for batch in _batches(reference):
        expected = reference(**batch, **_options(reference))
        found = run_file(batch)
        for name in names:
            right, got = expected[name], found[name]
            if tuple(right.shape) != tuple(got.shape):
                return float("inf"), float("inf")
            if right.shape[: batch["input_ids"].dim()] == batch["input_ids"].shape:
                right, got = right[batch["attention_mask"] == 1], got[batch["attention_mask"] == 1]
            error = float((right - got).abs().max())
            if math.isnan(error):
                return error, error
            errors.append(error)
            shares.append(error / max(1.0, float(right.abs().max())))
    return max(errors), max(shares)


def _runner(content: bytes, to: str, names: list[str]) -> Callable[[Batch], Batch]:
    """A function that runs an exported file."""
    if to == "torch-export":
        program = torch.export.load(io.BytesIO(content)).module()
        return lambda batch: program(**batch)
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])

    def run_session(batch: Batch) -> Batch:
        values = session.run(names, {name: value.numpy() for name, value in batch.items()})
        return {name: torch.from_numpy(value) for name, value in zip(names, values)}

    return run_session


def _batches(model: Any) -> Iterator[Batch]:
    """Padded batches of random ids and types, (batch, seq) or (batch, choices, seq); the first is the exporters' example."""
    generator = torch.Generator().manual_seed(0)
    config = model.config
    for lengths in CHECKED_LENGTHS:
        cut = torch.tensor(lengths).clamp(max=config.max_position_embeddings)
        shape = len(lengths), int(cut.max())
        mask = (torch.arange(shape[1]) < cut[:, None]).long()
        ids = torch.randint(config.vocab_size, shape, generator=generator)
        types = torch.randint(config.type_vocab_size, shape, generator=generator)
        batch = dict(zip(INPUTS, (ids, mask, types * mask)))
        if type(model).__name__ == "BertForMultipleChoice":
            batch = {name: value[:, None].repeat(1, CHOICES, 1) for name, value in batch.items()}
            batch["input_ids"][:, 1] = batch["input_ids"][:, 1].flip(-1)
        yield batch
