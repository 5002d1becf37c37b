"""The tutorial, typed as it stands."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")

from tests.pages import ROOT, Walkthrough, free_port


@pytest.mark.exhaustive
@pytest.mark.system
def test_the_tutorial_leads_from_nothing_to_a_prediction(tmp_path: Path) -> None:
    folder = tmp_path / "first"
    folder.mkdir()
    page = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
    Walkthrough(folder, home="/home/you/first", replaced={"7447": free_port()}).follow(page)
