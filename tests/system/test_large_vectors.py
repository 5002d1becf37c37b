"""Vectors beyond what one message carries, between processes: they arrive, and neither side holds many of them."""

from __future__ import annotations

import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Literal

import pytest

from tests.pages import ROOT
from tests.system import large

LENGTH = 256 * 3 * 224 * 224


@pytest.mark.exhaustive
def test_vectors_of_38_million_coordinates_take_four_vectors_of_memory_at_most(tmp_path: Path) -> None:
    server, *clients = vectors_held(tmp_path, length=LENGTH, steps=1)
    assert server <= 4 and max(clients) <= 4, (server, clients)


def vectors_held(
    folder: Path, *, length: int, steps: int, members: int = 3, mode: Literal["lockstep", "resilient"] = "lockstep"
) -> list[float]:
    """What server and clients held at most above what they began with, in vectors of 4 bytes a coordinate."""
    large.make(folder, members=members, length=length, steps=steps, mode=mode)
    with ExitStack() as running:

        def start(*words: str) -> subprocess.Popen[str]:
            screen = running.enter_context((folder / f"{words[0]}.screen").open("w"))
            command = [sys.executable, "-m", "tests.system.large", words[0], str(folder), *words[1:]]
            process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=screen, text=True)
            running.callback(process.kill)
            return process

        server = start("server")
        assert server.stdout is not None
        address = server.stdout.readline().strip()
        parties = [server, *(start(str(member), address) for member in range(members))]
        said = [party.communicate(timeout=1500)[0] for party in parties]
        assert [party.returncode for party in parties] == [0] * len(parties), [
            (folder / f"{name}.screen").read_text()[-2000:] for name in ("server", *map(str, range(members)))
        ]
    return [int(words.split()[-1]) / (4 * length) for words in said]


if __name__ == "__main__":
    import tempfile
    import time

    with tempfile.TemporaryDirectory() as place:
        began = time.monotonic()
        size = {"length": int(sys.argv[1]), "steps": int(sys.argv[2]), "members": int(sys.argv[3])}
        print(vectors_held(Path(place), **size, mode=sys.argv[4]), time.monotonic() - began)
