"""Blocks of PTX to functions over numpy arrays. In reading order:

source           operands and results as Python source
modifiers        which of an instruction's modifiers are known
values           mov, selp, cvta: values as they are
integers         integer arithmetic
bits             logic, shifts, bit fields
floats           float32 and float64
halves           16-bit floats, alone and in pairs
comparisons      setp
conversions      cvt
memory           ld, st, ldmatrix, stmatrix, atomic additions
warps            shuffles, votes, reductions, fences
copies           cp.async, tile copies, barriers in shared memory
products         mma and wgmma
translator       the table of all these, and the function of a block

A translated block calls the machine's state, `S`, for whatever is more than arithmetic on one thread's registers.
"""

from ..ptx import UnknownInstruction
from .source import PARAM_SPACE
from .translator import Translator

__all__ = ["PARAM_SPACE", "Translator", "UnknownInstruction"]
