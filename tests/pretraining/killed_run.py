"""`fastbert` with a real SIGKILL: PLACE COUNT PROCESS and then the command's words. See `small_runs.PLACES`."""

import os
import signal
import sys

from fastbert.cli.app import app
from tests.pretraining.small_runs import end_at

if __name__ == "__main__":
    place, count, process, *words = sys.argv[1:]
    if os.environ.get("RANK", "0") == process:
        end_at(place, int(count), lambda: os.kill(os.getpid(), signal.SIGKILL))
    app(words)
