"""Every operation's spec. Importing this module imports Triton."""

from . import attention, cross_entropy, embedding, fp8, layer_norm, linear
from .spec import OperationSpec

ALL_SPECS: tuple[OperationSpec, ...] = (
    *layer_norm.SPECS,
    *attention.SPECS,
    *linear.SPECS,
    *embedding.SPECS,
    *cross_entropy.SPECS,
    *fp8.SPECS,
)
