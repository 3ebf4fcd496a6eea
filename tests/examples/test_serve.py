"""The serving example on loopback: every client gets its own answer, the one that a text alone gives, and none is lost."""

import asyncio
import base64
import os
import random
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from transformers import AutoTokenizer

pytest.importorskip("fastapi", reason="fastapi is not installed: pip install '.[examples]'")
pytest.importorskip("uvicorn", reason="uvicorn is not installed: pip install '.[examples]'")
pytest.importorskip("httpx", reason="httpx is not installed: pip install '.[test]'")

import httpx
import uvicorn

import fastbert
from tests import forked
from tests.examples.conftest import EXAMPLES, example
from tests.inference.tiny_checkpoints import WORDS

CLIENTS, EACH = 64, 1
BROWSER = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)


class Watched:
    """An encoder that counts its batches; `gate` holds them back, and a text `bad` cannot be computed."""

    def __init__(self, encoder: fastbert.Encoder) -> None:
        self.encoder, self.batches, self.gate = encoder, [], threading.Event()
        self.gate.set()

    def embed(self, texts):
        self.gate.wait()
        self.batches.append(list(texts))
        if "bad" in texts:
            raise ValueError("expected another text, got bad")
        return self.encoder.embed(texts)

    def classify(self, texts, top):
        return self.encoder.classify(texts, top=top)


@pytest.fixture(scope="module")
def serve():
    return example("serve")


@contextmanager
def running(serve, encoder, folder: str, budget: int = 512, limit: int = 65536) -> Iterator[str]:
    """The address of a server in a thread of this process."""
    queue = serve.Queue(encoder, AutoTokenizer.from_pretrained(folder), budget, limit)
    app = serve.make_app(queue, "tiny")
    config = uvicorn.Config(app, port=0, timeout_keep_alive=75, log_level="warning", access_log=False)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 30
    while not server.started:
        assert time.monotonic() < deadline, "the server did not start"
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()


def texts_of(seed: int) -> list[str]:
    """One to four texts of 1 to 50 words."""
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=rng.randint(1, 50))) for _ in range(rng.randint(1, 4))]


async def ask_all(address: str, requests: list[list[str]], clients: int, sent: list | None = None) -> list[httpx.Response]:
    """The response to each request, from clients on connections of their own that ask one after the other.

    sent: gets an entry for each request that has left.
    """

    async def trace(event: str, info: dict) -> None:
        if sent is not None and event == "http11.send_request_body.complete":
            sent.append(event)

    found: list = [None] * len(requests)
    limits = httpx.Limits(max_connections=clients, max_keepalive_connections=clients)
    async with httpx.AsyncClient(timeout=60, trust_env=False, limits=limits) as http:
        await asyncio.gather(*(http.get(address, extensions={"trace": trace}) for _ in range(clients)))  # which stay open

        async def client(first: int) -> None:
            for index in range(first, len(requests), clients):
                body, watch = {"input": requests[index]}, {"trace": trace}
                found[index] = await http.post(f"{address}/v1/embeddings", json=body, extensions=watch)

        await asyncio.gather(*(client(first) for first in range(clients)))
    return found


def vectors_of(response: httpx.Response) -> np.ndarray:
    assert response.status_code == 200, response.text
    data = response.json()["data"]
    assert [one["index"] for one in data] == list(range(len(data)))
    return np.array([one["embedding"] for one in data], np.float32)


def test_many_clients_get_the_vectors_of_their_texts_alone(serve, encoder_folder):
    encoder = Watched(fastbert.Encoder(encoder_folder))
    encoder.gate.clear()
    requests = [texts_of(seed) for seed in range(CLIENTS * EACH)]
    with running(serve, encoder, encoder_folder) as address:
        threading.Timer(1, encoder.gate.set).start()  # by when some wait
        responses = asyncio.run(ask_all(address, requests, CLIENTS))
    assert len(encoder.batches) < len(requests), "clients did not share batches"
    assert sum(map(len, encoder.batches)) == sum(map(len, requests))
    tokenizer = AutoTokenizer.from_pretrained(encoder_folder)
    for texts, response in zip(requests, responses):
        found = vectors_of(response)
        alone = np.stack([encoder.encoder.embed(text) for text in texts])
        np.testing.assert_allclose(found, alone, rtol=0, atol=1e-5)
        assert response.json()["usage"]["total_tokens"] == sum(len(tokenizer(text).input_ids) for text in texts)
    for batch in encoder.batches:
        assert len(batch) <= 4 or sum(len(tokenizer(text).input_ids) for text in batch) <= 512


def test_labels_are_those_of_the_classifier_alone(serve, classifier_folder):
    encoder = fastbert.Encoder(classifier_folder)
    inputs = [*texts_of(1), ["the cat", "sat on the mat"]]
    with running(serve, encoder, classifier_folder) as address, httpx.Client(trust_env=False) as http:
        found = http.post(f"{address}/predict", json={"inputs": inputs}).json()
        single = http.post(f"{address}/predict", json={"inputs": inputs[0]}).json()
        refused = http.post(f"{address}/v1/embeddings", json={"input": "a", "dimensions": 8})
    expected = [encoder.classify(tuple(one) if isinstance(one, list) else one, top=None) for one in inputs]
    assert [[label["label"] for label in row] for row in found] == [[label["label"] for label in row] for row in expected]
    for row, wanted in zip(found, expected):
        np.testing.assert_allclose([one["score"] for one in row], [one["score"] for one in wanted], atol=1e-5)
    assert [one["label"] for one in single[0]] == [one["label"] for one in expected[0]]
    assert refused.status_code == 422  # nothing that is asked for is passed over in silence


def test_base64_holds_the_same_vectors_and_what_cannot_be_done_is_said(serve, encoder_folder):
    encoder = fastbert.Encoder(encoder_folder)
    with running(serve, encoder, encoder_folder, limit=100) as address, httpx.Client(trust_env=False) as http:
        body = {"input": "a cat", "model": "tiny", "encoding_format": "base64"}
        coded = http.post(f"{address}/v1/embeddings", json=body).json()["data"][0]["embedding"]
        other = http.post(f"{address}/v1/embeddings", json={"input": "a", "model": "other"})
        long = http.post(f"{address}/v1/embeddings", json={"input": "dog " * 200})
        labels = http.post(f"{address}/predict", json={"inputs": "a"})
        page = http.get(address)
    np.testing.assert_allclose(np.frombuffer(base64.b64decode(coded), "<f4"), encoder.embed("a cat"), atol=1e-6)
    assert (other.status_code, other.json()["detail"]) == (404, "expected the model tiny, got other")
    assert (long.status_code, long.json()["detail"]) == (413, "expected at most 100 tokens in a request, got 202")
    assert labels.status_code == 400
    assert "BertForSequenceClassification" in labels.json()["detail"]
    assert page.text.startswith("<!doctype html>")
    assert "http" not in page.text  # nothing comes from elsewhere


def test_a_bad_text_costs_only_its_own_request(serve, encoder_folder):
    encoder = Watched(fastbert.Encoder(encoder_folder))
    encoder.gate.clear()
    requests = [["the first, alone in a batch"], ["a cat"], ["bad"], ["a dog"]]
    with running(serve, encoder, encoder_folder) as address:
        threading.Timer(1, encoder.gate.set).start()  # by when all of them wait
        responses = asyncio.run(ask_all(address, requests, len(requests)))
    assert any(len(batch) > 1 and "bad" in batch for batch in encoder.batches)
    assert [response.status_code for response in responses] == [200, 200, 400, 200]
    assert responses[2].json()["detail"] == "expected another text, got bad"
    np.testing.assert_allclose(vectors_of(responses[3])[0], encoder.encoder.embed("a dog"), atol=1e-5)


def test_a_full_queue_says_when_to_come_back_and_loses_nobody(serve, encoder_folder):
    encoder = Watched(fastbert.Encoder(encoder_folder))
    encoder.gate.clear()
    requests = [["a cat sat down"]] * 12  # of 6 tokens
    with running(serve, encoder, encoder_folder, limit=30) as address:
        threading.Timer(1, encoder.gate.set).start()
        responses = asyncio.run(ask_all(address, requests, len(requests)))
        statuses = [response.status_code for response in responses]
        assert sorted(statuses) == [200] * 5 + [429] * 7
        assert {response.headers.get("Retry-After") for response in responses if response.status_code == 429} == {"1"}
        again = asyncio.run(ask_all(address, requests[:1], 1))
    assert again[0].status_code == 200


SLOW = """
import runpy, time
import fastbert

embed = fastbert.Encoder.embed


def slow(self, texts):
    time.sleep(0.03)
    return embed(self, texts)


fastbert.Encoder.embed = slow
runpy.run_path({path!r}, run_name="__main__")
"""


def test_after_sigterm_what_was_accepted_is_answered_and_the_process_ends(encoder_folder, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = tmp_path / "slow.py"
    program.write_text(SLOW.format(path=str(EXAMPLES / "serve.py")))
    words = (str(program), "--model", encoder_folder, "--port", str(port), "--batch-tokens", "1")  # a request a batch
    server = forked.Forked(*words, environment={**os.environ, "OMP_NUM_THREADS": "1"})
    address, requests = f"http://127.0.0.1:{port}", [texts_of(seed) for seed in range(CLIENTS)]
    try:
        wait_for(port, server)

        async def ask_and_stop() -> list[httpx.Response]:
            sent: list[str] = []
            asking = asyncio.create_task(ask_all(address, requests, CLIENTS, sent))
            while len(sent) < 2 * CLIENTS:  # those that opened the connections, and the texts
                await asyncio.sleep(0.01)
                assert not asking.done(), "too late to stop"
            await asyncio.sleep(0.2)
            assert not asking.done(), "too late to stop"
            os.kill(server.pid, signal.SIGTERM)
            return await asking

        responses = asyncio.run(ask_and_stop())
        out, errors = server.communicate(60)
    finally:
        server.kill()
    assert server.returncode in (0, -signal.SIGTERM), (out, errors)
    encoder = fastbert.Encoder(encoder_folder)
    for texts, response in zip(requests, responses):
        np.testing.assert_allclose(vectors_of(response), encoder.embed(texts), atol=1e-5)
    with pytest.raises(ConnectionError):
        socket.create_connection(("127.0.0.1", port))


def wait_for(port: int, server: forked.Forked) -> None:
    deadline = time.monotonic() + 60
    while True:
        assert server.poll() is None, server.output()
        assert time.monotonic() < deadline, server.output()
        try:
            socket.create_connection(("127.0.0.1", port), timeout=10).close()
            return
        except ConnectionError:
            time.sleep(0.05)


@pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome is installed to open the page in")
def test_the_page_compares_texts_in_a_browser(serve, encoder_folder, tmp_path):
    encoder = fastbert.Encoder(encoder_folder)
    with running(serve, encoder, encoder_folder) as address:
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=10000", f"--user-data-dir={tmp_path}"]
        command = [BROWSER, *options, "--dump-dom", f"{address}/#compare"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(">1.00</td>") >= 4, done.stdout  # each text beside itself
    assert "tiny: 4 texts" in done.stdout
