"""A party's process: what it writes, how it ends, and what a client that starts again goes on with."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

pytest.importorskip("torch")

from codream_clients.dream_learner import DreamLearner
from codream_clients.journal import FileJournal, JournalBusy
from codream_clients.privacy.ledger import LedgerError
from codream_protocols.errors import AggregationFailed, NotAccepted, PolicyViolation
from codream_protocols.identity import Signer
from secure_codream.configuration.assembly import load_client_data, make_model
from secure_codream.configuration.client import ClientConfig, DataTable
from secure_codream.configuration.federation import FederationConfig
from secure_codream.configuration.own_code import source_digest
from secure_codream.configuration.reading import ConfigError
from secure_codream.deployment.acceptance import read_offered
from secure_codream.deployment.charter import sign
from secure_codream.deployment.checkpoint import CheckpointError, read_checkpoint
from secure_codream.deployment.client import Agreed, LearnerFailed, read_agreed, run_client
from secure_codream.deployment.description import describe
from secure_codream.deployment.earlier import is_running
from secure_codream.deployment.endings import client_ending, server_ending
from secure_codream.deployment.files import MODEL
from secure_codream.deployment.outputs import OutputsUnwritten
from secure_codream.deployment.provision import provision
from secure_codream.deployment.verify import verify_record
from secure_codream.membership.accepted import load_roster
from secure_codream.membership.keys import KeyFileError, read_private_key
from secure_codream.membership.passphrase import Passphrase
from secure_codream.reports.events import read_events
from secure_codream.reports.files import write_whole
from secure_codream.reports.metrics import read_metrics
from secure_codream.reports.status import read_status
from tests.secure_codream.models import write_checkpoint

NAMES = ("alice", "bob", "carol")
NOWHERE = "tcp://127.0.0.1:9"  # where nobody listens
SMALL = {
    "federation": {"rounds": 2},
    "task": {"shape": (1, 8, 8), "classes": 10},
    "dreams": {"batch": 4, "steps": 1},
    "learning": {"warm_up_epochs": 1, "distil_epochs": 1, "local_epochs": 1, "local_steps": 1},
    "timing": {"lost_after": 5.0},
}


def provisioned(out: Path, *, patience: float = 60.0, **tables: Any) -> Path:
    """Three small clients on digits, and their server."""
    config = FederationConfig.model_validate({**SMALL, **tables})
    clients = [
        ClientConfig(
            name=name, model="mlp", seed=number, device="cpu", patience=patience,
            data=DataTable(clients=3, part=number, per_client=20, test_limit=40),
        )
        for number, name in enumerate(NAMES)
    ]  # fmt: skip
    provision(out, config=config, clients=clients, address="tcp://127.0.0.1:7447")
    return out


def log_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def learnt_by(folder: Path) -> int:
    """How many epochs the weights of a client's folder have learnt; they are its model's."""
    agreed, kept = read_agreed(folder), read_checkpoint(folder / MODEL)
    kept.check(make_model(agreed.client, agreed.federation))
    assert kept.description.charter == agreed.charter.digest.hex()
    return kept.description.learnt


def write_untrained(folder: Path, *, learnt: int = 0, charter: bytes | None = None) -> Agreed:
    """Put a fresh model into a client's folder, which says that it has learnt so many epochs."""
    agreed = read_agreed(folder)
    client, federation = agreed.client, agreed.federation
    images, _ = load_client_data(client, federation)
    digest = agreed.charter.digest if charter is None else charter
    described = describe(client, federation, images, charter=digest, model=client.model, resized=False)
    write_checkpoint(folder / MODEL, make_model(client, federation), replace(described, learnt=learnt))
    return agreed


# -- a federation of real processes, of which one client is killed ---------------------------------------------

# Whoever could seed the masks could take them off: no deployed party may even have that module. Opacus and torch's
# compiler take longer to load than all else together, and nothing here uses them.
WRAPPED = """
import sys
from pathlib import Path
from secure_codream.deployment.client import run_client
from secure_codream.deployment.server import run_server
kind, folder, *rest = sys.argv[1:]
if kind == "server":
    run_server(Path(folder), listen="tcp://127.0.0.1:*")
else:
    run_client(Path(folder), address=rest[0], threads=1)
sys.exit(7 if "codream_protocols.seeded" in sys.modules else 8 if {"opacus", "torch._dynamo"} & {*sys.modules} else 0)
"""


@dataclass
class Finished:
    """A federation that came to its end; what was seen on the way."""

    out: Path
    codes: dict[str, int] = field(default_factory=dict)
    twice: subprocess.CompletedProcess[str] | None = None

    def client(self, name: str) -> Path:
        return self.out / "clients" / name


def until(condition: Callable[[], Any], running: dict[str, subprocess.Popen[Any]], seconds: float = 300.0) -> Any:
    """Wait; a process that fails meanwhile ends the waiting."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        failed = {name: process.poll() for name, process in running.items() if process.poll()}
        assert not failed and time.monotonic() < deadline, failed
        time.sleep(0.05)
    return found


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Finished]:
    """Two rounds; carol is killed once the first is certified, missed, and started again; alice is started twice."""
    seen = Finished(provisioned(tmp_path_factory.mktemp("federation") / "out"))
    server, events = seen.out / "server", seen.out / "server" / "events.jsonl"
    running: dict[str, subprocess.Popen[bytes]] = {}
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def start(name: str, *arguments: str | Path) -> None:
        running[name] = subprocess.Popen([sys.executable, "-c", WRAPPED, *map(str, arguments)], env=environment)

    def happened(kind: str, **fields: Any) -> bool:
        lines = [json.loads(line) for line in events.read_text().splitlines()] if events.exists() else []
        return any(line["event"] == kind and fields.items() <= line.items() for line in lines)

    try:
        start("server", "server", server)
        until((server / "endpoint").exists, running)
        endpoint = (server / "endpoint").read_text()
        for name in NAMES:
            start(name, "client", seen.client(name), endpoint)
        until(lambda: happened("round_finished", round=0), running)
        killed = running.pop("carol")
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        command = [sys.executable, "-m", "secure_codream", "client", str(seen.client("alice")), "--address", endpoint]
        seen.twice = subprocess.run(command, capture_output=True, text=True, timeout=900, env=environment)
        until(lambda: happened("client_lost", client="carol"), running)
        start("carol", "client", seen.client("carol"), endpoint)
        seen.codes = {name: process.wait(timeout=900) for name, process in running.items()}
        yield seen
    finally:
        for process in running.values():
            process.kill()
            process.wait()


@pytest.mark.system
def test_all_come_to_the_end_and_none_could_have_seeded_a_mask(finished: Finished) -> None:
    assert finished.codes == {"server": 0, "alice": 0, "bob": 0, "carol": 0}


@pytest.mark.system
def test_client_that_was_killed_goes_on_with_its_model_and_learns_what_it_missed(finished: Finished) -> None:
    folder = finished.client("carol")
    lines = log_of(folder)
    assert [line["event"] for line in lines if line["event"] in ("warm-up", "resume")] == ["warm-up", "resume"]
    rounds = [line["rounds"] for line in read_metrics(folder / "metrics.jsonl")]
    assert set(rounds) == {0, 1, 2} and rounds[0] == 0 and rounds[-1] == 2
    assert learnt_by(folder) == read_agreed(folder).course.epochs == 3
    events = read_events(finished.out / "server" / "events.jsonl")
    assert any(type(event).__name__ == "ClientLost" for event in events)


@pytest.mark.system
def test_same_record_is_with_everybody_and_verifies(finished: Finished) -> None:
    found = [verify_record(finished.out / "server")]
    found += [verify_record(finished.client(name) / "journal") for name in NAMES]
    assert {one.head for one in found} == {json.loads((finished.out / "server" / "server.json").read_text())["head"]}
    assert {one.epochs for one in found} == {3} and found[0].votes == (3, 3, 3)
    assert {log_of(finished.client(name))[-1]["head"] for name in NAMES} == {found[0].head}


@pytest.mark.system
def test_what_a_server_leaves_behind_counts_nobody_apart(finished: Finished) -> None:
    """In totals and metrics there is no member's name but beside its presence and when it was last heard."""
    server = finished.out / "server"
    totals, metrics = (server / "server.json").read_text(), (server / "metrics.prom").read_text().splitlines()
    named = [line.partition("{")[0] for line in metrics if any(f'"{name}"' in line for name in NAMES)]
    assert not any(name in totals for name in NAMES) and json.loads(totals)["traffic"]["up"] > 0
    assert set(named) == {"codream_member_present", "codream_member_heard_time_seconds"}
    for name in NAMES:
        assert "member" not in (finished.client(name) / "metrics.prom").read_text()
        others = set(NAMES) - {name}
        assert not any(other in (finished.client(name) / "status.json").read_text() for other in others)


@pytest.mark.system
def test_status_says_that_all_have_finished_and_the_ending_what_came_of_it(finished: Finished) -> None:
    for folder in (finished.out / "server", *map(finished.client, NAMES)):
        found = read_status(folder)
        assert (found.phase, found.certified, found.epochs, found.waiting) == ("finished", 3, 3, ())
        assert not is_running(folder)
    (test, held, *files) = client_ending(finished.client("carol"))
    assert re.fullmatch(r"accuracy on test images: alone \d+\.\d%, now \d+\.\d%", test)
    assert re.fullmatch(r"accuracy on .* images: alone .*, now .*, best .* \(of (round [12]|training alone)\)", held)
    assert {"model.safetensors", "best.safetensors"} <= {Path(line.split(": ")[0].strip()).name for line in files}
    totals, head, *files = server_ending(finished.out / "server")
    assert "all clients together" in totals and log_of(finished.client("bob"))[-1]["head"] in head
    assert any("record" in line for line in files)


@pytest.mark.system
def test_client_that_runs_already_is_not_started_twice(finished: Finished) -> None:
    assert finished.twice is not None
    assert finished.twice.returncode == 2, finished.twice.stderr
    assert "in use by another process" in " ".join(finished.twice.stderr.split())
    assert "Traceback" not in finished.twice.stderr


@pytest.mark.system
def test_finished_client_that_is_started_again_changes_nothing(finished: Finished) -> None:
    """Without a server even: all that there was to do is certified."""
    folder = finished.client("bob")
    kept = {path: path.read_bytes() for path in (folder / MODEL, *(folder / "journal").glob("*.record"))}
    run_client(folder, address=NOWHERE)
    assert all(path.read_bytes() == data for path, data in kept.items())


@pytest.mark.system
@pytest.mark.parametrize("learnt", [0, 1, None])
def test_what_was_certified_and_not_learnt_is_learnt_at_the_next_start(finished: Finished, learnt: int | None) -> None:
    """A client that was killed between a certificate and its learning; None: its model was moved away."""
    folder = finished.client("alice")
    if learnt is None:
        (folder / MODEL).unlink()
    else:
        write_untrained(folder, learnt=learnt)
    before = len(read_metrics(folder / "metrics.jsonl"))
    run_client(folder, address=NOWHERE)
    assert learnt_by(folder) == 3
    rounds = [line["rounds"] for line in read_metrics(folder / "metrics.jsonl")[before:]]
    assert rounds == list(range(learnt or 0, 3))


@pytest.mark.system
def test_what_fails_when_it_is_taken_up_again_is_said_and_the_client_goes_on(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in the process before, which went on too: a student for example that has no room. Its model is as it was."""

    def recall(learner: DreamLearner, number: int, publication: Any) -> None:
        raise MemoryError(f"no room for epoch {number}")

    folder = Path(shutil.copytree(finished.client("bob"), tmp_path / "bob"))
    monkeypatch.setattr(DreamLearner, "recall", recall)
    with pytest.raises(LearnerFailed, match="epochs 1 to 3 were not learnt, or not in full"):
        run_client(folder, address=NOWHERE)
    failed = [line["found"] for line in log_of(folder) if line["event"] == "learning-failed"]
    assert failed == [f"MemoryError: no room for epoch {number}" for number in (1, 2, 3)]
    assert (folder / MODEL).read_bytes() == (finished.client("bob") / MODEL).read_bytes()


# -- what is refused when a client starts ---------------------------------------------


def test_model_of_another_charter_is_refused_and_stays(tmp_path: Path) -> None:
    folder = provisioned(tmp_path / "out", patience=0.2) / "clients" / "alice"
    write_untrained(folder, charter=bytes([0xAB]) * 32)
    before = (folder / MODEL).read_bytes()
    with pytest.raises(CheckpointError, match=r"trained under charter abab.*move it away to train anew"):
        run_client(folder, address=NOWHERE)
    assert (folder / MODEL).read_bytes() == before
    (folder / MODEL).rename(folder / "earlier.safetensors")  # control: as it says
    with pytest.raises(AggregationFailed, match="no word from the server"):
        run_client(folder, address=NOWHERE)
    assert (folder / "earlier.safetensors").read_bytes() == before


def test_model_that_has_learnt_more_than_the_journal_knows_is_refused(tmp_path: Path) -> None:
    folder = provisioned(tmp_path / "out", patience=0.2) / "clients" / "alice"
    write_untrained(folder, learnt=2)
    with pytest.raises(CheckpointError, match="have learnt 2 epochs, 0 are in the journal"):
        run_client(folder, address=NOWHERE)


def test_second_process_of_a_client_writes_nothing(tmp_path: Path) -> None:
    folder = provisioned(tmp_path / "out") / "clients" / "alice"
    agreed = read_agreed(folder)
    with FileJournal.open(folder / "journal", charter=agreed.charter.digest, member="alice"):
        before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        with pytest.raises(JournalBusy, match="is it running already"):
            run_client(folder, address=NOWHERE)
        assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_successors_records_count_on_in_server_and_client(tmp_path: Path) -> None:
    previous = {"charter": "ab" * 32, "head": "cd" * 32, "certified": 7}
    out = provisioned(tmp_path / "out", patience=0.2, federation={"rounds": 9}, predecessor=previous)
    folder = out / "clients" / "alice"
    with pytest.raises(AggregationFailed):
        run_client(folder, address=NOWHERE)
    agreed = read_agreed(folder)
    assert agreed.course.epochs == 10
    with FileJournal.open(folder / "journal", charter=agreed.charter.digest, member="alice", first=7) as journal:
        assert len(journal.memory.certified) == 0
    assert verify_record(folder / "journal").epochs == 0


def test_charter_that_cuts_a_block_is_refused_by_the_clients_process_unless_permitted(tmp_path: Path) -> None:
    out = provisioned(tmp_path / "out", patience=0.2)
    folder = out / "clients" / "alice"
    block = [*(member.identity_key.hex() for member in load_roster(folder).members), "ab" * 32]
    (folder / "answered.json").write_text(json.dumps({"colluders": 1, "blocks": [block]}))
    previous = {"charter": "ab" * 32, "head": "cd" * 32, "certified": 1, "blocks": [block]}
    following = FederationConfig.model_validate({**SMALL, "predecessor": previous})
    administrator = Signer(read_private_key(out / "administrator" / "administrator.key"))
    offered, _, _ = sign(out / "administrator", administrator, following)

    def accept() -> None:
        files = offered / "roster.json", offered / "charter.json"
        read_offered(folder, *files, administrator=None, passphrase=Passphrase()).accept(folder)

    with pytest.raises(NotAccepted, match="cuts a block"):
        accept()
    strict = (folder / "client.toml").read_text()
    permitting = strict.replace("[policy.code]", "[policy]\ncuts = true\n\n[policy.code]")
    (folder / "client.toml").write_text(permitting)
    accept()
    (folder / "client.toml").write_text(strict)
    with pytest.raises(PolicyViolation, match="cuts a block"):  # also where it was permitted once
        run_client(folder, address=NOWHERE)
    assert not (folder / "journal").exists() and not (folder / MODEL).exists()
    (folder / "client.toml").write_text(permitting)
    with pytest.raises(AggregationFailed):
        run_client(folder, address=NOWHERE)
    told = [line["text"] for line in log_of(folder) if line["event"] == "exposure"]
    assert any("a charter that cuts a block" in text for text in told)
    # Nobody was there, so nothing was answered, and there is nothing to remember.
    assert len(json.loads((folder / "answered.json").read_text())["blocks"]) == 1


def test_own_code_of_a_charter_does_not_run_at_a_client_that_has_not_named_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    Path("partys_start.py").write_text(
        "from pathlib import Path\nPath('ran').touch()\nimport numpy as np\n"
        "def start(seed, count, shape):\n    return np.zeros((count, *shape), np.float32)\n"
    )
    reference = "partys_start:start"
    digest = source_digest(reference)
    dreams = {**SMALL["dreams"], "start": reference}  # type: ignore[dict-item]
    folder = provisioned(tmp_path / "out", patience=0.2, dreams=dreams, code={reference: digest}) / "clients" / "alice"
    Path("ran").unlink()  # who provisions has named it in [code]
    with pytest.raises(ConfigError, match=r"put .* under \[policy\.code\] of client\.toml"):
        run_client(folder, address=NOWHERE)
    assert not Path("ran").exists()
    text = (folder / "client.toml").read_text()
    assert "[policy.code]" in text
    (folder / "client.toml").write_text(text.replace("[policy.code]", f'[policy.code]\n"{reference}" = "{digest}"'))
    with pytest.raises(AggregationFailed):  # it runs, and finds no server
        run_client(folder, address=NOWHERE)
    assert Path("ran").exists()


@pytest.mark.parametrize("name", ["transport.key", "identity.key"])
def test_keys_of_another_party_are_refused_at_once(tmp_path: Path, name: str) -> None:
    """They are swapped between two starts: the server would never answer, or refuse every word."""
    clients = provisioned(tmp_path / "out", patience=0.2) / "clients"
    own = (clients / "alice" / name).read_bytes()
    (clients / "alice" / name).write_bytes((clients / "bob" / name).read_bytes())
    with pytest.raises(KeyFileError, match=rf"{name}: found another key than the roster has for alice"):
        run_client(clients / "alice", address=NOWHERE)
    (clients / "alice" / name).write_bytes(own)
    with pytest.raises(AggregationFailed, match="no word"):  # the control
        run_client(clients / "alice", address=NOWHERE)


# -- what is learnt, on disk ---------------------------------------------


class Replaced:
    """A `ClientRunner` whose `run` a test writes."""

    compute_seconds = 0.0
    standing = (False, 0, None)
    failures: Counter[str] = Counter()

    def __init__(self, *, learner: Any, prepare: Callable[[], object], **rest: Any) -> None:
        self.learner, self.prepare = learner, prepare


def with_runner(monkeypatch: pytest.MonkeyPatch, run: Callable[[Replaced], None]) -> None:
    class Made(Replaced):
        async def run(self) -> None:
            run(self)

    monkeypatch.setattr("secure_codream.deployment.client.ClientRunner", Made)


class Learns:
    """Whose weights change in some way."""

    def learn(self, number: int, publication: Any) -> None: ...


def test_thread_that_outlives_its_client_writes_nothing_into_its_successors_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, go_on, threads = provisioned(tmp_path / "out") / "clients" / "alice", threading.Event(), []

    def interrupted(runner: Replaced) -> None:
        runner.prepare()
        runner.learner._learner = Learns()

        def late() -> None:
            go_on.wait(30)
            runner.learner.learn(1, {})

        threads.append(threading.Thread(target=late))
        threads[0].start()
        raise asyncio.CancelledError

    with_runner(monkeypatch, interrupted)
    with pytest.raises(asyncio.CancelledError):
        run_client(folder, address=NOWHERE)
    assert (folder / MODEL).exists()  # the control: before, it was written
    (folder / MODEL).write_bytes(b"of the next process")
    go_on.set()
    threads[0].join()
    assert (folder / MODEL).read_bytes() == b"of the next process"


@pytest.mark.parametrize("for_good", [False, True])
def test_weights_that_a_full_disk_refused_are_written_at_the_end_or_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, for_good: bool
) -> None:
    folder, full = provisioned(tmp_path / "out") / "clients" / "alice", [False]

    def write(path: Path, content: bytes) -> Path:
        if full[0]:
            raise OSError(28, "No space left on device")
        return write_whole(path, content)

    def learns(runner: Replaced) -> None:
        runner.prepare()
        runner.learner._learner = Learns()
        full[0] = True
        runner.learner.learn(1, {})
        full[0] = for_good

    monkeypatch.setattr("secure_codream.deployment.outputs.write_whole", write)
    with_runner(monkeypatch, learns)
    if for_good:
        with pytest.raises(OutputsUnwritten, match=r"model\.safetensors cannot be written.*start this client again"):
            run_client(folder, address=NOWHERE)
    else:
        run_client(folder, address=NOWHERE)
    assert learnt_by(folder) == (0 if for_good else 1)
    said = [line["found"] for line in log_of(folder) if line["event"] == "storage-failed"]
    assert said == [f"{MODEL}: No space left on device"] * (2 if for_good else 1)
    assert (log_of(folder)[-1]["event"] == "finished") is not for_good


def test_what_ended_a_client_is_not_hidden_by_an_index_that_another_process_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = provisioned(tmp_path / "out") / "clients" / "alice"

    def held() -> None:
        raise LedgerError("another process holds it")

    def ends(runner: Replaced) -> None:
        runner.prepare()
        monkeypatch.setattr("secure_codream.deployment.client.known_index", held)
        raise AggregationFailed("no word", "a server")

    with_runner(monkeypatch, ends)
    with pytest.raises(AggregationFailed, match="no word"):
        run_client(folder, address=NOWHERE)
    said = [line["found"] for line in log_of(folder) if line["event"] == "statement-failed"]
    assert said == ["no statement of privacy was written: another process holds it"]
    assert not (folder / "privacy.json").exists()


SLOW = """
import dataclasses, sys, time
import secure_codream.deployment.client as client
from secure_codream import cli
real = client.make_learner
client.make_learner = lambda *a, **o: dataclasses.replace(real(*a, **o), warm_up=lambda: time.sleep(3600))
sys.argv = ["secure-codream", "client", *sys.argv[1:]]
cli.main()
"""


@pytest.mark.parametrize(
    ("number", "code", "line"),
    [
        pytest.param(signal.SIGINT, 130, "interrupted", marks=pytest.mark.exhaustive),
        (signal.SIGTERM, 0, "stopped; start it again to go on"),
    ],
)
def test_client_that_is_interrupted_or_stopped_ends_at_once_although_it_computes(
    tmp_path: Path, number: int, code: int, line: str
) -> None:
    folder = provisioned(tmp_path / "out") / "clients" / "alice"
    command = [sys.executable, "-c", SLOW, str(folder), "--address", NOWHERE, "--threads", "1"]
    running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        until(lambda: (folder / "log.jsonl").exists() and "warm-up" in (folder / "log.jsonl").read_text(), {})
        running.send_signal(number)
        _, told = running.communicate(timeout=300)
    finally:
        running.kill()
        running.wait()
    assert running.returncode == code
    assert told.splitlines() == [f"secure-codream: {line}"]
    assert (folder / "privacy.json").exists()  # what was spent is stated all the same


def test_server_that_is_stopped_ends_with_0_and_goes_on_when_it_is_started_again(tmp_path: Path) -> None:
    server = provisioned(tmp_path / "out") / "server"
    for _ in range(2):
        command = [sys.executable, "-m", "secure_codream", "server", str(server), "--listen", "tcp://127.0.0.1:*"]
        running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        try:
            until((server / "endpoint").exists, {"server": running})
            running.send_signal(signal.SIGTERM)
            _, told = running.communicate(timeout=300)
        finally:
            running.kill()
            running.wait()
        assert (running.returncode, told) == (0, "secure-codream: stopped; start it again to go on\n")
        (server / "endpoint").unlink()


@pytest.mark.parametrize(("epochs", "told"), [(0, False), (1, True)])
def test_clients_log_tells_of_a_training_that_came_to_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, epochs: int, told: bool
) -> None:
    """A rate so small that nothing is learnt ends no better than it began: at a guess."""

    class OnlyPrepares:
        compute_seconds = 0.0
        failures: Counter[str] = Counter()
        standing = (False, 0, None)

        def __init__(self, *, prepare: Callable[[], object], **rest: Any) -> None:
            self._prepare = prepare

        async def run(self) -> None:
            self._prepare()

    monkeypatch.setattr("secure_codream.deployment.client.ClientRunner", OnlyPrepares)
    learning = {**SMALL["learning"], "lr": 1e-30, "warm_up_epochs": epochs}  # type: ignore[dict-item]
    folder = provisioned(tmp_path / "out", learning=learning) / "clients" / "alice"
    run_client(folder, address=NOWHERE)
    warned = [line["found"] for line in log_of(folder) if line["event"] == "training" and line["level"] == "warning"]
    assert warned == (
        ["a training with lr=1e-30 ended no better than a guess; a smaller rate or more steps may help"] * told
    )
