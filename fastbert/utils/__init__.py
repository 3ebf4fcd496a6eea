"""What every other package uses. Imports no other package of fastbert.

In reading order:

errors            errors that a user can act on
installation      the command that adds an extra to this installation
checkpoints       a BERT checkpoint by name: configuration, tokenizer, class
folders           a name to the folder with its files
configurations    which numbers a configuration can have
vocabulary        whether a tokenizer belongs to the weights
files             files that are written whole or not at all
existing_outputs  --resume and --overwrite
locks             one run at a time for each output
processes         training on several processes
timing            contenders timed in turns
flops             model FLOPs and peak rates of devices
sizes             BERT large, base and smaller
sample_text       built-in sentences, or the lines of a file
pictures          plots without a screen
printing          lines of text on Rich's console
imports           an action after somebody's import of a module
"""
