"""Every operation's spec. Importing this module imports Triton."""

from .. import cross_entropy, embedding, fp8_kernels, layer_norm, linear
from . import attention
from .spec import OperationSpec

ALL_SPECS: tuple[OperationSpec, ...] = (
    *layer_norm.SPECS,
    *attention.SPECS,
    *linear.SPECS,
    *embedding.SPECS,
    *cross_entropy.SPECS,
    *fp8_kernels.SPECS,
)
