"""`fastbert.explain`: which implementation runs each part of a model, and why."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers.models.bert import modeling_bert as hf

from fastbert.kernels import backend_reason
from fastbert.kernels.matmul.choose import select_gemm
from fastbert.model.bert import BertModel
from fastbert.model.calls import last_path
from fastbert.model.construction import is_registered
from fastbert.model.fallback.activations import fused_activation
from fastbert.model.fallback.parts import parts_of, unwrap, weights_of
from fastbert.model.fallback.plan import embeddings_verdict, model_verdict, plan_layer, transform_verdict
from fastbert.model.fallback.verdict import Path, Verdict, assume_gathered, dtype_name, weights_verdict
from fastbert.model.layer import BertPredictionHeadTransform
from fastbert.model.padding.policy import policy_of

KERNELS = "fastbert, Triton"
LARGE_BATCH = 8192  # rows; where a choice depends on them, it is explained for this many


@dataclass(frozen=True)
class Decision:
    """One line of `explain`: a component (a module path, or several equal ones), what runs it, and why."""

    component: str
    implementation: str
    reason: str


@dataclass(frozen=True)
class Explanation:
    """What `explain` found. notes: facts about the whole model by name; decisions: per component, in order.

    Prints as a table; with rich, as a coloured one.
    """

    model: str
    notes: dict[str, str]
    decisions: tuple[Decision, ...]

    def __str__(self) -> str:
        rows = [("component", "implementation", "reason"), *((d.component, d.implementation, d.reason) for d in self.decisions)]
        widths = [max(len(row[column]) for row in rows) for column in range(2)]
        lines = [f"{row[0]:<{widths[0]}}  {row[1]:<{widths[1]}}  {row[2]}".rstrip() for row in rows]
        notes = [f"{name}: {value}" for name, value in self.notes.items()]
        return "\n".join([self.model, *notes, "", *lines])

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        from rich.table import Table

        table = Table(title=self.model, title_justify="left", caption_justify="left")
        for column in ("component", "implementation", "reason"):
            table.add_column(column, overflow="fold")
        for decision in self.decisions:
            style = "yellow" if decision.implementation.startswith("transformers") else None
            table.add_row(decision.component, decision.implementation, decision.reason, style=style)
        yield table
        for name, value in self.notes.items():
            yield f"{name}: {value}"


def explain(model: nn.Module) -> Explanation:
    """Which implementation runs each part of every BERT inside `model`, and why, from its modules as they are now.

    model: any torch.nn.Module.
    Returns an `Explanation`; print it for a table.
    Raises TypeError for something else than a module, or one with no BERT inside.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"explain: expected a torch.nn.Module, got {type(model).__name__}")
    berts = [(name, module) for name, module in model.named_modules() if isinstance(module, hf.BertModel)]
    if not berts:
        raise TypeError(f"explain: expected a module with a BertModel inside, got {type(model).__name__} without one")
    with assume_gathered(model):
        return _explain(model, berts)


def _explain(model: nn.Module, berts: list[tuple[str, Any]]) -> Explanation:
    notes: dict[str, str] = (
        {"fastbert.register": "on, every BERT that transformers builds is fastbert's"} if is_registered() else {}
    )
    decisions: list[Decision] = []
    for name, bert in berts:
        prefix = f"{name}." if name else ""
        label = f" of {name}" if len(berts) > 1 else ""
        if not isinstance(bert, BertModel):
            decisions.append(Decision(name or type(bert).__name__, "transformers", _not_swapped(bert)))
            continue
        notes.update({key + label: value for key, value in _model_notes(bert).items()})
        decisions += _model_decisions(bert, prefix)
    for name, module in model.named_modules():
        if isinstance(module, (hf.BertOnlyMLMHead, hf.BertPreTrainingHeads)):
            decisions += _vocabulary_decisions(f"{name}.predictions", module.predictions)
    return Explanation(type(model).__name__, notes, tuple(decisions))


def _not_swapped(bert: hf.BertModel) -> str:
    if type(bert) is hf.BertModel:
        return "not swapped: see fastbert.accelerate"
    return f"not swapped: {type(bert).__name__} is a class of its own on BertModel, which stays as it is written"


def _model_notes(bert: BertModel) -> dict[str, str]:
    tensor = next(bert.parameters())
    try:
        backend, reason = backend_reason(tensor.device, tensor.dtype)
    except RuntimeError as error:
        backend, reason = "none", str(error)
    return {
        "backend": f"{backend} ({reason})",
        "parameters": f"{dtype_name(tensor.dtype)} on {tensor.device}",
        "padding": str(policy_of(bert)),
        "last call": last_path(bert) or "none yet",
    }


def _model_decisions(bert: BertModel, prefix: str) -> list[Decision]:
    verdict = model_verdict(bert)
    if verdict.path is Path.TRANSFORMERS:
        return [Decision(prefix.rstrip(".") or type(bert).__name__, "transformers", verdict.why)]
    fused = _fused_name(next(bert.parameters()))
    embeddings = embeddings_verdict(bert.embeddings)
    if embeddings.path is Path.FUSED:
        decisions = [Decision(f"{prefix}embeddings", fused, "lookup, sum, layer norm and dropout in one operation")]
    else:
        decisions = [Decision(f"{prefix}embeddings", "module on padded ids", embeddings.why)]
    groups: list[tuple[list[int], list[Decision]]] = []  # equal neighbours share their lines
    for index, layer in enumerate(bert.encoder.layer):
        lines = _layer_decisions(layer, bert.config.is_decoder, fused)
        if groups and groups[-1][1] == lines:
            groups[-1][0].append(index)
        else:
            groups.append(([index], lines))
    for indices, lines in groups:
        span = str(indices[0]) if len(indices) == 1 else f"{indices[0]}-{indices[-1]}"
        decisions += [Decision(f"{prefix}encoder.layer.{span}{d.component}", d.implementation, d.reason) for d in lines]
    if bert.pooler is not None:
        decisions.append(Decision(f"{prefix}pooler", "transformers", "one row per sequence"))
    return decisions


def _layer_decisions(layer: nn.Module, causal: bool, fused: str) -> list[Decision]:
    """The lines of one layer; components are named from the layer on."""
    plan, layer = plan_layer(layer, causal), unwrap(layer)
    if plan.layer.path is Path.TRANSFORMERS:
        return [Decision("", "transformers on padded tensors", plan.layer.why)]
    parts = parts_of(layer)
    norm = weights_of(parts.attention_norm)[0]
    dtype = None if norm is None else norm.dtype
    describe = getattr(layer, "describe", None)  # of a layer that computes products in another number format
    formats: dict[str, tuple[str, str]] = {} if describe is None else describe()

    def line(
        component: str, verdict: Verdict, modules: list[Any], does: str, operation: str = "", product: str = ""
    ) -> Decision:
        if verdict.path is Path.FUSED:
            verdict = weights_verdict(*[p for module in modules for p in module.parameters(recurse=False)], dtype=dtype)
        if verdict.path is not Path.FUSED:
            return Decision(component, "modules on packed rows", verdict.why)
        number_format, note = formats.get(product, ("", ""))
        does = f"{does}; {note}" if note else does
        if number_format:
            return Decision(component, f"{fused}, {number_format}{'' if fused == KERNELS else ' emulated'}", does)
        if not operation or fused != KERNELS:
            return Decision(component, fused, does)
        gemm, why = _gemm_choice(operation, weights_of(modules[0])[0])
        return Decision(component, gemm, f"{does}; {why}")

    projections, qkv = [parts.query, parts.key, parts.value], "query, key and value together"
    intermediate, activation = [parts.intermediate_dense], f"{plan.activation} in the epilogue"
    attention_dense, output_dense = [parts.attention_dense], [parts.output_dense]
    return [
        line(".attention.self: projections", plan.qkv, projections, qkv, "qkv_linear", "qkv"),
        Decision(".attention.self: attention", fused, "variable length, no padding"),
        line(".attention.output.dense", plan.attention_dense, attention_dense, "packed rows", "linear", "attention"),
        line(".attention.output.LayerNorm", plan.attention_norm, [parts.attention_norm], "add & norm in one"),
        line(".intermediate", plan.intermediate, intermediate, activation, "linear_activation", "intermediate"),
        line(".output.dense", plan.output_dense, output_dense, "packed rows", "linear", "output"),
        line(".output.LayerNorm", plan.output_norm, [parts.output_norm], "add & norm in one"),
    ]


def _fused_name(tensor: Tensor) -> str:
    try:
        return {"torch": "fastbert, PyTorch", "triton": KERNELS}[backend_reason(tensor.device, tensor.dtype)[0]]
    except RuntimeError as error:
        return f"none: {error}"


def _gemm_choice(operation: str, weight: Tensor) -> tuple[str, str]:
    """What computes this matrix product of a large batch on this GPU, and why."""
    choice = select_gemm(operation, LARGE_BATCH, *weight.shape, weight.dtype, weight.device)
    return KERNELS if choice.side == "triton" else "fastbert, library GEMM", choice.reason


def _vocabulary_decisions(name: str, predictions: Any) -> list[Decision]:
    transform = predictions.transform
    reason = "labelled positions only with return_logits=False and labels, else every position"
    lines = [Decision(name, "transformers, fastbert for the loss", reason)]
    if type(transform) is BertPredictionHeadTransform:
        verdict = transform_verdict(transform)
        if verdict.path is Path.FUSED:
            does = f"linear with {fused_activation(transform.transform_act_fn)}, then norm"
            lines.append(Decision(f"{name}.transform", _fused_name(weights_of(transform.dense)[0]), does))
        else:
            lines.append(Decision(f"{name}.transform", "modules", verdict.why))
    return lines
