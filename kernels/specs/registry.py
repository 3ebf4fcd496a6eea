"""Every operation's spec. Importing this module imports Triton."""

from .. import cross_entropy, linear
from ..attention import forward as attention
from . import embedding, fp8, layer_norm
from .spec import OperationSpec

ALL_SPECS: tuple[OperationSpec, ...] = (
    *layer_norm.SPECS,
    *attention.SPECS,
    *linear.SPECS,
    *embedding.SPECS,
    *cross_entropy.SPECS,
    *fp8.SPECS,
)
