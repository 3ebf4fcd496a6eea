"""Which parts of a model fall back to transformers, and why, decided from its live modules at each call.

In reading order:

verdict      path and verdict, the words of that decision
plan         the decision for a layer, the embeddings, the pooler, the whole model
parts        where transformers' layer has its modules
hooks        hooks and replaced forwards
activations  which activations are fused
"""
