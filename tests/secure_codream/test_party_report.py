"""The pages of a server and of a site, from their folders as they stand."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from secure_codream import cli
from secure_codream.reports.files import MalformedRecord, MissingRecord
from secure_codream.reports.party_report import write_party_report
from secure_codream.reports.status import Person, Status, replace_status

MEMBERS = ["a<b", "carol"]


def status(party: str, **more: Any) -> Status:
    return Status(
        party=party,
        federation="study & more",
        charter="ab" * 32,
        process=1,
        began=0.0,
        written=9.0,
        phase="idle",
        certified=3,
        epochs=4,
        **more,
    )


def line(event: str, **fields: Any) -> str:
    return json.dumps({"time": 1.0, "event": event, **fields}) + "\n"


def round_finished(number: int, accuracy: float | None) -> str:
    metrics = {"accuracy": accuracy}
    return line("round_finished", round=number, metrics=metrics, metrics_round=number, head=f"{number:064x}")


@pytest.fixture
def server(tmp_path: Path) -> Path:
    replace_status(tmp_path, status("server", members=tuple(Person(name=name, present=True) for name in MEMBERS)))
    step = {"task": "update", "survivors": MEMBERS, "dropped": [], "path": "fast", "entropy": 1.0, "clipped": 0.0}
    (tmp_path / "events.jsonl").write_text(
        line("federation_started", clients=MEMBERS, rounds=4, steps_per_round=1)
        + line("client_lost", client="carol")
        + line("client_joined", client="carol")
        + line("step_finished", round=0, step=0, seconds=0.5, bytes_up=1000, bytes_down=2000, **step)
        + round_finished(0, 0.5)
        + line("step_finished", round=1, step=0, seconds=0.5, bytes_up=3000, bytes_down=4000, **step)
        + round_finished(1, 0.75)
    )
    (tmp_path / "rounds").mkdir()
    rng = np.random.default_rng(0)
    images, labels = rng.random((6, 1, 8, 8), dtype=np.float32), rng.random((6, 3), dtype=np.float32)
    np.savez(tmp_path / "rounds" / "round-000.npz", dreams=images, soft_labels=labels)
    return tmp_path


@pytest.fixture
def site(tmp_path: Path) -> Path:
    folder = tmp_path / "site"
    folder.mkdir()
    replace_status(folder, status("carol"))
    figures: dict[str, Any] = {
        "held_back": True,
        "judged_by": 20,
        "best_accuracy": 0.8,
        "worse": False,
        "rolled_back": False,
    }
    (folder / "metrics.jsonl").write_text(
        line("metrics", rounds=0, accuracy=0.1, held_accuracy=0.1, **figures)  # of a training that began anew
        + line("metrics", rounds=0, accuracy=0.61, held_accuracy=0.7, **figures)
        + line("metrics", rounds=1, accuracy=0.64, held_accuracy=0.5, **{**figures, "worse": True, "rolled_back": True})
        + line("metrics", rounds=2, accuracy=0.83, held_accuracy=0.8, **figures)
    )
    return folder


def words(page: Path) -> str:
    text = re.sub(r"<style>.*?</style>", "", page.read_text(), flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]+>", " ", text).replace("\N{NO-BREAK SPACE}", " ").split())


def test_a_servers_page_tells_sums_and_who_was_there(server: Path) -> None:
    said = words(write_party_report(server))
    assert "study &amp; more: the aggregator" in said and "3 of 4 epochs are certified" in said
    assert "accuracy was 50.0 % after training alone and 75.0 % after round 1" in said
    assert "a&lt;b, carol" in said and "carol no longer answered" in said and "carol is back" in said
    assert "3.0 kB" in said and "4.0 kB" in said and f"{1:064x}" in said
    assert (server / "report.html").read_text().count('<img src="data:') == 6


def test_a_sites_page_tells_its_own_figures_since_its_newest_training(site: Path) -> None:
    said = words(write_party_report(site))
    assert "study &amp; more: carol" in said and "nothing of it is sent" in said
    assert "On test images this site reached 61.0 % alone, and 83.0 % now." in said
    assert "round 1 64.0 % 50.0 % rolled back" in said and "10.0 %" not in said
    assert "20 images of its own are held back from training" in said


def test_pages_load_nothing_from_elsewhere(server: Path, site: Path) -> None:
    for page in (write_party_report(server), write_party_report(site)):
        assert (
            not re.findall(r"""(?:src|href)=["'](?!data:|#)""", page.read_text()) and "<script" not in page.read_text()
        )


def test_parts_that_are_missing_are_said_and_damaged_ones_refused(site: Path, server: Path) -> None:
    (site / "metrics.jsonl").unlink()
    assert "measured nothing yet" in words(write_party_report(site))
    (site / "metrics.jsonl").write_text("{]\n")
    with pytest.raises(MalformedRecord, match="line 1"):
        write_party_report(site)
    (server / "rounds" / "round-000.npz").unlink()
    assert "holds no dreams" in words(write_party_report(server))
    (server / "status.json").unlink()
    with pytest.raises(MissingRecord):
        write_party_report(server)


def test_the_command_writes_a_partys_page(site: Path) -> None:
    done = CliRunner().invoke(cli.app, ["report", str(site)])
    assert done.exit_code == 0 and str(site / "report.html") in done.stdout.replace("\n", "")
