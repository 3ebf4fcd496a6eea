"""What the launches of this process did besides computing: findings that are no faults, and totals per kernel."""

from collections import Counter
from dataclasses import dataclass, field

FEATURES = {"mma", "wgmma", "cp.async", "tma"}


@dataclass
class Report:
    """Findings that did not stop a kernel. A test may assert that both are empty.

    notes: a sentence for what PTX allows but is worth a look, and how often it was seen.
    unwritten: (kernel, instruction) -> a sentence for each instruction that read global memory that nobody wrote.
    """

    notes: Counter[str] = field(default_factory=Counter)
    unwritten: dict[tuple[str, int], str] = field(default_factory=dict)

    def note(self, text: str) -> None:
        self.notes[text] += 1


@dataclass
class KernelStats:
    """What one kernel did.

    launches, blocks, seconds: of all its launches. versions: Triton's hashes of the compiled kernels that ran. counts: how
    often its threads, warps or warpgroups executed what: 'global load of 16 bytes', 'mma m16n8k16 bf16', 'wgmma m64n128k16
    bf16', 'tma load'.
    """

    launches: int = 0
    blocks: int = 0
    seconds: float = 0.0
    versions: set[str] = field(default_factory=set)
    counts: Counter[str] = field(default_factory=Counter)

    @property
    def features(self) -> set[str]:
        """Those of FEATURES that were executed, not only compiled."""
        return FEATURES & {what.split()[0] for what in self.counts}


@dataclass
class Stats:
    """Totals of this process since it began or since `reset`. kernels: by the name of the Triton function."""

    launches: int = 0
    blocks: int = 0
    seconds: float = 0.0
    kernels: dict[str, KernelStats] = field(default_factory=dict)
    report: Report = field(default_factory=Report)

    def reset(self) -> None:
        self.launches, self.blocks, self.seconds, self.kernels, self.report = 0, 0, 0.0, {}, Report()

    def kernel(self, name: str) -> KernelStats:
        return self.kernels.setdefault(name, KernelStats())


stats = Stats()
