"""The report, on a synthetic run that looks like a real one."""

from __future__ import annotations

import json
import math
import re
import struct
import zlib
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from secure_codream.reports.events import StepStarted, read_events
from secure_codream.reports.files import MalformedRecord, MissingRecord
from secure_codream.reports.pictures import png
from secure_codream.reports.report import headline, write_report
from secure_codream.reports.run_folder import RunFolder
from secure_codream.reports.spans import Span, Spans, Total, write_spans
from secure_codream.reports.starts import starts_of
from secure_codream.reports.summary import (
    Accuracy,
    CoDreamAccuracy,
    IndependentAccuracy,
    Summary,
    Timing,
    Traffic,
    write_summary,
)
from tests.secure_codream.small import SmallFederation, codream

NAMES = ["alder", "birch", "cedar", "damson", "elder"]
MODELS = ["cnn-small", "cnn-deep", "resnet", "mlp", "cnn-wide"]
ROUNDS, STEPS, BATCH, CLASSES = 4, 12, 128, 10

ROOT = Path(__file__).parents[2]


def synthetic_run(
    path: Path,
    *,
    names: list[str] | None = None,
    models: list[str] | None = None,
    killed: int | None = 3,
    exhibit: bool = True,
    mode: str = "resilient",
    returns: bool = False,
) -> RunFolder:
    """A run's folder like that of the demonstration, in which client `killed` is lost in round 3.

    It does not come back unless it `returns`: then in lockstep, the round is begun anew with it.
    """
    names, models = names or NAMES, models or MODELS
    rng = np.random.default_rng(7)
    run = RunFolder(path)
    run.rounds.mkdir(parents=True)
    run.config.write_text('[federation]\nclients = 5\nrounds = 4\n\n[data]\nname = "digits"\nalpha = 0.5\n')
    write_summary(run, _summary(rng, names, models, killed, mode, returns))
    events = _lockstep_events(names, killed) if mode == "lockstep" else _events(rng, names, killed)
    run.events.write_text("".join(json.dumps(event) + "\n" for event in events))
    for number in range(ROUNDS):
        images, logits = _dreams(rng, number)
        np.savez(run.round(number), dreams=images, soft_labels=logits)
    if exhibit:
        np.savez(run.exhibit, **_exhibit(rng, names[1]))
    return run


def _summary(
    rng: np.random.Generator, names: list[str], models: list[str], killed: int | None, mode: str, returns: bool
) -> Summary:
    counts = [[int(c) for c in rng.multinomial(30, rng.dirichlet([0.5] * CLASSES))] for _ in names]
    alone = [0.61, 0.48, 0.52, 0.44, 0.60]
    ends = [0.872, 0.846, 0.861, 0.801, 0.850]
    last: list[float | None] = [*ends]
    by_round: list[list[float | None]] = []
    for r in range(ROUNDS):
        row: list[float | None] = [
            a + (b - a) * (1 - 0.55 ** (r + 1)) / (1 - 0.55**ROUNDS) for a, b in zip(alone, ends, strict=True)
        ]
        if killed is not None and r >= 2 and not returns:
            row[killed] = None
        by_round.append(row)
    if killed is not None and not returns:
        last[killed] = None
    left = [value for value in last if value is not None]
    fair = [value for value, end in zip(alone, last, strict=True) if end is not None]
    mean_alone, mean_codream = sum(fair) / len(fair), sum(left) / len(left)
    return Summary(
        name="demo",
        started=datetime(2026, 11, 23, 12, 30, 5, tzinfo=UTC),
        versions={"secure-codream": "0.1.0", "numpy": "2.1.0", "python": "3.11.9", "torch": "2.15.0"},
        seed=0,
        clients=len(names),
        client_names=names,
        models=models,
        data="digits",
        partition="dirichlet 0.5",
        label_counts=counts,
        rounds=ROUNDS,
        secure_steps=ROUNDS * STEPS,
        accuracy=Accuracy(
            independent=IndependentAccuracy(mean=sum(alone) / len(alone), clients=alone),
            codream=CoDreamAccuracy(mean=mean_codream, clients=last),
            centralised=0.938,
            student=0.843,
            by_round=by_round,
        ),
        gap_closure=(mean_codream - mean_alone) / (0.938 - mean_alone),
        bytes=Traffic(
            up_per_client=1_283_000,
            down_per_client=1_942_000,
            setup_per_client=31_000,
            payload_per_client=1_215_000,
            overhead=1_283_000 / 1_215_000,
        ),
        seconds=Timing(total=51.3, compute=38.2, aggregation=3.4),
        dropped=[] if killed is None else [names[killed]],
        colluders=1,
        threshold=4,
        min_survivors=3,
        mode=mode,
        blocks=[names[:3], names[3:]] if mode == "resilient" else [names],
        head="ab" * 32,
    )


def _lockstep_events(names: list[str], killed: int | None) -> list[dict[str, Any]]:
    """As in the demonstration: who is lost is waited for, and the round begun anew."""
    clock = 1_795_000_000.0
    events: list[dict[str, Any]] = []

    def say(event: str, **fields: Any) -> None:
        nonlocal clock
        clock += 0.5
        events.append({"time": clock, "event": event, **fields})

    def steps(number: int, count: int, tasks: list[str]) -> None:
        for step in range(count):
            at = {"round": number, "step": step, "task": tasks[min(step, len(tasks) - 1)]}
            say("step_started", **at)
            entropy = 2.0 if at["task"] == "update" else None
            whole = {"survivors": names, "dropped": [], "path": "fast", "seconds": 0.1, "clipped": None}
            say("step_finished", **at, **whole, entropy=entropy, bytes_up=1, bytes_down=1)

    say("federation_started", clients=names, rounds=ROUNDS, steps_per_round=STEPS, mode="lockstep")
    for name in names:
        say("client_joined", client=name)
    for number in range(ROUNDS + 1):
        last = number == ROUNDS
        say("epoch_started", round=number, epoch=number, cohort=names)
        if number == 2 and killed is not None:
            steps(number, 5, ["metrics", "update"])
            say("client_lost", client=names[killed], reason="silent", seconds=10.0)
            say("waiting", clients=names, lost=[names[killed]], phase="collecting", seconds=3.0)
            say("epoch_given_up", round=number, epoch=number, reason=f"{names[killed]} was started again")
            say("client_joined", client=names[killed])
            say("refused", client=names[killed], code="hello-needed", by="server")
            say("epoch_started", round=number, epoch=number + 1, cohort=names)
        steps(number, 1 if last else STEPS, ["metrics", "update"])
        metrics = {"accuracy": 0.531 if number == 0 else 0.6 + 0.08 * number}
        say("round_finished", round=number, metrics=metrics, metrics_round=number, learnt=not last, head="ab" * 32)
    say("federation_finished", rounds=ROUNDS)
    return events


def _events(rng: np.random.Generator, names: list[str], killed: int | None) -> list[dict[str, Any]]:
    clock = 1_795_000_000.0
    events: list[dict[str, Any]] = []

    def say(event: str, passed: float = 0.05, **fields: Any) -> None:
        nonlocal clock
        clock += passed
        events.append({"time": clock, "event": event, **fields})

    for name in names:
        say("client_joined", client=name)
    say("federation_started", clients=names, rounds=ROUNDS, steps_per_round=STEPS)
    cohort, up, down = list(names), 0, 0
    for number in range(ROUNDS):
        say("epoch_started", round=number, epoch=number, cohort=cohort)
        for step in range(STEPS):
            task = "update" if step < STEPS - 2 else ("logits" if step == STEPS - 2 else "metrics")
            say("step_started", round=number, step=step, task=task)
            lost_now = killed is not None and number == 2 and step >= 5
            dropped = names[3:] if lost_now else []  # its block
            if lost_now and step == 5:
                say("client_lost", client=names[killed or 0])
            up, down = up + 107_000 * len(cohort), down + 160_000 * len(cohort)
            say(
                "step_finished",
                0.4,
                round=number,
                step=step,
                task=task,
                survivors=[name for name in cohort if name not in dropped],
                dropped=dropped,
                path="dropout" if dropped else "fast",
                seconds=float(rng.normal(0.11 if dropped else 0.06, 0.005)),
                entropy=0.15 + 2.0 * math.exp(-step / 3) if task == "update" else None,
                clipped=0.01 if task == "update" else None,
                bytes_up=up,
                bytes_down=down,
            )
            if number == 1 and step == 2:
                say("refused", client=names[0], code="vector", by="client")
        cohort = cohort if killed is None or number < 2 else names[:3]
        metrics = {"accuracy": 0.53 if number == 0 else 0.6 + 0.08 * number}
        say("round_finished", 2.0, round=number, metrics=metrics, metrics_round=number)
    say("federation_finished", rounds=ROUNDS)
    return events


def _dreams(rng: np.random.Generator, number: int) -> tuple[Any, Any]:
    """Blurred digits in noise; the later the round, the clearer."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    chosen = rng.integers(0, len(digits.images), BATCH)
    clarity = 0.35 + 0.15 * number
    images = digits.images[chosen, None] / 8 - 1
    images = clarity * images + (1 - clarity) * rng.normal(size=images.shape)
    logits = rng.normal(0, 1, (BATCH, CLASSES))
    logits[np.arange(BATCH), digits.target[chosen]] += rng.normal(3.5 + number, 1, BATCH)
    return images.astype(np.float32), logits.astype(np.float32)


def _exhibit(rng: np.random.Generator, name: str) -> dict[str, Any]:
    n, bits = BATCH * 64 + 3, 23
    smooth = rng.laplace(0, 0.08, (5, n))
    smooth = (smooth + np.roll(smooth, 1, axis=1) + np.roll(smooth, 8, axis=1)) / 2
    encoded = np.clip((smooth + 1) * 2**19, 0, 2**20 - 1).astype(np.uint32)
    total = (encoded.sum(axis=0) % 2**bits).astype(np.uint32)
    return {
        "client": name,
        "round": 1,
        "step": 4,
        "plain": encoded[1],
        "masked": rng.integers(0, 2**bits, n, dtype=np.uint32),
        "modulus_bits": bits,
        "top": 2**20 - 1,
        "recovered_sum": total,
        "plain_sum": total.copy(),
    }


class _Page(HTMLParser):
    """Collects what a browser would see: the balance of tags, the references, the text."""

    VOID = frozenset({"meta", "img", "br", "path"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.references: list[str] = []
        self.ids: set[str] = set()
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        for key, value in attrs:
            assert not key.startswith("on"), f"{tag} has a handler {key}"
            if key in {"src", "href"}:
                self.references.append(value or "")
            if key == "id":
                self.ids.add(value or "")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text += data


def read(path: Path) -> _Page:
    return _Page(path.read_text("utf-8"))


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return synthetic_run(tmp_path / "run")


def test_page_is_whole_and_loads_nothing(run: RunFolder) -> None:
    path = write_report(run.path)
    page = read(path)
    assert path == run.report
    assert not page.open
    assert "script" not in page.tags and "link" not in page.tags and "iframe" not in page.tags
    for reference in page.references:
        assert reference.startswith(("#", "data:image/png;base64,"))
        assert not reference.startswith("#") or reference[1:] in page.ids
    assert not re.search(r"https?://|url\(|@import", path.read_text("utf-8"))
    assert path.stat().st_size < 600_000
    assert str(run.path) not in path.read_text("utf-8")


def test_page_draws_a_round_where_all_parties_kept_their_spans(run: RunFolder) -> None:
    assert "who did what when" not in read(write_report(run.path)).text
    begun = next(event.time for event in read_events(run.events) if isinstance(event, StepStarted))
    total = {"tags": Total(times=1, processor=0.5, clock=0.5)}
    spans = Spans(processor=10.0, totals=total, latest=[Span("tags", begun, 0.01)])
    for folder in (run.server, run.client("ann")):
        folder.mkdir(parents=True, exist_ok=True)
        write_spans(folder, spans)
    text = " ".join(read(write_report(run.path)).text.split())
    assert "who did what when" in text and "the sum took 5.0 %" in text


def test_page_says_the_results(run: RunFolder) -> None:
    raw = read(write_report(run.path)).text
    text = " ".join(raw.split())
    for name in NAMES:
        assert name in text
    assert "8,195 of 8,195 coordinates" in text
    assert "Lost on the way: damson." in text
    assert "dropout, 3 of 5" in text
    assert "without damson and elder from round 3, step 6 on; the sum is over 3 clients" in text
    assert "alder refused a message: vector" in text
    assert "alone, all 5 have a mean of 53.0\u00a0%" in raw
    assert "read from each client's own folder on this machine" in text
    assert "What is not promised" in text


def test_client_that_was_killed_and_came_back_is_not_called_lost(tmp_path: Path) -> None:
    for mode, how in (
        ("lockstep", "The others waited, and the round began anew."),
        ("resilient", "What was left of the sum went on, and who came back learnt what was missed."),
    ):
        run = synthetic_run(tmp_path / mode, mode=mode, returns=True)
        text = " ".join(read(write_report(run.path)).text.split())
        assert f"Killed in the middle of a step and started again: damson. {how}" in text
        assert "Lost on the way" not in text and "that finished" not in text


def test_lockstep_says_what_it_promises_and_how_the_round_began_anew(tmp_path: Path) -> None:
    run = synthetic_run(tmp_path / "run", mode="lockstep", returns=True)
    page = read(write_report(run.path))
    text = " ".join(page.text.split())
    assert "the server could read only a sum over all 5 clients, and every client checked it" in text
    assert "if the server and any 3 clients put together all they know" in text
    assert "certified by all 5 clients" in text and "ab" * 32 in text and "secure-codream verify" in text
    assert "damson is back after 1.5 s" in text.replace("\N{NO-BREAK SPACE}", " ")
    assert "round 3: damson was started again; nothing of it is learnt, it begins anew" in text
    assert "given up" in text and "dropout" not in text.lower()
    for other in ("threshold", "Opening a mask", "at least 3 of the 5", "block leaves"):
        assert other not in text
    html = run.report.read_text("utf-8")
    # What a restart comes to is told, and is no alarm.
    assert 'class="badge late"' in html and 'class="badge refused"' not in html and 'class="badge failed"' not in html


def test_resilient_names_its_blocks_and_never_lockstep(run: RunFolder) -> None:
    text = " ".join(read(write_report(run.path)).text.split())
    assert "a sum over whole blocks of clients that were fixed before, and every client checked it" in text
    assert "The blocks are alder, birch, cedar; damson, elder." in text
    assert "if the server and up to 1 client put together all they know" in text
    assert "certified by 4 or more of the 5 clients" in text
    assert "over all 5 clients" not in text and "one round trip" not in text


def test_wrong_sum_is_an_alarm(tmp_path: Path) -> None:
    run = synthetic_run(tmp_path / "run", mode="lockstep", returns=True)
    run.events.write_text(
        run.events.read_text().replace('"reason": "damson was', '"wrong_sum": true, "reason": "damson was')
    )
    html = write_report(run.path).read_text("utf-8")
    assert 'class="badge failed"' in html and "wrong sum" in html


def test_accuracy_begins_with_each_client_alone(tmp_path: Path) -> None:
    run = synthetic_run(tmp_path / "run", mode="lockstep", killed=None)
    text = read(write_report(run.path)).text
    assert "round; 0 is each client alone, before the first dreams" in text
    ticks = re.findall(r"x-tick[^>]*>(\d+)<", run.report.read_text("utf-8"))
    assert ticks[: ROUNDS + 1] == ["0", "1", "2", "3", "4"]
    run.events.unlink()  # without the server's events, it begins after the first round
    text = read(write_report(run.path)).text
    assert "each client alone, before" not in text


def test_means_alone_are_a_chart_too(tmp_path: Path) -> None:
    run = synthetic_run(tmp_path / "run", mode="lockstep", killed=None)
    summary = json.loads(run.summary.read_text())
    summary["accuracy"]["by_round"] = []
    run.summary.write_text(json.dumps(summary))
    page = write_report(run.path).read_text("utf-8")
    assert "Test accuracy after each round" in page and "No accuracy was recorded" not in page
    run.events.unlink()
    assert "No accuracy was recorded by round" in write_report(run.path).read_text("utf-8")


def test_metrics_after_the_last_round_are_no_round(tmp_path: Path) -> None:
    run = synthetic_run(tmp_path / "run", mode="lockstep", killed=None)
    text = read(write_report(run.path)).text
    assert "round 4" in text and "at the end" in text and "round 5" not in text


def test_nothing_lost_is_said_too(tmp_path: Path) -> None:
    run = synthetic_run(tmp_path / "run", killed=None)
    events = [line for line in run.events.read_text().splitlines() if "refused" not in line]
    run.events.write_text("\n".join(events) + "\n")
    text = read(write_report(run.path)).text
    assert "Nobody was lost and nothing was refused." in text
    assert "that finished" not in text


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    quote = '"><img src=x onerror=alert(2)>'
    run = synthetic_run(tmp_path / "run", names=[evil, quote, "{{ 7 * 7 }}", "d'e&f", "plain"], models=[evil] * 5)
    run.config.write_text(f"name = '{evil}'")
    page = read(write_report(run.path))
    assert "script" not in page.tags
    assert all(reference.startswith(("#", "data:")) for reference in page.references)
    assert evil in page.text and quote in page.text and "{{ 7 * 7 }}" in page.text and "d'e&f" in page.text
    assert not page.open


def test_sums_that_differ_are_not_called_equal(run: RunFolder) -> None:
    with np.load(run.exhibit) as archive:
        arrays = dict(archive)
    arrays["recovered_sum"][17] ^= 1
    np.savez(run.exhibit, **arrays)
    text = " ".join(read(write_report(run.path)).text.split())
    assert "does not equal" in text
    assert "8,194 of 8,195 coordinates" in text


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ("exhibit.npz", "kept no exhibit"),
        ("server/events.jsonl", "holds no events of the server"),
        ("config.toml", "holds no configuration"),
        ("server/rounds", "holds no dreams"),
    ],
)
def test_missing_part_is_said(run: RunFolder, part: str, words: str) -> None:
    path = run.path / part
    for file in path.glob("*") if path.is_dir() else [path]:
        file.unlink()
    page = read(write_report(run.path))
    assert words in page.text
    assert not page.open


def test_only_a_summary_is_enough(tmp_path: Path) -> None:
    run = synthetic_run(tmp_path / "whole")
    bare = RunFolder(tmp_path / "bare")
    bare.path.mkdir()
    bare.summary.write_bytes(run.summary.read_bytes())
    assert not read(write_report(bare.path)).open


def test_no_summary_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(MissingRecord, match=r"summary\.json does not exist"):
        write_report(tmp_path)


@pytest.mark.parametrize("part", ["summary.json", "server/events.jsonl", "exhibit.npz", "server/rounds/round-001.npz"])
def test_malformed_part_is_an_error_and_keeps_the_earlier_report(run: RunFolder, part: str) -> None:
    before = write_report(run.path).read_bytes()
    (run.path / part).write_bytes(b"{ not this\n")
    with pytest.raises(MalformedRecord, match=re.escape(part.rsplit("/", 1)[-1])):
        write_report(run.path)
    assert run.report.read_bytes() == before


def test_long_run_stays_small(run: RunFolder) -> None:
    line = next(line for line in run.events.read_text().splitlines() if "step_finished" in line)
    event = json.loads(line)
    run.events.write_text(
        "".join(json.dumps(event | {"round": r, "step": s}) + "\n" for r in range(400) for s in range(50))
    )
    images, logits = np.zeros((4, 1, 8, 8), np.float32), np.zeros((4, 10), np.float32)
    for r in range(400):
        np.savez(run.round(r), dreams=images, soft_labels=logits)
    path = write_report(run.path)
    assert path.stat().st_size < 600_000
    assert "8 of 400 rounds are shown" in path.read_text("utf-8")


def test_colour_dreams(run: RunFolder) -> None:
    rng = np.random.default_rng(0)
    for number in run.finished_rounds():
        images = rng.normal(size=(6, 3, 16, 16)).astype(np.float32)
        np.savez(run.round(number), dreams=images, soft_labels=np.eye(6, 10, dtype=np.float32))
    text = read(write_report(run.path)).text
    assert "6 dreams of 3 × 16 × 16" in text


def test_starts_stand_beside_dreams_and_labels_as_the_record_has_them(run: RunFolder) -> None:
    dreams = {"start": "strokes", "batch": 4, "steps": 0, "views": 1}
    federation = SmallFederation(codream(task={"shape": (1, 8, 8), "classes": 10}, dreams=dreams), record=run.record)
    for number, published in enumerate(federation.run(2)):
        assert len(published["soft_labels"]) == 8
        np.savez(run.round(number), dreams=published["dreams"], soft_labels=published["soft_labels"])
        starts = starts_of(run.record, number)
        assert starts is not None and np.array_equal(starts, published["dreams"])  # without a step nothing moves
    assert starts_of(run.record, 2) is None and starts_of(run.path, 0) is None
    text = write_report(run.path).read_text("utf-8")
    assert text.count('alt="its start"') == 2 * 4  # rounds without a record have none
    assert "To the left what it began as" in text


@pytest.mark.parametrize("shape", [(1, 1), (8, 8), (5, 7), (5, 7, 3)])
def test_png_decodes_to_the_same_pixels(shape: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
    encoded = png(pixels)
    assert encoded[:8] == b"\x89PNG\r\n\x1a\n"
    chunks, at = {}, 8
    while at < len(encoded):
        (length,) = struct.unpack_from(">I", encoded, at)
        kind, content = encoded[at + 4 : at + 8], encoded[at + 8 : at + 8 + length]
        assert struct.unpack_from(">I", encoded, at + 8 + length)[0] == zlib.crc32(kind + content)
        chunks[kind] = content
        at += 12 + length
    width, height, depth, colour = struct.unpack_from(">IIBB", chunks[b"IHDR"])
    assert (height, width, depth, colour) == (*shape[:2], 8, 2 if len(shape) == 3 else 0)
    rows = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(height, -1)
    assert not rows[:, 0].any()
    np.testing.assert_array_equal(rows[:, 1:].reshape(shape), pixels)


def test_png_refuses_other_arrays() -> None:
    with pytest.raises(ValueError, match="expected uint8"):
        png(np.zeros((2, 2, 4), dtype=np.uint8))


def test_headline_does_not_praise_a_loss(run: RunFolder) -> None:
    summary = json.loads(run.summary.read_text())
    summary["accuracy"]["codream"]["mean"] = 0.3
    run.summary.write_text(json.dumps(summary))
    assert "the dreams did not help" in write_report(run.path).read_text("utf-8")


def test_headline_names_the_closed_gap(run: RunFolder) -> None:
    from secure_codream.reports.summary import read_summary

    words = headline(read_summary(run.summary))
    assert words.startswith("Each learning alone, the 4 clients that finished recognise 55.2\u00a0% ")
    assert words.endswith("the dreams closed 79\u00a0% of that gap.")


@pytest.mark.parametrize(
    "template", sorted((ROOT / "secure_codream/reports/templates").glob("*.j2")), ids=lambda path: path.name
)
def test_a_column_that_narrow_screens_leave_out_is_left_out_with_its_heading(template: Path) -> None:
    """Else each figure stands below the heading of its neighbour."""
    for table in template.read_text(encoding="utf-8").split("<table")[1:]:
        assert ('<td class="model"' in table) == ('<th class="model"' in table), template.name
