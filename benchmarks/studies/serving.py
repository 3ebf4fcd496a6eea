"""Requests per second and latency of examples/serve.py at ragged lengths: on fastbert, and the same server on two peers.

`python -m benchmarks.studies.serving --out serving.json`. One server process after the other, in turns; clients in this process
ask again as soon as they are answered. No number where the vectors differ. The peers do with a batch what is common:
transformers pads it to its longest text; sentence-transformers sorts it by length first and cuts it into batches of 32. The
processor seconds of the server are recorded too: on a CPU that is shared with other work they vary less.
"""

import asyncio
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from benchmarks.harness import lengths
from benchmarks.harness.conditions import conditions
from benchmarks.harness.markdown import table
from fastbert.utils.checkpoints import packaged_checkpoint
from fastbert.utils.files import write_whole

SERVERS = ("fastbert", "transformers, padded", "sentence-transformers, sorted by length")
EQUAL_TO = 1e-4
START_SECONDS = 180.0


class Padded:
    """transformers as it is commonly used: a batch padded to its longest text, the mean of the tokens."""

    def __init__(self, path: str) -> None:
        from transformers import AutoModel, AutoTokenizer

        self.tokenizer, self.model = AutoTokenizer.from_pretrained(path), AutoModel.from_pretrained(path).eval()

    def embed(self, texts: list[str]) -> np.ndarray:
        batch = self.tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        with torch.inference_mode():
            hidden = self.model(**batch).last_hidden_state
        mask = batch["attention_mask"][..., None].to(hidden)
        return torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1).numpy()


class Sorted:
    """sentence-transformers' encode."""

    def __init__(self, path: str) -> None:
        from sentence_transformers import SentenceTransformer

        self.model = SentenceTransformer(path, device="cpu")

    def embed(self, texts: list[str]) -> np.ndarray:
        return self.model.encode(texts, batch_size=32, show_progress_bar=False)


def serve(name: str, port: int, budget: int) -> None:
    """Runs the example's server on one of SERVERS."""
    import uvicorn
    from transformers import AutoTokenizer

    import fastbert
    from examples.serve import Queue, make_app

    path = packaged_checkpoint()
    encoder: Any = Padded(path) if name == SERVERS[1] else Sorted(path) if name == SERVERS[2] else None
    encoder = encoder or fastbert.Encoder(path, device="cpu", batch_tokens=budget)
    queue = Queue(encoder, AutoTokenizer.from_pretrained(path), budget, 1 << 20)
    uvicorn.run(make_app(queue, "served"), port=port, timeout_keep_alive=75, log_level="warning", access_log=False)


def texts_of(mix: str, count: int, longest: int) -> list[str]:
    """Texts of common words, with as many tokens as a mix of lengths says, [CLS] and [SEP] included."""
    from transformers import AutoTokenizer

    vocabulary = AutoTokenizer.from_pretrained(packaged_checkpoint()).get_vocab()
    words = sorted((word for word in vocabulary if word.isascii() and word.isalpha() and len(word) > 2), key=vocabulary.get)
    rng = random.Random(0)
    return [" ".join(rng.choices(words[:5000], k=max(1, length - 2))) for length in lengths.draw(mix, count, longest)]


async def load(port: int, texts: list[str], clients: int) -> tuple[list[float], float, list[list[float]]]:
    """(seconds of each request, seconds of all, the vector of each text)."""
    import httpx

    seconds, vectors = [0.0] * len(texts), [[0.0]] * len(texts)
    waiting = iter(range(len(texts)))
    limits = httpx.Limits(max_connections=clients, max_keepalive_connections=clients)
    async with httpx.AsyncClient(timeout=600, trust_env=False, limits=limits) as http:

        async def client() -> None:
            for index in waiting:
                start = time.perf_counter()
                response = await http.post(f"http://127.0.0.1:{port}/v1/embeddings", json={"input": texts[index]})
                seconds[index] = time.perf_counter() - start
                vectors[index] = response.raise_for_status().json()["data"][0]["embedding"]

        start = time.perf_counter()
        await asyncio.gather(*(client() for _ in range(clients)))
        return seconds, time.perf_counter() - start, vectors


def processor_seconds(pid: int) -> float:
    """Of a process and its threads so far."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(name: str, texts: list[str], warm_up: list[str], clients: int, budget: int, threads: int) -> dict[str, Any]:
    """Starts a server, warms it up, asks everything, and ends it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [sys.executable, "-m", "benchmarks.studies.serving", "--serve", name, "--port", str(port), "--budget", str(budget)]
    with subprocess.Popen(words, env={**os.environ, "OMP_NUM_THREADS": str(threads)}) as server:
        try:
            deadline = time.monotonic() + START_SECONDS
            while socket.socket().connect_ex(("127.0.0.1", port)):
                if server.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"the server on {name} did not start")
                time.sleep(0.1)
            asyncio.run(load(port, warm_up, clients))
            before = processor_seconds(server.pid)
            seconds, whole, vectors = asyncio.run(load(port, texts, clients))
            busy = processor_seconds(server.pid) - before
        finally:
            server.send_signal(signal.SIGTERM)
    p50, p99 = (float(np.percentile(seconds, percent)) for percent in (50, 99))
    rate = len(texts) / whole
    return {"requests/s": rate, "p50": p50, "p99": p99, "processor seconds": busy, "vectors": vectors}


def main(
    requests: Annotated[int, typer.Option(min=1, help="Texts, one a request.")] = 1500,
    clients: Annotated[int, typer.Option(min=1, help="That ask at the same time.")] = 64,
    mix: Annotated[str, typer.Option(help="Whose lengths: see benchmarks/harness/lengths.json.")] = "wiki-qa",
    longest: Annotated[int, typer.Option(min=3, help="Most tokens of a text.")] = 256,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of every server.")] = 3,
    budget: Annotated[int, typer.Option(min=1, help="Tokens of a batch.")] = 4096,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of a server's model.")] = 1,
    out: Annotated[Path | None, typer.Option(help="Write the record to this file as JSON.")] = None,
    serve_: Annotated[str | None, typer.Option("--serve", hidden=True)] = None,
    port: Annotated[int, typer.Option(hidden=True)] = 0,
) -> None:
    """Measure the three servers in turns and print medians over the turns."""
    if serve_ is not None:
        serve(serve_, port, budget)
        return
    texts, warm_up = texts_of(mix, requests, longest), texts_of("snips", 2 * clients, longest)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in SERVERS}
    busy = [os.getloadavg()[0]]
    for turn in range(rounds):
        for name in SERVERS[turn % 3 :] + SERVERS[: turn % 3]:
            found[name].append(measure(name, texts, warm_up, clients, budget, threads))
            busy.append(os.getloadavg()[0])
            typer.echo(f"turn {turn + 1}, {name}: {found[name][-1]['requests/s']:.1f} requests/s", err=True)
    reference = np.array(found[SERVERS[0]][0]["vectors"])
    largest = max(float(np.abs(np.array(one.pop("vectors")) - reference).max()) for turns in found.values() for one in turns)
    if largest > EQUAL_TO:
        raise RuntimeError(f"expected vectors equal to {EQUAL_TO}, got a difference of {largest:.2g}")
    medians = {name: {key: statistics.median(one[key] for one in turns) for key in turns[0]} for name, turns in found.items()}
    mine = medians[SERVERS[0]]
    rows = []
    for name, one in medians.items():
        ratios = [
            f"{mine['requests/s'] / one['requests/s']:.2f}x",
            f"{one['processor seconds'] / mine['processor seconds']:.2f}x",
        ]
        per_request = 1e3 * one["processor seconds"] / requests
        latency = [f"{one[key] * 1e3:.0f}" for key in ("p50", "p99")]
        rows.append([name, f"{one['requests/s']:.1f}", ratios[0], *latency, f"{per_request:.1f}", ratios[1]])
    head = ["server on", "requests/s", "fastbert is", "p50 ms", "p99 ms", "processor ms a request", "fastbert is"]
    typer.echo(table(head, rows))
    record = {"mix": mix, "longest": longest, "requests": requests, "clients": clients, "budget": budget}
    record |= {"threads": threads, "turns": found}
    record |= {"largest difference": largest, "load average": busy, "conditions": conditions()}
    if out is not None:
        write_whole(out, json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
