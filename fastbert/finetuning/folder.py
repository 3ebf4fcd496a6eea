"""Whether a folder may be written to by a fine-tuning; told without loading a library."""

from pathlib import Path

from fastbert.utils.existing_outputs import refuse_existing_folder, visible_names

REPORT = "report.json"
IDENTITY = "finetune.json"  # the options and the data, for --resume


def is_started(out: Path, resume: bool, overwrite: bool) -> bool:
    """Whether `out` holds a fine-tuning to continue. Raises InputError where a new one may not write there."""
    names = visible_names(out)
    return refuse_existing_folder(out, "finetune", IDENTITY in names, REPORT in names, resume, overwrite)
