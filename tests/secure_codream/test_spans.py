"""Where the time goes: spans of a process, the share of the sum in them, and a round as a picture."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from codream_protocols import packing
from codream_protocols.masks import add_mask
from codream_protocols.spans import part_of_sum, watch
from codream_protocols.tag import TagKey
from secure_codream import cli
from secure_codream.bench.results import SHARES, Bench, page
from secure_codream.deployment.spans import watched
from secure_codream.reports.events import Event, RoundFinished, StepStarted
from secure_codream.reports.spans import SPANS, Span, Spans, Total, read_spans, round_view, shares_of, write_spans
from tests.pages import ROOT


def party(start: float, *names: str) -> Spans:
    """A party that did these things for half a second each, one a second."""
    total = Total(times=1, processor=0.25, clock=0.5)
    latest = [Span(name, start + at, 0.5) for at, name in enumerate(names)]
    return Spans(processor=10.0, totals=dict.fromkeys(names, total), latest=latest)


def test_a_party_keeps_what_its_machines_did_and_what_is_within_another_part_counts_once(tmp_path: Path) -> None:
    vector = np.zeros(3000, dtype="<u2")

    @part_of_sum("unmasking")
    def take_off() -> None:
        add_mask(vector, bytes(32), suite="chacha20")

    with watched(tmp_path, True) as spent:
        assert spent.learner(object()) is not None
        take_off()
        thread = threading.Thread(target=lambda: packing.unpack(packing.pack(vector, 16), 3000, 16))
        thread.start()
        thread.join()
        TagKey(bytes(32), 3000).of(vector)
    packing.pack(vector, 16)  # nobody watches any more
    found = read_spans(tmp_path)
    assert {name: total.times for name, total in found.totals.items()} == {"unmasking": 1, "packing": 2, "tags": 1}
    assert [span.name for span in found.latest] == ["unmasking", "packing", "packing", "tags"]
    assert found.processor >= sum(total.processor for total in found.totals.values()) > 0


def test_a_run_that_fails_is_kept_and_watched_no_longer(tmp_path: Path) -> None:
    with pytest.raises(KeyError), watched(tmp_path, True):
        raise KeyError
    assert read_spans(tmp_path).totals == {}
    with watched(tmp_path / "nowhere", False) as spent:
        learner = object()
        assert spent.learner(learner) is learner
    assert not (tmp_path / "nowhere").exists()


def test_a_watcher_is_told_the_part_and_no_other_is() -> None:
    told: list[str] = []

    def watcher(name: str) -> threading.Lock:
        told.append(name)
        return threading.Lock()

    watch(watcher)
    try:
        add_mask(np.zeros(4, dtype="<u2"), bytes(32), suite="chacha20")
    finally:
        watch(None)
    add_mask(np.zeros(4, dtype="<u2"), bytes(32), suite="chacha20")
    assert told == ["masking"]


def test_shares_are_of_all_processor_time_and_the_round_drawn_is_the_last_that_is_whole() -> None:
    spans = {"server": party(1002.5, "packing"), "alice": party(1000, "computing", "encoding", "masking", "learning")}
    shares = shares_of("night", spans)
    assert shares.share == pytest.approx(0.75 / 20) and shares.parts["packing"] == 0.25 and shares.parties == 2
    events: list[Event] = []
    for number in range(3):  # one before anything that is kept, one whole, one that is running
        begun = StepStarted(time=998 + 5.0 * number, round=number, step=0, task="update")
        events += [begun, RoundFinished(time=begun.time + 4, round=number, metrics={}, learnt=number < 2)]
    assert round_view("night", spans, events[:2]) is None
    view = round_view("night", {name: party(1000, *one.totals) for name, one in spans.items()}, events)
    assert view is not None and view.number == 1 and view.seconds == 5
    bars = {row.name: dict(row.bars) for row in view.rows}
    assert bars["alice"]["learning"] == [(0.0, 10.0)] and bars["alice"]["sum"] == [] == bars["server"]["computing"]


def test_a_bench_says_the_shares_of_runs_and_refuses_a_run_without_spans(tmp_path: Path) -> None:
    for folder in (tmp_path / "run" / "server", tmp_path / "run" / "clients" / "alice"):
        folder.mkdir(parents=True)
        write_spans(folder, party(0, "tags"))
    small = [
        "bench",
        "--members",
        "3",
        "--dimension",
        "5",
        "--bits",
        "16",
        "--steps",
        "1",
        "--no-plot",
        "--modes",
        "lockstep",
    ]
    words = [*small, "--out", str(tmp_path / "out"), "--run", str(tmp_path / "run")]
    done = CliRunner().invoke(cli.app, [*words, "--write-document", str(tmp_path / "page.md")])
    assert done.exit_code == 0, done.output
    assert "| run | 2 | 20.0 s | 0 | 0 | 500 | 0 | 0 | 0.0250 |" in (tmp_path / "page.md").read_text(encoding="utf-8")
    (tmp_path / "run" / "server" / SPANS).unlink()
    assert CliRunner().invoke(cli.app, words).exit_code == 2


def test_the_document_tells_what_the_sum_takes_beside_the_learning() -> None:
    kept = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    assert SHARES.split("{table}", maxsplit=1)[0] in kept
    machine = {"processor": "P", "generator": "G", "generator_speed": 1.0, "memory_speed": 2.0}
    assert "Beside the learning" not in page(Bench((), (), machine, {}, 1, "2026-01-02"), "")
