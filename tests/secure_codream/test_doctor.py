"""`doctor`: what stands between a folder and a run is named, and looking changes nothing."""

from __future__ import annotations

import json
import re
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq
from typer.testing import CliRunner
from zmq.auth.thread import ThreadAuthenticator
from zmq.utils import z85

from codream_clients.privacy.ledger import Ledger
from secure_codream import cli
from secure_codream.configuration.assembly import held_back, load_client_data
from secure_codream.configuration.client import ClientConfig, read_client
from secure_codream.configuration.federation import FederationConfig, read_federation
from secure_codream.configuration.limits import own_budget, spender
from secure_codream.configuration.reading import check
from secure_codream.deployment.provision import provision
from secure_codream.doctor.examination import examine, well
from secure_codream.doctor.findings import Finding, State
from secure_codream.doctor.machine import of_clock, of_descriptors, of_disk
from secure_codream.doctor.reachability import of_server
from secure_codream.membership.keys import make_keys, new_transport_key, public_transport_key
from tests.secure_codream.small import has_ipv6

NAMES = ("a", "b", "c")
SMALL = {
    "federation": {"rounds": 1},
    "task": {"shape": (1, 8, 8), "classes": 10, "mean": (0.5,), "std": (0.5,)},
    "dreams": {"batch": 2, "steps": 1},
    "learning": {"temperature": 2.0},
}
PRIVATE = {"epsilon": 2.0, "delta": 1e-5, "batch_size": 512, "warm_up_epochs": 4, "round_epochs": 0}


@pytest.fixture
def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def provisioned(out: Path, port: int, model: str = "mlp", **tables: Any) -> Path:
    config: FederationConfig = check("config.toml", FederationConfig, {**SMALL, **tables})
    clients = [
        check("client", ClientConfig, {"name": name, "model": model, "data": {"clients": 3, "part": part}})
        for part, name in enumerate(NAMES)
    ]
    provision(out, config=config, clients=clients, address=f"tcp://127.0.0.1:{port}")
    return out


def states(findings: list[Finding]) -> dict[str, set[State]]:
    found: dict[str, set[State]] = {}
    for finding in findings:
        found.setdefault(finding.check, set()).add(finding.state)
    return found


def failing(findings: list[Finding]) -> list[str]:
    return [finding.check for finding in findings if finding.state is State.FAILED]


def only(findings: list[Finding], check: str) -> Finding:
    (found,) = [finding for finding in findings if finding.check == check]
    return found


def contents(folder: Path) -> dict[Path, tuple[bytes, int, int]]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    found = {path: (path.read_bytes(), path.stat().st_mtime_ns, path.stat().st_mode) for path in files}
    return {**found, **{path: (b"", 0, 0) for path in folder.rglob("*") if path.is_dir()}}


# -- the whole ---------------------------------------------


def test_before_the_server_runs_reachability_alone_fails_and_nothing_is_written(tmp_path: Path, port: int) -> None:
    out = provisioned(tmp_path / "f", port)
    before = contents(out)
    done = CliRunner().invoke(cli.app, ["doctor", str(out / "clients" / "a"), "--json"])
    assert done.exit_code == 1 and contents(out) == before
    found = json.loads(done.output)
    assert not found["ok"]
    assert [one["check"] for one in found["checks"] if one["state"] != "ok"] == ["reachability"]
    assert f"127.0.0.1:{port}" in found["checks"][-1]["found"]
    looked_at = {one["check"] for one in found["checks"]}
    assert looked_at == {
        *("settings", "roster", "keys", "charter", "acceptance", "blocks", "losses", "policy"),
        *("data", "model", "budget", "disk", "clock", "descriptors", "reachability"),
    }
    page = (Path(__file__).parents[2] / "docs" / "federations.md").read_text(encoding="utf-8")
    section = page.partition("## Before a run: doctor")[2].partition("\n## ")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)) == looked_at
    shown = CliRunner().invoke(cli.app, ["doctor", str(out / "clients" / "a")]).output
    assert shown.rstrip().endswith("failed: reachability")
    for key in (out / "clients" / "a").glob("*.key"):
        assert key.read_text().strip() not in done.output + shown


def test_the_servers_folder_is_well_and_its_port_is_tried(tmp_path: Path, port: int) -> None:
    out = provisioned(tmp_path / "f", port)
    before = contents(out)
    findings = examine(out / "server")
    assert well(findings) and contents(out) == before
    assert {"data", "model", "budget", "policy"}.isdisjoint(states(findings))
    (out / "server" / "acceptances" / "b.json").unlink()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        findings = examine(out / "server")
    assert failing(findings) == ["reachability"]
    assert only(findings, "acceptance").state is State.WARNING and only(findings, "acceptance").found == "none of b"


def test_a_setting_that_one_site_edits_is_named(tmp_path: Path, port: int) -> None:
    folder = provisioned(tmp_path / "f", port) / "clients" / "b"
    config = folder / "config.toml"
    config.write_text(config.read_text().replace("temperature = 2.0", "temperature = 3.5", 1))
    finding = only(examine(folder), "charter")
    assert finding.state is State.FAILED and finding.do
    assert "learning.temperature is 3.5, accepted was 2.0" in finding.found


def test_a_client_is_told_that_pictures_are_not_on_the_scale_of_its_images(tmp_path: Path, port: int) -> None:
    def told(out: str, **tables: Any) -> list[str]:
        folder = provisioned(tmp_path / out, port, **tables) / "clients" / "a"
        return [one.found for one in examine(folder) if one.check == "data" and one.state is State.WARNING]

    task = {"shape": (1, 8, 8), "classes": 10}
    dreams = {"batch": 2, "steps": 1, "start": "strokes"}
    (found,) = told("without", task=task, dreams=dreams)  # digits have a scale of their own
    assert found.startswith("strokes that dreams start from lie in [-1, 1]; these images are standardised by mean (0.3")
    assert told("with", dreams=dreams) == told("noise", task=task) == []
    assert told("matched", task=task, dreams={**dreams, "matched": True}) == []


@pytest.mark.parametrize(
    ("name", "broken", "check"),
    [
        ("transport.key", "mode", "keys"),
        ("transport.key", "another", "keys"),
        ("identity.key", "gone", "keys"),
        ("roster.json", "gone", "roster"),
        ("administrator.pub", "gone", "roster"),
        ("acceptance.json", "gone", "acceptance"),
        ("charter.json", "gone", "charter"),
        ("client.toml", "model", "settings"),
        ("client.toml", "policy", "policy"),
        ("client.toml", "data", "data"),
    ],
)
def test_what_is_broken_is_named_and_mended_by_what_is_said(
    tmp_path: Path, port: int, name: str, broken: str, check: str
) -> None:
    folder = provisioned(tmp_path / "f", port) / "clients" / "c"
    path = folder / name
    if broken == "mode":
        path.chmod(0o644)
    elif broken == "another":
        path.write_bytes((folder.parent / "a" / name).read_bytes())
    elif broken == "gone":
        path.unlink()
    elif broken == "model":
        path.write_text(path.read_text().replace('"mlp"', '"mpl"'))
    elif broken == "policy":
        path.write_text(path.read_text().replace("[policy.code]", "[policy]\nleast_cohort = 9\n[policy.code]", 1))
    else:
        path.write_text(path.read_text().replace('"digits"', '"./nowhere"'))
    findings = examine(folder)
    assert check in failing(findings)
    assert set(failing(findings)) - {"reachability", "acceptance"} <= {check, "roster"}


def test_an_administrators_folder_is_no_partys(tmp_path: Path, port: int) -> None:
    findings = examine(provisioned(tmp_path / "f", port) / "administrator")
    assert {"settings", "roster", "keys"} <= set(failing(findings))


def test_before_a_charter_is_accepted_it_is_said_what_lays_it_there(tmp_path: Path) -> None:
    make_keys(tmp_path, "transport", "identity")
    (tmp_path / "client.toml").write_text('name = "a"\nmodel = "mlp"\n')
    settings = next(one for one in examine(tmp_path) if one.check == "settings")
    assert settings.state is State.FAILED
    assert settings.do.startswith(f"secure-codream roster verify {tmp_path} ")


def test_an_acceptance_of_another_charter_is_said_once_with_one_remedy(tmp_path: Path, port: int) -> None:
    folder = provisioned(tmp_path / "f", port)
    other = provisioned(tmp_path / "other", port)
    place = folder / "server" / "acceptances"
    (place / "old.json").write_bytes((other / "server" / "acceptances" / "a.json").read_bytes())
    (finding,) = (one for one in examine(folder / "server") if one.check == "acceptance")
    assert finding.state is State.WARNING and finding.do == "take the file away"
    assert finding.found.count("allowed") == 1 and not finding.allowed


def test_code_of_a_charter_that_was_not_accepted_is_not_run(
    tmp_path: Path, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = provisioned(tmp_path / "f", port) / "clients" / "a"
    (tmp_path / "own.py").write_text("open('ran', 'w')\nclass Course: ...\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    digest = "0" * 64
    for file, table in (("config.toml", "code"), ("client.toml", "policy.code")):
        path = folder / file
        text = path.read_text().replace(f"[{table}]", "", 1)
        path.write_text(f'{text}\n[{table}]\n"own:Course" = "{digest}"\n'.replace('"codream"', '"own:Course"', 1))
    findings = examine(folder)
    assert "charter" in failing(findings) and not (tmp_path / "ran").exists()
    assert "policy" not in states(findings)


# -- the server, from a client's side ---------------------------------------------


class Listening:
    """A ROUTER with CURVE that lets one key in, and counts what it hears."""

    def __init__(self, server_secret: bytes, admitted: bytes, host: str = "127.0.0.1") -> None:
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.authenticator = ThreadAuthenticator(self.context)
        self.authenticator.start()
        self.authenticator.configure_curve_callback(domain="*", credentials_provider=self)
        self.admitted = admitted
        self.socket = self.context.socket(zmq.ROUTER)
        self.socket.curve_server = True
        self.socket.curve_secretkey = z85.encode(server_secret)
        self.socket.setsockopt(zmq.IPV6, ":" in host)
        self.port = self.socket.bind_to_random_port(f"tcp://{host}")

    def callback(self, domain: str, key: bytes) -> bool:
        """Whether a transport key is let in."""
        return key == self.admitted

    def close(self) -> None:
        self.socket.close(linger=0)
        self.authenticator.stop()
        self.context.destroy(linger=0)


@pytest.fixture
def keys() -> tuple[bytes, bytes]:
    return new_transport_key(), new_transport_key()


@pytest.fixture
def listening(keys: tuple[bytes, bytes]) -> Iterator[Listening]:
    server, client = keys
    found = Listening(server, z85.encode(public_transport_key(client)))
    yield found
    found.close()


def reached(port: int, client: bytes, server_key: bytes, seconds: float = 5.0, host: str = "127.0.0.1") -> Finding:
    address = f"tcp://{host}:{port}"
    (found,) = of_server(address, secret=client, server_key=server_key, seconds=seconds)
    return found


def test_the_right_key_is_let_in_and_nothing_is_said(listening: Listening, keys: tuple[bytes, bytes]) -> None:
    server, client = keys
    assert reached(listening.port, client, public_transport_key(server)).state is State.OK
    assert listening.socket.poll(200) == 0


@pytest.mark.skipif(not has_ipv6(), reason="no IPv6 on the loopback of this machine")
def test_a_server_with_an_ipv6_address_is_reached(keys: tuple[bytes, bytes]) -> None:
    """It was taken for somebody else, with another key."""
    server, client = keys
    found = Listening(server, z85.encode(public_transport_key(client)), "[::1]")
    try:
        assert reached(found.port, client, public_transport_key(server), host="[::1]").state is State.OK
    finally:
        found.close()


def test_a_key_that_is_not_let_in_and_a_server_with_another_key(
    listening: Listening, keys: tuple[bytes, bytes]
) -> None:
    server, client = keys
    stranger = reached(listening.port, new_transport_key(), public_transport_key(server))
    assert stranger.state is State.FAILED and "refuses this client's transport key" in stranger.found
    other = reached(listening.port, client, public_transport_key(new_transport_key()))
    assert other.state is State.FAILED and "not the roster's server: another key" in other.found


def test_nobody_another_program_and_an_unknown_host(port: int, keys: tuple[bytes, bytes]) -> None:
    server, client = keys
    assert "nobody listens at 127.0.0.1" in reached(port, client, public_transport_key(server)).found
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        threading.Thread(target=lambda: [mute.accept() for _ in range(2)], daemon=True).start()
        found = reached(mute.getsockname()[1], client, public_transport_key(server), seconds=0.5)
        assert "another program" in found.found
    (unknown,) = of_server("tcp://nowhere.invalid:1", secret=client, server_key=public_transport_key(server))
    assert unknown.state is State.FAILED and "no machine of the name 'nowhere.invalid'" in unknown.found
    with pytest.raises(ValueError, match="tcp://HOST:PORT"):
        list(of_server("tcp://host", secret=client, server_key=public_transport_key(server)))


def test_a_client_says_at_once_that_nobody_is_there_and_waits_all_the_same(
    tmp_path: Path, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = provisioned(tmp_path / "f", port) / "clients" / "a"
    started: list[Path] = []

    def run_client(folder: Path, **options: Any) -> None:
        started.append(folder)

    monkeypatch.setattr("secure_codream.deployment.client.run_client", run_client)
    alone = CliRunner().invoke(cli.app, ["client", str(folder)])
    assert alone.output.startswith(f"nobody listens at 127.0.0.1:{port}; asking again until it is there")
    with socket.socket() as there:
        there.bind(("127.0.0.1", port))
        there.listen()
        assert "nobody listens" not in CliRunner().invoke(cli.app, ["client", str(folder)]).output
    unknown = CliRunner().invoke(cli.app, ["client", str(folder), "--address", "tcp://nowhere.invalid:1"])
    assert "no machine of the name 'nowhere.invalid'" in unknown.output
    assert started == [folder] * 3


# -- the machine ---------------------------------------------


def test_clock_disk_and_descriptors(tmp_path: Path) -> None:
    (tmp_path / "roster.json").write_text("{}")
    stored = (tmp_path / "roster.json").stat().st_mtime

    def state(found: Iterator[Finding]) -> State:
        (one,) = found
        return one.state

    assert state(of_clock(tmp_path, stored)) is State.OK
    assert state(of_clock(tmp_path, stored - 86_400)) is State.WARNING
    assert state(of_clock(tmp_path, 0.0)) is State.FAILED
    assert [state(of_disk(tmp_path, 100, free)) for free in (99, 150, 200)] == [
        State.FAILED,
        State.WARNING,
        State.OK,
    ]
    assert state(of_descriptors(200, 256)) is State.FAILED and state(of_descriptors(200, 1024)) is State.OK


# -- privacy and losses ---------------------------------------------


def test_a_budget_that_is_spent_in_a_few_steps_is_said(tmp_path: Path, port: int) -> None:
    folder = provisioned(tmp_path / "f", port, model="cnn2_gn", privacy=PRIVATE) / "clients" / "a"
    before = contents(folder)
    findings = [finding for finding in examine(folder) if finding.check == "budget"]
    assert contents(folder) == before
    assert [finding.state for finding in findings] == [State.OK, State.WARNING, State.WARNING]
    assert "of 2 at delta 1e-05; none is spent yet" in findings[0].found
    assert "the whole budget is spent in 4 steps: batches of 512 of 399 images" in findings[1].found
    assert "takes part in a step with probability 1: 399 images are few" in findings[2].found


def test_a_plan_beyond_the_own_budget_and_batch_norm_are_named(tmp_path: Path, port: int) -> None:
    folder = provisioned(tmp_path / "f", port, model="cnn2_gn", privacy=PRIVATE) / "clients" / "a"
    path = folder / "client.toml"
    path.write_text(path.read_text() + "\n[budget]\nepsilon = 1.0\ndelta = 1e-5\n")
    (finding,) = [one for one in examine(folder) if one.check == "budget"]
    assert finding.state is State.FAILED and "this client's own budget is 1" in finding.found
    path.write_text(path.read_text().replace("cnn2_gn", "resnet8"))
    assert "model" in failing(examine(folder))


def test_what_a_ledger_has_spent_is_read_and_left_as_it_is(tmp_path: Path, port: int) -> None:
    from codream_clients.privacy.plan import plan_privacy
    from codream_clients.privacy.settings import PrivacySettings

    folder = provisioned(tmp_path / "f", port, model="cnn2_gn", privacy=PRIVATE) / "clients" / "a"
    plan = plan_privacy(PrivacySettings(**PRIVATE), records=399, rounds=1)
    config, federation = read_client(folder / "client.toml"), read_federation(folder / "config.toml")
    train, _ = held_back(federation, load_client_data(config, federation)[0], seed=config.seed, device="cpu")
    by, budget = spender(config, federation, train), own_budget(config, plan)
    with Ledger.open(folder / "privacy.jsonl", by=by, budget=budget) as ledger:
        for charge in plan.charges:
            ledger.reserve(charge)
    before = contents(folder)
    findings = [finding for finding in examine(folder) if finding.check == "budget"]
    assert contents(folder) == before
    assert "of 2 at delta 1e-05 is spent" in findings[0].found and findings[0].state is State.WARNING
    (folder / "privacy.jsonl").unlink()
    assert "budget" in failing(examine(folder)) and not (folder / "privacy.jsonl").exists()


@pytest.mark.parametrize(("members", "state"), [(4, State.WARNING), (6, State.OK)])
def test_a_cohort_that_bears_no_loss_is_said(tmp_path: Path, port: int, members: int, state: State) -> None:
    config: FederationConfig = check(
        "config.toml",
        FederationConfig,
        {**SMALL, "aggregation": {"mode": "resilient"}},
    )
    clients = [
        check("client", ClientConfig, {"name": name, "model": "mlp", "data": {"clients": members, "part": part}})
        for part, name in enumerate("abcdef"[:members])
    ]
    provision(tmp_path / "f", config=config, clients=clients, address=f"tcp://127.0.0.1:{port}")
    finding = only(examine(tmp_path / "f" / "server"), "losses")
    assert finding.state is state


def test_a_folder_that_cannot_be_read_ends_in_findings(tmp_path: Path) -> None:
    (tmp_path / "client.toml").write_bytes(b"\xff\xfe")
    findings = examine(tmp_path)
    assert "settings" in failing(findings) and all(finding.found for finding in findings)
