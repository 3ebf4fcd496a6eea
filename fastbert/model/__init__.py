"""The drop-in: transformers' BERT classes on packed tokens.

In reading order:

bert              `BertModel`, from ids to outputs
inputs            the tensors of one call, checked
layout            padded (B, S) <-> rows (R,): which rows are computed
packed_batch      a batch on its way through the encoder
embeddings        the embedding of packed ids
layer             one layer on rows
padded_layers     layers that need padded states, called as transformers does
heads             the heads, and the losses that they compute
head_inputs       what a head passes to its BertModel
losses            losses at labelled positions alone
span_logits       logits over positions, for question answering
padding_policy    what padding positions of the output hold
padding_free      transformers' own packed form of inputs
fallback          which parts fall back to transformers
verdict           path and verdict, the words of that decision
parts             where transformers' layer has its modules
hooks             hooks and replaced forwards
activations       which activations are fused
calls             what happened in calls: last path, given warnings
explain           `explain`: what runs each part, and why
registry          which class replaces which of transformers'
swap              `accelerate` and `restore`
batch_invariance  `batch_invariant`
cache_name        the cache's name across versions of transformers
left_to_right     task heads over left-to-right models
shallow           two independent stacks, one per direction
frozen_features   features of a frozen encoder on disk
frozen_heads      heads trained on these features
frozen            the encoder and such a head as one model
"""
