"""Batches and what is counted of them."""

import torch

from benchmarks.harness import work
from fastbert.utils.flops import encoder_flops


def test_counted_flops_are_those_of_the_matrix_products():
    import transformers
    from torch.utils.flop_counter import FlopCounterMode

    config = work.config("tiny")
    config._attn_implementation = "eager"
    model = transformers.BertModel(config, add_pooling_layer=False).eval()
    for seqlens in ((12,), (30, 30, 30)):
        batch = work.batch(seqlens, config.vocab_size, torch.device("cpu"))
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(**batch.inputs)
        assert encoder_flops(config, seqlens) == counter.get_total_flops()
