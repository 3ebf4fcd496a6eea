"""How benchmarks are planned, run, recorded and reported."""
