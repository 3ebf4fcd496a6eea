"""What pre-training and fine-tuning share: the trainer, its checkpoints, its processes."""
