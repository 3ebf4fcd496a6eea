"""The pages of the documentation, and the blocks of code in them."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "examples" / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
LANGUAGES = ("bash", "python", "text")
ASSIGNMENT = re.compile(r"[A-Z_]+=\S*")
RUNS, NEEDS = "runs", "needs"


@dataclass(frozen=True)
class Block:
    """A fenced block. note: the word and the rest of a comment right above, `<!-- runs: ... -->` or `<!-- needs: ... -->`."""

    page: Path
    line: int
    language: str
    code: str
    note: tuple[str, str]

    @property
    def name(self) -> str:
        return f"{name_of(self.page)}:{self.line}"

    @property
    def commands(self) -> list[list[str]]:
        """The words of each command, without comments and without variables set for it."""
        lines = self.code.replace("\\\n", " ").splitlines()
        found = [shlex.split(line, comments=True) for line in lines]
        return [words[_assigned(words) :] for words in found if words]


def _assigned(words: list[str]) -> int:
    return next((index for index, word in enumerate(words) if not ASSIGNMENT.fullmatch(word)), len(words))


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path) -> list[Block]:
    found: list[Block] = []
    lines = page.read_text(encoding="utf-8").splitlines()
    start: int | None = None
    for index, line in enumerate(lines):
        if not line.lstrip().startswith("```"):
            continue
        if start is None:
            start = index
            continue
        note = re.fullmatch(rf"<!-- ({RUNS}|{NEEDS}): (.+) -->", lines[start - 1]) if start else None
        code = "\n".join(lines[start + 1 : index]) + "\n"
        language = lines[start].strip().removeprefix("```")
        found.append(Block(page, start + 1, language, code, (note[1], note[2]) if note else ("", "")))
        start = None
    assert start is None, f"a block without an end in {page}"
    return found


def all_blocks(language: str) -> list[Block]:
    return [block for page in PAGES for block in blocks(page) if block.language == language]
