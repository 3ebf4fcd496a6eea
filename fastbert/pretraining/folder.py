"""Whether a folder may be written to by a pre-training; told without loading a library."""

from pathlib import Path

from fastbert.training import checkpoints
from fastbert.utils.existing_outputs import refuse_existing_folder, visible_names

OPTIONS = "run.json"


def is_started(out: Path, last_checkpoint: str, resume: bool, overwrite: bool) -> bool:
    """Whether `out` holds a run to continue. last_checkpoint: the name of that with which it is finished.

    Raises InputError where a new run may not write there.
    """
    found = checkpoints.all_of(out)
    is_own = bool(found) or OPTIONS in visible_names(out)
    is_finished = any(path.name == last_checkpoint for path in found)
    return refuse_existing_folder(out, "pretrain", is_own, is_finished, resume, overwrite)
