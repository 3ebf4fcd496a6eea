"""The BERT encoder on packed tokens: transformers' own classes, same state, another forward.

Follows Devlin et al. 2019 and Hugging Face's `BertModel`: post-norm, erf GELU unless the config says otherwise. A layer
becomes ours by a change of its `__class__`, which adds no state; whatever has no packed form takes transformers' forward
(`routing` decides and says why). Padding is removed once before the embedding and put back once after the last layer.

B batch, S sequence, R rows (see `padding`), T tokens of a batch packed by its caller, D hidden size.
"""

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPoolingAndCrossAttentions
from transformers.models.bert import modeling_bert as hf
from transformers.models.bert.configuration_bert import BertConfig

from fastbert.kernels import functional, resolve_backend
from fastbert.kernels.backend import autocast_dtype, records_portably
from fastbert.kernels.batch_invariance import is_batch_invariant
from fastbert.kernels.dropout import new_seed
from fastbert.model import fallback as routing
from fastbert.model import padding_free
from fastbert.model.batch_invariance import one_sequence, refuse_where_invariant
from fastbert.model.cache_name import CACHE, with_cache_name
from fastbert.model.layout import (
    LOSS_READS_PADDING,
    TRACING,
    Layout,
    Plan,
    first_rows,
    packed_layout,
    plan_layout,
    sequences_alone,
    values_hidden,
)
from fastbert.model.padding_policy import (
    DEFAULT,
    Caller,
    PaddingPolicy,
    policy_from_option,
    policy_of,
    set_policy,
    surrounding_policy,
)
from fastbert.model.registry import adopt, replaces

# Dropout streams of one layer: which of its operations a random number belongs to.
ATTENTION_STREAM, ATTENTION_OUTPUT_STREAM, OUTPUT_STREAM = range(3)
_READERS = "readers of padding"  # what a model has been warned of


@replaces(hf.BertLayer)
class BertLayer(hf.BertLayer):
    """One layer: norm(x + sublayer(x)), twice. Without `packed` it is transformers' layer."""

    def forward(  # type: ignore[override]
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        *args: Any,
        packed: Layout | None = None,
        plan: routing.LayerPlan | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """hidden_states: (R, D) with packed and plan, what `BertModel` found out about this call; else as in transformers."""
        if packed is None or plan is None:
            return super().forward(hidden_states, attention_mask, *args, **kwargs)
        x, layout, parts = hidden_states, packed.to(hidden_states.device), routing.parts_of(self)
        inner = parts.inner
        on_kernels = resolve_backend(x) == "triton"
        attention_p = parts.attention_dropout.p if inner.training and type(parts.attention_dropout) is nn.Dropout else 0.0
        hidden_p, output_p = _dropout_p(parts.hidden_dropout), _dropout_p(parts.output_dropout)
        # Drawn here, so that a recomputation under gradient checkpointing draws the same.
        seed = new_seed(x.device) if on_kernels and max(attention_p, hidden_p, output_p) > 0.0 else None

        qkv = _project(parts, x, plan.qkv)
        context = functional.attention(
            qkv.view(x.shape[0], 3, inner.num_attention_heads, inner.attention_head_size),  # type: ignore[call-overload]
            layout.cu_seqlens,
            layout.max_seqlen,
            softmax_scale=inner.scaling,
            causal=inner.is_causal,
            dropout_p=attention_p,
            seed=seed,
            stream=ATTENTION_STREAM,
            schedule=layout.schedule,
        )
        y, bias = _linear(parts.attention_dense, context.flatten(1), plan.attention_dense, on_kernels)
        x = _add_norm(parts.attention_norm, y, bias, x, hidden_p, seed, ATTENTION_OUTPUT_STREAM, plan.attention_norm)
        y, bias = _feed_forward(parts, x, plan, on_kernels)
        return _add_norm(parts.output_norm, y, bias, x, output_p, seed, OUTPUT_STREAM, plan.output_norm)

    forward.takes_packed = True  # type: ignore[attr-defined]  # a subclass with a forward of its own lacks it


@replaces(hf.BertPredictionHeadTransform)
class BertPredictionHeadTransform(hf.BertPredictionHeadTransform):
    """The dense layer, activation and norm before the vocabulary projection."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        activation = routing.plan_transform(self)[1]
        if activation is not None:
            weight, bias = routing.weights_of(self.dense)
            norm_weight, norm_bias = routing.weights_of(self.LayerNorm)
            if _readable(hidden_states, weight, bias) and routing.tensors_obstacle(norm_weight, norm_bias) is None:
                y = functional.linear(hidden_states, weight, bias, activation=activation)
                return functional.layer_norm(y, norm_weight, norm_bias, eps=self.LayerNorm.eps)
        return super().forward(hidden_states)


class BertPreTrainedModel(hf.BertPreTrainedModel):
    """transformers' BertPreTrainedModel: the base of every BERT here, and of a user's own heads.

    As in transformers, a head builds its parts and calls `self.post_init()` last. Every BERT among them then runs on packed
    tokens as under `fastbert.accelerate`, whether its class came from fastbert or from transformers: it gives the head zeros
    at padding positions, or transformers' values there where a module of the head reads token states whatever the mask says.
    """

    def post_init(self) -> None:
        """As in transformers, and what `fastbert.accelerate` does: BERT classes of transformers inside become ours."""
        super().post_init()
        adopt(self)
        choose_padding(self, None, type(self).__name__)


@replaces(hf.BertModel)
class BertModel(hf.BertModel, BertPreTrainedModel):
    """transformers' BertModel on packed tokens: same arguments, outputs and state, plus a packed way to call it.

    Padding positions of last_hidden_state and hidden_states hold zeros, except where a loss reads them.

    padding: "exact" lets them hold transformers' values instead, at the price of computing them; "zeros" is the default, said
        aloud: it silences the warning for a caller who may read them. Not saved with the model. Raises ValueError for
        another value.
    """

    def __init__(self, config: BertConfig, add_pooling_layer: bool = True, *, padding: str | None = None) -> None:
        policy = policy_from_option(padding, type(self).__name__)
        super().__init__(config, add_pooling_layer=add_pooling_layer)
        set_policy(self, policy)

    @with_cache_name
    def forward(  # type: ignore[override]
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
        inputs = {"input_ids": input_ids, "token_type_ids": token_type_ids, "position_ids": position_ids}
        inputs["inputs_embeds"] = inputs_embeds
        cross = {"encoder_hidden_states": encoder_hidden_states, "encoder_attention_mask": encoder_attention_mask}
        packed = cu_seqlens is not None or max_seqlen is not None
        if packed:
            self._check_packed(inputs, attention_mask, cu_seqlens, max_seqlen, kwargs)
        else:
            attention_mask = _broadcast_inputs(inputs, attention_mask)
        several = packed or bool(padding_free.given_arguments(kwargs))  # sequences in a row, for which no cache is wanted
        caching = self._caches(use_cache) and not (several and use_cache is None)
        obstacle = routing.model_obstacle(
            self,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            use_cache=caching,
            encoder_inputs=any(value is not None for value in cross.values()),
            kwargs=kwargs,
        )
        rest = kwargs | cross | {CACHE: past_key_values, "use_cache": caching if several else use_cache}
        if packed:
            assert cu_seqlens is not None
            assert max_seqlen is not None
            return self._forward_packed(inputs, cu_seqlens, max_seqlen, output_positions, obstacle, rest)
        if obstacle is not None:
            return self._forward_theirs(inputs, attention_mask, output_positions, obstacle, rest)
        seqlen = self._check_padded(inputs, attention_mask)
        found = self._padding_free(inputs, attention_mask, kwargs)
        longest = found.max_seqlen if isinstance(found, padding_free.Boundaries) else seqlen
        if not torch.jit.is_tracing():
            self._check_sizes(inputs["inputs_embeds"], longest if position_ids is None else 0)
        if isinstance(found, str):
            return self._forward_theirs(inputs, attention_mask, output_positions, found, rest)
        rest = {name: value for name, value in rest.items() if name not in padding_free.VARLEN_ARGUMENTS}
        if found is not None:
            return self._forward_padding_free(inputs, found, output_positions, caller, rest)
        return self._forward_padded(inputs, attention_mask, loss_positions, output_positions, caller, rest)

    def _forward_padded(
        self,
        inputs: dict[str, Tensor | None],
        attention_mask: Tensor | None,
        loss_positions: Tensor | None,
        output_positions: Tensor | None,
        caller: Caller | None,
        rest: dict[str, Any],
    ) -> Any:
        tokens = inputs["input_ids"] if inputs["input_ids"] is not None else inputs["inputs_embeds"]
        batch_size, seqlen = tokens.shape[:2]  # type: ignore[union-attr]
        keep = None if attention_mask is None else attention_mask.to(tokens.device, torch.bool)  # type: ignore[union-attr]
        policy = policy_of(self)
        if policy.exact and keep is not None:
            loss_positions = keep.new_ones(()).expand(batch_size, seqlen)
        found = plan_layout(
            keep,
            batch_size,
            seqlen,
            tokens.device,  # type: ignore[union-attr]
            loss_positions=_matching(loss_positions, tokens),
            output_positions=output_positions,
            pooled=self.pooler is not None,
            not_padding=self._not_padding(inputs["input_ids"], keep, caller),
        )
        obstacle = self._padding_obstacle(found)
        if obstacle is not None:
            return self._forward_theirs(inputs, attention_mask, output_positions, obstacle, rest)
        self._note(found)
        self._warn_of_readers(found, caller)
        layout = found.layout
        x = self._embed_padded(inputs, layout, batch_size, seqlen)
        layout = layout.scheduled(x)

        blank = None
        if layout.seqused_k is not None and not found.loss_reads:  # padding rows that only the pooler or tracing wanted
            blank = ~layout.keep[..., None]  # type: ignore[index]

        def border(rows: Tensor) -> Tensor:
            padded = layout.to(rows.device).unpack(rows)
            return padded if blank is None else padded.masked_fill(blank.to(rows.device), 0.0)

        def show(rows: Tensor) -> tuple[Tensor, Tensor]:
            """A state as it is returned, and the rows to go on with: out of it, so that a loss has a gradient there."""
            padded = border(rows)
            if not padded.requires_grad and not torch.jit.is_tracing():  # a trace may be trained, whatever records it
                return padded, rows
            here = layout.to(rows.device)
            shown = here.pack(padded)
            return padded, shown if blank is None else torch.where(here.pack(blank.to(rows.device)), rows, shown)

        x, states = self._encode(x, layout, attention_mask, inputs["position_ids"], rest, show)
        hidden = states[-1] if states else border(x)
        pooled = None
        if self.pooler is not None:
            pooled = self.pooler(hidden if blank is None else layout.to(x.device).unpack(x))
        if output_positions is not None:
            hidden = _select(hidden.flatten(0, 1), output_positions.flatten(), found.num_outputs)
        return self._output(hidden, pooled, states, rest)

    def _forward_packed(
        self,
        inputs: dict[str, Tensor | None],
        cu_seqlens: Tensor,
        max_seqlen: int,
        output_positions: Tensor | None,
        obstacle: str | None,
        rest: dict[str, Any],
    ) -> Any:
        tokens = inputs["input_ids"] if inputs["input_ids"] is not None else inputs["inputs_embeds"]
        ids, embeds = inputs["input_ids"], inputs["inputs_embeds"]
        total = tokens.shape[0]  # type: ignore[union-attr]
        like = embeds if embeds is not None else torch.empty(total, 0, dtype=self.dtype, device=ids.device)  # type: ignore[union-attr]
        layout, place = packed_layout(cu_seqlens, max_seqlen, like)
        positions = inputs["position_ids"]
        if positions is None:
            positions = self.embeddings.position_ids[0].index_select(0, place)
        if obstacle is not None:
            padded = {name: None if value is None else layout.unpack(value) for name, value in inputs.items()}
            padded["position_ids"] = layout.unpack(positions)
            return_dict = rest.pop("return_dict", getattr(self.config, "return_dict", True))
            mask = layout.real_tokens()
            outputs = self._forward_theirs(padded, mask, None, obstacle, rest | {"return_dict": True})
            outputs["last_hidden_state"] = layout.pack(outputs["last_hidden_state"])
            if "hidden_states" in outputs:
                states = outputs["hidden_states"]
                outputs["hidden_states"] = tuple(None if state is None else layout.pack(state) for state in states)
            if output_positions is not None:
                outputs["last_hidden_state"] = outputs["last_hidden_state"][output_positions]
            return outputs.to_tuple() if return_dict is False else outputs
        routing.record(self, "packed by the caller")
        x = self._embed(ids, inputs["token_type_ids"], positions, embeds)
        x, states = self._encode(x, layout, None, None, rest, lambda rows: (rows, rows))
        pooled = None
        if self.pooler is not None:
            here = layout.to(x.device)
            plain = routing.pooler_obstacle(self.pooler) is None
            pooled = self.pooler(first_rows(x, here)[:, None] if plain else here.unpack(x))
        if output_positions is not None:
            x = _select(x, output_positions, None)
        return self._output(x, pooled, states, rest)

    def _forward_padding_free(
        self,
        inputs: dict[str, Tensor | None],
        found: padding_free.Boundaries,
        output_positions: Tensor | None,
        caller: Caller | None,
        rest: dict[str, Any],
    ) -> Any:
        """Rows of several sequences each, (B, S), kept apart; outputs have the shapes that transformers gives them."""
        tokens = inputs["input_ids"] if inputs["input_ids"] is not None else inputs["inputs_embeds"]
        batch_size, seqlen = tokens.shape[:2]  # type: ignore[union-attr]
        number = found.cu_seqlens.shape[0] - 1
        if caller is Caller.POOLED_HEAD and number > batch_size:
            raise ValueError(
                f"expected one sequence a row, got {number} in {batch_size} (by {found.source}): this head reads the first "
                "token of a row only. Pass cu_seqlens and max_seqlen with ids of shape (tokens,) for an answer per sequence"
            )
        flat = {name: None if value is None else value.flatten(0, 1) for name, value in inputs.items()}
        ids, embeds = flat["input_ids"], flat["inputs_embeds"]
        like = embeds if embeds is not None else torch.empty(batch_size * seqlen, 0, dtype=self.dtype, device=ids.device)  # type: ignore[union-attr]
        layout, place = packed_layout(found.cu_seqlens, found.max_seqlen, like)
        positions = flat["position_ids"]
        if positions is None:
            positions = self.embeddings.position_ids[0].index_select(0, place)
        routing.record(self, f"packed by the caller ({found.source})")

        def as_rows(x: Tensor) -> Tensor:
            return x.view(batch_size, seqlen, x.shape[-1])

        def show(x: Tensor) -> tuple[Tensor, Tensor]:
            state = as_rows(x)
            return state, state.flatten(0, 1)

        x = self._embed(ids, flat["token_type_ids"], positions, embeds)
        x, states = self._encode(x, layout, None, None, rest, show)
        hidden = states[-1] if states else as_rows(x)
        pooled = None if self.pooler is None else self.pooler(hidden)
        if output_positions is not None:
            hidden = _select(hidden.flatten(0, 1), output_positions.flatten(), None)
        return self._output(hidden, pooled, states, rest)

    def _padding_free(
        self, inputs: dict[str, Tensor | None], attention_mask: Tensor | None, kwargs: dict[str, Any]
    ) -> padding_free.Boundaries | str | None:
        """`padding_free.find_boundaries` where transformers would keep sequences apart; else None, with a warning."""
        given, positions = padding_free.given_arguments(kwargs), inputs["position_ids"]
        if not given and positions is None:
            return None
        tokens: Any = inputs["input_ids"] if inputs["input_ids"] is not None else inputs["inputs_embeds"]
        name = self.config._attn_implementation
        if routing.is_flash_attention(name):
            return padding_free.find_boundaries(tokens, attention_mask, positions, kwargs)
        reason = ", ".join(given)
        if not given and positions is not None and positions.shape[0] == tokens.shape[0] == 1 and attention_mask is None:
            readable = not (values_hidden(positions) or routing.has_warned(self, "position_ids"))
            if readable and padding_free.positions_start_again(positions):
                reason = "position_ids"
        if reason:
            routing.warn_once(
                self,
                reason,
                f"{reason} of a padding-free batch: with {name} attention, transformers' BERT lets all tokens of a row attend "
                "to one another, and fastbert gives the same answer. To keep sequences apart use a flash attention setting, or "
                "pass fastbert's cu_seqlens and max_seqlen with ids of shape (tokens,).",
            )
        return None

    def _not_padding(self, ids: Tensor | None, keep: Tensor | None, caller: Caller | None) -> Tensor | None:
        """Where something else than the padding token stands, if it matters whether that is at a padding position."""
        pad = self.config.pad_token_id
        if caller is not None or keep is None or ids is None or pad is None or torch.compiler.is_compiling():
            return None
        if policy_of(self) is not DEFAULT or routing.has_warned(self, _READERS):
            return None
        return ids != pad

    def _warn_of_readers(self, found: Plan, caller: Caller | None) -> None:
        """Says once that padding holds zeros, where somebody may read them who was not asked."""
        if found.layout.keep is None or found.loss_reads or policy_of(self).chosen:
            return
        if found.traced and not torch.compiler.is_dynamo_compiling():
            return
        if found.padding_filled:
            reason = "other tokens than padding stand where attention_mask is 0, as in retrieval models that read their states"
        elif not torch.is_grad_enabled():
            return
        elif caller is None:
            reason = "the encoder is called with gradients, and what is trained on its states may read them"
        elif caller is Caller.TOKEN_HEAD_WITHOUT_LOSS:
            reason = "the head is called in training without labels, and a loss of your own may read its logits there"
        else:
            return
        routing.warn_once(
            self,
            _READERS,
            f"fastbert leaves zeros at padding positions (attention_mask 0), where transformers computes states: {reason}. "
            "If padding is read, pass padding='exact' to the class, to from_pretrained or to fastbert.accelerate; "
            "padding='zeros' silences this warning.",
        )

    def _forward_theirs(
        self,
        inputs: dict[str, Tensor | None],
        attention_mask: Tensor | None,
        output_positions: Tensor | None,
        obstacle: str,
        rest: dict[str, Any],
    ) -> Any:
        refuse_where_invariant(obstacle)
        routing.record(self, f"transformers: {obstacle}")
        outputs = hf.BertModel.forward(self, attention_mask=attention_mask, **inputs, **rest)
        if output_positions is not None:
            outputs["last_hidden_state"] = outputs["last_hidden_state"][output_positions]
        return outputs

    def _encode(
        self,
        x: Tensor,
        layout: Layout,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        rest: dict[str, Any],
        show: Callable[[Tensor], tuple[Tensor, Tensor]],
    ) -> tuple[Tensor, list[Tensor]]:
        """The layers on rows; and the states asked for. show: (state to return, rows to go on with)."""
        wanted = rest.get("output_hidden_states", getattr(self.config, "output_hidden_states", False))
        states: list[Tensor] = []
        if wanted:
            state, x = show(x)
            states.append(state)
        mask: Callable[[Tensor], Any] | None = None
        if torch.jit.is_tracing() and is_batch_invariant():
            raise RuntimeError("batch-invariant mode: expected a call, got torch.jit.trace, whose graph serves other batches")
        alone = sequences_alone(layout, x) if is_batch_invariant() and resolve_backend(x) == "torch" else None
        for layer in self.encoder.layer:
            plan = routing.plan_layer(layer, self.config.is_decoder)
            if plan.obstacle is None and alone is None:
                x = layer(x, packed=layout, plan=plan)
            elif plan.obstacle is None:
                with one_sequence():
                    parts = [layer(x[first:last], packed=one, plan=plan) for first, last, one in alone or ()]
                x = torch.cat(parts) if parts else x
            else:
                refuse_where_invariant(plan.obstacle)
                mask = mask or _MaskOnce(self, layout, attention_mask)
                x = self._padded_layer(layer, x, layout, mask, position_ids, rest)
            if wanted:
                state, x = show(x)
                states.append(state)
        return x, states

    def _padded_layer(
        self, layer: nn.Module, x: Tensor, layout: Layout, mask: Callable, position_ids: Tensor | None, rest: dict[str, Any]
    ) -> Tensor:
        """One layer as transformers calls it, for a layer that has no packed form."""
        here = layout.to(x.device)
        padded = here.unpack(x)
        dropped = (CACHE, "use_cache", "encoder_hidden_states", "encoder_attention_mask", "return_dict")
        kwargs = {name: value for name, value in rest.items() if name not in dropped}
        out = layer(
            padded,
            mask(padded),
            None,
            encoder_attention_mask=None,
            position_ids=position_ids,
            **kwargs,
        )
        return layout.to(out.device).pack(out)

    def _embed_padded(self, inputs: dict[str, Tensor | None], layout: Layout, batch_size: int, seqlen: int) -> Tensor:
        """Rows of the embedding of a padded batch: the ids are packed, then looked up."""
        embeds = inputs["inputs_embeds"]
        if routing.embeddings_reason(self.embeddings, with_ids=embeds is None) is not None:
            return layout.pack(self.embeddings(**inputs))
        positions = inputs["position_ids"]
        if positions is None:
            positions = self.embeddings.position_ids[:, :seqlen]
        ids, types = inputs["input_ids"], inputs["token_type_ids"]
        return self._embed(
            None if ids is None else layout.pack(ids),
            None if types is None else layout.pack(types.expand(batch_size, seqlen)),
            layout.pack(positions.expand(batch_size, seqlen)),
            None if embeds is None else layout.pack(embeds),
        )

    def _embed(self, ids: Tensor | None, types: Tensor | None, positions: Tensor, embeds: Tensor | None) -> Tensor:
        """The embedding of rows, (R, D)."""
        embeddings = self.embeddings
        if routing.embeddings_reason(embeddings, with_ids=embeds is None) is not None:
            row = {"input_ids": ids, "token_type_ids": types, "position_ids": positions, "inputs_embeds": embeds}
            return embeddings(**{name: None if value is None else value[None] for name, value in row.items()})[0]
        token_types, places = embeddings.token_type_embeddings, embeddings.position_embeddings
        if types is None:
            functional.check_ids("position_ids", positions, "position_embeddings", places.num_embeddings)
            types = embeddings.token_type_ids[0].index_select(0, positions)
        norm = embeddings.LayerNorm
        dropout_p = _dropout_p(embeddings.dropout)
        if embeds is None:
            words = embeddings.word_embeddings
            x = functional.embedding(
                ids, types, positions, words.weight, token_types.weight, places.weight, norm.weight, norm.bias,
                padding_idx=words.padding_idx, eps=norm.eps, dropout_p=dropout_p,
            )  # fmt: skip
            frozen = torch.is_grad_enabled() and not x.requires_grad
            return x.requires_grad_() if frozen and routing.must_require_grad(words) else x
        functional.check_ids("token_type_ids", types, "token_type_embeddings", token_types.num_embeddings)
        functional.check_ids("position_ids", positions, "position_embeddings", places.num_embeddings)
        x = functional.layer_norm(embeds + token_types(types), norm.weight, norm.bias, places(positions), eps=norm.eps)
        return F.dropout(x, dropout_p) if dropout_p > 0.0 else x

    def _output(self, hidden: Tensor, pooled: Tensor | None, states: list[Tensor], rest: dict[str, Any]) -> Any:
        outputs = BaseModelOutputWithPoolingAndCrossAttentions(last_hidden_state=hidden, pooler_output=pooled)
        if states:
            outputs["hidden_states"] = tuple(states)
        if rest.get("return_dict", getattr(self.config, "return_dict", True)) is False:
            return outputs.to_tuple()
        return outputs

    def _caches(self, use_cache: bool | None) -> bool:
        """Whether transformers would fill a cache in this call."""
        if not self.config.is_decoder:
            return False
        use_cache = self.config.use_cache if use_cache is None else use_cache
        return bool(use_cache) and not (self.gradient_checkpointing and self.training)

    def _padding_obstacle(self, found: Plan) -> str | None:
        """What a padding position attends to differs between attention functions; rows here do as SDPA does, without order."""
        if not found.padding_read:
            return None
        if self.config.is_decoder:
            return "padding positions of a decoder are read"
        if found.traced and not found.loss_reads and not records_portably():
            return None
        name = self.config._attn_implementation
        if name in ("sdpa", None) or (name == "eager" and not found.has_empty):
            return None
        return f"padding positions are read as {name} attention computes them"

    def _note(self, found: Plan) -> None:
        layout = found.layout
        if found.traced:
            routing.record(self, f"every position is a row; {TRACING}")
        elif found.loss_reads and policy_of(self).exact:
            routing.record(self, f"every position is a row; padding is {policy_of(self)}")
        elif found.loss_reads:
            routing.record(self, f"every position is a row; {LOSS_READS_PADDING}")
            message = f"fastbert computes padding positions too: {LOSS_READS_PADDING}. See fastbert.explain."
            routing.warn_once(self, LOSS_READS_PADDING, message)
        elif found.padding_read:
            routing.record(self, "packed, with the first positions that are padding but read by the pooler")
        else:
            routing.record(self, "packed" if layout.indices is not None else "packed; no padding in the batch")

    def _check_padded(self, inputs: dict[str, Tensor | None], attention_mask: Tensor | None) -> int:
        """Checks the shapes; returns S, or 0 in a trace."""
        ids, embeds = inputs["input_ids"], inputs["inputs_embeds"]
        if ids is not None and ids.dim() != 2:
            raise ValueError(
                f"expected input_ids of shape (batch, seq), or (tokens,) with cu_seqlens and max_seqlen, got {tuple(ids.shape)}"
            )
        if embeds is not None and embeds.dim() != 3:
            raise ValueError(
                f"expected inputs_embeds of shape (batch, seq, {self.config.hidden_size}), or (tokens, "
                f"{self.config.hidden_size}) with cu_seqlens and max_seqlen, got {tuple(embeds.shape)}"
            )
        if torch.jit.is_tracing():
            return 0  # sizes are tensors there: a comparison would be recorded as it came out
        tokens = ids if ids is not None else embeds[..., 0]  # type: ignore[index]
        batch_size, seqlen = tokens.shape
        if attention_mask is not None and not _has_shape(attention_mask, batch_size, seqlen):
            raise ValueError(
                f"expected attention_mask of shape ({batch_size}, {seqlen}) like the input, got {tuple(attention_mask.shape)}"
            )
        for name in ("token_type_ids", "position_ids"):
            value = inputs[name]
            if value is not None and not _has_shape(value, batch_size, seqlen):
                raise ValueError(f"expected {name} of shape ({batch_size}, {seqlen}), got {tuple(value.shape)}")
        return seqlen

    def _check_packed(
        self,
        inputs: dict[str, Tensor | None],
        attention_mask: Tensor | None,
        cu_seqlens: Tensor | None,
        max_seqlen: int | None,
        kwargs: dict[str, Any],
    ) -> None:
        given = padding_free.given_arguments(kwargs)
        if given:
            raise ValueError(f"expected either cu_seqlens and max_seqlen or transformers' own {given[0]}, got both")
        if cu_seqlens is None or max_seqlen is None:
            missing = "cu_seqlens" if cu_seqlens is None else "max_seqlen"
            raise ValueError(f"expected cu_seqlens and max_seqlen together for a packed input, got no {missing}")
        if attention_mask is not None:
            raise ValueError("expected no attention_mask beside cu_seqlens: a packed input holds real tokens only")
        if not isinstance(cu_seqlens, Tensor):
            raise TypeError(f"expected cu_seqlens as an int32 tensor, got {type(cu_seqlens).__name__}")
        if isinstance(max_seqlen, Tensor) or not isinstance(max_seqlen, (int, torch.SymInt)) or isinstance(max_seqlen, bool):
            raise TypeError(f"expected max_seqlen as an int, got {type(max_seqlen).__name__}")
        ids, embeds = inputs["input_ids"], inputs["inputs_embeds"]
        if ids is not None and ids.dim() != 1:
            raise ValueError(f"expected input_ids of shape (tokens,) with cu_seqlens, got {tuple(ids.shape)}")
        if embeds is not None and embeds.dim() != 2:
            size = self.config.hidden_size
            raise ValueError(f"expected inputs_embeds of shape (tokens, {size}) with cu_seqlens, got {tuple(embeds.shape)}")
        if torch.jit.is_tracing():
            return
        total = (ids if ids is not None else embeds).shape[0]  # type: ignore[union-attr]
        for name in ("token_type_ids", "position_ids"):
            value = inputs[name]
            if value is not None and tuple(value.shape) != (total,):
                raise ValueError(f"expected {name} of shape ({total},) with cu_seqlens, got {tuple(value.shape)}")
        self._check_sizes(embeds, max_seqlen if inputs["position_ids"] is None else 0)

    def _check_sizes(self, embeds: Tensor | None, seqlen: int) -> None:
        if embeds is not None and embeds.shape[-1] != self.config.hidden_size:
            raise ValueError(f"expected inputs_embeds of hidden size {self.config.hidden_size}, got {embeds.shape[-1]}")
        limit = self.embeddings.position_ids.shape[-1] if hasattr(self.embeddings, "position_ids") else seqlen
        if seqlen > limit:
            raise ValueError(f"expected sequences of at most {limit} tokens (max_position_embeddings), got {seqlen}")


class _MaskOnce:
    """transformers' attention mask of a batch, made at the first layer that asks for it."""

    def __init__(self, model: BertModel, layout: Layout, attention_mask: Tensor | None) -> None:
        self.model, self.layout, self.mask = model, layout, attention_mask
        self.made: tuple[Tensor | None] | None = None

    def __call__(self, padded: Tensor) -> Tensor | None:
        if self.made is None:
            mask = self.layout.real_tokens() if self.mask is None else self.mask
            made, _ = self.model._create_attention_masks(
                attention_mask=mask,
                encoder_attention_mask=None,
                embedding_output=padded,
                encoder_hidden_states=None,
                **{CACHE: None},
            )
            self.made = (made,)
        mask = self.made[0]
        return mask.to(padded.device) if isinstance(mask, Tensor) else mask


def _dropout_p(dropout: nn.Module) -> float:
    return dropout.p if dropout.training and isinstance(dropout, nn.Dropout) else 0.0


def _readable(x: Tensor, *weights: Tensor | None) -> bool:
    """Whether an operation on x may read these weights: autocast brings dtypes together, else they must be that of x."""
    return routing.tensors_obstacle(*weights, dtype=x.dtype if autocast_dtype(x) is None else None) is None


def _project(parts: routing.LayerParts, x: Tensor, reason: str | None) -> Tensor:
    """Query, key and value side by side, (R, 3 * D)."""
    projections = (parts.query, parts.key, parts.value)
    if reason is None:
        weights, biases = zip(*map(routing.weights_of, projections))
        if _readable(x, *weights, *biases):
            return functional.qkv_linear(x, weights, biases)
    return torch.cat([projection(x) for projection in projections], -1)


def _linear(dense: nn.Module, x: Tensor, reason: str | None, leave_bias: bool) -> tuple[Tensor, Tensor | None]:
    """(product, the bias left for the layer norm that follows, or None where it is in the product already)."""
    if reason is not None:
        return dense(x), None
    weight, bias = routing.weights_of(dense)
    if not _readable(x, weight, bias):
        return dense(x), None
    return functional.linear(x, weight, None if leave_bias else bias), bias if leave_bias else None


def _feed_forward(
    parts: routing.LayerParts, x: Tensor, plan: routing.LayerPlan, leave_bias: bool
) -> tuple[Tensor, Tensor | None]:
    """activation(x @ w_in.T + b_in) @ w_out.T, and the bias left for the layer norm as in `_linear`."""
    first, second = parts.intermediate_dense, parts.output_dense
    if plan.intermediate is None:
        weight, bias = routing.weights_of(first)
        if _readable(x, weight, bias):
            if leave_bias and bias is not None and plan.output_dense is None:
                weight_out, bias_out = routing.weights_of(second)
                if _readable(x, weight_out, bias_out):
                    return functional.feed_forward(x, weight, bias, weight_out, activation=plan.activation), bias_out
            return _linear(
                second, functional.linear(x, weight, bias, activation=plan.activation), plan.output_dense, leave_bias
            )
    return _linear(second, parts.activation(first(x)), plan.output_dense, leave_bias)


def _add_norm(
    norm: nn.Module,
    y: Tensor,
    bias: Tensor | None,
    residual: Tensor,
    dropout_p: float,
    seed: Tensor | None,
    stream: int,
    reason: str | None,
) -> Tensor:
    """norm(dropout(y + bias) + residual)."""
    if reason is None:
        weight, shift = routing.weights_of(norm)
        if routing.tensors_obstacle(weight, shift) is None:
            return functional.layer_norm(
                y, weight, shift, residual,
                x_bias=bias, eps=norm.eps, dropout_p=dropout_p, seed=seed, stream=stream,
            )  # fmt: skip
    y = y if bias is None else y + bias
    return norm(F.dropout(y, dropout_p, training=dropout_p > 0.0) + residual)


def _broadcast_inputs(inputs: dict[str, Tensor | None], attention_mask: Any) -> Any:
    """Gives a mask of shape (S,) or (1, S), and types and positions that transformers' sum of embeddings broadcasts, the
    shape of the batch; shapes that do not fit stay and are refused later. Returns the mask."""
    tokens = inputs["input_ids"] if inputs["input_ids"] is not None else inputs["inputs_embeds"]
    if not isinstance(tokens, Tensor) or tokens.dim() < 2:
        return attention_mask
    if torch.jit.is_tracing():  # sizes are tensors there, which are not compared
        if isinstance(attention_mask, Tensor) and attention_mask.dim() in (1, 2):
            return attention_mask.expand(tokens.shape[0], -1)
        return attention_mask
    batch_size, seqlen = tokens.shape[:2]
    for name in ("token_type_ids", "position_ids"):
        value = inputs[name]
        if value is not None and value.dim() <= 2 and not _has_shape(value, batch_size, seqlen):
            if all(size == 1 or size == wanted for size, wanted in zip(value.shape[::-1], (seqlen, batch_size))):
                inputs[name] = value.expand(batch_size, seqlen)
    if isinstance(attention_mask, Tensor) and (_has_shape(attention_mask, seqlen) or _has_shape(attention_mask, 1, seqlen)):
        return attention_mask.expand(batch_size, seqlen)
    return attention_mask


def _has_shape(x: Tensor, *sizes: int) -> bool:
    """Compared size by size: torch.compile does not compare whole shapes of sizes that it keeps open."""
    return x.dim() == len(sizes) and all(size == wanted for size, wanted in zip(x.shape, sizes))


def _matching(positions: Tensor | None, tokens: Tensor | None) -> Tensor | None:
    """positions where they fit the batch; a loss whose labels do not fit raises by itself."""
    if positions is None or not (torch.jit.is_tracing() or positions.shape == tokens.shape[:2]):  # type: ignore[union-attr]
        return None
    return positions.to(tokens.device)  # type: ignore[union-attr]


def _select(x: Tensor, positions: Tensor, count: int | None) -> Tensor:
    """The rows of x at the True positions, in order."""
    if count is None:
        return x[positions]
    return x.index_select(0, torch.nonzero_static(positions, size=count).squeeze(1))


def choose_padding(model: nn.Module, chosen: PaddingPolicy | None, where: str) -> None:
    """Sets what padding holds in every BertModel inside `model`: what the user has chosen, else what the modules around it
    need, with a warning that begins with `where` if that is exact."""
    policy = chosen or surrounding_policy(model)
    if policy is None:
        return
    changed = False
    for part in model.modules():
        if type(part) is BertModel and (chosen or not policy_of(part).chosen):
            changed = changed or policy_of(part) != policy
            set_policy(part, policy)
    if changed and policy.exact and chosen is None:
        warnings.warn(
            f"{where}: padding positions hold transformers' values (padding='exact'), since {policy.reason}. "
            "Where it respects the mask, fastbert.accelerate(model, padding='zeros') saves their computation.",
            UserWarning,
            stacklevel=3,
        )


def berts(module: nn.Module) -> Iterator[BertModel]:
    return (part for part in module.modules() if isinstance(part, BertModel))
