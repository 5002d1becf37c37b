"""Provisioning: who gets which file, with which mode, and what a party refuses when it starts."""

from __future__ import annotations

import base64
import errno
import json
import os
import re
import stat
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner

from codream_protocols import durable
from codream_protocols.charter import Policy
from codream_protocols.errors import BadSignature, RosterRefused
from codream_protocols.identity import Roster, Signer, read_roster
from secure_codream import cli
from secure_codream.configuration.client import ClientConfig, PolicyTable, read_client
from secure_codream.configuration.federation import FederationConfig, TaskTable, read_federation
from secure_codream.configuration.reading import ConfigError
from secure_codream.deployment.client import run_client
from secure_codream.deployment.provision import provision
from secure_codream.deployment.server import run_server
from secure_codream.membership.accepted import load_roster
from secure_codream.membership.files import write_new
from secure_codream.membership.keys import KeyFileError, public_transport_key, read_pinned_keys, read_private_key

NAMES = ["alice", "bob", "carol"]
TASK = TaskTable(shape=(1, 8, 8), classes=10)
CONFIG = FederationConfig(task=TASK)
ADDRESS = "tcp://127.0.0.1:7447"


def make(out: Path, *, names: list[str] = NAMES, serial: int = 1, address: str = ADDRESS) -> Roster:
    clients = [ClientConfig(name=name, model="cnn2") for name in names]
    return provision(out, config=CONFIG, clients=clients, address=address, serial=serial)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    make(tmp_path / "federation")
    return tmp_path / "federation"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_each_party_gets_its_files_and_no_others(out: Path) -> None:
    handed_out = {"roster.json", "charter.json", "charter.signature"}
    shared = {*handed_out, "newest_roster.json", "administrator.pub", "config.toml"}
    administrators = {"administrator.key", "administrator.pub", "roster-1.json", "charter-1"}
    assert {path.name for path in (out / "administrator").iterdir()} == administrators
    assert {path.name for path in (out / "administrator" / "charter-1").iterdir()} == handed_out
    assert {path.name for path in (out / "server").iterdir()} == {"transport.key", "acceptances", *shared}
    assert {path.name for path in (out / "server" / "acceptances").iterdir()} == {f"{name}.json" for name in NAMES}
    for name in NAMES:
        files = {path.name for path in (out / "clients" / name).iterdir()}
        assert files == {"identity.key", "transport.key", "client.toml", "acceptance.json", *shared}
        assert read_client(out / "clients" / name / "client.toml").name == name
        assert read_federation(out / "clients" / name / "config.toml") == CONFIG
    assert sorted(path.name for path in (out / "clients").iterdir()) == NAMES


def test_keys_and_folders_are_for_their_owner_alone(out: Path) -> None:
    keys = list(out.rglob("*.key"))
    assert len(keys) == 1 + 1 + 2 * 3
    assert {mode(key) for key in keys} == {0o600}
    assert {mode(path) for path in (out / "administrator", out / "server", *(out / "clients").iterdir())} == {0o700}


def test_roster_verifies_and_names_every_key(out: Path) -> None:
    roster = load_roster(out / "server")
    administrator = read_pinned_keys(out / "administrator" / "administrator.pub")
    assert (Signer(read_private_key(out / "administrator" / "administrator.key")).public,) == administrator
    assert [member.name for member in roster.members] == NAMES and roster.serial == 1
    for member in roster.members:
        folder = out / "clients" / member.name
        assert Signer(read_private_key(folder / "identity.key")).public == member.identity_key
        assert public_transport_key(read_private_key(folder / "transport.key")) == member.transport_key
        assert load_roster(folder) == roster
    assert public_transport_key(read_private_key(out / "server" / "transport.key")) == roster.server.transport_key


def test_no_private_key_is_in_any_other_file(out: Path) -> None:
    keys = [read_private_key(path) for path in out.rglob("*.key")]
    assert len(set(keys)) == len(keys)
    for path in out.rglob("*"):
        if path.is_file() and path.suffix != ".key":
            content = path.read_bytes()
            for key in keys:
                assert not any(form in content for form in (key, key.hex().encode(), base64.b64encode(key)[:42]))


def test_nothing_is_overwritten(out: Path) -> None:
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(KeyFileError, match="choose another folder: nothing is overwritten"):
        make(out)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_link_in_a_keys_place_is_not_followed(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    (tmp_path / "out" / "server").mkdir(parents=True)
    (tmp_path / "out" / "server" / "transport.key").symlink_to(elsewhere)
    with pytest.raises(KeyFileError):
        make(tmp_path / "out")
    assert not elsewhere.exists()


@pytest.mark.parametrize("umask", [0o022, 0o000])
def test_folders_above_are_for_their_owner_alone_too(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        make(tmp_path / "deep" / "er" / "federation")
    finally:
        os.umask(before)
    made = [path for path in (tmp_path / "deep", *(tmp_path / "deep").rglob("*")) if path.is_dir()]
    assert len(made) == 3 + (2 + 2) + 1 + 3 and {mode(path) for path in made} == {0o700}


def test_folder_that_was_there_keeps_its_mode(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir(mode=0o755)
    (tmp_path / "shared").chmod(0o755)
    make(tmp_path / "shared" / "federation")
    assert mode(tmp_path / "shared") == 0o755


def test_nothing_that_is_written_loosens_a_policy(out: Path, tmp_path: Path) -> None:
    """A client's file says of its policy what was given, and no more: limits that are left out are the charter's."""
    for name in NAMES:
        path = out / "clients" / name / "client.toml"
        assert tomllib.loads(path.read_text()).get("policy", {}) == {"code": {}}
        assert read_client(path).policy.policy() == Policy()
        assert "start at this file's folder" in path.read_text()  # as `read_client` takes relative paths
        assert "# this client's secret weight in means; of no effect where there is noise\nweight" in path.read_text()
    strict = ClientConfig(name="alice", model="cnn2", policy=PolicyTable(colluders=1, most_steps=20))
    others = [ClientConfig(name=name, model="cnn2") for name in NAMES[1:]]
    provision(tmp_path / "strict", config=CONFIG, clients=[strict, *others], address=ADDRESS)
    written = tomllib.loads((tmp_path / "strict" / "clients" / "alice" / "client.toml").read_text())
    assert written["policy"] == {"colluders": 1, "most_steps": 20, "code": {}}


def test_two_clients_are_refused_before_a_file_is_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="found 2 clients; 3 or more are needed"):
        make(tmp_path / "out", names=NAMES[:2])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        (
            "[learning]\ntemprature = 3.0",
            r"\[learning\]: temprature: found 3.0; there is no such key; did you mean temperature",
        ),
        ('[learning]\ntemperature = "hot"', r"\[learning\]: temperature: found 'hot'"),
        ("[learning.loss]\nalpha_tvv = 1.0", r"\[learning\]: loss\.alpha_tvv: found 1\.0"),
        ("[learning]\nmomentum = 1.5", r"\[learning\]: momentum: found 1\.5"),
        ("[privacy]\nepsilon = 4.0\nacountant = 'rdp'", r"\[privacy\]: acountant: found 'rdp'"),
        ("[privacy]\nepsilon = 'small'", r"\[privacy\]: epsilon: found 'small'"),
        ("[privacy]\ndelta = 1e-5", r"\[privacy\]: epsilon: "),
        ("[dreams]\nway = 'gradient'", "way 'gradient' with optimiser 'average'"),
        ("[aggregation]\ncolluders = 3", "found 3 clients; 5 or more are needed"),
        ("[federation]\ncourse = 'sums'", r"without \[sums\.vectors\]"),
        (
            "[client_privacy]\nepsilon = 1e-3\ndelta = 1e-9\nupdate_norm = 1e6\nlogit_norm = 1.0",
            "noise shares of variance .* allowed",
        ),
    ],
)
def test_federation_that_could_never_run_is_refused_before_a_key_is_made(
    tmp_path: Path, tables: str, message: str
) -> None:
    path = tmp_path / "config.toml"
    path.write_text(f"{tables}\n[task]\nshape = [1, 8, 8]\nclasses = 10\n")
    clients = [option for name in NAMES for option in ("--client", f"{name}=cnn2")]
    command = ["provision", str(path), *clients, "--address", ADDRESS, "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(cli.app, command)
    assert result.exit_code != 0 and result.exception is not None
    assert re.search(message, str(result.exception)), result.exception
    assert not (tmp_path / "out").exists()


def test_layout_is_worked_out_so_that_a_server_needs_no_torch(tmp_path: Path) -> None:
    config = FederationConfig.model_validate(
        {"task": {"shape": (1, 8, 8), "classes": 10}, "federation": {"course": "fedavg"}}
    )
    clients = [ClientConfig(name=name, model="cnn2") for name in NAMES]
    roster = provision(tmp_path / "out", config=config, clients=clients, address=ADDRESS)
    written = [read_federation(path) for path in (tmp_path / "out").rglob("config.toml")]
    assert len({one.charter(roster).digest for one in written}) == 1
    assert written[0].averaging is not None and written[0].averaging.layout


def test_own_code_of_the_charter_is_run_by_whoever_provisions_only_if_its_source_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own_start.py").write_text(
        "from pathlib import Path\nPath('ran').touch()\ndef start(seed, count, shape): ...\n"
    )
    config = FederationConfig.model_validate(
        {"task": TASK, "dreams": {"start": "own_start:start"}, "code": {"own_start:start": "ab" * 32}}
    )
    clients = [ClientConfig(name=name, model="cnn2") for name in NAMES]
    with pytest.raises(ConfigError, match="found source with digest"):
        provision(tmp_path / "out", config=config, clients=clients, address=ADDRESS)
    assert not Path("ran").exists() and not Path("out").exists()


@pytest.mark.parametrize(
    ("names", "address"),
    [
        (["alice", "alice", "bob"], ADDRESS),
        (["alice"], ADDRESS),
    ],
)
def test_roster_that_no_party_would_take_is_refused_before_a_file_is_written(
    tmp_path: Path, names: list[str], address: str
) -> None:
    with pytest.raises(RosterRefused):
        make(tmp_path / "out", names=names, address=address)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("tables", [{}, {"privacy": {"epsilon": 2.0}}])
def test_batch_norm_is_refused_before_a_file_is_written_where_each_record_is_protected(
    tmp_path: Path, tables: dict[str, Any]
) -> None:
    config = FederationConfig.model_validate({"task": TASK, **tables})
    clients = [ClientConfig(name=name, model="cnn2" if name == "bob" else "mlp_gn") for name in NAMES]
    if not tables:  # the control
        provision(tmp_path / "out", config=config, clients=clients, address=ADDRESS)
        return
    with pytest.raises(ConfigError, match=r"client bob: found model 'cnn2', whose batch norm .* take cnn2_gn"):
        provision(tmp_path / "out", config=config, clients=clients, address=ADDRESS)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("address", ["tcp://h:99999", "aggregator.example:7447", "tcp://two words"])
def test_address_that_nobody_can_connect_to_is_refused_before_a_file_is_written(tmp_path: Path, address: str) -> None:
    with pytest.raises(ConfigError, match="address: found"):
        make(tmp_path / "out", address=address)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("write", [write_new, durable.write_whole])
def test_full_disk_names_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Path, bytes], None]
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device") as caught:
        write(tmp_path / "roster.json", b"{}")
    assert caught.value.filename == str(tmp_path / "roster.json")


# -- key files ---------------------------------------------


@pytest.mark.parametrize("wrong", [0o640, 0o604, 0o660, 0o644, 0o610])
def test_key_that_others_may_read_is_refused(out: Path, wrong: int) -> None:
    path = out / "server" / "transport.key"
    secret = path.read_text().strip()
    path.chmod(wrong)
    with pytest.raises(KeyFileError, match=f"found mode {wrong:04o}; 0600 is needed; run: chmod 600") as caught:
        read_private_key(path)
    assert secret not in str(caught.value)
    path.chmod(0o600)  # control
    assert read_private_key(path).hex() == secret
    path.chmod(0o400)  # stricter is welcome
    assert read_private_key(path).hex() == secret


@pytest.mark.parametrize("change", ["shorter", "longer", "no digits", "two keys", "empty", "binary"])
def test_malformed_key_is_refused_without_showing_it(out: Path, change: str) -> None:
    path = out / "server" / "transport.key"
    secret = path.read_text().strip()
    content = {
        "shorter": secret[:-2],
        "longer": secret + "ab",
        "no digits": secret[:-1] + "x",
        "two keys": f"{secret}\n{secret}",
        "empty": "",
        "binary": secret[:-1] + "é",
    }[change]
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(KeyFileError, match="found no key; 64 hexadecimal digits are needed") as caught:
        read_private_key(path)
    shown = repr(caught.value) + repr(caught.value.__cause__) + str(caught.value)
    assert secret[:16] not in shown and secret[16:32] not in shown


def test_missing_key_is_named(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match="found no such file; a key made by `secure-codream keygen`"):
        read_private_key(tmp_path / "identity.key")
    with pytest.raises(KeyFileError, match="the administrator's public key is needed"):
        read_pinned_keys(tmp_path / "administrator.pub")


# -- what a party refuses when it starts ---------------------------------------------


def change_roster(folder: Path, key: str, value: object) -> None:
    path = folder / "roster.json"
    content = json.loads(path.read_text())
    content["roster"][key] = value
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("party", ["server", "clients/alice"])
def test_tampered_roster_is_refused(out: Path, party: str) -> None:
    change_roster(out / party, "serial", 9)
    start = run_server if party == "server" else run_client
    with pytest.raises(BadSignature, match="roster signature"):
        start(out / party)


def test_member_slipped_into_a_roster_is_refused(out: Path) -> None:
    members = json.loads((out / "server" / "roster.json").read_text())["roster"]["members"]
    sybil = {**members[0], "name": "mallory", "identity_key": base64.b64encode(os.urandom(32)).decode()}
    change_roster(out / "clients" / "alice", "members", [*members, {**sybil, "transport_key": sybil["identity_key"]}])
    with pytest.raises(BadSignature):
        run_client(out / "clients" / "alice")


def test_roster_of_another_administrator_is_refused(out: Path, tmp_path: Path) -> None:
    make(tmp_path / "other")
    foreign = (tmp_path / "other" / "server" / "roster.json").read_bytes()
    (out / "clients" / "alice" / "roster.json").write_bytes(foreign)
    with pytest.raises(RosterRefused, match="a roster of administrator"):
        run_client(out / "clients" / "alice")
    # Control: under the key of its own administrator it verifies.
    assert read_roster(foreign, read_pinned_keys(tmp_path / "other" / "administrator" / "administrator.pub"))


def test_older_roster_than_the_client_knows_is_refused(tmp_path: Path) -> None:
    make(tmp_path / "out", serial=3)
    folder = tmp_path / "out" / "clients" / "alice"
    text = (folder / "client.toml").read_text()
    (folder / "client.toml").write_text(text.replace("least_roster_serial = 1", "least_roster_serial = 4"))
    with pytest.raises(RosterRefused, match="found roster serial 3; allowed: serial 4 or later"):
        run_client(folder)
    assert load_roster(folder, least_serial=3).serial == 3  # control


@pytest.mark.parametrize(("party", "key"), [("server", "transport.key"), ("clients/alice", "transport.key")])
def test_party_does_not_start_with_a_key_that_others_may_read(out: Path, party: str, key: str) -> None:
    (out / party / key).chmod(0o644)
    start = run_server if party == "server" else run_client
    with pytest.raises(KeyFileError, match="found mode 0644"):
        start(out / party)
    assert not (out / party / "endpoint").exists()


def test_rosters_hash_covers_every_field(out: Path) -> None:
    roster = load_roster(out / "server")
    changed = [
        msgspec.structs.replace(roster, federation="other"),
        msgspec.structs.replace(roster, serial=2),
        msgspec.structs.replace(roster, members=roster.members[:2]),
        msgspec.structs.replace(roster, server=msgspec.structs.replace(roster.server, address="tcp://x:1")),
    ]
    assert len({one.hash for one in [roster, *changed]}) == 5
