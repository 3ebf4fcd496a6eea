"""Runs compiled Triton kernels (PTX for sm_80 and sm_90) on a CPU, thread by thread, with checks of memory and barriers.

`activate(arch)` makes Triton compile for that target and launch here; `install(arch)` also makes fastbert take its Triton side
for CPU tensors. `Fault` is what a wrong kernel raises, `stats` what ran and was noted, `settings` what is checked. README.md
says more.
"""

from .driver import activate
from .faults import Fault
from .project import install
from .report import stats
from .settings import settings

__all__ = ["Fault", "activate", "install", "settings", "stats"]
