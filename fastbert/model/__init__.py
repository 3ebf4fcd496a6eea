"""The drop-in: transformers' BERT classes on packed tokens, and what stands beside them."""
