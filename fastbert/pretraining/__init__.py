"""Pre-training BERT: the optimizers, the learning rate schedules and the recipes that name both."""
