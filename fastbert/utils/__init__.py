"""What every other package uses: files, checkpoints, errors, timing. Knows nothing of models."""
