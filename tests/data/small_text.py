"""Text of few words, and how `prepare` is called on it."""

import random
from pathlib import Path

WORDS = [
    f"{start}{end}" for start in "ba ke li mo nu pa re si to vu".split() for end in "ba ke li mo nu pa re si to vu".split()
]
SMALL = {"seq_len": 32, "shard_samples": 100, "duplicates": 2, "workers": 1}


def make_text(documents: int, seed: int = 0, sentences: tuple[int, int] = (1, 12)) -> str:
    draw = random.Random(seed)
    return "\n\n".join(
        "\n".join(" ".join(draw.choices(WORDS, k=draw.randint(2, 20))) + "." for _ in range(draw.randint(*sentences)))
        for _ in range(documents)
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


class Stop(Exception):
    pass


def stop_after(calls: int, error: type[BaseException]):
    left = calls

    def report(*_):
        nonlocal left
        left -= 1
        if left < 0:
            raise error

    return report
