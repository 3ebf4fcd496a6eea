"""From raw text to masked batches: documents -> pairs -> shards (`fastbert prepare`) -> masks -> packed batches."""
