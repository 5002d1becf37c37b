"""The tutorial, typed as it stands."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

pytest.importorskip("torch")

from tests.pages import ROOT, Walkthrough


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


@pytest.mark.system
def test_the_tutorial_leads_from_nothing_to_a_prediction(tmp_path: Path) -> None:
    folder = tmp_path / "first"
    folder.mkdir()
    page = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
    Walkthrough(folder, home="/home/you/first", replaced={"7447": free_port()}).follow(page)
