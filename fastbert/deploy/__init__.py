"""Making a model ready to serve.

In reading order:

graphs           `compile`: CUDA graphs of the forward, one per bucket
buckets          the buckets, and packing into them
fp8              `quantize` and `dequantize`
fp8_layer        a layer with products in fp8
fp8_calibration  what fp8 costs each product, on calibration batches
gptq             weights rounded for given inputs
measure          times library and tiles on one product
tune             `fastbert tune`: a table of the fastest for a layer
tune_options     what it measures
export           ONNX and torch.export files
export_checks    what it refuses without loading a model
"""
