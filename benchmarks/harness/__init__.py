"""How a benchmark is run and kept: turns, conditions, records, plans."""
