"""`secure-codream bench`: one object with rows of one shape, limits that are counted as said, and a page from it."""

from __future__ import annotations

import re
import tracemalloc
from collections.abc import Callable
from json import loads
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from secure_codream import cli
from secure_codream.bench import ours
from secure_codream.bench.limits import Limits
from secure_codream.bench.ours import Case, Costs, run_case
from secure_codream.bench.results import PAGE, Bench, Row, Wall, page
from secure_codream.bench.run import cases_of, rows_of
from secure_codream.deployment.cores import usable_cores
from tests.pages import ROOT

LIMITS = Limits("AES-256-CTR", generator_speed=1e9, memory_speed=1e10)


def test_json_is_one_object_with_the_fields_of_every_row(tmp_path: Path) -> None:
    words = [
        "bench",
        "--members",
        "4",
        "--dimension",
        "50",
        "--bits",
        "16",
        "--dropped",
        "0,1",
        "--steps",
        "1",
        "--no-plot",
        "--json",
    ]
    done = CliRunner().invoke(cli.app, [*words, "--out", str(tmp_path), "--write-document", str(tmp_path / "p.md")])
    assert done.exit_code == 0, done.output
    found = loads(done.stdout)
    names = {"what", "mode", "n", "d", "m", "dropped", "ours", "flower", "limit", "unit"}
    assert all(set(row) == names for row in [*found["rows"], *found["sending"]])
    shapes = {(row["mode"], row["dropped"]) for row in found["rows"]}
    assert shapes == {("lockstep", 0), ("resilient", 0), ("resilient", 1)}
    if usable_cores() > 1:
        assert {(wall["what"], wall["mode"]) for wall in found["walls"]} == {
            (what, mode) for what in ("sending", "server_add") for mode in ("lockstep", "resilient")
        }
        assert all(wall["one"] > 0 < wall["two"] for wall in found["walls"])
    kinds = {row["what"] for row in found["rows"]}
    assert kinds == {"client_step", "server_add", "unmask", "setup", "bytes_up", "bytes_down"}
    assert all(row["flower"] is None and row["ours"] > 0 for row in found["rows"])
    assert "| a client's step | lockstep | 4 | 50 | 16 | 0 |" in (tmp_path / "p.md").read_text(encoding="utf-8")
    (kept,) = tmp_path.glob("*-bench/bench.json")
    assert loads(kept.read_text(encoding="utf-8")) == found


def test_bytes_up_hold_the_vector_and_a_share_of_the_set_up() -> None:
    costs = {steps: run_case(Case("lockstep", 3, 4000, 16, 0, "allow", steps)) for steps in (1, 4)}
    assert 8000 < costs[4].up < costs[1].up < 8000 + 10_000
    assert costs[4].unmasking is None and costs[4].summed == 3


def test_no_side_of_a_step_holds_more_than_four_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    """In vectors of 4 bytes a coordinate, above what it held before; in rings of both word sizes."""
    length, peaks, timed = 300_000, list[float](), ours._timed

    def watched(work: Callable[[], Any], clock: Callable[[], float]) -> Any:
        held = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        found = timed(work, clock)
        peaks.append((tracemalloc.get_traced_memory()[1] - held) / (4 * length))
        return found

    monkeypatch.setattr(ours, "_timed", watched)
    tracemalloc.start()
    try:
        for bits in (16, 18):
            run_case(Case("lockstep", 3, length, bits, 0, "allow", 1))
    finally:
        tracemalloc.stop()
    assert 2 < max(peaks) <= 4


def test_limits_count_the_streams_of_a_step_and_of_those_who_dropped() -> None:
    costs = Costs(sending=4.0, checking=1.0, adding=1.0, unmasking=9.0, setup=1.0, up=1.0, down=1.0, summed=8)
    rows, sending = rows_of(Case("resilient", 10, 1000, 16, 2, "allow", 1), costs, {"unmask": 90.0}, LIMITS)
    by_what = {row.what: row for row in rows}
    assert by_what["client_step"].limit == pytest.approx(10 * 2000 / 1e6)  # 9 others and the self mask
    assert by_what["unmask"].limit == pytest.approx((8 + 2 * 8) * 2000 / 1e6)
    assert by_what["server_add"].limit == pytest.approx((2000 + 4000) / 1e7)
    assert by_what["bytes_up"].limit == 2000 and by_what["setup"].limit is None
    assert by_what["client_step"].ours == 5.0 and sending.ours == 4.0 and by_what["unmask"].flower == 90.0


def test_a_page_says_how_often_less_and_how_near_the_limit() -> None:
    row = Row("client_step", "lockstep", 20, 10**6, 16, 0, 10.0, 75.0, 2.5, "ms")
    part = Row("sending", "lockstep", 20, 10**6, 16, 0, 5.0, None, 2.5, "ms")
    machine = {"processor": "P", "generator": "G", "generator_speed": 1.0, "memory_speed": 2.0}
    wall = Wall("sending", "lockstep", 20, 10**6, 16, 5.0, 2.5)
    text = page(Bench((row,), (part,), machine, {"numpy": "2"}, 10, "2026-01-02", walls=(wall,)), "--members 20")
    assert "| lockstep | 20 | 1,000,000 | 16 | 5 ms | 2.5 ms | 2.00 |" in text
    assert "| 10 ms | 75 ms | 7.5 | 2.5 ms | 0.25 |" in text and "| 5 ms |  |  | 2.5 ms | 0.50 |" in text
    assert "bench --members 20 --write-document docs/performance.md` on 2026-01-02" in text


def test_the_document_says_what_the_command_would_say() -> None:
    kept = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    assert [words for words in re.split(r"\{[^}]*\}", PAGE) if words.strip() not in kept] == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"bits": [5]}, "2 to 24"),
        ({"lengths": [0]}, "d = 0"),
        ({"drops": [18], "modes": ["resilient"]}, "20 members, of whom 18 fall silent; 3 or more"),
        ({"clients": [2], "bits": [16]}, "2 members, of whom 0"),
        ({"drops": [1], "modes": ["lockstep"]}, "waits for all"),
    ],
)
def test_what_cannot_be_run_is_refused_before_anything_is(change: dict[str, object], said: str) -> None:
    asked = {"modes": ["lockstep"], "clients": [20], "lengths": [10], "bits": [16], "drops": [0], **change}
    with pytest.raises(ValueError, match=said):
        cases_of(**asked, losses="allow", steps=1)
