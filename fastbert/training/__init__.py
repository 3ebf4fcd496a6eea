"""What pre-training and fine-tuning share: the trainer and its checkpoints."""
