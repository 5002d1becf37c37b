"""The live panel and the table of results, drawn as text."""

from __future__ import annotations

import io
from datetime import UTC, datetime
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console, RenderableType

from secure_codream.reports.panel import LivePanel, result_table, sparkline
from secure_codream.reports.summary import Accuracy, CoDreamAccuracy, IndependentAccuracy, Summary, Timing, Traffic
from secure_codream.reports.words import format_bytes

NAMES = ["alder", "birch", "cedar", "damson", "elder"]


def drawn(renderable: RenderableType, width: int, encoding: str = "utf-8") -> str:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    console = Console(file=file, width=width, force_terminal=True, color_system=None, legacy_windows=False)
    with console.capture() as capture:
        console.print(renderable)
    capture.get().encode(encoding)
    return capture.get()


def started(names: list[str] | None = None) -> dict[str, Any]:
    return {
        "time": 0.0,
        "event": "federation_started",
        "clients": names or NAMES,
        "rounds": 4,
        "steps_per_round": 12,
    }


def step(
    number: int, step: int, *, dropped: list[str] | None = None, names: list[str] | None = None
) -> list[dict[str, Any]]:
    lost = dropped or []
    head = {"time": 1.0, "round": number, "step": step, "task": "update"}
    return [
        head | {"event": "step_started"},
        head
        | {
            "event": "step_finished",
            "survivors": [name for name in names or NAMES if name not in lost],
            "dropped": lost,
            "path": "dropout" if lost else "fast",
            "seconds": 0.06,
            "entropy": 2.2 * 0.75**step,
            "clipped": 0.01,
            "bytes_up": 535_000 * (12 * number + step + 1),
            "bytes_down": 800_000 * (12 * number + step + 1),
        },
    ]


def part_of_a_run() -> list[dict[str, Any]]:
    """Up to step 7 of round 3, with a client lost in it."""
    events = [started()]
    for number in range(2):
        events.append({"time": 1.0, "event": "epoch_started", "round": number, "epoch": number, "cohort": NAMES})
        for i in range(12):
            events += step(number, i)
        metrics = {"accuracy": 0.62 + 0.1 * number}
        finished = {"time": 2.0, "event": "round_finished", "round": number, "metrics": metrics}
        events.append(finished | {"metrics_round": number, "learnt": True})
    events.append({"time": 3.0, "event": "epoch_started", "round": 2, "epoch": 2, "cohort": NAMES})
    for i in range(6):
        if i == 4:
            events.append({"time": 3.0, "event": "client_lost", "client": "damson"})
        events += step(2, i, dropped=["damson", "elder"] if i > 3 else [])
    return [*events, step(2, 6)[0]]


def fed(events: list[dict[str, Any]], **settings: Any) -> LivePanel:
    panel = LivePanel(clock=iter(range(0, 100_000, 7)).__next__, **settings)
    for event in events:
        panel.feed(event)
    return panel


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_panel_fits_and_says_all(width: int) -> None:
    text = drawn(fed(part_of_a_run()), width)
    assert all(cell_len(line) <= width for line in text.splitlines())
    if width >= 80:
        for words in ("3 of 4", "step 7 of 12", "dream update", "3 of 5", "lost: damson", "dropout path", "nats"):
            assert words in text
        assert "16.1 MB up" in text and "elder" not in text
        assert "62.0%, 72.0%" in text
        assert len(text.splitlines()) == 8


def test_panel_keeps_its_height() -> None:
    panel = LivePanel(clock=lambda: 0.0)
    heights = set()
    for event in part_of_a_run():
        panel.feed(event)
        heights.add(len(drawn(panel, 80).splitlines()))
    assert len(heights) == 1


def test_phase_before_the_start() -> None:
    panel = LivePanel(clock=lambda: 0.0)
    panel.phase("starting 5 clients")
    panel.feed({"time": 0.0, "event": "client_joined", "client": "alder"})
    text = drawn(panel, 80)
    assert "starting 5 clients" in text and "alder" in text


def test_panel_on_an_ascii_terminal() -> None:
    drawn(fed(part_of_a_run()), 80, encoding="ascii")


def test_hostile_names_are_text() -> None:
    evil = ["[bold red]x[/]", "\x1b[2Jclear", "a\rb\nc", "n" * 300]
    lost = [{"time": 1.0, "event": "client_lost", "client": name} for name in evil[:3]]
    panel = fed([started(evil), *lost, *step(0, 0, names=evil, dropped=evil[:3])])
    text = drawn(panel, 80)
    assert "[bold red]x[/]" in text
    assert "\x1b[2J" not in text and "\r" not in text
    assert all(cell_len(line) <= 80 for line in text.splitlines())


def test_plain_lines_without_a_terminal() -> None:
    file = io.StringIO()
    with LivePanel(Console(file=file, width=80), clock=lambda: 0.0) as panel:
        panel.phase("starting 5 clients")
        for event in part_of_a_run():
            panel.feed(event)
        panel.feed({"time": 3.5, "event": "client_lost", "client": "[red]\x1b[2J"})
        panel.feed({"time": 4.0, "event": "federation_finished", "rounds": 4})
    lines = file.getvalue().splitlines()
    assert lines == [
        "starting 5 clients",
        "5 clients, 4 rounds of 12 secure steps",
        "round 1 of 4; 5 of 5 clients; entropy 2.20 to 0.09; mean accuracy alone 62.0%; 6.4 MB up, 9.6 MB down; 00:00",
        "round 2 of 4; 5 of 5 clients; entropy 2.20 to 0.09; mean accuracy after 1 round 72.0%; 12.8 MB up, "
        "19.2 MB down; 00:00",
        "lost damson",
        "not in the sum, with their block: damson, elder",
        "lost [red]?[2J",
        "finished 4 rounds in 00:00",
    ]


def test_live_on_a_terminal_ends_cleanly() -> None:
    file = io.StringIO()
    console = Console(file=file, width=80, force_terminal=True, legacy_windows=False)
    with pytest.raises(KeyboardInterrupt), LivePanel(console) as panel:
        panel.feed(started())
        raise KeyboardInterrupt
    assert "Secure CoDream" in file.getvalue()
    assert file.getvalue().rstrip().endswith("\x1b[?25h"), "the cursor is shown again"


def test_unknown_events_are_passed_over_and_malformed_ones_refused() -> None:
    panel = fed([started()])
    panel.feed({"time": 1.0, "event": "weather"})
    with pytest.raises(ValueError, match="step"):
        panel.feed({"time": 1.0, "event": "step_started", "round": 0, "task": "update"})


def test_client_that_returns_is_no_longer_lost() -> None:
    lost = {"time": 1.0, "event": "client_lost", "client": "birch"}
    panel = fed([started(), lost, *step(0, 0, dropped=["birch"])])
    assert "lost: birch" in drawn(panel, 80)
    for event in step(0, 1):
        panel.feed(event)
    assert "lost" not in drawn(panel, 80)


def test_nobody_is_in_a_sum_before_anybody_is_there() -> None:
    panel = fed([started()])
    text = drawn(panel, 80)
    assert "waiting for the clients" in text and "0 of 5 there" in text and "in the sum" not in text
    panel.feed({"time": 0.0, "event": "client_joined", "client": "alder"})
    assert "1 of 5 there" in drawn(panel, 80)
    for event in step(0, 0):
        panel.feed(event)
    assert "5 of 5 in the sum" in drawn(panel, 80)


def test_refusals_that_a_late_message_comes_to_are_no_alarm() -> None:
    refused = {"time": 1.0, "event": "refused", "client": "alder", "code": "hello-needed", "by": "server"}
    panel = fed([started(), refused])
    assert "refusals" not in drawn(panel, 80)
    panel.feed(refused | {"code": "bad-signature"})
    assert "refusals: 1" in drawn(panel, 80)


def test_who_joins_who_was_last_heard_when_and_what_was_refused_are_said_in_lines() -> None:
    file = io.StringIO()
    refused = {"time": 1.0, "event": "refused", "client": "alder", "code": "bad-signature", "by": "server"}
    with LivePanel(Console(file=file, width=80), clock=lambda: 0.0) as panel:
        panel.feed(started())
        for name in NAMES[:2]:
            panel.feed({"time": 0.0, "event": "client_joined", "client": name})
        panel.feed(waiting(["birch", "cedar"]) | {"heard": {"birch": 14.2}})
        panel.feed(refused | {"found": "an\x1b[2J echo", "allowed": "the roster's"})
        panel.feed(
            refused | {"by": "client", "code": "policy", "found": "private", "allowed": "what its policy permits"}
        )
        panel.feed(refused | {"code": "hello-needed"})
    assert file.getvalue().splitlines()[1:] == [
        "alder joined: 1 of 5",
        "birch joined: 2 of 5",
        "waiting for birch (last heard 00:14 ago), cedar, lost, 01:15",
        "refused: alder, bad-signature; found an?[2J echo; allowed the roster's",
        "alder refuses: policy; it takes what its policy permits; its own screen says why",
    ]


def given_up(number: int = 1, epoch: int = 1, reason: str = "damson was lost") -> dict[str, Any]:
    return {"time": 3.0, "event": "epoch_given_up", "round": number, "epoch": epoch, "reason": reason}


def waiting(lost: list[str], phase: str = "collecting", seconds: float = 75.0) -> dict[str, Any]:
    return {
        "time": 3.0, "event": "waiting", "clients": NAMES[:2], "lost": lost, "phase": phase, "seconds": seconds,
    }  # fmt: skip


def test_epoch_that_is_given_up_and_who_is_waited_for_are_said() -> None:
    panel = fed([*part_of_a_run(), {"time": 2.0, "event": "client_lost", "client": "damson"}, waiting(["damson"])])
    assert "waiting for damson, lost, 01:15" in drawn(panel, 100)
    panel.feed(given_up())
    text = drawn(panel, 100)
    assert "starting again: damson was lost" in text and "step 7" not in text
    panel.feed({"time": 3.0, "event": "client_joined", "client": "damson"})
    assert "lost: damson" not in drawn(panel, 100)


def test_a_server_that_goes_on_in_a_running_epoch_says_so() -> None:
    resumed = {"time": 4.0, "event": "epoch_resumed", "round": 2, "epoch": 4, "step": 6, "phase": "collecting"}
    assert "going on in round 3, at step 7" in drawn(fed([*part_of_a_run(), resumed]), 100)
    assert "at step" not in drawn(fed([*part_of_a_run(), {**resumed, "step": None, "phase": "voting"}]), 100)


def test_slow_clients_are_not_named_and_their_step_stays() -> None:
    panel = fed([*part_of_a_run(), waiting([])])
    assert "step 7 of 12" in drawn(panel, 100) and "waiting" not in drawn(panel, 100)


def test_why_one_is_waited_for_is_said() -> None:
    file = io.StringIO()
    with LivePanel(Console(file=file, width=80), clock=lambda: 0.0) as panel:
        panel.feed(started() | {"rounds": 1})
        panel.feed({"time": 0.0, "event": "client_joined", "client": "alder"})
        panel.feed(waiting([], "idle") | {"refusing": {"bi\x1brch": "policy"}})
        panel.feed(waiting([], "idle") | {"bound": ["cedar"]})
        panel.feed(waiting([]) | {"clients": []})
    assert file.getvalue().splitlines() == [
        "5 clients, 1 round of 12 secure steps",
        "alder joined: 1 of 5",
        "waiting for alder, birch, idle, 01:15; bi?rch refuses (policy)",
        "waiting for alder, birch, idle, 01:15; cedar voted for sums that are not here",
        "waiting for answers of some that are there, collecting, 01:15",
    ]


def test_server_that_is_started_again_when_all_is_over_says_for_whom_it_stays() -> None:
    file = io.StringIO()
    with LivePanel(Console(file=file, width=80), clock=lambda: 0.0) as panel:
        panel.feed(waiting(NAMES[:2], "finished", 0.0))
    assert file.getvalue() == "waiting for alder, birch, who may have missed the end, 00:00\n"


def test_who_is_waited_for_is_a_plain_line_once_somebody_is_there() -> None:
    file = io.StringIO()
    with LivePanel(Console(file=file, width=80), clock=lambda: 0.0) as panel:
        panel.feed(started())
        panel.feed(waiting(NAMES, "idle"))
        panel.feed({"time": 0.0, "event": "client_joined", "client": "alder"})
        panel.feed(waiting(["birch"], "idle"))
        panel.feed(given_up(reason="x\x1b[2J"))
        last = {"time": 9.0, "event": "round_finished", "round": 4, "metrics": {"accuracy": 0.9}}
        panel.feed(last | {"metrics_round": 4, "learnt": False})
    assert file.getvalue().splitlines()[1:] == [
        "alder joined: 1 of 5",
        "waiting for birch, not there yet, 01:15",
        "round 2: epoch given up, x?[2J",
        "all rounds are over; mean accuracy after 4 rounds 90.0%; 00:00",
    ]


def test_disk_that_fails_is_said_in_a_line_and_on_the_panel() -> None:
    event = {"time": 1.0, "event": "storage_failed", "what": "publication", "reason": "No space\x1b[2J", "count": 3}
    assert "disk failures: 3" in drawn(fed([started(), event]), 80)
    file = io.StringIO()
    with LivePanel(Console(file=file, width=80), clock=lambda: 0.0) as panel:
        panel.feed(event)
    assert file.getvalue() == "cannot write the publication, trying again: No space?[2J\n"


@pytest.mark.parametrize("width", [80, 120])
def test_result_table(width: int) -> None:
    summary = Summary(
        name="demo",
        started=datetime(2026, 11, 23, tzinfo=UTC),
        versions={},
        seed=0,
        clients=5,
        client_names=["[b]alder", *NAMES[1:]],
        models=["cnn-small", "cnn-deep", "resnet", "mlp", "cnn-wide"],
        data="digits",
        partition="dirichlet 0.5",
        label_counts=[[3] * 10] * 5,
        rounds=4,
        secure_steps=48,
        accuracy=Accuracy(
            independent=IndependentAccuracy(mean=0.53, clients=[0.61, 0.48, 0.52, 0.44, 0.6]),
            codream=CoDreamAccuracy(mean=0.857, clients=[0.872, 0.846, 0.861, None, 0.85]),
            centralised=0.938,
            student=0.843,
            by_round=[],
        ),
        gap_closure=0.8,
        bytes=Traffic(
            up_per_client=1.3e6, down_per_client=1.9e6, setup_per_client=0, payload_per_client=1.2e6, overhead=1.05
        ),
        seconds=Timing(total=51.3, compute=38, aggregation=3),
        dropped=["damson"],
        colluders=1,
        threshold=4,
        min_survivors=4,
    )
    text = drawn(result_table(summary), width)
    assert all(cell_len(line) <= width for line in text.splitlines())
    for words in ("[b]alder", "61.0%", "87.2%", "+26.2", "lost", "93.8%", "84.3%", "0.80", "all data in one place"):
        assert words in text


def test_sparkline() -> None:
    assert sparkline([], 8) == ""
    assert sparkline([0.0, 0.0], 8) == "▁▁"
    assert sparkline([8, 7, 6, 5, 4, 3, 2, 1, 0], 9) == "██▇▆▅▄▃▂▁"
    assert len(sparkline([1.0] * 1000, 24)) == 24


@pytest.mark.parametrize(
    ("count", "words"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (31_000, "31.0 kB"), (999_960, "1.0 MB"), (2.5e15, "2,500.0 TB")],
)
def test_format_bytes(count: float, words: str) -> None:
    assert format_bytes(count) == words
