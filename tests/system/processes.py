"""A provisioned federation as real processes, from the first to the last."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

SECURE_CODREAM = [sys.executable, "-m", "secure_codream"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def client_command(folder: Path, endpoint: str, *options: str) -> list[str | Path]:
    """How a person starts a client."""
    return [*SECURE_CODREAM, "client", folder, "--address", endpoint, "--threads", "1", *options]


def in_its_folder(folder: Path, endpoint: str) -> list[str | Path]:
    """A client that is started in its own folder, where code of its own is found: `hospital.py` tells them apart."""
    return ["env", "-C", folder, *client_command(folder, endpoint)]


def run_federation(
    folder: Path,
    names: Sequence[str],
    command: Callable[[Path, str], list[str | Path]] = client_command,
    *,
    cwd: Path | None = None,
) -> list[int]:
    """Start the server of `folder` and these clients, wait for all; the exit codes, the server's first."""
    (folder / "server" / "endpoint").unlink(missing_ok=True)
    running = [subprocess.Popen([*SECURE_CODREAM, "server", folder / "server", "--listen", "tcp://127.0.0.1:*"])]
    try:
        while not (folder / "server" / "endpoint").exists():
            assert running[0].poll() is None
            time.sleep(0.05)
        endpoint = (folder / "server" / "endpoint").read_text()
        for name in names:
            start = command(folder / "clients" / name, endpoint)
            running.append(subprocess.Popen(start, env=ENVIRONMENT, cwd=cwd))
        return [process.wait(timeout=900) for process in running]
    finally:
        for process in running:
            process.kill()
            process.wait()
