"""Proof for one checkpoint on one machine: fastbert against transformers, kernels against float64."""
