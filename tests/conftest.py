"""In which order tests are handed out, what a run has to mend first of where it was started, and what many share."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

# Where pytest has imported readline, its workers inherit the size of a terminal that tests do not write to.
for size in ("COLUMNS", "LINES"):
    os.environ.pop(size, None)

# Without a GPU its kernels are interpreted; triton asks as it is imported, which other libraries do.
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# A shell that starts a run in the background has it ignore interruptions: then no test of them could end.
signal.signal(signal.SIGINT, signal.default_int_handler)


_NUMBERS = itertools.count()  # of folders that are made only where they are written to


@pytest.fixture(autouse=True)
def _own_index(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test finds, or leaves, what this user's ledgers have spent on which images; temporary folders may vanish."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path_factory.getbasetemp() / "states" / str(next(_NUMBERS))))
    monkeypatch.setattr("codream_clients.privacy.volumes.MOUNTS", Path("/no/such/file"))


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Those over real sockets and of real processes first: few and long, and what comes last leaves other cores idle.

    With `--no-loadscope-reorder` files are handed out as they stand here; xdist's own order, by the number of tests in
    a file, has these last.
    """
    items.sort(key=lambda item: item.path.parent.name not in ("system", "scenarios"))


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Torch computes in one thread: the models of tests are small, and threads would only wait for each other."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
