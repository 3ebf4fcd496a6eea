"""What fine-tuning and inference share: readers of task files, windows of long inputs, decoding, metrics."""
