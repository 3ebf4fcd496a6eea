"""Padded inputs to packed rows and back: which positions are computed, and what the others hold.

In reading order:

layout        padded (B, S) <-> rows (R,): which rows are computed
packed_batch  a batch on its way through the encoder
policy        what padding positions of the output hold
reads         what a call reads there: fallback, records, warnings
surroundings  modules around a BertModel that read there
padding_free  transformers' own packed form of inputs
"""
