"""What pre-training and fine-tuning share.

In reading order:

log_lines    what a training prints
trainer      transformers' Trainer with the checkpoints below, and a stop at a signal
checkpoints  atomic checkpoints with a manifest
"""
