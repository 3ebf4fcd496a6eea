"""A map over worker processes that keeps the order and reads only a few items ahead."""

import os
import signal
from collections import deque
from collections.abc import Callable, Generator, Iterable
from typing import Any


def num_cores() -> int:
    """The cores that this process may use, where the system knows."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def map_in_order(
    task: Callable[[Any], Any], items: Iterable[tuple[Any, Any]], workers: int
) -> Generator[tuple[Any, Any], None, None]:
    """(key, task(item)) for each (key, item), in order, in `workers` processes, or in this one for a single worker.

    Raises what the task raises, and ChildProcessError where a process died.
    """
    if workers == 1:
        for key, item in items:
            yield key, task(item)
        return
    from concurrent.futures import Future, ProcessPoolExecutor
    from concurrent.futures.process import BrokenProcessPool
    from multiprocessing import get_context

    pending: deque[tuple[Any, Future]] = deque()
    # Spawned, not forked: this process may hold threads and locks of other libraries.
    executor = ProcessPoolExecutor(workers, get_context("spawn"), _start_worker, (task,))
    try:
        for key, item in items:
            pending.append((key, executor.submit(_run_task, item)))
            if len(pending) > workers + 1:
                key, future = pending.popleft()
                yield key, future.result()
        while pending:
            key, future = pending.popleft()
            yield key, future.result()
    except BrokenProcessPool as error:
        raise ChildProcessError("a worker process ended by itself, perhaps for lack of memory: try fewer workers") from error
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


_task: Callable[[Any], Any] | None = None  # of this worker process


def _start_worker(task: Callable[[Any], Any]) -> None:
    global _task
    _task = task
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the first one decides
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def _run_task(item: Any) -> Any:
    assert _task is not None
    return _task(item)
