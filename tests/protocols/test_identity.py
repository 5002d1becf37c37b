"""The roster: who signs it, and what a client refuses of it."""

from __future__ import annotations

import contextlib
import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from codream_protocols.client import ClientProtocol
from codream_protocols.errors import (
    BadSignature,
    LocalProtocolError,
    RemoteProtocolError,
    Revoked,
    RosterRefused,
    UnknownIdentity,
)
from codream_protocols.identity import (
    MAX_ROSTER_BYTES,
    Member,
    Roster,
    SignedRoster,
    Signer,
    read_roster,
    sign_roster,
    verify,
)
from codream_protocols.server import ServerProtocol
from secure_codream.simulation.wire import Federation

ADMINISTRATOR = Signer(b"\x0a" * 32)
FEDERATION = Federation(3)
ROSTER = msgspec.structs.replace(FEDERATION.roster, administrators=(ADMINISTRATOR.public,), expires="2030-12-31")
FILE = sign_roster(ROSTER, ADMINISTRATOR)


def test_a_signed_roster_is_read_back() -> None:
    assert read_roster(FILE, ADMINISTRATOR.public) == ROSTER
    assert read_roster(FILE, ADMINISTRATOR.public).hash == ROSTER.hash
    compact = json.dumps(json.loads(FILE)).encode()  # the signature is over the content, not over the file's spaces
    assert read_roster(compact, ADMINISTRATOR.public) == ROSTER


def test_another_administrator_is_refused() -> None:
    other = Signer(b"\x0b" * 32)
    of_other = msgspec.structs.replace(ROSTER, administrators=(other.public,))
    with pytest.raises(RosterRefused, match="administrator"):
        read_roster(sign_roster(of_other, other), ADMINISTRATOR.public)
    claimed = json.loads(sign_roster(of_other, other))
    claimed["administrator"] = json.loads(FILE)["administrator"]
    with pytest.raises(BadSignature):
        read_roster(json.dumps(claimed).encode(), ADMINISTRATOR.public)


@pytest.mark.parametrize("what", ["name", "identity_key", "transport_key", "member added", "member removed", "order",
                                  "server address", "server key", "serial", "federation", "expires",
                                  "administrators", "revoked"])  # fmt: skip
def test_a_tampered_roster_is_refused(what: str) -> None:
    data = json.loads(FILE)
    roster = data["roster"]
    key = "B" * 43 + "="
    if what in ("name", "identity_key", "transport_key"):
        roster["members"][1][what] = "mallory" if what == "name" else key
    elif what == "member added":
        roster["members"].append({"name": "sybil", "identity_key": key, "transport_key": "C" * 43 + "="})
    elif what == "member removed":
        del roster["members"][0]
    elif what == "order":
        roster["members"].reverse()
    elif what == "server address":
        roster["server"]["address"] = "tcp://mallory:1"
    elif what == "server key":
        roster["server"]["transport_key"] = key
    elif what == "expires":
        roster["expires"] = "2031-12-31"
    elif what == "administrators":
        roster["administrators"].append(key)
    elif what == "revoked":
        roster["revoked"] = [{"name": "left", "identity_key": key, "transport_key": "C" * 43 + "="}]
    else:
        roster[what] = 2 if what == "serial" else "other"
    with pytest.raises(BadSignature):
        read_roster(json.dumps(data).encode(), ADMINISTRATOR.public)


def test_an_old_roster_is_refused() -> None:
    newer = sign_roster(msgspec.structs.replace(ROSTER, serial=4), ADMINISTRATOR)
    assert read_roster(newer, ADMINISTRATOR.public, least_serial=4).serial == 4
    with pytest.raises(RosterRefused, match="serial"):
        read_roster(FILE, ADMINISTRATOR.public, least_serial=2)


def repeated(what: str) -> Roster:
    first, second, third = ROSTER.members
    if what == "server transport key":
        second = msgspec.structs.replace(second, transport_key=ROSTER.server.transport_key)
    else:
        second = msgspec.structs.replace(second, **{what: getattr(first, what)})
    return msgspec.structs.replace(ROSTER, members=(first, second, third))


def test_a_roster_is_taken_up_to_its_last_day_and_looked_back_on_for_good() -> None:
    assert read_roster(FILE, ADMINISTRATOR.public, today="2030-12-31") == ROSTER
    with pytest.raises(RosterRefused, match="expired on 2030-12-31"):
        read_roster(FILE, ADMINISTRATOR.public, today="2031-01-01")
    assert read_roster(FILE, ADMINISTRATOR.public) == ROSTER  # whoever verifies a record


@pytest.mark.parametrize("day", ["2030-13-01", "2030-02-32", "30-1-1", "2030-01-01 ", "２０３０-01-01", "never"])
def test_what_is_no_day_is_refused(day: str) -> None:
    data = json.loads(FILE)
    data["roster"]["expires"] = day
    with pytest.raises(RosterRefused, match="malformed"):
        read_roster(json.dumps(data).encode(), ADMINISTRATOR.public)


def test_who_is_not_named_in_a_roster_cannot_sign_it() -> None:
    other = Signer(b"\x0b" * 32)
    with pytest.raises(RosterRefused, match="does not name who signed it"):
        sign_roster(ROSTER, other)
    forged = SignedRoster(ROSTER, other.public, other.sign("roster signature", ROSTER.hash))
    with pytest.raises(RosterRefused, match="does not name who signed it"):
        read_roster(msgspec.json.encode(forged), (ADMINISTRATOR.public, other.public))


def test_either_administrator_that_is_pinned_may_have_signed() -> None:
    second = Signer(b"\x0b" * 32)
    both = msgspec.structs.replace(ROSTER, administrators=(ADMINISTRATOR.public, second.public))
    for signer in (ADMINISTRATOR, second):
        assert read_roster(sign_roster(both, signer), (ADMINISTRATOR.public, second.public)) == both
    with pytest.raises(RosterRefused, match="a roster of administrator"):
        read_roster(sign_roster(both, second), ADMINISTRATOR.public)


@pytest.mark.parametrize("key", ["identity_key", "transport_key", "the server's"])
def test_a_revoked_key_under_another_name_is_refused(key: str) -> None:
    first = ROSTER.members[0]
    left = Member("left", b"l" * 32, b"t" * 32)
    taken = ROSTER.server.transport_key if key == "the server's" else getattr(first, key)
    field = "transport_key" if key == "the server's" else key
    again = msgspec.structs.replace(ROSTER, revoked=(msgspec.structs.replace(left, **{field: taken}),))
    with pytest.raises(RosterRefused, match="revoked"):
        sign_roster(again, ADMINISTRATOR)
    forged = SignedRoster(again, ADMINISTRATOR.public, ADMINISTRATOR.sign("roster signature", again.hash))
    with pytest.raises(RosterRefused, match="revoked"):
        read_roster(msgspec.json.encode(forged), ADMINISTRATOR.public)
    # Control: the same keys, of which none is taken again; the name may be.
    assert sign_roster(msgspec.structs.replace(ROSTER, revoked=(msgspec.structs.replace(left, name=first.name),)),
                       ADMINISTRATOR)  # fmt: skip


def test_a_revoked_name_is_told_so() -> None:
    roster = msgspec.structs.replace(ROSTER, revoked=(Member("left", b"l" * 32, b"t" * 32),))
    with pytest.raises(Revoked, match="left, revoked by roster serial 1"):
        roster.number_of("left")


def test_a_roster_of_more_than_200_members_is_not_signed_and_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """They would stand on a ring, which is for simulations so far."""
    many = tuple(Member(f"m{one}", one.to_bytes(32, "big"), (one + 1000).to_bytes(32, "big")) for one in range(201))
    assert sign_roster(msgspec.structs.replace(ROSTER, members=many[:200]), ADMINISTRATOR)
    roster = msgspec.structs.replace(ROSTER, members=many)
    with pytest.raises(RosterRefused, match="201 members"):
        sign_roster(roster, ADMINISTRATOR)
    with monkeypatch.context() as careless:
        careless.setattr("codream_protocols.identity._check_distinct", lambda roster: None)
        data = sign_roster(roster, ADMINISTRATOR)
    with pytest.raises(RosterRefused, match="201 members"):
        read_roster(data, ADMINISTRATOR.public)


REPEATED = ["name", "identity_key", "transport_key", "server transport key"]


@pytest.mark.parametrize("what", REPEATED)
def test_repeated_names_and_keys_are_refused(what: str) -> None:
    with pytest.raises(RosterRefused, match="repeated"):
        sign_roster(repeated(what), ADMINISTRATOR)


@pytest.mark.parametrize("what", REPEATED)
def test_repeated_names_and_keys_are_refused_even_when_signed(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as careless:
        careless.setattr("codream_protocols.identity._check_distinct", lambda roster: None)
        data = sign_roster(repeated(what), ADMINISTRATOR)
        read_roster(data, ADMINISTRATOR.public)  # the control
    with pytest.raises(RosterRefused, match="repeated"):
        read_roster(data, ADMINISTRATOR.public)


@given(data=st.binary(max_size=300))
def test_arbitrary_bytes_are_refused_with_a_typed_error(data: bytes) -> None:
    with pytest.raises(RosterRefused):
        read_roster(data, ADMINISTRATOR.public)


@given(place=st.integers(0, len(FILE) - 1), value=st.integers(0, 255))
def test_a_changed_byte_is_refused_or_changes_nothing(place: int, value: int) -> None:
    data = bytearray(FILE)
    data[place] = value
    with contextlib.suppress(RemoteProtocolError):
        assert read_roster(bytes(data), ADMINISTRATOR.public) == ROSTER


def test_a_huge_roster_is_refused_unread() -> None:
    with pytest.raises(RosterRefused, match="bytes"):
        read_roster(bytes(MAX_ROSTER_BYTES + 1), ADMINISTRATOR.public)


def test_members_are_found_by_name_and_transport_key() -> None:
    assert ROSTER.number_of("client-2") == 2
    assert ROSTER.by_transport_key(ROSTER.members[1].transport_key) == 1
    with pytest.raises(UnknownIdentity):
        ROSTER.number_of("mallory")
    with pytest.raises(UnknownIdentity):
        ROSTER.by_transport_key(bytes(32))


@pytest.mark.parametrize("member", [1, -1, 3])
def test_a_client_needs_the_key_of_its_entry(member: int) -> None:
    with pytest.raises(LocalProtocolError):
        client(member=member)


def test_a_client_needs_the_charters_roster() -> None:
    client(member=0)
    other = msgspec.structs.replace(FEDERATION.roster, serial=2)
    with pytest.raises(LocalProtocolError):
        client(member=0, roster=other)
    with pytest.raises(LocalProtocolError):
        ServerProtocol(FEDERATION.charter, other, FEDERATION.course)


def client(*, member: int, roster: Roster = FEDERATION.roster) -> ClientProtocol:
    return ClientProtocol(
        charter=FEDERATION.charter,
        roster=roster,
        course=FEDERATION.course,
        member=member,
        signer=FEDERATION.signers[0],
        policy=FEDERATION.policy,
    )


def test_signatures_are_bound_to_label_and_parts() -> None:
    signature = ADMINISTRATOR.sign("label", b"ab", b"c")
    verify(ADMINISTRATOR.public, signature, "label", b"ab", b"c")
    for label, parts in [("other", (b"ab", b"c")), ("label", (b"a", b"bc")), ("label", (b"abc",)), ("label", ())]:
        with pytest.raises(BadSignature):
            verify(ADMINISTRATOR.public, signature, label, *parts)
    for public in (bytes(32), b"\xff" * 32, bytes(31)):
        with pytest.raises(BadSignature):
            verify(public, signature, "label", b"ab", b"c")
