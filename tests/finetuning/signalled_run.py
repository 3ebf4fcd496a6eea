"""`fastbert` that gets a real signal before a training step: SIGNAL STEP PROCESS and then the command's words."""

import os
import sys

from fastbert.cli.app import app
from fastbert.finetuning.trainer import FineTuner

if __name__ == "__main__":
    number, step, process, *words = sys.argv[1:]
    original = FineTuner.compute_loss

    def compute_loss(self, *args, **kwargs):
        if self.state.global_step == int(step) and os.environ.get("RANK", "0") == process:
            os.kill(os.getpid(), int(number))
        return original(self, *args, **kwargs)

    FineTuner.compute_loss = compute_loss
    app(words)
