"""Model sizes by name, as options of BertConfig.

bert-base and bert-large are those of Devlin et al. 2019, section 3; the four below them those of Turc et al. 2019
("Well-Read Students Learn Better"), with heads of size 64 and a feed-forward layer of four times the hidden size as they have.
"""

from pathlib import Path

from .errors import InputError


def _size(layers: int, hidden: int) -> dict[str, int]:
    return dict(hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=hidden // 64, intermediate_size=4 * hidden)


SIZES: dict[str, dict[str, int]] = {
    "bert-tiny": _size(2, 128),
    "bert-mini": _size(4, 256),
    "bert-small": _size(4, 512),
    "bert-medium": _size(8, 512),
    "bert-base": _size(12, 768),
    "bert-large": _size(24, 1024),
}


def check_size_or_file(name: str) -> None:
    """Raises InputError for what is neither the name of a size nor a file, OSError for a file that cannot be read."""
    if name in SIZES:
        return
    if not Path(name).is_file():
        raise InputError(f"expected one of {', '.join(SIZES)} or a JSON file as the configuration, got {name}")
    with Path(name).open("rb"):
        pass
