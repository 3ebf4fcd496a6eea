"""Inference on any number of texts: packed, in order, in bounded memory.

In reading order:

loading            a checkpoint as a model with its tokenizer
checkpoint_files   what its files are, to notice other ones
saved_settings     what fine-tuning saved with it
sentence_settings  what sentence-transformers saves: keys and checks
sentence_folder    a folder of sentence-transformers, from its settings
sentence_objects   the same of an object that is loaded already
residents          models that stay in memory, and the few that the functions keep
notes              counts of rows that were cut, empty and the like
rows               what a task reads
task               what a task defines: sequences, batches
engine             rows through a task in packed batches
tokenizing         texts to sequences
embedding          `embed`
sentence_modules   pooling and the other modules after the encoder
sentence_head      the chain of these modules for one folder
classification     `classify`
tagging            `tag`
answering          `answer`
masked_words       `fill_mask`
next_sentence      `next_sentence`
ranking            `rank`
encoder            `Encoder`: all of these on one resident model
evaluation         metrics of a model on a labelled file
inputs             rows from files, for the commands
outputs            resumable files of results, for the commands
"""
