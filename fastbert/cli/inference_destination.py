"""Where a command of inference writes, and what is refused before a model, or a library, is loaded."""

from pathlib import Path
from typing import NamedTuple

from fastbert.inference.inputs import Source
from fastbert.inference.outputs import check_name, refuse_existing
from fastbert.inference.rows import Row
from fastbert.utils.errors import InputError
from fastbert.utils.existing_outputs import check_flags, require_place
from fastbert.utils.folders import check_folder
from fastbert.utils.locks import refuse_busy_file

NPY = ".npy"


class Destination(NamedTuple):
    """out: the file to write, or None to print. resume, overwrite: the options of those names.

    vectors: whether the file may be .npy.
    """

    out: Path | None
    resume: bool
    overwrite: bool
    vectors: bool = False

    @property
    def is_npy(self) -> bool:
        return self.vectors and self.out is not None and self.out.suffix == NPY

    def check(self, rows: list[Row] | Source, model: str | None) -> None:
        """Raises InputError where the file cannot be written, or the checkpoint cannot be one. model: None for a default."""
        check_flags(self.resume, self.overwrite)
        if self.out is not None:
            check_name(self.out, self.is_npy)
        if self.resume and (self.out is None or not isinstance(rows, Source) or rows.file is None):
            raise InputError("expected --file and --out beside --resume")
        if self.overwrite and self.out is None:
            raise InputError("expected --out beside --overwrite")
        if self.out is not None:
            require_place(self.out, file=True)
            refuse_busy_file(self.out)
            refuse_existing(self.out, self.resume, self.overwrite)
        if model is not None:
            check_folder(model)
