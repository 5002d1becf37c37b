"""Identities: the roster, signed offline by the administrator, and who signs with which key.

A roster names every member with two public keys: Ed25519 (RFC 8032) for signatures, Curve25519 for the transport.
Clients pin the administrators' keys, so a server can neither add members of its own (Sybil) nor swap keys; they pin
the least serial number too, so that an old roster with a revoked member is refused. Who was a member once and is
revoked stands in every later roster with its keys: none of them is taken again, under whatever name. After its last day
a roster is not begun with.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import cached_property
from typing import Annotated, Any

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from msgspec import Meta, Struct

from codream_protocols.errors import BadSignature, Revoked, RosterRefused, UnknownIdentity
from codream_protocols.keyschedule import digest, labelled
from codream_protocols.neighbours import MAX_COMPLETE

MAX_MEMBERS = 100_000  # of what is simulated
MAX_SIGNED_MEMBERS = MAX_COMPLETE  # of a roster that is signed: more stand on a ring, so far in simulations alone
MAX_ROSTER_BYTES = 1 << 18
MAX_REVOKED = 500
NEVER = "9999-12-31"

Name = Annotated[str, Meta(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*\Z")]
Key = Annotated[bytes, Meta(min_length=32, max_length=32)]
Signature = Annotated[bytes, Meta(min_length=64, max_length=64)]
Address = Annotated[str, Meta(min_length=1, max_length=256, pattern=r"^tcp://[^\s]+\Z")]
Day = Annotated[str, Meta(pattern=r"^[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])\Z")]
"""A date in UTC, so written that earlier days sort first."""


class Signer:
    """A private Ed25519 key that signs labelled statements and shows itself to nobody."""

    __slots__ = ("_key",)

    def __init__(self, private: bytes) -> None:
        self._key = Ed25519PrivateKey.from_private_bytes(private)

    @property
    def public(self) -> bytes:
        """The public key, 32 bytes."""
        return self._key.public_key().public_bytes_raw()

    def sign(self, label: str, *parts: bytes) -> bytes:
        """Sign the parts under a domain label; 64 bytes."""
        return self._key.sign(labelled(label, *parts))

    def __repr__(self) -> str:
        return f"<Signer for {self.public.hex()[:16]}…>"

    def __deepcopy__(self, memo: dict[int, Any]) -> Signer:
        return self  # immutable

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError("a Signer is never pickled")


def verify(public: bytes, signature: bytes, label: str, *parts: bytes) -> None:
    """Check an Ed25519 signature over labelled parts.

    Raises:
        BadSignature: it does not verify.
    """
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, labelled(label, *parts))
    except (InvalidSignature, ValueError):
        raise BadSignature(
            f"a signature over {label!r} that does not verify under {public.hex()[:16]}…",
            "the roster's key's signature",
        ) from None


def is_ipv6(address: str) -> bool:
    """Whether an address has an IPv6 host, tcp://[...]:PORT; a socket is told so, since it cannot tell."""
    return address.startswith("tcp://[")


class Member(Struct, frozen=True, forbid_unknown_fields=True):
    """One client: its name and public keys (Ed25519 identity, Curve25519 transport), 32 bytes each."""

    name: Name
    identity_key: Key
    transport_key: Key


class ServerEntry(Struct, frozen=True, forbid_unknown_fields=True):
    """The aggregator: its address and public transport key. It has no identity key, since nobody need believe it."""

    address: Address
    transport_key: Key


class Roster(Struct, frozen=True, forbid_unknown_fields=True, dict=True):
    """Who takes part. A member's number in the protocol is its place in `members`, from 0.

    Attributes:
        federation: its name.
        serial: 1 and up; every change has a larger one.
        server: the aggregator.
        members: who takes part.
        administrators: the public keys of whom this roster, its charters and the next roster may be signed by; none in
            a roster that is never signed, as simulations have.
        expires: the last day on which anybody begins with this roster.
        revoked: who was a member with these keys, and must not be again.
    """

    federation: Name
    serial: Annotated[int, Meta(ge=1, lt=1 << 32)]
    server: ServerEntry
    members: Annotated[tuple[Member, ...], Meta(min_length=2, max_length=MAX_MEMBERS)]
    administrators: Annotated[tuple[Key, ...], Meta(max_length=2)] = ()
    expires: Day = NEVER
    revoked: Annotated[tuple[Member, ...], Meta(max_length=MAX_REVOKED)] = ()

    @cached_property
    def hash(self) -> bytes:
        """Digest of the canonical form, 32 bytes."""
        return digest("roster", msgspec.msgpack.encode(self))

    def number_of(self, name: str) -> int:
        """A member's number.

        Raises:
            Revoked: it was a member, and is none any more.
            UnknownIdentity: there is no such member.
        """
        for number, member in enumerate(self.members):
            if member.name == name:
                return number
        if any(member.name == name for member in self.revoked):
            raise revoked(name, self.serial)
        raise UnknownIdentity(f"the name {name!r}", "one of " + ", ".join(member.name for member in self.members))

    def by_transport_key(self, key: bytes) -> int:
        """The number of the member with this transport key.

        Raises:
            UnknownIdentity: there is none.
        """
        for number, member in enumerate(self.members):
            if member.transport_key == key:
                return number
        raise UnknownIdentity(f"the transport key {key.hex()[:16]}…", "a key of the roster")

    def revoked_by_key(self, *keys: bytes) -> Member | None:
        """The revoked member that had one of these keys, identity or transport; None where nobody had."""
        return next((one for one in self.revoked if {one.identity_key, one.transport_key} & {*keys}), None)


def revoked(name: str, serial: int) -> Revoked:
    """The refusal of a member that is none any more, or of its old keys."""
    return Revoked(
        f"{name}, revoked by roster serial {serial}",
        "a member of the roster with the keys that it has there",
        "to join again, make new keys and send the administrator a new join request",
    )


class SignedRoster(Struct, frozen=True, forbid_unknown_fields=True):
    """A roster with the administrator's public key and signature: the content of `roster.json`."""

    roster: Roster
    administrator: Key
    signature: Signature


def sign_roster(roster: Roster, administrator: Signer) -> bytes:
    """Sign a roster; returns the bytes of the roster file (JSON, keys in base64).

    Raises:
        RosterRefused: too many members, names or keys repeat, a key is a revoked member's, or the roster does not name
            who signs.
    """
    _check_distinct(roster)
    _check_named(roster, administrator.public)
    signed = SignedRoster(roster, administrator.public, administrator.sign("roster signature", roster.hash))
    return msgspec.json.format(msgspec.json.encode(signed), indent=2) + b"\n"


def parse_roster(data: bytes) -> SignedRoster:
    """A roster file's content, of which nothing is verified; raises `RosterRefused`."""
    if len(data) > MAX_ROSTER_BYTES:
        raise RosterRefused(f"a roster of {len(data)} bytes", f"at most {MAX_ROSTER_BYTES}")
    try:
        return msgspec.json.decode(data, type=SignedRoster)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RosterRefused(f"a malformed roster ({error})", "the file that the administrator signed") from error


def read_roster(
    data: bytes, administrators: bytes | Collection[bytes], *, least_serial: int = 1, today: str | None = None
) -> Roster:
    """Parse and verify a roster file.

    Args:
        data: the file's bytes.
        administrators: the pinned Ed25519 public key, 32 bytes, or several, any of which may have signed.
        least_serial: the smallest serial number to accept.
        today: the day (YYYY-MM-DD, UTC) on which it is to be begun with; None for a look back.

    Raises:
        RosterRefused: malformed, of another administrator, too old, expired, too large, or with repeated names or keys.
        BadSignature: the signature does not verify.
    """
    signed = parse_roster(data)
    pinned = (administrators,) if isinstance(administrators, bytes) else tuple(administrators)
    if signed.administrator not in pinned:
        raise RosterRefused(
            f"a roster of administrator {signed.administrator.hex()[:16]}…",
            "the pinned administrator " + " or ".join(f"{key.hex()[:16]}…" for key in pinned),
        )
    verify(signed.administrator, signed.signature, "roster signature", signed.roster.hash)
    _check_named(signed.roster, signed.administrator)
    if signed.roster.serial < least_serial:
        raise RosterRefused(
            f"roster serial {signed.roster.serial}",
            f"serial {least_serial} or later",
            "ask the administrator for the newest",
        )
    if today is not None and today > signed.roster.expires:
        raise RosterRefused(
            f"a roster that expired on {signed.roster.expires}",
            f"one that is valid on {today}",
            "ask the administrator for the next one, or set this machine's clock",
        )
    _check_distinct(signed.roster)
    return signed.roster


def _check_named(roster: Roster, administrator: bytes) -> None:
    if administrator not in roster.administrators:
        raise RosterRefused("a roster that does not name who signed it", "its administrators' signature")


def _check_distinct(roster: Roster) -> None:
    if len(roster.members) > MAX_SIGNED_MEMBERS:
        raise RosterRefused(f"a roster of {len(roster.members)} members", f"{MAX_SIGNED_MEMBERS} or fewer")
    columns: dict[str, list[str] | list[bytes]] = {
        "name": [member.name for member in roster.members],
        "identity key": [member.identity_key for member in roster.members],
        "transport key": [member.transport_key for member in roster.members] + [roster.server.transport_key],
        "administrator": [*roster.administrators],
    }
    for what, values in columns.items():
        if len(set(values)) != len(values):
            raise RosterRefused(f"a roster with a repeated {what}", f"one {what} for each party")
    for party in roster.members:
        if (found := roster.revoked_by_key(party.identity_key, party.transport_key)) is not None:
            raise RosterRefused(f"{party.name} with a key that was revoked, {found.name}'s", "keys that were not")
    if roster.revoked_by_key(roster.server.transport_key) is not None:
        raise RosterRefused("a server with a key that was revoked", "one that was not")
