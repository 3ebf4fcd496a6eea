"""What communication adds to a training step on many GPUs, by formulas of DDP and FSDP. Nothing here is measured."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Cluster:
    """The network.

    intra, inter: bytes per second and direction of one GPU's link inside a node and out of it. hop: seconds per message.
    """

    intra: float
    inter: float
    gpus_per_node: int
    hop: float

    def __post_init__(self) -> None:
        positive(intra=self.intra, inter=self.inter, gpus_per_node=self.gpus_per_node)
        if not 0 <= self.hop < math.inf:
            raise ValueError(f"expected hop of 0 or more and finite, got {self.hop}")

    def bandwidth(self, gpus: int) -> float:
        """Bytes per second of a ring through each GPU.

        Between nodes as many rings run as a node has GPUs, each over another GPU's link.
        """
        return self.intra if gpus <= self.gpus_per_node else min(self.intra, self.inter * self.gpus_per_node)

    def all_reduce_hops(self, gpus: int) -> int:
        """There and back along a chain inside the node and a binary tree over the nodes, which is how NCCL keeps it short."""
        nodes = -(-gpus // self.gpus_per_node)
        return 2 * (min(gpus, self.gpus_per_node) - 1) + 2 * math.ceil(math.log2(nodes))


@dataclass(frozen=True)
class Step:
    """A measured step of one GPU.

    tokens: real ones. grad_bytes: of all gradients. units: what FSDP gathers at once, a layer each and the rest.
    bucket_bytes: what DDP reduces at once. backward_share: of the seconds. overlap: share of a pass in which communication
    can run in parallel. sequences: in the step, None if unknown.
    """

    seconds: float
    tokens: int
    grad_bytes: int
    units: int
    bucket_bytes: float = 25 * 2**20
    backward_share: float = 2 / 3
    overlap: float = 0.8
    sequences: int | None = None

    def __post_init__(self) -> None:
        positive(seconds=self.seconds, tokens=self.tokens, grad_bytes=self.grad_bytes, units=self.units)
        positive(bucket_bytes=self.bucket_bytes, sequences=1 if self.sequences is None else self.sequences)
        for name, value in (("backward_share", self.backward_share), ("overlap", self.overlap)):
            if not 0 <= value <= 1:
                raise ValueError(f"expected {name} from 0 to 1, got {value}")


def positive(**values: float) -> None:
    """Raises ValueError for the first value that is not positive and finite."""
    for name, value in values.items():
        if not 0 < value < math.inf:
            raise ValueError(f"expected {name} above 0 and finite, got {value}")


def ddp_exposed(step: Step, cluster: Cluster, gpus: int) -> float:
    """Seconds of all-reduce that the backward does not hide: at least the last bucket's, which is full when it ends."""
    buckets = math.ceil(step.grad_bytes / step.bucket_bytes)
    seconds = 2 * (gpus - 1) / gpus * step.grad_bytes / cluster.bandwidth(gpus)
    seconds += buckets * cluster.all_reduce_hops(gpus) * cluster.hop
    return _exposed(seconds, buckets, step.overlap * step.backward_share * step.seconds)


def fsdp_exposed(step: Step, cluster: Cluster, gpus: int) -> float:
    """Seconds that stay: an all-gather of the weights in each pass, a reduce-scatter of the gradients in the backward."""
    one = (gpus - 1) / gpus * step.grad_bytes / cluster.bandwidth(gpus) + step.units * (gpus - 1) * cluster.hop
    forward = _exposed(one, step.units, step.overlap * (1 - step.backward_share) * step.seconds)
    return forward + _exposed(2 * one, step.units, step.overlap * step.backward_share * step.seconds)


def _exposed(seconds: float, parts: int, hidden: float) -> float:
    return max(seconds - hidden, seconds / parts)


def tokens_per_s(step: Step, exposed: float, gpus: int) -> float:
    """Real tokens per second of all GPUs together."""
    return gpus * step.tokens / (step.seconds + exposed)


def efficiency(step: Step, exposed: float) -> float:
    return step.seconds / (step.seconds + exposed)
