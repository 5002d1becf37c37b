"""docs/three-sites.md, typed as it stands, by three sites, an administrator and an aggregator."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")

from tests.pages import ROOT, Walkthrough, free_port


@pytest.mark.system
@pytest.mark.exhaustive
def test_three_sites_get_from_keys_to_a_prediction_by_the_guide(tmp_path: Path) -> None:
    folder = tmp_path / "study"
    folder.mkdir()
    port = free_port()
    Walkthrough(
        folder,
        home="/home/you/study",
        replaced={"aggregator.example:7447": f"127.0.0.1:{port}", "7447": port},
        others=("alice", ("bob", "carol")),
    ).follow((ROOT / "docs" / "three-sites.md").read_text(encoding="utf-8"))
    for name in ("alice", "bob", "carol"):
        table = (folder / "sites" / name / "predicted.csv").read_text().splitlines()
        assert len(table) == 1 + sum(1 for _ in (folder / "sites" / name / "later").rglob("*.png"))
