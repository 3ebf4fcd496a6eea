"""What `fastbert tune` measures, as its user names it; read without loading a library."""

from fastbert.utils.errors import InputError
from fastbert.utils.sizes import SIZES

ROWS = tuple(1 << power for power in range(6, 16))
DEFAULT_SIZE = "bert-base"


def parse_rows(text: str) -> tuple[int, ...]:
    """Numbers of rows from '128,512'. Raises InputError for anything but powers of two."""
    found = []
    for word in text.split(","):
        if not word.strip().isdecimal() or int(word) < 1 or int(word) & (int(word) - 1):
            raise InputError(f"expected powers of two with commas between them, as in 128,512, got {word.strip()!r}")
        found.append(int(word))
    return tuple(dict.fromkeys(found))


def check_size(checkpoint: str | None, config: str | None) -> None:
    """Raises InputError for a checkpoint and a size at once, and for an unknown size."""
    if checkpoint is not None and config is not None:
        raise InputError(f"expected a checkpoint or --config, got both: {checkpoint} and {config}")
    if config is not None and config not in SIZES:
        raise InputError(f"expected a configuration among {', '.join(SIZES)}, got {config!r}")
