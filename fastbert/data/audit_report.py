"""The audit of a prepared text for its reader: warnings in plain words, and a table."""

import math
from typing import Any

from rich.table import Table

from fastbert.utils.printing import number_of


def audit_warnings(audit: dict[str, Any]) -> list[str]:
    """What may make this text bad training data, a sentence each."""
    found = []
    duplicates = audit["duplicate_lines"] / audit["sentences"]
    if duplicates > 0.05:
        found.append(
            f"{duplicates:.0%} of the lines occur in the text more than once "
            f"({number_of(audit['duplicate_lines'], 'repetition')}); "
            "the model memorises them"
        )
    single = audit["one_sentence_documents"]
    if single > 0.05 * audit["documents"]:
        found.append(
            f"{single:,} of {number_of(audit['documents'], 'document')} with one sentence, "
            f"which can never give a pair where B follows A; "
            "is there one sentence a line, and a blank line only between documents?"
        )
    if audit["documents"] < 10:
        found.append(
            f"only {number_of(audit['documents'], 'document')} to draw a random B "
            f"from; are there blank lines between documents?"
        )
    unknown = audit["unknown_tokens"] / audit["tokens"]
    if unknown > 0.005:
        found.append(f"{unknown:.1%} of the tokens are [UNK]; the vocabulary does not fit this text")
    if audit["random_rate"] > 0.6:
        found.append(
            f"B is random in {audit['random_rate']:.0%} of the samples, not in about half: many chunks are a single sentence, "
            "because sentences are long for this sequence length or documents are short"
        )
    if audit["fill_rate"] < 0.5:
        found.append(f"samples fill {audit['fill_rate']:.0%} of the sequence length on average: documents are short for it")
    return found


def audit_table(audit: dict[str, Any]) -> Table:
    """The counts as a rich table."""
    low, high = audit["random_interval"]
    top = max(count for _, count in audit["length_histogram"]) or 1
    bars = "".join(" ▁▂▃▄▅▆▇█"[math.ceil(8 * count / top)] for _, count in audit["length_histogram"])
    table = Table(title="Prepared text", title_justify="left", show_header=False)
    for name, value in (
        ("documents", f"{audit['documents']:,}"),
        ("  of one sentence", _share(audit["one_sentence_documents"], audit["documents"])),
        ("sentences", f"{audit['sentences']:,}"),
        ("  repeated lines", _share(audit["duplicate_lines"], audit["sentences"])),
        ("tokens", f"{audit['tokens']:,}"),
        ("  [UNK]", _share(audit["unknown_tokens"], audit["tokens"])),
        ("entropy of single tokens", f"{audit['entropy']:.3f} nats (ln V {audit['ln_vocab_size']:.3f})"),
        ("samples", f"{audit['samples']:,}"),
        ("  truncated", f"{audit['truncation_rate']:.1%} ({number_of(audit['dropped_tokens'], 'token')} lost)"),
        ("  fill of the sequence length", f"{audit['fill_rate']:.1%}"),
        ("  lengths, short to long", bars),
        ("  B is random", f"{audit['random_rate']:.2%} (95%: {low:.2%} to {high:.2%})"),
    ):
        table.add_row(name, value)
    return table


def _share(count: int, whole: int) -> str:
    return f"{count:,} ({count / whole:.1%})"
