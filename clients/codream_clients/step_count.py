"""How many steps a client has answered in its life, kept across its processes: what `most_total_steps` counts."""

import os
from pathlib import Path


class StepCount:
    """A file of one byte a step, so that a crash can neither tear a number nor lose a step that was answered.

    It is the client's own file: it binds the server, which may make a client start again, not the client's machine.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    @property
    def steps(self) -> int:
        """Steps begun so far, in all processes."""
        return self._path.stat().st_size if self._path.exists() else 0

    def add(self) -> None:
        """Count one step, on the disk before it returns; raises `OSError` where that cannot be had."""
        with self._path.open("ab") as file:
            file.write(b".")
            file.flush()
            os.fsync(file.fileno())
