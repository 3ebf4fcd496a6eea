"""Pre-training on 1 to 1,024 GPUs, predicted on paper from one measured step: `python -m benchmarks.scale`.

Every GPU keeps the batch of the measured step; what is added is the communication that the backward (FSDP: also the forward)
does not hide. Nothing here is measured but the step; the assumptions are printed with the table.
"""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from .harness.communication import Cluster, Step, ddp_exposed, efficiency, fsdp_exposed, tokens_per_s
from .harness.records import FASTBERT, TIMED, Contender, Record, Row, load

GPUS = tuple(2**power for power in range(11))
GRAD_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
TABLE_NOTE = "efficiency: tokens/s over GPUs times the tokens/s of one"


@dataclass(frozen=True)
class Published:
    """One published result. batch_size: sequences per step over all GPUs. minutes: from start to the target accuracy."""

    gpus: int
    batch_size: int
    sequences_per_s: float
    minutes: float


# Medians of the runs that reached the target, of ten: train_samples over run_start to run_stop, as their logs have them.
MLPERF = (
    Published(8, 768, 7760, 5.48),
    Published(64, 4608, 53185, 0.88),
    Published(512, 3072, 138668, 0.34),
    Published(768, 4608, 190724, 0.25),
)
MLPERF_SOURCE = """\
Published: MLPerf Training v3.0, closed division, BERT, NVIDIA DGX H100 (H100 SXM5 80 GB, 8 per node), PyTorch 23.04; logs in
github.com/mlcommons/training_results_v3.0 at 63e326c, NVIDIA/results/dgxh100{,_n8,_n64,_n96}_ngc23.04_pytorch/bert.
Unit: sequences of up to 512 tokens per second, derived here from the logs (train_samples over run_start to run_stop, median of
the runs that reached the target), evaluation included; it is not MLPerf's own metric, which is the time to the target.
Not the same quantity as the prediction: there the batch per GPU shrinks as GPUs are added, here it stays.\
"""


def model_shape(model: str) -> tuple[int, int]:
    """Parameters of BertForPreTraining, tied weights once, and FSDP's units: each layer, and the rest as one.

    Raises ValueError for a name that is not in benchmarks.harness.work.
    """
    import torch
    from transformers import BertForPreTraining

    from .harness import work

    if model not in work.MODELS:
        raise ValueError(f"expected a model among {'; '.join(work.MODELS)}, got {model!r}")
    config = work.config(model)
    with torch.device("meta"):
        parameters = sum(parameter.numel() for parameter in BertForPreTraining(config).parameters())
    return parameters, config.num_hidden_layers + 1


def measured(path: Path, contender: str, case: str | None) -> tuple[Record, Row, Contender]:
    """The pre-training step of one contender in a record.

    case: text in the row's title, where the record holds several. Raises ValueError unless exactly one row fits.
    """
    record = load(path)
    rows = [row for row in record.rows if row.case.suite == "pretraining"]
    fitting = [row for row in rows if case is None or case in row.case.title]
    if len(fitting) != 1:
        known = "; ".join(row.case.title for row in rows) or "none"
        raise ValueError(f"expected one pre-training row in {path} for --case {case!r}, got {len(fitting)} of: {known}")
    found = fitting[0].contender(contender)
    if found is None or found.status != TIMED:
        names = ", ".join(one.name for one in fitting[0].contenders if one.status == TIMED) or "none"
        raise ValueError(f"expected a timed contender ({names}), got {contender!r}")
    return record, fitting[0], found


def table(step: Step, cluster: Cluster, published: Sequence[Published]) -> Table:
    """A line per number of GPUs, beside what is published for it."""
    out = Table(title="Predicted on paper, not measured", caption=TABLE_NOTE)
    names = ["GPUs", "DDP tokens/s", "efficiency", "FSDP tokens/s", "efficiency", "DDP sequences/s"]
    more = ["MLPerf sequences/s", "per GPU, of 8 GPUs'", "sequences per GPU", "minutes to target"]
    for name in names + (more if published else []):
        out.add_column(name, justify="right")
    known = {point.gpus: point for point in published}
    for gpus in sorted({*GPUS, *known}):
        ddp, fsdp = ddp_exposed(step, cluster, gpus), fsdp_exposed(step, cluster, gpus)
        rate = tokens_per_s(step, ddp, gpus)
        cells = [f"{gpus:,}"]
        for exposed in (ddp, fsdp):
            cells += [f"{tokens_per_s(step, exposed, gpus):,.0f}", f"{efficiency(step, exposed):.1%}"]
        cells.append("unknown" if step.sequences is None else f"{rate / step.tokens * step.sequences:,.0f}")
        if point := known.get(gpus):
            first = published[0]
            share = point.sequences_per_s / point.gpus / (first.sequences_per_s / first.gpus)
            cells += [f"{point.sequences_per_s:,.0f}", f"{share:.1%}", f"{point.batch_size / gpus:g}", f"{point.minutes:.2f}"]
        out.add_row(*cells)
    return out


def assumptions(step: Step, cluster: Cluster, source: str, parameters: int, grad_dtype: str) -> list[str]:
    buckets = math.ceil(step.grad_bytes / step.bucket_bytes)
    return [
        f"step: {step.seconds * 1e3:.3f} ms, {step.tokens:,} real tokens, {source}; each GPU keeps this batch",
        f"gradients: {parameters:,} parameters in {grad_dtype}, {step.grad_bytes / 2**20:,.0f} MiB; FSDP gathers as much",
        f"links per GPU and direction: {cluster.intra / 1e9:g} GB/s inside a node of {cluster.gpus_per_node}, "
        f"{cluster.inter / 1e9:g} GB/s out of it, at full rate; {cluster.hop * 1e6:g} us per hop",
        "DDP: ring all-reduce, 2(n-1)/n of the gradients; hops as in a chain inside the node and a tree over the nodes; "
        f"{buckets} buckets of {step.bucket_bytes / 2**20:g} MiB, the last one never hidden",
        f"FSDP: two all-gathers and a reduce-scatter, (n-1)/n each, rings of n-1 hops; {step.units} units, one of them never "
        "hidden in each pass; sharding makes the optimizer no faster",
        f"backward: {step.backward_share:.0%} of the step; communication beside {step.overlap:.0%} of a pass, slowing nothing",
        "left out: stragglers, uneven batches, input, congestion, larger batches that need more steps",
    ]


def main(
    record: Annotated[Path | None, typer.Option(help="Take the step of a pre-training row of this file.")] = None,
    case: Annotated[str | None, typer.Option(help="Text in that row's title, where there are several.")] = None,
    contender: Annotated[str, typer.Option(help="Whose step.")] = FASTBERT,
    step_seconds: Annotated[float | None, typer.Option(help="Or: seconds of a measured step.")] = None,
    tokens: Annotated[int | None, typer.Option(help="With it: real tokens in the step.")] = None,
    sequences: Annotated[int | None, typer.Option(help="With it: sequences in the step.")] = None,
    model: Annotated[str | None, typer.Option(help="bert-base or bert-large; a record knows its own.")] = None,
    grad_dtype: Annotated[str, typer.Option(help=f"Of the gradients: {', '.join(GRAD_BYTES)}.")] = "float32",
    intra_gbs: Annotated[float, typer.Option(help="GB/s of a GPU's link inside a node, per direction (NVLink 4).")] = 450.0,
    inter_gbs: Annotated[float, typer.Option(help="GB/s of a GPU's link out of the node (400 Gbit/s).")] = 50.0,
    gpus_per_node: Annotated[int, typer.Option(help="GPUs in a node.")] = 8,
    overlap: Annotated[float, typer.Option(help="Share of a pass that communication can run beside.")] = 0.8,
    backward_share: Annotated[float, typer.Option(help="Share of the step that is backward.")] = 2 / 3,
    hop_us: Annotated[float, typer.Option(help="Microseconds of latency per hop.")] = 5.0,
    bucket_mib: Annotated[float, typer.Option(help="MiB of gradients that DDP reduces at once.")] = 25.0,
) -> None:
    """Predict, on paper, pre-training tokens per second on 1 to 1,024 GPUs with DDP and with FSDP."""
    try:
        if grad_dtype not in GRAD_BYTES:
            raise ValueError(f"expected --grad-dtype among {', '.join(GRAD_BYTES)}, got {grad_dtype!r}")
        given = step_seconds is not None, tokens is not None, sequences is not None
        if record is not None:
            if any(given):
                raise ValueError("expected --record, or --step-seconds and --tokens, got both")
            content, row, found = measured(record, contender, case)
            step_seconds, tokens = found.median, found.real_tokens or row.case.real_tokens
            sequences = found.details.get("micro-batch", None if found.real_tokens else row.case.batch_size)
            model, device = model or row.case.model, content.conditions.get("device", "an unknown device")
            source = f"{contender}, {row.case.title}, measured on {device}"
            if content.conditions.get("device_type") != "cuda":
                source += ", WHICH IS NOT A GPU: the table shows the communication's share, not what a GPU reaches"
        else:
            source = "as given"
        if step_seconds is None or tokens is None or model is None:
            raise ValueError("expected --record, or --step-seconds, --tokens and --model, got neither")
        parameters, units = model_shape(model)
        step = Step(
            step_seconds,
            tokens,
            parameters * GRAD_BYTES[grad_dtype],
            units,
            bucket_mib * 2**20,
            backward_share,
            overlap,
            sequences,
        )
        cluster = Cluster(intra_gbs * 1e9, inter_gbs * 1e9, gpus_per_node, hop_us * 1e-6)
    except (ValueError, OSError) as error:
        raise typer.BadParameter(str(error)) from error
    print(f"Predicted on paper from one measured step; no number below for more than one GPU is measured. Model: {model}.")
    for line in assumptions(step, cluster, source, parameters, grad_dtype):
        print(f"- {line}")
    published = MLPERF if model == "bert-large" else ()
    Console(width=None if sys.stdout.isatty() else 160, highlight=False).print(table(step, cluster, published))
    print(
        MLPERF_SOURCE
        if published
        else "Published results (MLPerf Training, BERT) are of bert-large: none is shown for this model."
    )


if __name__ == "__main__":
    typer.run(main)
