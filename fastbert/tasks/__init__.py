"""What fine-tuning and inference share: readers of task files, windows, decoding, metrics.

In reading order:

formats      the format of a file, by option or suffix
lines        files of any size, read in parts
json_values  JSON of any size, one object at a time
rows         CSV, TSV, JSON, JSONL and text as rows
conll        CoNLL as sentences
sentences    examples of `classify` and `pair`
choices      examples of `choice`
squad        examples of `qa`
tagged       examples of `tag`
windows      long inputs in overlapping windows
answers      from logits to answers
tags         from logits to tags, and from tags to entities
features     examples as token ids, packed batches, predictions
metrics      the usual metrics of each task
"""
