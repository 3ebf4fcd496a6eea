"""The drop-in: transformers' BERT classes on packed tokens.

In reading order:

bert              `BertModel`, from ids to outputs
inputs            the tensors of one call, checked
padding/          which rows are computed, and what the caller gets back
embeddings        the embedding of packed ids
layer             one layer on rows
padded_layers     layers that need padded states, called as transformers does
heads             the heads, and the losses that they compute
head_inputs       what a head passes to its BertModel
losses            losses at labelled positions alone
span_logits       logits over positions, for question answering
fallback/         which parts fall back to transformers, and why
calls             what happened in calls: last path, given warnings
explain           `explain`: what runs each part, and why
registry          which class replaces which of transformers'
swap              `accelerate` and `restore`
holders           the BERTs of an object that is no module
construction      `register`: every BERT that transformers builds
batch_invariance  `batch_invariant`
cache_name        the cache's name across versions of transformers
variants/         models that read in one direction, and heads on a frozen encoder
"""
