"""Training data: from raw text to packed batches.

In reading order:

documents           text files and data sets, as documents of sentences
wordpiece           `fastbert tokenizer`: a WordPiece vocabulary from documents
prepare             `fastbert prepare`: options, and the order of the stages below
tokenizer           opens and checks the tokenizer of the text
work_folder         what may be written to and resumed
tokenize_documents  first stage: documents to token ids
spool               the token ids on disk between both stages
make_shards         second stage: ranges of documents to shards
pairs               next-sentence pairs of one document
workers             a map over processes, for both stages
audit               counts of the text and its samples
audit_report        these counts as warnings and as a table
shards              prepared samples on disk, read by number
masking             masks, as a function of seed, epoch and sample
batches             the samples of every step, as packed micro-batches
"""
