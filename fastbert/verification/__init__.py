"""Proof for one checkpoint on one machine: fastbert against transformers, kernels against float64.

In reading order:

compare     `verify`: weights, states, outputs and gradients, row by row
models      the three models of a comparison, and a run of one
rows        a row of the report
kernels     the kernels, in a process of their own
proofs      where they were proved before: the record of the test suite
report      the rows as tables with a verdict
fp8         what fp8 costs on the user's text
fp8_report  that as a table with a verdict
demo        `fastbert demo`
"""
