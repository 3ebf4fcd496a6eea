"""The command line.

In reading order:

app                    the list of commands
help                   panels and examples of `--help`
data                   `tokenizer`, `prepare`
pretraining            `pretrain`, `masks`, `replay`
finetuning             `finetune`
inference              `embed`, `fill-mask`, `classify`, `next`, `tag`, `answer`
inference_options      their common options
inference_rows         the rows that they read
inference_destination  where they write, and what is refused early
inference_run          rows through a task, to a file or the screen
inference_results      results as JSON and as tables
ranking                `rank`
evaluation             `evaluate`
evaluation_tables      its tables
report_files           the file of --json
verification           `demo`, `explain`, `verify`
deploy                 `tune`, `export`
scripts                `run`; bootstrap/ is what Python imports before the program
options                options of several groups
console                where commands print
errors                 how commands end
"""
