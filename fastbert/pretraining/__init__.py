"""Pre-training BERT: from prepared text to checkpoints."""
