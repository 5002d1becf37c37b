"""Membership as its parties live it: requests, rosters, acceptances, and who is refused what."""

from __future__ import annotations

import json
import os
import shutil
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
from typer.testing import CliRunner

from codream_protocols.charter import MAX_BLOCKS
from codream_protocols.errors import BadSignature, MalformedMessage, NotAccepted, Revoked, RosterRefused, UnsafePlan
from codream_protocols.identity import Roster, Signer, parse_roster, sign_roster
from codream_protocols.membership import (
    Acceptance,
    JoinRequest,
    ask_to_join,
    fingerprint,
    fingerprint_of,
    statement_bytes,
    withdraw,
)
from secure_codream import cli
from secure_codream.cli import exit_code
from secure_codream.configuration.client import ClientConfig
from secure_codream.configuration.federation import FederationConfig, read_federation
from secure_codream.configuration.reading import ConfigError
from secure_codream.deployment.acceptance import read_offered
from secure_codream.deployment.charter import following, sign
from secure_codream.deployment.client import run_client
from secure_codream.deployment.provision import provision
from secure_codream.deployment.server import run_server
from secure_codream.deployment.withdrawal import withdraw_from
from secure_codream.doctor.examination import examine
from secure_codream.doctor.findings import State
from secure_codream.membership import accepted, administration, keys
from secure_codream.membership.accepted import check_accepted, expiry_warning, gathered, load_roster
from secure_codream.membership.administration import Change, change, client_request, withdrawn_name
from secure_codream.membership.files import WouldOverwrite
from secure_codream.membership.keys import KeyFileError, make_keys, public_transport_key, read_private_key
from secure_codream.membership.passphrase import FILE, VARIABLE, Passphrase, seal

NAMES = ("a", "b", "c")
CONFIG = FederationConfig.model_validate(
    {"federation": {"course": "sums"}, "sums": {"vectors": {"visits": {"patients": {"count": True, "bound": 9}}}}}
)
CANARY = "correct horse battery"
KEY = bytes(range(32))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    clients = [ClientConfig(name=name, model="cnn2") for name in NAMES]
    provision(tmp_path / "out", config=CONFIG, clients=clients, address="tcp://127.0.0.1:7447")
    return tmp_path / "out"


@pytest.fixture
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """A quick scrypt."""
    monkeypatch.setattr("secure_codream.membership.passphrase._COST", 2)


def administrator(out: Path) -> Signer:
    return Signer(read_private_key(out / "administrator" / "administrator.key"))


def site(out: Path, name: str) -> Path:
    return out / "clients" / name


def request(name: str, folder: Path) -> JoinRequest:
    """A newcomer with keys of its own."""
    make_keys(folder, keys.IDENTITY, keys.TRANSPORT)
    signer = Signer(read_private_key(folder / keys.IDENTITY))
    transport = public_transport_key(read_private_key(folder / keys.TRANSPORT))
    return ask_to_join(signer, name, transport, "mlp")


def changed(out: Path, tmp_path: Path, **changes: object) -> Path:
    """The next roster and its charter, signed; what is handed out."""
    change(out / "administrator", administrator(out), Change(**changes))
    return sign(out / "administrator", administrator(out), CONFIG)[0]


def take(folder: Path, offered: Path, fingerprint_said: str | None = None) -> None:
    found = read_offered(
        folder,
        offered / "roster.json",
        offered / "charter.json",
        administrator=fingerprint_said,
        passphrase=Passphrase(),
        taking=True,
    )
    found.accept(folder)


# -- keys and passphrases ---------------------------------------------


def test_keys_are_made_once_for_their_owner_alone(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "site"
    make_keys(folder, keys.IDENTITY, keys.TRANSPORT)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    assert {stat.S_IMODE(path.stat().st_mode) for path in before} == {0o600}
    assert {stat.S_IMODE(one.stat().st_mode) for one in (folder, folder.parent)} == {0o700}
    with pytest.raises(KeyFileError, match="nothing is overwritten"):
        make_keys(folder, keys.IDENTITY, keys.TRANSPORT)
    (folder / keys.IDENTITY).unlink()
    with pytest.raises(KeyFileError, match=r"transport\.key"):  # half of it is there: nothing is made
        make_keys(folder, keys.IDENTITY, keys.TRANSPORT)
    assert not (folder / keys.IDENTITY).exists() and before[folder / keys.TRANSPORT]


def test_administrators_keys_are_made_whole_or_not_at_all(tmp_path: Path) -> None:
    (tmp_path / keys.PINNED).write_text("somebody's")
    with pytest.raises(KeyFileError, match="nothing is overwritten"):
        make_keys(tmp_path, keys.ADMINISTRATOR)
    assert [path.name for path in tmp_path.iterdir()] == [keys.PINNED]


def test_link_in_a_new_keys_place_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / keys.TRANSPORT).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(KeyFileError):
        make_keys(tmp_path / "site", keys.TRANSPORT)
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.usefixtures("cheap")
def test_sealed_key_opens_under_its_passphrase_and_as_itself_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, CANARY)
    passphrase = Passphrase()
    make_keys(tmp_path, keys.IDENTITY, keys.TRANSPORT, passphrase=passphrase)
    assert VARIABLE not in os.environ  # whatever is started later does not inherit it
    assert CANARY not in repr(passphrase) and not hasattr(passphrase, "__dict__")
    key = read_private_key(tmp_path / keys.IDENTITY, passphrase)
    assert len(key) == 32 and key.hex().encode() not in (tmp_path / keys.IDENTITY).read_bytes()
    (tmp_path / "other").mkdir()
    shutil.copy(tmp_path / keys.IDENTITY, tmp_path / "other" / keys.TRANSPORT)  # swapped files
    with pytest.raises(KeyFileError, match="does not open it"):
        read_private_key(tmp_path / "other" / keys.TRANSPORT, passphrase)
    monkeypatch.setenv(VARIABLE, "another passphrase")
    with pytest.raises(KeyFileError, match="does not open it") as caught:
        read_private_key(tmp_path / keys.IDENTITY)
    assert key.hex() not in repr(caught.value) and "another passphrase" not in repr(caught.value)


@pytest.mark.usefixtures("cheap")
def test_passphrase_comes_from_a_file_and_without_one_it_is_said_how(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "said").write_text(CANARY + "\n")
    (tmp_path / "said").chmod(0o600)
    (tmp_path / keys.IDENTITY).write_bytes(seal(KEY, CANARY.encode(), keys.IDENTITY))
    (tmp_path / keys.IDENTITY).chmod(0o600)
    monkeypatch.setenv(FILE, str(tmp_path / "said"))
    assert read_private_key(tmp_path / keys.IDENTITY) == KEY
    (tmp_path / "said").chmod(0o640)
    with pytest.raises(KeyFileError, match="found mode 0640; 0600 is needed"):
        read_private_key(tmp_path / keys.IDENTITY)
    monkeypatch.delenv(FILE)
    with pytest.raises(KeyFileError, match=r"no terminal to ask.*SECURE_CODREAM_PASSPHRASE_FILE"):
        read_private_key(tmp_path / keys.IDENTITY)


@pytest.mark.parametrize("run", [run_client, run_server])
def test_passphrase_is_out_of_the_environment_before_any_code_of_the_charter_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Callable[[Path], None]
) -> None:
    """A charter's own module is imported as the course is made: it found the passphrase of sealed keys."""
    seen: list[bool] = []

    def load(folder: Path, **options: int) -> None:  # what comes before a course is made
        seen.append(VARIABLE in os.environ)
        raise NotADirectoryError

    monkeypatch.setenv(VARIABLE, CANARY)
    monkeypatch.setenv(FILE, str(tmp_path / "said"))
    monkeypatch.setattr(sys.modules[run.__module__], "load_roster", load)
    (tmp_path / "client.toml").write_text('name = "a"\nmodel = "cnn2"\n')
    with pytest.raises(NotADirectoryError):
        run(tmp_path)
    assert seen == [False]


@pytest.mark.parametrize("text", ["short", "x" * 2000])
def test_passphrase_that_is_too_short_or_too_long_is_not_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv(VARIABLE, text)
    with pytest.raises(KeyFileError, match="8 or more") as caught:
        make_keys(tmp_path, keys.TRANSPORT, passphrase=Passphrase())
    assert text not in str(caught.value) and not list(tmp_path.iterdir())


# -- requests and statements ---------------------------------------------


@pytest.mark.parametrize("field", ["name", "identity_key", "transport_key", "model"])
def test_changed_request_is_refused(tmp_path: Path, field: str) -> None:
    made = request("d", tmp_path / "d")
    value: object = "e" if field in ("name", "model") else b"k" * 32
    (tmp_path / "d.join.json").write_bytes(statement_bytes(msgspec.structs.replace(made, **{field: value})))
    with pytest.raises(BadSignature):
        client_request(tmp_path / "d.join.json")
    (tmp_path / "d.join.json").write_bytes(statement_bytes(made))  # control
    assert client_request(tmp_path / "d.join.json") == made


@pytest.mark.parametrize("content", [b"", b"{}", b"[" * 10_000, b"x" * (1 << 15), b'{"party": "member"}'])
def test_what_is_no_request_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.join.json").write_bytes(content)
    with pytest.raises(MalformedMessage):
        client_request(tmp_path / "x.join.json")


def test_pipe_in_a_requests_place_holds_up_nobody(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.join.json")
    with pytest.raises(MalformedMessage, match="no regular file"):
        client_request(tmp_path / "x.join.json")


def test_fingerprints_tell_every_change_of_a_party_apart(out: Path) -> None:
    member = load_roster(out / "server").members[0]
    others = [
        msgspec.structs.replace(member, name="z"),
        msgspec.structs.replace(member, identity_key=KEY),
        msgspec.structs.replace(member, transport_key=KEY),
    ]
    assert len({fingerprint_of(one) for one in (member, *others)}) == 4
    assert len(fingerprint(KEY).split()) == 10


# -- rosters that follow ---------------------------------------------


def test_changes_are_one_serial_and_the_removed_are_revoked(out: Path, tmp_path: Path) -> None:
    before = load_roster(out / "server")
    changed(out, tmp_path, add=[request("d", tmp_path / "d")], remove=["c"])
    after = parse_roster((out / "administrator" / "roster-2.json").read_bytes()).roster
    assert after.serial == 2 and [member.name for member in after.members] == ["a", "b", "d"]
    assert after.revoked == (before.members[2],)


def test_rotated_keys_are_revoked_under_the_same_name(out: Path, tmp_path: Path) -> None:
    before = load_roster(out / "server")
    offered = changed(out, tmp_path, rotate=[request("b", tmp_path / "b")])
    after = parse_roster((offered / "roster.json").read_bytes()).roster
    assert [member.name for member in after.members] == ["a", "b", "c"] and after.revoked == (before.members[1],)
    with pytest.raises(Revoked):  # whoever still has the old keys
        take(site(out, "b"), offered)


@pytest.mark.parametrize("name", ["c", "again"])
def test_old_request_of_a_revoked_member_is_refused_under_any_name(out: Path, tmp_path: Path, name: str) -> None:
    folder = site(out, "c")
    signer = Signer(read_private_key(folder / keys.IDENTITY))
    old = ask_to_join(signer, name, public_transport_key(read_private_key(folder / keys.TRANSPORT)), "mlp")
    changed(out, tmp_path, add=[request("d", tmp_path / "d")], remove=["c"])
    with pytest.raises(RosterRefused, match="revoked"):
        changed(out, tmp_path, add=[old])


@pytest.mark.parametrize("name", ["a", "A"])
def test_name_that_is_there_cannot_be_added(out: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(RosterRefused):
        changed(out, tmp_path, add=[request(name, tmp_path / "new")])
    assert not (out / "administrator" / "roster-2.json").exists()


def test_roster_that_somebody_put_into_the_administrators_folder_is_not_followed(out: Path) -> None:
    stranger = Signer(b"s" * 32)
    found = load_roster(out / "server")
    both = msgspec.structs.replace(found, serial=7, administrators=(stranger.public, administrator(out).public))
    (out / "administrator" / "roster-7.json").write_bytes(sign_roster(both, stranger))
    with pytest.raises(RosterRefused, match="a roster of administrator"):
        change(out / "administrator", administrator(out), Change(remove=["c"]))


def test_second_administrator_goes_on_where_the_first_has_left(out: Path, tmp_path: Path) -> None:
    second = tmp_path / "second"
    make_keys(second, keys.ADMINISTRATOR)
    public = keys.read_pinned_keys(second / keys.PINNED)[0]
    first = administrator(out)
    take(site(out, "a"), changed(out, tmp_path, second=public))
    signer = Signer(read_private_key(second / keys.ADMINISTRATOR))
    previous = out / "administrator" / "roster-2.json"
    with pytest.raises(RosterRefused):  # whose signature this is, a person says
        change(second, signer, Change(), previous=previous)
    change(second, signer, Change(without=first.public), previous=previous, signed_by=fingerprint(first.public))
    offered, _, _ = sign(second, signer, CONFIG)
    take(site(out, "a"), offered)  # pinned by the roster that was accepted
    with pytest.raises(RosterRefused, match="a roster of administrator"):
        take(site(out, "b"), offered)  # whose newest roster knows of no second
    take(site(out, "b"), offered, fingerprint(public))  # by hand
    with pytest.raises(RosterRefused):  # the first may sign no more
        take(site(out, "a"), out / "administrator" / "charter-2")


def test_withdrawal_is_the_members_own_word(out: Path, tmp_path: Path) -> None:
    roster = load_roster(out / "server")
    forged = withdraw(Signer(b"s" * 32), "c", roster)
    (tmp_path / "w.json").write_bytes(statement_bytes(forged))
    with pytest.raises(BadSignature):
        withdrawn_name(tmp_path / "w.json", roster)
    (site(out, "c") / "journal").mkdir()
    (site(out, "c") / "journal" / "link").symlink_to(tmp_path)
    (site(out, "c") / "answered.json").write_text("{}")
    path = withdraw_from(site(out, "c"), Passphrase(), "c")
    assert withdrawn_name(path, roster) == "c" and (tmp_path / "w.json").exists()
    left = {path.name for path in site(out, "c").iterdir()}
    assert not left & {"identity.key", "transport.key", "journal"} and {"answered.json", "withdrawal.json"} <= left
    assert withdraw_from(site(out, "c"), Passphrase(), "c") == path  # again, as after an interruption


# -- what a party takes ---------------------------------------------


def test_a_site_that_pins_nobody_needs_the_fingerprint_and_the_right_one(out: Path) -> None:
    (site(out, "a") / keys.PINNED).unlink()
    offered = out / "administrator" / "charter-1"
    with pytest.raises(KeyFileError, match="--administrator FINGERPRINT"):
        take(site(out, "a"), offered)
    with pytest.raises(RosterRefused, match="by telephone"):
        take(site(out, "a"), offered, fingerprint(KEY))
    said = fingerprint(administrator(out).public)
    take(site(out, "a"), offered, said.upper().replace(" ", "-"))


@pytest.mark.parametrize("party", ["server", "clients/a"])
def test_rollback_of_a_roster_is_refused_by_every_party(out: Path, tmp_path: Path, party: str) -> None:
    folder = out / party
    offered = changed(out, tmp_path, add=[request("d", tmp_path / "d")])
    take(folder, offered)
    with pytest.raises(RosterRefused, match="serial 2, the newest"):
        take(folder, out / "administrator" / "charter-1")
    shutil.copy(out / "administrator" / "roster-1.json", folder / "roster.json")
    with pytest.raises(RosterRefused, match="serial 2, the newest"):
        (run_server if party == "server" else run_client)(folder)
    (folder / "newest_roster.json").unlink()  # control: that file is what remembers it
    assert load_roster(folder).serial == 1


def test_two_rosters_of_one_serial_are_not_both_taken(out: Path, tmp_path: Path) -> None:
    roster = load_roster(out / "server")
    other = msgspec.structs.replace(roster, expires="2031-01-01")
    (tmp_path / "roster.json").write_bytes(sign_roster(other, administrator(out)))
    with pytest.raises(RosterRefused, match="another roster of serial 1"):
        read_offered(site(out, "a"), tmp_path / "roster.json", None, administrator=None, passphrase=Passphrase())


@pytest.mark.parametrize(("party", "start"), [("server", run_server), ("clients/a", run_client)])
def test_expired_roster_begins_nothing_and_is_warned_of_before(
    out: Path, monkeypatch: pytest.MonkeyPatch, party: str, start: Callable[[Path], None]
) -> None:
    roster = load_roster(out / party)
    assert expiry_warning(roster) is None
    soon = msgspec.structs.replace(roster, expires=accepted.day_from_now(29))
    assert "expires on" in str(expiry_warning(soon))
    monkeypatch.setattr(accepted, "today", lambda: "9999-01-01")
    with pytest.raises(RosterRefused, match="expired on"):
        start(out / party)


def test_revoked_member_is_told_so_from_then_on(out: Path, tmp_path: Path) -> None:
    offered = changed(out, tmp_path, add=[request("d", tmp_path / "d")], remove=["c"])
    for _ in range(2):
        with pytest.raises(Revoked, match="c, revoked by roster serial 2"):
            take(site(out, "c"), offered)
    with pytest.raises(Revoked, match="c, revoked by roster serial 2"):
        run_client(site(out, "c"))


# -- acceptance ---------------------------------------------


def edited(folder: Path, old: str, new: str) -> None:
    text = (folder / "config.toml").read_text()
    assert old in text
    (folder / "config.toml").write_text(text.replace(old, new))


@pytest.mark.parametrize(("party", "start"), [("server", run_server), ("clients/a", run_client)])
def test_setting_that_was_changed_since_is_named(
    out: Path, monkeypatch: pytest.MonkeyPatch, party: str, start: Callable[[Path], None]
) -> None:
    edited(out / party, "bound = 9", "bound = 8")
    monkeypatch.setattr(sys.modules[start.__module__], "make_course", None)  # what is let through ends there
    with pytest.raises(
        NotAccepted, match=r"sums\.vectors\.visits\.patients\.bound is 8\.0, accepted was 9\.0"
    ) as caught:
        start(out / party)
    assert exit_code(caught.value) == 3


@pytest.mark.parametrize(("party", "start"), [("server", run_server), ("clients/a", run_client)])
def test_charter_that_could_never_run_begins_nothing_though_all_have_accepted_it(
    out: Path, monkeypatch: pytest.MonkeyPatch, party: str, start: Callable[[Path], None]
) -> None:
    """Else a server waits for everybody, clients train, and the first epoch fails."""
    monkeypatch.setattr("codream_protocols.charter.MAX_STEPS", 0)
    monkeypatch.setattr(sys.modules[start.__module__], "RecordFolder" if party == "server" else "own_keys", None)
    with pytest.raises(UnsafePlan, match="a schedule of 1 steps"):
        start(out / party)
    failed = [finding for finding in examine(out / party) if finding.state is State.FAILED]
    assert [(one.check, one.allowed) for one in failed if "schedule" in one.found] == [("charter", "1 to 0, of these")]


def test_more_blocks_of_earlier_charters_than_one_can_name_are_said_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    blocks = [["ab" * 32, "cd" * 32]]
    table = {"charter": "ab" * 32, "head": "cd" * 32, "certified": 1, "colluders": 1}

    def verified(count: int) -> object:
        return lambda record, permitted: SimpleNamespace(successor={**table, "blocks": blocks * count})

    module = sys.modules[sign.__module__]
    monkeypatch.setattr(module, "verify_record", verified(MAX_BLOCKS))
    assert following(CONFIG, tmp_path).predecessor is not None
    monkeypatch.setattr(module, "verify_record", verified(MAX_BLOCKS + 1))
    with pytest.raises(ConfigError, match=r"found 4097 different blocks.*at most 4096.*under another name"):
        following(CONFIG, tmp_path)


def test_acceptance_of_another_charter_or_member_begins_nothing(out: Path, tmp_path: Path) -> None:
    folder, old = site(out, "a"), (site(out, "a") / "acceptance.json").read_bytes()
    take(folder, changed(out, tmp_path, add=[request("d", tmp_path / "d")]))
    new = (folder / "acceptance.json").read_bytes()
    roster = load_roster(folder)
    config = read_federation(folder / "config.toml")
    check_accepted(folder, config, roster, "a")  # control
    others = [old, (site(out, "b") / "acceptance.json").read_bytes()]
    forged = msgspec.json.decode(old, type=Acceptance)
    aimed = msgspec.json.decode(new, type=Acceptance)
    others.append(statement_bytes(msgspec.structs.replace(aimed, signature=forged.signature)))
    for content in others:
        (folder / "acceptance.json").write_bytes(content)
        with pytest.raises(NotAccepted):
            run_client(folder)


def test_acceptances_are_gathered_for_this_charter_alone(out: Path, tmp_path: Path) -> None:
    roster = load_roster(out / "server")
    charter = CONFIG.charter(roster)
    folder = out / "server" / "acceptances"
    (folder / "c.json").write_bytes(b"{}")
    found, wrong = gathered(folder, charter, roster)
    assert set(found) == {"a", "b"} and len(wrong) == 1 and "c.json" in wrong[0]
    other = FederationConfig.model_validate(
        {**CONFIG.model_dump(exclude_none=True), "federation": {"course": "sums", "seed": 5}}
    )
    assert gathered(folder, other.charter(roster), roster)[0] == {}


def test_charter_of_another_signer_is_not_accepted(out: Path, tmp_path: Path) -> None:
    offered = tmp_path / "offered"
    shutil.copytree(out / "administrator" / "charter-1", offered)
    text = (offered / "charter.json").read_text()
    (offered / "charter.json").write_text(text.replace('"bound":9.0', '"bound":8.0'))
    with pytest.raises(BadSignature, match="another charter"):
        take(site(out, "a"), offered)


def test_another_federations_roster_is_not_signed_a_charter_for(out: Path) -> None:
    other = FederationConfig.model_validate(
        {**CONFIG.model_dump(exclude_none=True), "federation": {"course": "sums", "name": "other"}}
    )
    with pytest.raises(RosterRefused, match="a roster of 'federation'"):
        sign(out / "administrator", administrator(out), other)


def test_nothing_of_the_administrators_is_overwritten(out: Path) -> None:
    roster: Roster = load_roster(out / "server")
    with pytest.raises(WouldOverwrite):
        administration._write(out / "administrator", roster, administrator(out))


def test_what_a_roster_says_is_there_for_scripts(out: Path, tmp_path: Path) -> None:
    found = load_roster(site(out, "a"))
    done = CliRunner().invoke(cli.app, ["roster", "show", str(site(out, "a")), "--json"])
    assert done.exit_code == 0
    told = json.loads(done.output)
    assert told["members"] == {member.name: fingerprint_of(member) for member in found.members}
    assert (told["federation"], told["serial"], told["expires"]) == (found.federation, found.serial, found.expires)
    assert told["administrators"] == [fingerprint(key) for key in found.administrators] and told["revoked"] == {}
    assert told["server"] == {"address": found.server.address, "fingerprint": fingerprint_of(found.server)}
    path = tmp_path / "d.join.json"
    asked = request("d", tmp_path / "d")
    path.write_bytes(statement_bytes(asked))
    done = CliRunner().invoke(cli.app, ["roster", "show", str(path), "--json"])
    assert json.loads(done.output) == {"party": "d (mlp)", "fingerprint": fingerprint_of(asked.member)}
