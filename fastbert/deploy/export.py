"""`fastbert export`: a checkpoint as an ONNX file or a torch.export program, made by PyTorch's exporters and run to check it.

Both take fastbert's class, whose code while tracing is plain PyTorch, and are checked against transformers'. Either file
holds a model of padded batches of any size and length; hidden states at padding are zeros, as in fastbert.
"""

import importlib.util
import io
import logging
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from fastbert.cli.console import OverwriteOption

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
NEEDED = ("onnx", "onnxscript")
ONNX_BYTES = 2**31 - 2**24  # of a protobuf file, less what is no weight
TOLERANCE = 1e-4  # of the largest output, or of 1 where all are smaller: float32 through another order of sums
LENGTHS = ((5, 9, 2), (17,), (3, 33, 64, 21), (10**9, 4))  # of the batches to check with, cut at the model's limit
CHOICES = 2


class Format(str, Enum):
    onnx = "onnx"
    torch_export = "torch-export"


def export(
    checkpoint: Annotated[str, typer.Argument(help="A folder or a hub name of a BERT checkpoint.")],
    to: Annotated[Format, typer.Option(help="onnx: for ONNX Runtime and others. torch-export: for torch.export.load.")],
    out: Annotated[Path, typer.Option(dir_okay=False, help="The file to write; of torch-export FILE.pt2.")],
    overwrite: OverwriteOption = False,
    check: Annotated[
        bool, typer.Option("--check/--no-check", help="Run the export against transformers; what differs is not written.")
    ] = True,
) -> None:
    """Export a checkpoint to ONNX or torch.export, and check the file against transformers. Exit status 1 if that fails."""
    from fastbert.cli.console import plain_errors
    from fastbert.utils.locks import locked_file

    with plain_errors(), locked_file(out, typer.echo):
        passed = run(checkpoint, to.value, out, check, lambda line: typer.echo(line), overwrite=overwrite)
    raise typer.Exit(0 if passed else 1)


def run(
    checkpoint: str, to: str, out: Path, check: bool, say: Callable[[str], None], *, overwrite: bool = False
) -> bool:  # fmt: skip
    """Writes the file, whole or not at all; returns whether it may be trusted: it was checked, or no check was asked for.

    A file that differs from transformers' model is not written. Without onnxruntime an ONNX file is written, but unchecked.
    Raises InputError for a checkpoint that is none of transformers' classes, a missing exporter, or weights too large for the
    format.
    """
    import torch

    from fastbert.utils.errors import InputError
    from fastbert.utils.existing_outputs import exists_error
    from fastbert.utils.files import write_whole

    if not out.parent.is_dir():
        raise InputError(f"expected a folder that exists for {out}, got {out.parent}")
    if out.exists() and not (overwrite and out.is_file()):
        raise exists_error(out, "exists", resumable=False)
    if to == "torch-export" and out.suffix != ".pt2":
        raise InputError(f"expected a name that ends in .pt2, as torch.export.load wants it, got {out}")
    if to == "onnx" and (missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]):
        raise InputError(
            f"expected {' and '.join(missing)} for ONNX, got none installed: pip install 'fastbert-triton[export]'"
        )
    ours, theirs, class_name = _models(checkpoint)
    if to == "onnx" and (size := sum(one.nbytes for one in ours.parameters())) > ONNX_BYTES:
        raise InputError(f"expected at most {ONNX_BYTES:,} bytes of weights for an ONNX file, got {size:,} in {checkpoint}")
    with torch.no_grad():
        example = next(iter(_batches(ours)))
        names = [name for name, value in ours(**example, **_options(ours)).items() if isinstance(value, torch.Tensor)]
        with _quiet_exporters():
            content = (_onnx if to == "onnx" else _program)(_plain(ours, names), example, names)
        say(f"fastbert.{class_name}: {', '.join(INPUTS)} -> {', '.join(names)}, float32, {len(content):,} bytes")
        passed = True
        if not check:
            say("not run: --no-check")
        elif to == "onnx" and importlib.util.find_spec("onnxruntime") is None:
            say("not run: onnxruntime is not installed: pip install 'fastbert-triton[export]', or --no-check")
            passed = False
        else:
            difference, share = _differences(theirs, content, to, names)
            say(
                f"run against transformers.{class_name} on {len(LENGTHS)} ragged batches: largest difference {difference:.2g}, "
                f"{share:.2g} of the largest output"
            )
            if not share <= TOLERANCE:
                say(f"{out}: not written: expected at most {TOLERANCE:g} of the largest output")
                return False
    write_whole(out, content)
    say(f"{out}: written")
    return passed


def _models(checkpoint: str) -> tuple[Any, Any, str]:
    """(fastbert's model, transformers', the name of their class), in float32 on the CPU."""
    import torch
    import transformers

    import fastbert
    from fastbert.model.frozen import is_frozen
    from fastbert.utils.checkpoints import CLASS_NAMES, open_checkpoint, refuse_missing
    from fastbert.utils.errors import InputError

    source = open_checkpoint(checkpoint)
    named = (source.config.architectures or ["BertModel"])[0]
    if named not in CLASS_NAMES or is_frozen(checkpoint):
        got = "an encoder with the head of --frozen" if is_frozen(checkpoint) else named
        raise InputError(f"expected a checkpoint of a class among {', '.join(CLASS_NAMES)}, got {got} in {checkpoint}")
    if source.misfit is not None:  # none is fine: the export holds none
        source.require_tokenizer()
    options: dict[str, Any] = {}
    found = []
    for library in (fastbert, transformers):
        model, info = source.read(getattr(library, named), dtype=torch.float32, **options)
        missing = sorted(info["missing_keys"])
        if named == "BertModel" and missing and all(name.startswith("pooler.") for name in missing):
            options = {"add_pooling_layer": False}  # a pooler of random weights is of no use
            model, _ = source.read(getattr(library, named), dtype=torch.float32, **options)
        else:
            refuse_missing(checkpoint, named, missing)
        found.append(model.eval())
    return found[0], found[1], named


def _plain(model: Any, names: list[str]) -> Any:
    """The model with tensors by name as its output, so that the file can be loaded without transformers."""
    from torch import Tensor, nn

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> dict[str, Tensor]:
            inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
            outputs = self.model(**inputs, **_options(self.model))
            return {name: outputs[name] for name in names}

    return Plain().eval()


def _options(model: Any) -> dict[str, Any]:
    return {"use_cache": False} if model.config.is_decoder else {}


def _shapes(model: Any, example: dict[str, Any]) -> dict[str, Any]:
    from torch.export import Dim

    limit = model.model.config.max_position_embeddings
    dims = [Dim("batch"), Dim("sequence", max=limit)]
    if example["input_ids"].dim() == 3:
        dims.insert(1, Dim("choices"))
    return {name: dict(enumerate(dims)) for name in INPUTS}


@contextmanager
def _quiet_exporters() -> Iterator[None]:
    """Without what the exporters tell of their own insides; their errors stay."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


def _onnx(model: Any, example: dict[str, Any], names: list[str]) -> bytes:
    import torch

    program = torch.onnx.export(
        model, (), kwargs=example, dynamic_shapes=_shapes(model, example), input_names=list(INPUTS), output_names=names,
        dynamo=True, verbose=False,
    )  # fmt: skip
    assert program is not None
    return program.model_proto.SerializeToString()


def _program(model: Any, example: dict[str, Any], names: list[str]) -> bytes:
    import torch

    program = torch.export.export(model, (), example, dynamic_shapes=_shapes(model, example))
    file = io.BytesIO()
    torch.export.save(program, file)
    return file.getvalue()


def _differences(model: Any, content: bytes, to: str, names: list[str]) -> tuple[float, float]:
    """The largest difference of the file and the model on real tokens, as it is, and as a share of what `TOLERANCE` is of."""
    run_file = _runner(content, to, names)
    errors, shares = [0.0], [0.0]
    for batch in _batches(model):
        wanted = model(**batch, **_options(model))
        found = run_file(batch)
        for name in names:
            right, got = wanted[name], found[name]
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


def _runner(content: bytes, to: str, names: list[str]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    import torch

    if to == "torch-export":
        program = torch.export.load(io.BytesIO(content)).module()
        return lambda batch: program(**batch)
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])

    def run_session(batch: dict[str, Any]) -> dict[str, Any]:
        values = session.run(names, {name: value.numpy() for name, value in batch.items()})
        return {name: torch.from_numpy(value) for name, value in zip(names, values)}

    return run_session


def _batches(model: Any) -> Iterator[dict[str, Any]]:
    """Padded batches of random tokens and types; the first serves as the exporter's example."""
    import torch

    generator = torch.Generator().manual_seed(0)
    config = model.config
    for lengths in LENGTHS:
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
