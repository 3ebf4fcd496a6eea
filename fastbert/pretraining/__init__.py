"""Pre-training BERT: from prepared text to checkpoints.

In reading order:

run               one run, from options to checkpoints
options           what a user chooses
checks            libraries, processes, seed, disk
folder            whether a run may write to it
output            the folder of a run, and resuming
inputs            data, tokenizer, configuration, objective
configuration     the configuration of a new model
objectives        masked or next tokens, and their batches
models            the models of the objectives
shallow           the model of two language models
recipe            optimizer, learning rate and masks, by name
optimizers        BERT's Adam, and LAMB
parameter_groups  which parameters decay
value_checks      checks of their options
trainer           one step on packed batches
sharding          FSDP2
meter             readings for the log
evaluation        loss and accuracy on held-out text
plot              the loss curves as a picture
black_box         the record of a step that failed, and its replay
notices           what a run tells its user
"""
