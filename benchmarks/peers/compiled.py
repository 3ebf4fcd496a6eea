"""torch.compile as a contender, with the proof that it was active: graphs, breaks, generated kernels."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch._dynamo.utils import counters
from torch._inductor import metrics

from benchmarks.harness.arena import Absent


def start_case() -> None:
    """Drops what earlier cases compiled, so that none reaches the limit on recompilations."""
    torch._dynamo.reset()


class Compilation:
    """One contender's compilation.

    mode: torch.compile's. wanted: the modes that take part in this case. Raises Absent for another mode.
    """

    def __init__(self, mode: str, wanted: Sequence[str]) -> None:
        if mode.removesuffix("-no-cudagraphs") not in wanted:
            raise Absent("left out of this case to keep the run short" if wanted else "no compilation in this case")
        self.mode = mode
        self.before = self._counts()

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """function, compiled for static shapes at its first call."""
        return torch.compile(function, mode=self.mode, dynamic=False)

    def proof(self) -> dict[str, int]:
        """What was compiled since the start. Raises RuntimeError where nothing was: the contender would be eager."""
        found = {name: count - self.before[name] for name, count in self._counts().items()}
        if found["graphs"] == 0:
            raise RuntimeError("torch.compile made no graph: this contender would have been eager")
        return found

    @staticmethod
    def _counts() -> dict[str, int]:
        return {
            "graphs": counters["stats"].get("unique_graphs", 0),
            "graph breaks": sum(counters["graph_break"].values()),
            "generated kernels": metrics.generated_kernel_count,
        }


def kernels_of(step: Callable[[], Any], device: torch.device, most: int = 8) -> list[str]:
    """Names of the device's kernels in one call, the longest-running first; empty on a CPU."""
    if device.type != "cuda":
        return []
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        step()
        torch.cuda.synchronize()
    events = sorted(profile.key_averages(), key=lambda event: -event.self_device_time_total)
    return [f"{event.count} x {event.key[:100]}" for event in events[:most]]
