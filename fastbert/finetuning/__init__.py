"""Fine-tuning for the task types: one text, two texts, questions, tags, multiple choice.

In reading order:

run            from options to a folder
options        what a user chooses
checks         libraries, processes, seeds, disk
folder         whether a run may write to it
output         the folder, and its report
task_types     the task types by name
data           the data of a task: features and metrics
sentences      data of `classify`, `pair` and `choice`
questions      data of `qa`
tagging        data of `tag`
model          a checkpoint with the head of a task
method         training all weights
frozen_method  training a head on frozen features
several_runs   a grid of settings and of seeds
single_run     one run
trainer        steps and evaluation on packed batches
best_epoch     the best epoch, kept on disk
plots          curves and confusion matrix
"""
