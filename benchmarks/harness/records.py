"""The records of benchmark runs: the file of `--record`, or pytest-benchmark's own JSON.

A row is one workload and all its contenders, with a reason for each that gave no number. The contenders of a row took turns
on the same inputs, so their ratio is fair; ratios between files are for `compare`.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from fastbert.utils.timing import Timing

FASTBERT = "fastbert"
TIMED, ABSENT, FAILED, WRONG = "timed", "absent", "failed", "wrong"


@dataclass(frozen=True)
class Case:
    """One workload.

    suite: 'kernels', 'inference', 'pretraining' or 'scaling'. direction: 'forward', 'backward' or 'both' for a kernel,
    else ''. seqlen: positions per sequence of the padded batch. lengths: name of the length mix, 'fixed' where all are
    seqlen. real_tokens, padded_tokens: of one call. flops: operations of one call that real tokens need. bytes_moved: each
    input read once and each output written once; 0 where they are not counted.
    """

    suite: str
    model: str
    dtype: str
    batch_size: int
    seqlen: int
    lengths: str
    real_tokens: int
    padded_tokens: int
    flops: float
    bytes_moved: float = 0.0
    operation: str = ""
    direction: str = ""
    num_layers: int = 0
    seed: int = 0

    @property
    def fill(self) -> float:
        """Real tokens over positions of the padded batch."""
        return self.real_tokens / self.padded_tokens

    @property
    def title(self) -> str:
        what = " ".join(part for part in (self.operation, self.direction) if part)
        size = f"{self.batch_size} x {self.seqlen} {self.lengths}"
        layers = f"{self.num_layers} layers" if self.suite == "scaling" else ""
        return ", ".join(part for part in (self.model, what, size, self.dtype, layers) if part)

    def identity(self, *without: str) -> tuple[Any, ...]:
        """What makes two cases the same workload: every field but the counts `flops` and `bytes_moved`, and `without`."""
        left_out = {"flops", "bytes_moved", *without}
        return tuple(getattr(self, one.name) for one in fields(self) if one.name not in left_out)


@dataclass(frozen=True)
class Contender:
    """How one implementation did on a case.

    status: 'timed'; 'absent', not installed or not for this device; 'failed', it raised; 'wrong', its output was. reason:
    why there is no number. seconds: one per round, in order. peak_bytes: device memory above what was allocated before.
    real_tokens, flops: of one call where it chose its own batch, else None. details: facts that let a reader trust it.
    """

    name: str
    status: str
    reason: str = ""
    seconds: tuple[float, ...] = ()
    peak_bytes: int | None = None
    real_tokens: int | None = None
    flops: float | None = None
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def median(self) -> float:
        return Timing(self.seconds).median

    @property
    def spread(self) -> float:
        """Half the interquartile range over the median."""
        return Timing(self.seconds).spread

    def percentile(self, percent: int) -> float:
        """The seconds that this percentage of the rounds did not exceed."""
        return sorted(self.seconds)[min(len(self.seconds) * percent // 100, len(self.seconds) - 1)]


@dataclass(frozen=True)
class Row:
    """A case and its contenders, the baseline first. test: name of the test that ran it."""

    case: Case
    contenders: tuple[Contender, ...]
    test: str = ""

    @property
    def baseline(self) -> Contender:
        return self.contenders[0]

    def contender(self, name: str) -> Contender | None:
        return next((contender for contender in self.contenders if contender.name == name), None)

    def tokens_per_s(self, contender: Contender) -> float:
        """Real tokens per second."""
        return (contender.real_tokens or self.case.real_tokens) / contender.median

    def flops_per_s(self, contender: Contender) -> float:
        return (contender.flops or self.case.flops) / contender.median

    def ratio(self, contender: Contender) -> float | None:
        """Throughput on real tokens over the baseline's, or None where one of them has no number."""
        if contender.status != TIMED or self.baseline.status != TIMED:
            return None
        return self.tokens_per_s(contender) / self.tokens_per_s(self.baseline)

    def as_dict(self) -> dict[str, Any]:
        contenders = [asdict(contender) for contender in self.contenders]
        return {"test": self.test, "case": asdict(self.case), "contenders": contenders}

    @classmethod
    def from_dict(cls, info: dict[str, Any]) -> "Row":
        contenders = [Contender(**{**_known(Contender, c), "seconds": tuple(c["seconds"])}) for c in info["contenders"]]
        return cls(Case(**_known(Case, info["case"])), tuple(contenders), info.get("test", ""))


@dataclass(frozen=True)
class Record:
    """One run.

    conditions: device, driver, versions, clocks, command, commit, seed. ceilings: 'matmul', FLOP/s by dtype, and 'copy', bytes
    read and written per second, both measured on the device in that run.
    """

    path: Path
    conditions: dict[str, Any]
    ceilings: dict[str, Any]
    rows: tuple[Row, ...]

    def matmul_ceiling(self, dtype: str, *, one_thread: bool = False) -> float | None:
        """FLOP/s of matrix products in a case's dtype, or None where it was not measured.

        'bf16' and 'autocast', the two ways to train, multiply in bfloat16.
        """
        if one_thread:
            return self.ceilings.get("matmul one thread")
        name = "bfloat16" if dtype in ("bf16", "autocast") else dtype
        return self.ceilings.get("matmul", {}).get(name)


def load(path: Path) -> Record:
    """Reads one file that `pytest benchmarks --record FILE` (or `--benchmark-json=FILE`) wrote.

    Raises ValueError for any other file.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        own = content["fastbert"]
        rows = [Row.from_dict(row) for row in own["rows"]]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"expected the JSON of `pytest benchmarks --record FILE` in {path}, got {error!r}") from error
    return Record(path, own["conditions"], own["ceilings"], tuple(rows))


def load_all(folder: Path) -> list[Record]:
    """Every record below a folder, oldest first. Other files are skipped."""
    records = []
    for path in sorted(folder.rglob("*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(content, dict) and "rows" in content.get("fastbert", {}):
            records.append(load(path))
    return sorted(records, key=lambda record: record.conditions.get("started", ""))


def _known(cls: type, values: dict[str, Any]) -> dict[str, Any]:
    """The fields that this version knows; a later one may have written more."""
    names = {one.name for one in fields(cls)}
    return {name: value for name, value in values.items() if name in names}


def suites(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Rows by suite, in the order they ran."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row.case.suite, []).append(row)
    return found


def families(rows: Iterable[Row], *axes: str) -> list[list[Row]]:
    """Groups of rows whose cases differ only in the fields `axes` and in the numbers of tokens that follow from them."""
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(row.case.identity("real_tokens", "padded_tokens", *axes), []).append(row)
    return list(found.values())
