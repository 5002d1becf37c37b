"""Where a deployed party has its randomness from: no module that it can reach seeds anything."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")


ROOMS = ("secure_codream", "codream_clients", "codream_server", "codream_protocols")


def reachable(*modules: str) -> set[str]:
    """Every module of the project that these import, at the top or in a function, directly or not."""
    found: set[str] = set()
    waiting = list(modules)
    while waiting:
        module = waiting.pop()
        spec = importlib.util.find_spec(module) if module not in found else None
        if spec is None or spec.origin is None:
            continue
        found.add(module)
        for node in ast.walk(ast.parse(Path(spec.origin).read_text("utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            for name in names:
                if name.partition(".")[0] in ROOMS and _is_module(name):
                    waiting.append(name)
    return found


def _is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # a name within a module
        return False


@pytest.mark.parametrize("party", ["secure_codream.deployment.server", "secure_codream.deployment.client"])
def test_no_deployed_party_can_seed_its_masks(party: str) -> None:
    """Randomness enters by one source, which simulations alone replace."""
    found = reachable(party)
    machine = f"codream_protocols.{party.rpartition('.')[2]}"
    assert {machine, "codream_protocols.charter", "codream_protocols.encoding"} <= found
    assert "codream_protocols.seeded" not in found
    assert "secure_codream.simulation.in_process" not in found


def test_control_simulations_can() -> None:
    assert "codream_protocols.seeded" in reachable("secure_codream.simulation.in_process")
