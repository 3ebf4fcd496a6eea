"""Fine-tuning for the task types: one sentence, two sentences, questions, tags, multiple choice."""
