"""Who runs what, and why: every decision between the packed path and transformers' own, and `explain`.

Decisions are made from the live modules at each call and nothing of them is kept, so a hook, an exchanged submodule or an
instance-level `forward` takes effect at the next call. An *obstacle* is a sentence that says why something steps aside;
None means that nothing does.
"""

import functools
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from transformers import activations, modeling_utils
from transformers.integrations.flash_attention import flash_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.bert import modeling_bert as hf
from transformers.utils import output_capturing

from fastbert.kernels import backend_reason
from fastbert.kernels.limits import HEAD_DIM_MULTIPLE, MAX_HEAD_DIM, MIN_HEAD_DIM
from fastbert.kernels.matmul.choose import choose
from fastbert.model.padding_policy import policy_of

# What transformers' attention functions read from the model's keyword arguments; whatever else is there they ignore.
ATTENTION_KWARGS = frozenset(
    "block_mask debug_io is_causal output_cross_attentions position_bias s_aux score_mod sliding_window softcap".split()
)
ATTENTION_NAMES = frozenset(
    ("eager", "sdpa", "flex_attention", "flash_attention_2", "flash_attention_3", "flash_attention_4", None)
)
HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
GLOBAL_HOOKS = tuple(f"_global{name}" for name in HOOKS)
KERNELS = "fastbert, Triton"
LARGE_BATCH = 8192  # rows; where a choice depends on them, `explain` speaks of this many
PLAIN_TENSORS = (nn.Parameter, Tensor)
# Libraries whose subclasses of nn.Linear are linear maps: other storage, same meaning.
LINEAR_LIBRARIES = frozenset(("torch", "torchao", "transformers", "peft", "bitsandbytes", "optimum", "quanto", "hqq"))
ELEMENTWISE_MODULES = (
    nn.CELU, nn.ELU, nn.GELU, nn.Hardsigmoid, nn.Hardswish, nn.Hardtanh, nn.Identity, nn.LeakyReLU, nn.LogSigmoid, nn.Mish,
    nn.ReLU, nn.ReLU6, nn.SELU, nn.SiLU, nn.Sigmoid, nn.Softplus, nn.Softsign, nn.Tanh, nn.Tanhshrink,
)  # fmt: skip
ELEMENTWISE_FUNCTIONS = (
    F.gelu, F.relu, F.silu, F.mish, F.elu, F.selu, F.leaky_relu, F.hardswish, F.relu6, F.softplus, F.sigmoid, F.tanh,
    torch.relu, torch.sigmoid, torch.tanh,
)  # fmt: skip
GELU_TANH = (
    activations.NewGELUActivation,
    activations.FastGELUActivation,
    activations.AccurateGELUActivation,
    activations.GELUTanh,
)


class LayerPlan(NamedTuple):
    """How one layer runs. obstacle: why all of it is transformers', on padded tensors. The others: why that part calls its
    modules, on packed rows, instead of a fused operation. activation: the fused one's name, where there is one."""

    obstacle: str | None = None
    qkv: str | None = None
    attention_dense: str | None = None
    attention_norm: str | None = None
    intermediate: str | None = None
    output_dense: str | None = None
    output_norm: str | None = None
    activation: str | None = None


# Modules


def is_touched(module: nn.Module) -> bool:
    """Whether the module has any hook, or a `forward` of its own."""
    return bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks) or (
        "forward" in module.__dict__
    )


def foreign_hook(module: nn.Module, *, called: bool = False) -> str | None:
    """The first hook on this module that would be missed, or would see packed tensors. called: the module is called as such,
    so hooks of torch.distributed, which only gather and release parameters, are served."""
    if not (module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks):
        return None
    for name in HOOKS:
        for hook in getattr(module, name).values():
            origin = _origin(hook)
            # transformers' own hooks record only in calls that take transformers' path.
            if origin == output_capturing.__name__ or (called and origin.startswith("torch.distributed.")):
                continue
            if isinstance(module, nn.Embedding) and _makes_require_grad(hook):
                continue
            return f"a {name[1:-1].replace('_', ' ')} on {type(module).__name__}"
    return None


def _makes_require_grad(hook: Callable) -> bool:
    """transformers' hook that lets gradient checkpointing work on frozen embeddings; `BertModel` does the same itself."""
    name = getattr(hook, "__qualname__", "")
    return _origin(hook) == modeling_utils.__name__ and name.endswith(
        "enable_input_require_grads.<locals>.make_inputs_require_grads"
    )


def must_require_grad(embedding: nn.Module) -> bool:
    return any(_makes_require_grad(hook) for hook in embedding._forward_hooks.values())


def global_hook() -> str | None:
    for name in GLOBAL_HOOKS:
        for hook in getattr(torch_module, name).values():
            if _origin(hook) != "torch.utils.module_tracker":  # notes names of modules, nothing else
                return f"a {name[1:-1].replace('_', ' ')} on every module"
    return None


def _origin(hook: Callable) -> str:
    while isinstance(hook, functools.partial):
        hook = hook.func
    return getattr(hook, "__module__", None) or type(hook).__module__


def replaced_forward(module: nn.Module, *, called: bool = False) -> str | None:
    """Whether the instance has a `forward` of its own; those of Accelerate's device placement count as none where the
    module is called, or holds nothing to be placed."""
    if "forward" not in module.__dict__:
        return None
    if _places_devices(getattr(module, "_hf_hook", None)) and (called or not module._parameters):
        original = getattr(module, "_old_forward", None)
        if getattr(original, "__func__", None) is type(module).forward:
            return None
    return f"a forward of its own on {type(module).__name__}"


def _places_devices(hook: Any) -> bool:
    if type(hook).__name__ == "SequentialHook":
        return all(map(_places_devices, hook.hooks))
    return (type(hook).__module__, type(hook).__name__) == ("accelerate.hooks", "AlignDevicesHook")


def is_plain(module: nn.Module, cls: type[nn.Module]) -> bool:
    """Whether calling the module does what its class does and nothing else."""
    if type(module) is not cls:
        return False
    return not is_touched(module) or (foreign_hook(module) is None and "forward" not in module.__dict__)


def is_dropout(module: nn.Module) -> bool:
    """Whether this drops elements as nn.Dropout does, or nothing at all."""
    return is_plain(module, nn.Dropout) or is_plain(module, nn.Identity)


def tensors_obstacle(*tensors: Tensor | None, dtype: torch.dtype | None = None) -> str | None:
    """Why a fused operation cannot read these weights: another tensor type, another dtype."""
    for tensor in tensors:
        if tensor is None:
            continue
        if type(tensor) not in PLAIN_TENSORS and not _is_traced(tensor) and id(tensor) not in _gathered.get():
            return f"its weight is a {type(tensor).__name__}"
        if dtype is not None and tensor.dtype != dtype:
            return f"its weight is {_name(tensor.dtype)}, the states are {_name(dtype)}"
    return None


# Parameters that FSDP2 gathers around each call, by id: set while `explain` looks at a model between its calls.
_gathered: ContextVar[frozenset[int]] = ContextVar("gathered", default=frozenset())


def _gathered_by_fsdp(model: nn.Module) -> frozenset[int]:
    """The shards that a call sees as plain tensors; those of a mesh of several dimensions are parallel in other ways too."""
    if not torch.distributed.is_available():
        return frozenset()
    from torch.distributed.fsdp import FSDPModule

    units = [module for module in model.modules() if isinstance(module, FSDPModule)]
    shards = {parameter for unit in units for parameter in unit.parameters() if hasattr(parameter, "device_mesh")}
    return frozenset(id(parameter) for parameter in shards if parameter.device_mesh.ndim == 1)


def _is_traced(tensor: Tensor) -> bool:
    return type(tensor).__name__ in ("FakeTensor", "FunctionalTensor")


def linear_reason(module: nn.Module) -> tuple[str | None, str | None]:
    """(why the layer steps aside, why the module is called on packed rows) for a place where BERT has an nn.Linear."""
    if type(module) is nn.Linear and not is_touched(module):
        return None, None
    name = type(module).__name__
    if not _works_on_rows(module):
        return f"{name} stands in place of a Linear", None
    for part in module.modules():
        # The module is called, so what Accelerate and torch.distributed do around it is done.
        obstacle = foreign_hook(part, called=True) or replaced_forward(part, called=True)
        if obstacle is not None:
            return obstacle, None
    return None, f"{name} is called as it is"


def _works_on_rows(module: nn.Module) -> bool:
    """Whether a stand-in for an nn.Linear treats every row alone, as far as its type tells: a user's own may not."""
    kinds = {(cls.__module__.split(".")[0], cls.__name__) for cls in type(module).__mro__}
    if ("peft", "BaseTunerLayer") in kinds:
        return _works_on_rows(module.base_layer)
    if type(module).__module__.startswith("torch.ao.nn.quantized.dynamic"):
        return True
    home = type(module).__module__.split(".")[0]
    return isinstance(module, nn.Linear) and (type(module).forward is nn.Linear.forward or home in LINEAR_LIBRARIES)


def norm_reason(module: nn.Module) -> tuple[str | None, str | None]:
    if type(module) is not nn.LayerNorm:
        return f"{type(module).__name__} stands in place of a LayerNorm", None
    if is_touched(module):
        obstacle = foreign_hook(module, called=True) or replaced_forward(module, called=True)
        return obstacle, None if obstacle else "LayerNorm is called for its hooks"
    weight, bias = weights_of(module)
    if weight is None or bias is None or len(module.normalized_shape) != 1:
        return None, "LayerNorm without weight or bias"
    return None, None


def activation_reason(act: Any) -> tuple[str | None, str | None, str | None]:
    """(why the layer steps aside, why the activation is called on packed rows, its fused name)."""
    if isinstance(act, nn.Module):
        for part in act.modules() if act._modules or is_touched(act) else ():
            obstacle = foreign_hook(part) or replaced_forward(part)
            if obstacle is not None:
                return obstacle, None, None
    name = activation_name(act)
    if name is not None:
        return None, None, name
    label = type(act).__name__ if isinstance(act, nn.Module) else getattr(act, "__name__", repr(act))
    elementwise = type(act) in ELEMENTWISE_MODULES or type(act).__module__ == activations.__name__
    if elementwise or any(act is function for function in ELEMENTWISE_FUNCTIONS):
        return None, f"the activation {label} is not fused", None
    return f"the activation {label} may not treat every element alone", None, None


def activation_name(act: Any) -> str | None:
    """The fused operation that computes this activation's formula, up to rounding."""
    if act is F.gelu or type(act) is activations.GELUActivation:
        return "gelu_erf"
    if isinstance(act, GELU_TANH) and type(act) in GELU_TANH:
        return "gelu_tanh"
    if type(act) is nn.GELU:
        return "gelu_tanh" if act.approximate == "tanh" else "gelu_erf"
    if type(act) is nn.ReLU or act is F.relu or act is torch.relu:
        return "relu"
    return None


def plan_layer(layer: nn.Module, causal: bool) -> LayerPlan:
    """How this layer runs, from its live modules. causal: whether the model masks the future."""
    layer = unwrapped(layer)
    if not getattr(type(layer).forward, "takes_packed", False):
        return LayerPlan(f"the layer is a {type(layer).__name__}")
    attention = layer._modules["attention"]
    if type(attention) is not hf.BertAttention:
        return LayerPlan(f"the attention is a {type(attention).__name__}")
    containers = (
        (attention, hf.BertAttention),
        (attention._modules["self"], hf.BertSelfAttention),
        (attention._modules["output"], hf.BertSelfOutput),
        (layer._modules["intermediate"], hf.BertIntermediate),
        (layer._modules["output"], hf.BertOutput),
    )
    for module, cls in containers:
        if type(module) is not cls:
            return LayerPlan(f"{type(module).__name__} in place of {cls.__name__}")
        if is_touched(module):
            obstacle = foreign_hook(module) or replaced_forward(module)
            if obstacle is not None:
                return LayerPlan(obstacle)
    parts = parts_of(layer)
    obstacle = foreign_hook(layer, called=True) or replaced_forward(layer, called=True) or _overridden(layer)
    if obstacle is None and parts.inner.is_causal != causal:
        obstacle = "its is_causal is not that of the config"
    obstacle = obstacle or _head_dim_obstacle(parts.inner)
    if obstacle is not None:
        return LayerPlan(obstacle)
    for dropout in (parts.attention_dropout, parts.hidden_dropout, parts.output_dropout):
        if not is_dropout(dropout):
            return LayerPlan(f"{type(dropout).__name__} in place of a Dropout, or hooked")

    obstacle, reason, activation = activation_reason(parts.activation)
    if obstacle is not None:
        return LayerPlan(obstacle)
    reasons = [
        _projections_reason(parts),
        linear_reason(parts.attention_dense),
        norm_reason(parts.attention_norm),
        linear_reason(parts.intermediate_dense),
        linear_reason(parts.output_dense),
        norm_reason(parts.output_norm),
    ]
    for obstacle, _ in reasons:
        if obstacle is not None:
            return LayerPlan(obstacle)
    qkv, attention_dense, attention_norm, intermediate, output_dense, output_norm = (called for _, called in reasons)
    return LayerPlan(
        None, qkv, attention_dense, attention_norm, intermediate or reason, output_dense, output_norm, activation
    )  # fmt: skip


class LayerParts(NamedTuple):
    """The modules of a layer that do the work."""

    inner: nn.Module
    query: nn.Module
    key: nn.Module
    value: nn.Module
    attention_dropout: nn.Module
    attention_dense: nn.Module
    attention_norm: nn.Module
    hidden_dropout: nn.Module
    intermediate_dense: nn.Module
    activation: Any
    output_dense: nn.Module
    output_norm: nn.Module
    output_dropout: nn.Module


def parts_of(layer: nn.Module) -> LayerParts:
    """The parts of a layer whose containers are transformers' own. Reading `_modules` costs a tenth of an attribute."""
    attention = layer._modules["attention"]._modules  # type: ignore[union-attr]
    inner, attention_output = attention["self"], attention["output"]._modules  # type: ignore[union-attr]
    projections, output = inner._modules, layer._modules["output"]._modules  # type: ignore[union-attr]
    intermediate = layer._modules["intermediate"]
    activation = intermediate._modules.get("intermediate_act_fn")  # type: ignore[union-attr]
    return LayerParts(
        inner, projections["query"], projections["key"], projections["value"], projections["dropout"],
        attention_output["dense"], attention_output["LayerNorm"], attention_output["dropout"],
        intermediate._modules["dense"],
        activation if activation is not None else intermediate.intermediate_act_fn,  # type: ignore[union-attr]
        output["dense"], output["LayerNorm"], output["dropout"],
    )  # fmt: skip


def weights_of(module: nn.Module) -> tuple[Tensor, Tensor | None]:
    """weight and bias; wrappers such as FSDP may keep them as attributes instead of parameters."""
    parameters = module._parameters
    if "weight" in parameters and "bias" in parameters:
        return parameters["weight"], parameters["bias"]  # type: ignore[return-value]
    return module.weight, module.bias


def unwrapped(layer: nn.Module) -> nn.Module:
    """The layer inside wrappers that hand their arguments on: FSDP1 and PyTorch's checkpoint wrapper."""
    for name in ("_fsdp_wrapped_module", "_checkpoint_wrapped_module"):
        if name in layer._modules and type(layer).__module__.startswith("torch.distributed."):
            return unwrapped(layer._modules[name])
    return layer


def _overridden(layer: hf.BertLayer) -> str | None:
    if layer._compiled_call_impl is not None:
        return "the layer is compiled by itself"
    if layer.chunk_size_feed_forward > 0:
        return "the feed-forward is chunked (chunk_size_feed_forward)"
    if type(layer).feed_forward_chunk is not hf.BertLayer.feed_forward_chunk:
        return "feed_forward_chunk is overridden"
    return None


def _head_dim_obstacle(attention: hf.BertSelfAttention) -> str | None:
    head_dim = attention.attention_head_size
    if MIN_HEAD_DIM <= head_dim <= MAX_HEAD_DIM and head_dim % HEAD_DIM_MULTIPLE == 0:
        return None
    return f"head_dim {head_dim} is not a multiple of {HEAD_DIM_MULTIPLE} from {MIN_HEAD_DIM} to {MAX_HEAD_DIM}"


def _projections_reason(parts: LayerParts) -> tuple[str | None, str | None]:
    projections = (parts.query, parts.key, parts.value)
    reasons = [linear_reason(projection) for projection in projections]
    for obstacle, _ in reasons:
        if obstacle is not None:
            return obstacle, None
    called = [f"{name}: {reason}" for name, (_, reason) in zip(("query", "key", "value"), reasons) if reason]
    if called:
        return None, "; ".join(called)
    biases = [weights_of(projection)[1] is None for projection in projections]
    if any(biases) and not all(biases):
        return None, "only some projections have a bias"
    return None, None


def plan_transform(transform: nn.Module) -> tuple[str | None, str | None]:
    """(why the transform before the vocabulary projection calls its modules, else the activation that is fused)."""
    dense, norm = (transform._modules[name] for name in ("dense", "LayerNorm"))
    if not is_plain(dense, nn.Linear):  # type: ignore[arg-type]
        return f"{type(dense).__name__} in place of a Linear, or hooked", None
    if not is_plain(norm, nn.LayerNorm) or norm.weight is None or norm.bias is None:  # type: ignore[arg-type,union-attr]
        return f"{type(norm).__name__} in place of a LayerNorm, or hooked", None
    obstacle, reason, activation = activation_reason(transform.transform_act_fn)
    reason = global_hook() or obstacle or reason
    return reason, None if reason else activation


def embeddings_reason(embeddings: nn.Module, with_ids: bool = True) -> str | None:
    """Why the embeddings module is called on padded ids instead of the fused operation on packed ones."""
    if type(embeddings) is not hf.BertEmbeddings:
        return f"the embeddings are a {type(embeddings).__name__}"
    obstacle = foreign_hook(embeddings) or replaced_forward(embeddings)
    if obstacle is not None:
        return obstacle
    tables = [embeddings.token_type_embeddings, embeddings.position_embeddings]
    tables += [embeddings.word_embeddings] if with_ids else []
    for table in tables:
        if not is_plain(table, nn.Embedding):
            return f"{type(table).__name__} in place of an Embedding, or hooked"
        if table.max_norm is not None or table.scale_grad_by_freq or table.sparse:
            return "an Embedding with max_norm, scale_grad_by_freq or sparse"
        if table.padding_idx is not None and table is not embeddings.word_embeddings:
            return "an Embedding of types or positions with padding_idx"
        if table.weight.dtype != tables[0].weight.dtype:
            return "the embedding tables differ in dtype"
    norm = embeddings.LayerNorm
    if not is_plain(norm, nn.LayerNorm) or norm.weight is None or norm.bias is None:
        return f"{type(norm).__name__} in place of a LayerNorm, or hooked"
    if not is_dropout(embeddings.dropout):
        return f"{type(embeddings.dropout).__name__} in place of a Dropout, or hooked"
    return tensors_obstacle(*[table.weight for table in tables], norm.weight, norm.bias)


# Models


def model_obstacle(
    model: nn.Module,
    *,
    attention_mask: Any = None,
    past_key_values: Any = None,
    use_cache: bool = False,
    encoder_inputs: bool = False,
    kwargs: dict[str, Any] | None = None,
) -> str | None:
    """Why this call takes transformers' own path for the whole model."""
    kwargs = kwargs or {}
    if kwargs.get("output_attentions", getattr(model.config, "output_attentions", False)):
        return "output_attentions asked for the full matrix"
    states = kwargs.get("output_hidden_states", getattr(model.config, "output_hidden_states", False))
    if states and states is not True:
        return "output_hidden_states selects layers, which versions of transformers take differently"
    if past_key_values is not None or use_cache:
        return "a cache of keys and values"
    if encoder_inputs:
        return "cross-attention (encoder_hidden_states)"
    if attention_mask is not None and not (isinstance(attention_mask, Tensor) and attention_mask.dim() <= 2):
        return f"an attention mask of {getattr(attention_mask, 'ndim', 'unknown')} dimensions"
    for name in ATTENTION_KWARGS:
        if kwargs.get(name) is not None:
            return f"the argument {name}"
    if getattr(model.config, "is_causal", None) is not None:
        return "config.is_causal is set"
    return attention_obstacle(model.config) or encoder_obstacle(model)


def is_flash_attention(name: str | None) -> bool:
    """Whether this is transformers' own flash attention, from the package or from the Hub's kernels."""
    return name is not None and (
        name.startswith("flash_attention_") or ALL_ATTENTION_FUNCTIONS.get(name) is flash_attention_forward
    )


def attention_obstacle(config: Any) -> str | None:
    """Whether a user's own attention or mask function is in force."""
    name = config._attn_implementation
    if name not in ATTENTION_NAMES and not is_flash_attention(name):
        return f"attn_implementation {name!r} is not one of transformers' own"
    if torch.compiler.is_compiling():
        return None
    for registry, what in ((ALL_ATTENTION_FUNCTIONS, "attention"), (ALL_MASK_ATTENTION_FUNCTIONS, "mask")):
        function = registry.get(name)
        if function is not None and not _origin(function).startswith("transformers."):
            return f"the {what} function registered for {name!r} is a user's own"
    return None


def encoder_obstacle(model: nn.Module) -> str | None:
    encoder = model.encoder
    if type(encoder) is not hf.BertEncoder:
        return f"the encoder is a {type(encoder).__name__}"
    if type(model)._create_attention_masks is not hf.BertModel._create_attention_masks:
        return "_create_attention_masks is overridden"
    for module in (encoder, encoder.layer):
        obstacle = foreign_hook(module) or replaced_forward(module)
        if obstacle is not None:
            return obstacle
    if global_hook() is not None:
        return global_hook()
    if not torch.compiler.is_compiling() and output_capturing._active_collector.get():
        return "an enclosing model records outputs"
    return None


def pooler_obstacle(pooler: nn.Module) -> str | None:
    """Why a pooler is given padded states instead of first rows alone."""
    if type(pooler) is not hf.BertPooler:
        return f"the pooler is a {type(pooler).__name__}"
    return foreign_hook(pooler) or replaced_forward(pooler)


# What happened, for `explain`. Kept outside the modules, so that nothing of it is copied, pickled or traced.


@dataclass
class Record:
    path: str | None = None  # what the last call took and why
    warned: set[str] = field(default_factory=set)


_records: "weakref.WeakKeyDictionary[nn.Module, Record]" = weakref.WeakKeyDictionary()


def record(model: nn.Module, path: str) -> None:
    """Notes what a call of this model took; nothing while tracing."""
    if not torch.compiler.is_compiling():
        _records.setdefault(model, Record()).path = path


def forget(model: nn.Module) -> None:
    _records.pop(model, None)


def has_warned(model: nn.Module, reason: str) -> bool:
    return model in _records and reason in _records[model].warned


def warn_once(model: nn.Module, reason: str, message: str) -> None:
    """Warns of `message` at the first call of this model for this reason; under torch.compile, while it compiles."""
    if torch.compiler.is_dynamo_compiling():
        _warn_while_compiling(message)
        return
    if torch.compiler.is_compiling():
        return
    warned = _records.setdefault(model, Record()).warned
    if reason not in warned:
        warned.add(reason)
        warnings.warn(message, UserWarning, stacklevel=2)


@torch.compiler.assume_constant_result  # runs where the compiler meets it, and leaves nothing in the compiled code
def _warn_while_compiling(message: str) -> None:
    warnings.warn(message, UserWarning, stacklevel=2)


# explain


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
    token = _gathered.set(_gathered_by_fsdp(model))
    try:
        return _explain(model, berts)
    finally:
        _gathered.reset(token)


def _explain(model: nn.Module, berts: list[tuple[str, Any]]) -> Explanation:
    from fastbert.model.bert import BertModel

    notes: dict[str, str] = {}
    decisions: list[Decision] = []
    for name, bert in berts:
        prefix = f"{name}." if name else ""
        label = f" of {name}" if len(berts) > 1 else ""
        if not isinstance(bert, BertModel):
            decisions.append(Decision(name or type(bert).__name__, "transformers", "not swapped: see fastbert.accelerate"))
            continue
        notes.update({key + label: value for key, value in _model_notes(bert).items()})
        decisions += _model_decisions(bert, prefix)
    for name, module in model.named_modules():
        if isinstance(module, (hf.BertOnlyMLMHead, hf.BertPreTrainingHeads)):
            decisions += _vocabulary_decisions(f"{name}.predictions", module.predictions)
    return Explanation(type(model).__name__, notes, tuple(decisions))


def _model_notes(bert: nn.Module) -> dict[str, str]:
    tensor = next(bert.parameters())
    try:
        backend, reason = backend_reason(tensor.device, tensor.dtype)
    except RuntimeError as error:
        backend, reason = "none", str(error)
    last = _records.get(bert)
    return {
        "backend": f"{backend} ({reason})",
        "parameters": f"{_name(tensor.dtype)} on {tensor.device}",
        "padding": str(policy_of(bert)),
        "last call": "none yet" if last is None or last.path is None else last.path,
    }


def _model_decisions(bert: nn.Module, prefix: str) -> list[Decision]:
    obstacle = model_obstacle(bert)
    if obstacle is not None:
        return [Decision(prefix.rstrip(".") or type(bert).__name__, "transformers", obstacle)]
    tensor = next(bert.parameters())
    fused = _fused_name(tensor)
    reason = embeddings_reason(bert.embeddings)
    decisions = [
        Decision(
            f"{prefix}embeddings",
            fused if reason is None else "module on padded ids",
            reason or "lookup, sum, layer norm and dropout in one operation",
        )
    ]
    groups: list[tuple[list[int], list[tuple[str, str, str]]]] = []  # equal neighbours share their lines
    for index, layer in enumerate(bert.encoder.layer):
        lines = _layer_lines(layer, bert.config.is_decoder, fused)
        if groups and groups[-1][1] == lines:
            groups[-1][0].append(index)
        else:
            groups.append(([index], lines))
    for indices, lines in groups:
        span = str(indices[0]) if len(indices) == 1 else f"{indices[0]}-{indices[-1]}"
        decisions += [Decision(f"{prefix}encoder.layer.{span}{part}", what, why) for part, what, why in lines]
    if bert.pooler is not None:
        decisions.append(Decision(f"{prefix}pooler", "transformers", "one row per sequence"))
    return decisions


def _layer_lines(layer: nn.Module, causal: bool, fused: str) -> list[tuple[str, str, str]]:
    plan = plan_layer(layer, causal)
    if plan.obstacle is not None:
        return [("", "transformers on padded tensors", plan.obstacle)]
    parts = parts_of(unwrapped(layer))
    norm = weights_of(parts.attention_norm)[0]
    dtype = None if norm is None else norm.dtype

    kept = getattr(layer, "fp8_kept", None)  # of a layer in fp8: why a product is not

    def line(
        part: str, reason: str | None, modules: list[nn.Module], does: str, product: str = "", fp8: str = ""
    ) -> tuple[str, str, str]:
        if reason is None:
            reason = tensors_obstacle(*[p for module in modules for p in module.parameters(recurse=False)], dtype=dtype)
        if reason is not None:
            return part, "modules on packed rows", reason
        if kept is not None and fp8:
            if fp8 not in kept:
                return part, f"{fused}, fp8" if fused == KERNELS else f"{fused}, fp8 emulated", does
            does = f"{does}; not in fp8: {kept[fp8]}"
        if not product or fused != KERNELS:
            return part, fused, does
        side, why = _gemm_choice(product, weights_of(modules[0])[0])
        return part, side, f"{does}; {why}"

    return [
        line(
            ".attention.self: projections",
            plan.qkv,
            [parts.query, parts.key, parts.value],
            "query, key and value together",
            "qkv_linear",
            "qkv",
        ),
        (".attention.self: attention", fused, "variable length, no padding"),
        line(".attention.output.dense", plan.attention_dense, [parts.attention_dense], "packed rows", "linear", "attention"),
        line(".attention.output.LayerNorm", plan.attention_norm, [parts.attention_norm], "add & norm in one"),
        line(
            ".intermediate",
            plan.intermediate,
            [parts.intermediate_dense],
            f"{plan.activation} in the epilogue",
            "linear_activation",
            "intermediate",
        ),
        line(".output.dense", plan.output_dense, [parts.output_dense], "packed rows", "linear", "output"),
        line(".output.LayerNorm", plan.output_norm, [parts.output_norm], "add & norm in one"),
    ]


def _fused_name(tensor: Tensor) -> str:
    try:
        return {"torch": "fastbert, PyTorch", "triton": KERNELS}[backend_reason(tensor.device, tensor.dtype)[0]]
    except RuntimeError as error:
        return f"none: {error}"


def _gemm_choice(product: str, weight: Tensor) -> tuple[str, str]:
    """Which side computes this matrix product of a large batch on this GPU, and why."""
    side, why = choose(product, LARGE_BATCH, *weight.shape, weight.dtype, weight.device)
    return KERNELS if side == "triton" else "fastbert, library GEMM", why


def _vocabulary_decisions(name: str, predictions: nn.Module) -> list[Decision]:
    from fastbert.model.layer import BertPredictionHeadTransform

    transform = predictions.transform
    reason = "labelled positions only with return_logits=False and labels, else every position"
    lines = [Decision(name, "transformers, fastbert for the loss", reason)]
    if type(transform) is BertPredictionHeadTransform:
        called, activation = plan_transform(transform)
        fused = "modules" if called else _fused_name(weights_of(transform.dense)[0])  # type: ignore[arg-type]
        lines.append(Decision(f"{name}.transform", fused, called or f"linear with {activation}, then norm"))
    return lines


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
