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
from secure_codream.deployment.endings import accuracies, client_ending, server_ending
from secure_codream.reports.files import MalformedRecord, MissingRecord
from secure_codream.reports.metrics import read_metrics
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
    return json.dumps({"time": 1.0, "event": event} | fields) + "\n"


def started(rounds: int = 4, **more: Any) -> str:
    return line("federation_started", clients=MEMBERS, rounds=rounds, steps_per_round=1, **more)


def step_finished(number: int, up: int = 0, down: int = 0, task: str = "update", clipped: float | None = 0.0) -> str:
    went = {"task": task, "survivors": MEMBERS, "dropped": [], "path": "fast", "entropy": 1.0, "clipped": clipped}
    return line("step_finished", round=number, step=0, seconds=0.5, bytes_up=up, bytes_down=down, **went)


def round_finished(number: int, accuracy: float | None, **more: Any) -> str:
    metrics = {"accuracy": accuracy}
    return line("round_finished", round=number, metrics=metrics, metrics_round=number, head=f"{number:064x}", **more)


@pytest.fixture
def server(tmp_path: Path) -> Path:
    replace_status(tmp_path, status("server", members=tuple(Person(name=name, present=True) for name in MEMBERS)))
    (tmp_path / "events.jsonl").write_text(
        started()
        + line("client_lost", client="carol")
        + line("client_joined", client="carol")
        + step_finished(0, 1000, 2000)
        + round_finished(0, 0.5)
        + step_finished(1, 3000, 4000)
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


@pytest.mark.parametrize(
    ("task", "bound"), [("update", "update_clip under [dreams]"), ("parameters", "clip under [av")]
)
def test_a_server_says_where_bounds_have_cut_much(server: Path, task: str, bound: str) -> None:
    (server / "server.json").write_text(json.dumps({"secure_steps": 4, "traffic": {"up": 1, "down": 1}, "head": "ab"}))
    assert not any("cut by its bound" in one for one in [words(write_party_report(server)), *server_ending(server)])
    with (server / "events.jsonl").open("a") as events:
        events.write(step_finished(2, task=task, clipped=0.03) + step_finished(2, task="logits", clipped=None))
    said = "n 1 of 3 sums more than 1% of what clients sent was cut by its bound; a larger " + bound
    assert f"I{said}" in words(write_party_report(server))
    (line_,) = [one for one in server_ending(server) if one.startswith("warning")]
    assert f"i{said}" in line_


def test_a_sites_page_tells_its_own_figures_since_its_newest_training(site: Path) -> None:
    said = words(write_party_report(site))
    assert "study &amp; more: carol" in said and "nothing of it is sent" in said
    assert "On test images this site reached 61.0 % alone, and 83.0 % now." in said
    assert "round 1 64.0 % 80.0 % rolled back from 50.0 %" in said and "10.0 %" not in said
    assert "20 images of its own are held back from training" in said


def test_a_servers_page_tells_codes_of_refusals_and_no_more_of_a_members_messages(server: Path) -> None:
    refused = {"by": "server", "allowed": "250077 bytes"}
    at = {"time": 98.4, "client": "carol"}
    late = "a masked input for step 3 after its survivors were announced"
    with (server / "events.jsonl").open("a") as events:
        events.write(line("refused", **at, code="wrong-context", found=late, **refused))
        for size in (17, 18, 19):
            events.write(line("refused", **at, code="vector", found=f"a frame of {size} bytes", count=size, **refused))
        events.write(line("refused", **at, code="share", found="31 bytes of shares", **refused))
    said = words(write_party_report(server))
    assert "when it was last heard, and codes of refusals" in said
    assert said.count("a message of carol: vector") == 1 and said.count("a message of carol: share") == 1
    for private in ("a frame", "bytes", "wrong-context", "masked input", "97.4", "1 min 37 s"):
        assert private not in said, private


def test_a_server_that_refused_late_messages_alone_does_not_say_that_it_refused_nothing(server: Path) -> None:
    late = {"client": "carol", "code": "unexpected", "found": "a vote", "by": "server"}
    (server / "events.jsonl").write_text(started() + line("refused", **late))
    said = words(write_party_report(server))
    assert "Nobody was lost and nothing was refused, late messages apart." in said and "a vote" not in said


@pytest.mark.parametrize(
    ("events", "names"),
    [
        (started() + step_finished(0) + round_finished(0, 0.5) + step_finished(1), ["round 1", "round 2"]),
        (
            started(20) + "".join(step_finished(n) + round_finished(n, 0.5) for n in (10, 11)) + step_finished(12),
            ["round 11", "round 12", "round 13"],
        ),
        (started(1) + step_finished(0) + round_finished(0, 0.5) + step_finished(1), ["round 1", "at the end"]),
        (
            started(1) + step_finished(0) + round_finished(0, 0.5) + step_finished(1)
            + round_finished(1, 0.6, learnt=False) + started(8) + step_finished(2),
            ["round 1", "at the end", "round 3"],
        ),
        (
            started(1) + step_finished(0) + started(8) + round_finished(0, 0.5) + step_finished(1),
            ["round 1", "round 2"],
        ),
    ],
    ids=["running", "a successor", "metrics at the end, running", "a successor after the end", "a longer course"],
)  # fmt: skip
def test_rounds_are_named_by_the_course(server: Path, events: str, names: list[str]) -> None:
    (server / "events.jsonl").write_text(events)
    page = write_party_report(server).read_text()
    assert re.findall(r"<span>(round \d+|at the end)</span>", page) == names


def test_bytes_are_those_of_all_processes(server: Path) -> None:
    steps = step_finished(0, 10**9, 10**6) + step_finished(1, 8 * 10**9, 2 * 10**6)
    (server / "events.jsonl").write_text(started() + steps + started() + started() + step_finished(2, 10**8, 3 * 10**5))
    said = words(write_party_report(server))
    assert "8.1 GB received" in said and "2.3 MB sent" in said and "3 secure steps" in said


def test_a_line_that_a_killed_client_left_is_passed_over_and_the_next_ones_are_read(site: Path) -> None:
    path = site / "metrics.jsonl"
    whole = path.read_text()
    torn = line("metrics", rounds=3, accuracy=0.85, train_accuracy=None, held_back=True, distil_loss=-1.5e-7).strip()
    after = line("metrics", rounds=3, accuracy=0.9)
    for cut in range(1, len(torn), 7):
        path.write_text(whole + torn[:cut] + "\n" + after)
        assert "90.0 % now" in words(write_party_report(site)), torn[:cut]
    path.write_text(whole + torn.replace("3", "x", 1)[:60] + "\n" + after)  # the control: spoilt, not cut
    with pytest.raises(MalformedRecord, match="in line 5"):
        write_party_report(site)


@pytest.mark.parametrize(
    "spoilt",
    ['{"event": "metrics", "rounds": "x"}', '{"event": "metrics", "rounds": 3, "accuracy": "good"}', "[]", "x"],
)
def test_figures_of_another_form_are_refused(site: Path, spoilt: str) -> None:
    with (site / "metrics.jsonl").open("a") as file:
        file.write(spoilt + "\n")
    with pytest.raises(MalformedRecord, match="in line 5"):
        write_party_report(site)


def test_metrics_are_read_without_a_last_half_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert read_metrics(path) == []
    first, second = (
        json.dumps({"event": "metrics", "rounds": 0, "accuracy": accuracy}) + "\n" for accuracy in (0.5, 0.6)
    )
    path.write_text(first + second + '{"accur')
    assert [line["accuracy"] for line in read_metrics(path)] == [0.5, 0.6]


def test_damaged_figures_are_said_at_a_clients_end_and_change_nothing_else(site: Path) -> None:
    (site / "metrics.jsonl").write_text("{]\n")
    (site / "model.safetensors").touch()
    ending = client_ending(site)
    assert "no accuracies" in ending[0] and "line 1" in ending[0] and any("model.safetensors" in one for one in ending)


@pytest.mark.parametrize(("now", "tested", "harmed"), [(0.538, 500, True), (0.86, 500, False), (0.538, 10, False)])
def test_rounds_that_harmed_a_model_beyond_chance_are_said_at_its_end(now: float, tested: int, harmed: bool) -> None:
    """A private federation with the defaults ended at 53.8 % after 88.8 % alone, and nothing was said of it."""
    said = accuracies([{"rounds": 0, "accuracy": 0.888}, {"rounds": 2, "accuracy": now, "tested": tested}])
    assert [line.startswith("warning: 35.0 points below training alone") for line in said[1:]] == [True] * harmed


def test_a_sites_page_says_that_rounds_harmed_its_model_and_has_no_empty_column(site: Path) -> None:
    assert "below training alone" not in words(write_party_report(site))
    (site / "metrics.jsonl").write_text(
        line("metrics", rounds=0, accuracy=0.888, tested=500) + line("metrics", rounds=2, accuracy=0.538, tested=500)
    )
    said = words(write_party_report(site))
    assert "35.0 points below training alone" in said and "its own images" not in said


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
