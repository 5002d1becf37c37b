"""What parties sign about who takes part, beside the roster: requests to join, charters, acceptances, withdrawals.

Every statement is a structure with one canonical form, whose digest is signed under a label of its own: no signature
over one can be shown as one over another. An acceptance names charter, roster and member, so it says yes to nothing
else. A fingerprint is what people compare by telephone.
"""

from __future__ import annotations

from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta, Struct

from codream_protocols.charter import Charter
from codream_protocols.errors import BadSignature, MalformedMessage
from codream_protocols.identity import Address, Key, Member, Name, Roster, ServerEntry, Signature, Signer, verify
from codream_protocols.keyschedule import digest

MAX_STATEMENT_BYTES = 1 << 14
FINGERPRINT_BYTES = 20
Model = Annotated[str, Meta(max_length=256)]
_S = TypeVar("_S", bound=Struct)


class JoinRequest(Struct, frozen=True, forbid_unknown_fields=True, tag="member", tag_field="party"):
    """A site that wants to be a member with these keys.

    Attributes:
        name: what it is called in the roster.
        identity_key: its public Ed25519 key.
        transport_key: its public Curve25519 key.
        model: what it trains, for whoever reads it.
        signature: by the identity key, over all else.
    """

    name: Name
    identity_key: Key
    transport_key: Key
    model: Model
    signature: Signature

    @property
    def member(self) -> Member:
        """Its entry in a roster."""
        return Member(self.name, self.identity_key, self.transport_key)

    def check(self) -> None:
        """Raises `BadSignature`: it is not signed with the key that it names."""
        verify(self.identity_key, self.signature, "join request", _content(self))


class ServerRequest(Struct, frozen=True, forbid_unknown_fields=True, tag="server", tag_field="party"):
    """The aggregator's: where it listens, and its transport key. Nothing of it is signed: it has no identity."""

    address: Address
    transport_key: Key

    @property
    def entry(self) -> ServerEntry:
        """Its entry in a roster."""
        return ServerEntry(self.address, self.transport_key)

    def check(self) -> None:
        """Nothing can be checked: only the fingerprint tells whose it is."""


class CharterSignature(Struct, frozen=True, forbid_unknown_fields=True):
    """An administrator's signature of a charter, which names the roster's digest: `charter.signature`."""

    charter: Key
    administrator: Key
    signature: Signature

    def check(self, charter: Charter, roster: Roster) -> None:
        """Refuse another charter's, or another administrator's than the roster names.

        Raises:
            BadSignature: as said.
        """
        if self.charter != charter.digest or charter.roster != roster.hash:
            raise BadSignature("a signature of another charter or roster", "one of this")
        if self.administrator not in roster.administrators:
            raise BadSignature(
                f"a charter signed by {self.administrator.hex()[:16]}…", "the signature of the roster's administrator"
            )
        verify(self.administrator, self.signature, "charter signature", self.charter)


class Acceptance(Struct, frozen=True, forbid_unknown_fields=True):
    """A member's yes to one charter with one roster: `acceptance.json`.

    Attributes:
        member: its name.
        roster: the roster's digest.
        serial: the roster's serial number.
        charter: the charter's digest.
        signature: by its identity key, over all else.
    """

    member: Name
    roster: Key
    serial: Annotated[int, Meta(ge=1, lt=1 << 32)]
    charter: Key
    signature: Signature

    def check(self, charter: Charter, roster: Roster) -> None:
        """Refuse another pair's, another member's, or a stranger's.

        Raises:
            BadSignature, UnknownIdentity, Revoked: as said.
        """
        member = roster.members[roster.number_of(self.member)]
        if (self.roster, self.serial, self.charter) != (roster.hash, roster.serial, charter.digest):
            raise BadSignature(f"{self.member}'s acceptance of another charter or roster", "one of this charter")
        verify(member.identity_key, self.signature, "acceptance", _content(self))


class Withdrawal(Struct, frozen=True, forbid_unknown_fields=True):
    """A member's word that it takes part no more: `withdrawal.json`."""

    member: Name
    federation: Name
    roster: Key
    signature: Signature

    def check(self, roster: Roster) -> None:
        """Refuse what is not this roster's member's own word.

        Raises:
            BadSignature, UnknownIdentity, Revoked: as said.
        """
        member = roster.members[roster.number_of(self.member)]
        if self.federation != roster.federation:
            raise BadSignature(f"a withdrawal from {self.federation}", roster.federation)
        verify(member.identity_key, self.signature, "withdrawal", _content(self))


def ask_to_join(signer: Signer, name: str, transport_key: bytes, model: str) -> JoinRequest:
    """A site's signed request; `transport_key` is the public one."""
    request = JoinRequest(name, signer.public, transport_key, model, bytes(64))
    return msgspec.structs.replace(request, signature=signer.sign("join request", _content(request)))


def sign_charter(charter: Charter, administrator: Signer) -> CharterSignature:
    """An administrator's signature of a charter."""
    signature = administrator.sign("charter signature", charter.digest)
    return CharterSignature(charter.digest, administrator.public, signature)


def accept(signer: Signer, name: str, charter: Charter, roster: Roster) -> Acceptance:
    """A member's signed acceptance of a charter with its roster."""
    said = Acceptance(name, roster.hash, roster.serial, charter.digest, bytes(64))
    return msgspec.structs.replace(said, signature=signer.sign("acceptance", _content(said)))


def withdraw(signer: Signer, name: str, roster: Roster) -> Withdrawal:
    """A member's signed withdrawal."""
    said = Withdrawal(name, roster.federation, roster.hash, bytes(64))
    return msgspec.structs.replace(said, signature=signer.sign("withdrawal", _content(said)))


def statement_bytes(statement: Struct) -> bytes:
    """A statement's file: JSON, keys in base64."""
    return msgspec.json.format(msgspec.json.encode(statement), indent=2) + b"\n"


def read_statement(data: bytes, kind: type[_S]) -> _S:
    """A statement of whose signature nothing is known yet.

    Raises:
        MalformedMessage: too long, or not this kind of statement.
    """
    if len(data) > MAX_STATEMENT_BYTES:
        raise MalformedMessage(f"{len(data)} bytes", f"at most {MAX_STATEMENT_BYTES}")
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedMessage(f"a malformed statement ({error})", "the file as it was written") from None


def fingerprint(key: bytes) -> str:
    """An administrator's, or another single key's, as people compare it."""
    return _grouped(digest("fingerprint", key))


def fingerprint_of(party: Member | ServerEntry) -> str:
    """A party's as people compare it: over its name or address, and all its keys."""
    if isinstance(party, ServerEntry):
        return _grouped(digest("server fingerprint", party.address.encode(), party.transport_key))
    return _grouped(digest("member fingerprint", party.name.encode(), party.identity_key, party.transport_key))


def _content(statement: Struct) -> bytes:
    """The canonical form of all but the signature."""
    return msgspec.msgpack.encode(msgspec.structs.replace(statement, signature=bytes(64)))


def _grouped(found: bytes) -> str:
    text = found[:FINGERPRINT_BYTES].hex()
    return " ".join(text[start : start + 4] for start in range(0, len(text), 4))
