"""What the operations accept. Their argument checks read it, and the model where it decides whether to call them."""

ACTIVATIONS = ("gelu_erf", "gelu_tanh", "relu")
MIN_HEAD_DIM, MAX_HEAD_DIM, HEAD_DIM_MULTIPLE = 16, 128, 8
MAX_NORM_SIZE = 16384  # one row of a layer norm lives in the registers of one program
IGNORE_INDEX = -100  # the label of a position without a loss, as in torch and transformers
