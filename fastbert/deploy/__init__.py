"""Making a model ready to serve: CUDA graphs, fp8, measured tiles, exported files."""
