"""BertModel on packed tokens: transformers' class with the same state and another forward.

Follows Devlin et al. 2019 and Hugging Face's `BertModel`: post-norm, erf GELU unless the config says otherwise. A call has
three phases. The prologue checks the inputs, finds the rows of the batch (the only transfer to the host) and embeds them; the
layers run on rows alone; the epilogue pools and gives states the form of the inputs. What has no packed form falls back to
transformers, a layer or the whole call: `fallback` decides and says why.

B batch, S sequence, R rows (see `layout`), T tokens of a batch packed by its caller, D hidden size.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPoolingAndCrossAttentions
from transformers.models.bert import modeling_bert as hf
from transformers.models.bert.configuration_bert import BertConfig

from fastbert.kernels import resolve_backend
from fastbert.kernels.batch_invariance import is_batch_invariant
from fastbert.model import calls
from fastbert.model.batch_invariance import one_sequence, refuse_where_invariant
from fastbert.model.cache_name import CACHE, with_cache_name
from fastbert.model.embeddings import embed_padded, embed_rows
from fastbert.model.fallback.plan import LayerPlan, model_verdict, plan_layer
from fastbert.model.fallback.verdict import Path, Verdict
from fastbert.model.inputs import Inputs, broadcast_inputs, check_packed, check_padded, check_sizes, fitting_positions
from fastbert.model.layer import Quantized
from fastbert.model.padded_layers import PaddedLayers
from fastbert.model.padding.layout import Layout, packed_layout, plan_layout, split_sequences
from fastbert.model.padding.packed_batch import PackedBatch, PaddedBatch, PaddingFreeBatch
from fastbert.model.padding.padding_free import Boundaries, boundaries_of_call, check_one_sequence_per_row, given_arguments
from fastbert.model.padding.policy import Caller, policy_from_option, set_policy
from fastbert.model.padding.reads import must_be_exact, padding_verdict, record_plan, tokens_to_check, warn_of_readers
from fastbert.model.padding.surroundings import choose_padding
from fastbert.model.registry import adopt, replaces


class BertPreTrainedModel(hf.BertPreTrainedModel):
    """transformers' BertPreTrainedModel: the base of every BERT here, and of a user's own heads.

    As in transformers, a head builds its parts and calls `self.post_init()` last. Every BERT among them then runs on packed
    tokens as under `fastbert.accelerate`, whether its class came from fastbert or from transformers: it gives the head zeros
    at padding positions, or transformers' values there where a module of the head reads token states whatever the mask says.
    """

    def post_init(self) -> None:
        """As in transformers, and as `fastbert.accelerate`: BERT classes of transformers inside become fastbert's."""
        super().post_init()
        adopt(self)
        choose_padding(self, None, type(self).__name__)


@replaces(hf.BertModel)
class BertModel(hf.BertModel, BertPreTrainedModel):
    """transformers' BertModel on packed tokens: same arguments, outputs and state, plus a packed way to call it.

    Padding positions of last_hidden_state and hidden_states hold zeros, except where a loss reads them.

    padding: "exact" lets them hold transformers' values instead, at the price of computing them; "zeros", the default, also
        silences the warning for a caller who may read them. Not saved with the model. Raises ValueError for another value.
    """

    def __init__(self, config: BertConfig, add_pooling_layer: bool = True, *, padding: str | None = None) -> None:
        policy = policy_from_option(padding, type(self).__name__)
        super().__init__(config, add_pooling_layer=add_pooling_layer)
        set_policy(self, policy)

    @with_cache_name
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        cu_seqlens: Tensor | None = None,
        max_seqlen: int | None = None,
        loss_positions: Tensor | None = None,
        output_positions: Tensor | None = None,
        caller: Caller | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, ...] | BaseModelOutputWithPoolingAndCrossAttentions:
        """As in transformers, and packed: input_ids (T,) or inputs_embeds (T, D) with cu_seqlens and max_seqlen.

        cu_seqlens: int32 (B + 1,), where each sequence begins, ending at T; nothing is then read back from the device.
        max_seqlen: at least the longest sequence. The result's last_hidden_state is (T, D), its pooler_output (B, D);
            token_type_ids and position_ids are (T,), positions count from the start of each sequence where None.
        loss_positions: bool (B, S), where a loss of the caller reads hidden states. If one of them is padding, every
            padding position is computed and holds transformers' value.
        output_positions: bool (B, S) or (T,). last_hidden_state then holds these positions only, (number, D), in order.
        caller: which head of fastbert's calls; None for any other caller, who may read states at padding.
        cu_seq_lens_q, cu_seq_lens_k, max_length_q, max_length_k, or position_ids (1, S) that start again: transformers'
            padding-free form, kept apart where transformers does, under a flash attention setting. See `padding_free`.
        Raises ValueError or TypeError, naming expected and actual, for inputs that do not fit.
        """
        if (input_ids is None) ^ (inputs_embeds is not None):
            raise ValueError("You must specify exactly one of input_ids or inputs_embeds")
        inputs = Inputs(input_ids, token_type_ids, position_ids, inputs_embeds)
        bounds: tuple[Tensor, int] | None = None
        if cu_seqlens is not None or max_seqlen is not None:
            bounds = check_packed(self, inputs, attention_mask, cu_seqlens, max_seqlen, kwargs)
        else:
            inputs, attention_mask = broadcast_inputs(inputs, attention_mask)
        if bounds is not None or given_arguments(kwargs):  # no cache for several sequences in a row, unless asked for
            use_cache = use_cache is not None and self._fills_cache(use_cache)
        verdict = model_verdict(
            self,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            use_cache=self._fills_cache(use_cache),
            encoder_inputs=encoder_hidden_states is not None or encoder_attention_mask is not None,
            kwargs=kwargs,
        )

        prologue: tuple[PackedBatch, Tensor] | Verdict
        if verdict.path is Path.TRANSFORMERS:
            prologue = verdict
        elif bounds is not None:
            prologue = self._prologue_packed(inputs, *bounds)
        else:
            prologue = self._prologue(inputs, attention_mask, loss_positions, output_positions, caller, kwargs)
        if isinstance(prologue, Verdict):
            cross = {"encoder_hidden_states": encoder_hidden_states, "encoder_attention_mask": encoder_attention_mask}
            rest = kwargs | cross | {CACHE: past_key_values, "use_cache": use_cache}
            if bounds is not None:
                return self._forward_transformers_packed(inputs, *bounds, output_positions, prologue.why, rest)
            return self._forward_transformers(inputs, attention_mask, output_positions, prologue.why, rest)

        batch, x = prologue  # (R, D)
        x, states = self._run_layers(batch, x, kwargs)
        return self._epilogue(batch, x, states, output_positions, kwargs)

    # Prologue: checks, layout, embedding. Returns the batch and its rows (R, D), or why only transformers can compute it.

    def _prologue(
        self,
        inputs: Inputs,
        attention_mask: Tensor | None,
        loss_positions: Tensor | None,
        output_positions: Tensor | None,
        caller: Caller | None,
        kwargs: dict[str, Any],
    ) -> tuple[PackedBatch, Tensor] | Verdict:
        """Of (B, S) inputs: a padded batch, or transformers' padding-free form."""
        seqlen = check_padded(self, inputs, attention_mask)
        found = boundaries_of_call(self, inputs.tokens, attention_mask, inputs.position_ids, kwargs)
        if not torch.jit.is_tracing():
            longest = found.max_seqlen if isinstance(found, Boundaries) else seqlen
            check_sizes(self, inputs, longest)
        if isinstance(found, Verdict):
            return found
        if found is not None:
            return self._prologue_padding_free(inputs, found, caller)
        exact = must_be_exact(self, caller, kwargs)
        return self._prologue_padded(inputs, attention_mask, loss_positions, output_positions, caller, exact)

    def _prologue_padded(
        self,
        inputs: Inputs,
        attention_mask: Tensor | None,
        loss_positions: Tensor | None,
        output_positions: Tensor | None,
        caller: Caller | None,
        exact: bool,
    ) -> tuple[PackedBatch, Tensor] | Verdict:
        tokens = inputs.tokens  # (B, S) or (B, S, D)
        batch_size, seqlen = tokens.shape[:2]
        keep = None if attention_mask is None else attention_mask.to(tokens.device, torch.bool)  # (B, S)
        if keep is not None and exact:
            loss_positions = keep.new_ones(()).expand(batch_size, seqlen)
        plan = plan_layout(
            keep,
            batch_size,
            seqlen,
            tokens.device,
            loss_positions=fitting_positions(loss_positions, tokens),
            output_positions=output_positions,
            pooled=self.pooler is not None,
            tokens_to_check=tokens_to_check(self, inputs.input_ids, keep, caller),
        )
        verdict = padding_verdict(self, plan)
        if verdict.path is Path.TRANSFORMERS:
            return verdict
        record_plan(self, plan)
        warn_of_readers(self, plan, caller)
        x = embed_padded(self.embeddings, inputs, plan.layout)  # (R, D)
        layout = plan.layout.scheduled(x)
        padding_mask = None
        if layout.seqused_k is not None and layout.keep is not None and not plan.loss_reads_padding:
            padding_mask = ~layout.keep[..., None]  # (B, S, 1): rows of padding that only the pooler or a trace needs
        batch = PaddedBatch(
            layout=layout,
            num_outputs=plan.num_outputs,
            attention_mask=attention_mask,
            position_ids=inputs.position_ids,
            padding_mask=padding_mask,
        )
        return batch, x

    def _prologue_packed(self, inputs: Inputs, cu_seqlens: Tensor, max_seqlen: int) -> tuple[PackedBatch, Tensor]:
        layout, rows = self._layout_of_rows(inputs, cu_seqlens, max_seqlen)
        calls.record_path(self, "packed by the caller")
        return PackedBatch(layout=layout), embed_rows(self.embeddings, rows)  # (T, D)

    def _prologue_padding_free(
        self, inputs: Inputs, boundaries: Boundaries, caller: Caller | None
    ) -> tuple[PackedBatch, Tensor]:
        batch_size, seqlen = inputs.tokens.shape[:2]
        if caller is Caller.POOLED_HEAD:
            check_one_sequence_per_row(boundaries, batch_size)
        flat = inputs.map(lambda x: x.flatten(0, 1))  # (B * S,)
        layout, rows = self._layout_of_rows(flat, boundaries.cu_seqlens, boundaries.max_seqlen)
        calls.record_path(self, f"packed by the caller ({boundaries.source})")
        batch = PaddingFreeBatch(layout=layout, batch_size=batch_size, seqlen=seqlen)
        return batch, embed_rows(self.embeddings, rows)  # (B * S, D)

    def _layout_of_rows(self, rows: Inputs, cu_seqlens: Tensor, max_seqlen: int) -> tuple[Layout, Inputs]:
        """The layout of rows one sequence after the other, and the rows with positions from the start of each sequence."""
        like = rows.inputs_embeds  # of the dtype and device of the states to come
        if like is None:
            like = torch.empty(rows.tokens.shape[0], 0, dtype=self.dtype, device=rows.tokens.device)
        layout, positions = packed_layout(cu_seqlens, max_seqlen, like)
        if rows.position_ids is None:
            rows = replace(rows, position_ids=self.embeddings.position_ids[0].index_select(0, positions))
        return layout, rows

    # Layers

    def _run_layers(self, batch: PackedBatch, x: Tensor, kwargs: dict[str, Any]) -> tuple[Tensor, list[Tensor]]:
        """Every layer on rows, (R, D) -> (R, D); and, where asked for, the states around them as the caller gets them."""
        if torch.jit.is_tracing() and is_batch_invariant():
            raise RuntimeError("batch-invariant mode: expected a call, got torch.jit.trace, whose graph serves other batches")
        layout, states = batch.layout, []
        wants_states = kwargs.get("output_hidden_states", getattr(self.config, "output_hidden_states", False))
        if wants_states:
            state, x = batch.expose_state(x)
            states.append(state)
        sequences = split_sequences(layout, x) if is_batch_invariant() and resolve_backend(x) == "torch" else None
        padded_layers = PaddedLayers(self, batch, kwargs)
        quantized: Quantized | None = None  # x in fp8, where the layer before computed it
        for layer in self.encoder.layer:
            plan = plan_layer(layer, self.config.is_decoder)
            if plan.layer.path is Path.TRANSFORMERS:
                refuse_where_invariant(plan.layer.why)
                x, quantized = padded_layers(layer, x), None
            elif sequences is not None:
                x, quantized = _run_one_by_one(layer, x, sequences, plan), None
            else:
                x, quantized = layer(x, packed=layout, plan=plan, quantized=quantized)
            if wants_states:
                state, x = batch.expose_state(x)
                states.append(state)
        return x, states

    # Epilogue

    def _epilogue(
        self,
        batch: PackedBatch,
        x: Tensor,
        states: list[Tensor],
        output_positions: Tensor | None,
        kwargs: dict[str, Any],
    ) -> tuple[Tensor, ...] | BaseModelOutputWithPoolingAndCrossAttentions:
        hidden = states[-1] if states else batch.to_output(x)  # (B, S, D), or (T, D) as the caller packed it
        pooled = None if self.pooler is None else batch.pool(self.pooler, x, hidden)  # (B, D)
        if output_positions is not None:
            hidden = _select(hidden.flatten(0, -2), output_positions.flatten(), batch.num_outputs)  # (number, D)
        outputs = BaseModelOutputWithPoolingAndCrossAttentions(last_hidden_state=hidden, pooler_output=pooled)
        if states:
            outputs["hidden_states"] = tuple(states)
        return outputs.to_tuple() if self._returns_tuple(kwargs) else outputs

    # Calls that only transformers can compute

    def _forward_transformers(
        self, inputs: Inputs, attention_mask: Any, output_positions: Tensor | None, why: str, rest: dict[str, Any]
    ) -> Any:
        refuse_where_invariant(why)
        calls.record_path(self, f"transformers: {why}")
        outputs = hf.BertModel.forward(self, attention_mask=attention_mask, **inputs.as_kwargs(), **rest)
        if output_positions is not None:
            outputs["last_hidden_state"] = outputs["last_hidden_state"][output_positions]
        return outputs

    def _forward_transformers_packed(
        self,
        inputs: Inputs,
        cu_seqlens: Tensor,
        max_seqlen: int,
        output_positions: Tensor | None,
        why: str,
        rest: dict[str, Any],
    ) -> Any:
        """A packed batch, padded for transformers' forward: (T, ...) -> (B, max_seqlen, ...) -> (T, ...)."""
        layout, rows = self._layout_of_rows(inputs, cu_seqlens, max_seqlen)
        padded = rows.map(layout.unpack)
        outputs = self._forward_transformers(padded, layout.real_tokens(), None, why, rest | {"return_dict": True})
        outputs["last_hidden_state"] = layout.pack(outputs["last_hidden_state"])
        if "hidden_states" in outputs:
            states = outputs["hidden_states"]
            outputs["hidden_states"] = tuple(None if state is None else layout.pack(state) for state in states)
        if output_positions is not None:
            outputs["last_hidden_state"] = outputs["last_hidden_state"][output_positions]
        return outputs.to_tuple() if self._returns_tuple(rest) else outputs

    # What the configuration says about a call

    def _fills_cache(self, use_cache: bool | None) -> bool:
        """Whether transformers would fill a cache in this call."""
        if not self.config.is_decoder:
            return False
        use_cache = self.config.use_cache if use_cache is None else use_cache
        return bool(use_cache) and not (self.gradient_checkpointing and self.training)

    def _returns_tuple(self, kwargs: dict[str, Any]) -> bool:
        return kwargs.get("return_dict", getattr(self.config, "return_dict", True)) is False


def berts(module: nn.Module) -> Iterator[BertModel]:
    """Every BertModel inside `module`."""
    return (part for part in module.modules() if isinstance(part, BertModel))


def _run_one_by_one(layer: nn.Module, x: Tensor, sequences: list[tuple[int, int, Layout]], plan: LayerPlan) -> Tensor:
    """A layer on each sequence as a batch of one, (R, D) -> (R, D)."""
    with one_sequence():
        parts = [layer(x[first:last], packed=layout, plan=plan)[0] for first, last, layout in sequences]
    return torch.cat(parts) if parts else x


def _select(x: Tensor, positions: Tensor, count: int | None) -> Tensor:
    """The rows of x, (N, D), at the True positions, (N,), in order. count: how many those are, or None where it is unknown."""
    if count is None:
        return x[positions]
    return x.index_select(0, torch.nonzero_static(positions, size=count).squeeze(1))
