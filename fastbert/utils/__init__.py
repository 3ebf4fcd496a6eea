"""What every other package uses: files, checkpoints, errors, processes, timing. Imports no other package of fastbert."""
