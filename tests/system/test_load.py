"""The benchmark of the network runs: a server's process, and clients as coroutines without torch."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tests.pages import ROOT


@pytest.mark.system
def test_clients_without_torch_take_part_in_a_server_of_its_own_process() -> None:
    words = ["load", "--clients", "4", "--rounds", "1", "--steps", "3", "--batch", "2", "--mode", "lockstep"]
    script = ROOT / "benchmarks" / "network.py"
    done = subprocess.run([sys.executable, script, *words], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    (peak,) = re.findall(r"server: .* at most (\d+) MB", done.stdout)
    assert int(peak) < 500
