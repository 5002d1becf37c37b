"""What a server writes down of a running epoch before it says it; killed at any instant, it goes on in that epoch.

Nothing here is secret, and nothing is verified by others: it is what was on its way to all members. Masked vectors are
not among it, but for those of a sum whose survivors were told: whoever is asked again sends the same bytes again. A
server that goes on without an entry that was lost says other things than before, which its members refuse: that costs
the epoch, and nothing else.

    magic | for each entry: length, 8 bytes, big-endian | digest, 32 bytes | entry

An entry is one MessagePack array, as a message is. Its digest is SHA-256 over the digest before (of the first: of the
magic) and the entry. What a crash has left of an entry was never acted upon: it is dropped.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from codream_protocols import record_file
from codream_protocols.charter import Members, Offer
from codream_protocols.errors import MalformedMessage
from codream_protocols.identity import MAX_MEMBERS
from codream_protocols.messages import Advertisement, SignedBy, StartShares, Step, Tag

VERSION = 3
MAGIC = b"secure-codream running epoch, version %d\n" % VERSION
_LENGTH = struct.Struct(">Q")
_HEADER_BYTES = _LENGTH.size + hashlib.sha256().digest_size
MOST_BYTES = 1 << 33  # twice a record


class _Entry(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    pass


class Opened(_Entry, frozen=True, tag="opened"):
    """These members are invited; what was written of an epoch before is void."""

    offer: Offer


class Shown(_Entry, frozen=True, tag="shown"):
    """These advertisements are shown to their members."""

    items: Annotated[tuple[Advertisement, ...], Meta(min_length=1, max_length=MAX_MEMBERS)]


class Delivered(_Entry, frozen=True, tag="delivered"):
    """All have sealed, so many seals together, which are kept apart, and are delivered what was sealed for them."""

    seals: Annotated[int, Meta(ge=1, lt=1 << 53)]


class Started(_Entry, frozen=True, tag="started"):
    """Of more than 200 members: all their start shares, which they are told."""

    start: StartShares


class Closed(_Entry, frozen=True, tag="closed"):
    """Resilient: whose vectors are in a step's sum, which is still masked.

    Attributes:
        step: the step.
        members: the survivors.
        tag: the sum of their masked tags.
        frame: the packed sum of their masked vectors.
        start: all members' start shares, with the first step; empty with the others.
    """

    step: Step
    members: Members
    tag: Tag
    frame: bytes
    start: StartShares


class Agreed(_Entry, frozen=True, tag="agreed"):
    """Resilient, after a loss: enough have signed the survivors, and are shown all signatures; they answer but once."""

    step: Step
    items: Annotated[tuple[SignedBy, ...], Meta(min_length=1, max_length=MAX_MEMBERS)]


class Summed(_Entry, frozen=True, tag="summed"):
    """A step's sum, which is published; for the fields see `Closed`."""

    step: Step
    members: Members
    tag: Tag
    frame: bytes
    start: StartShares


Entry = Opened | Shown | Delivered | Started | Closed | Agreed | Summed

_DECODER: msgspec.msgpack.Decoder[Entry] = msgspec.msgpack.Decoder(Entry)


def check_version(beginning: bytes) -> None:
    """Refuse what another version wrote, as `record_file.check_version` does."""
    record_file.check_version(beginning, "running epoch", VERSION)


class Writer:
    """The bytes to append to the file, entry by entry."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256(MAGIC).digest()

    def entry_parts(self, entry: Entry) -> list[bytes]:
        """Of the next entry, one part behind the other; the first one's stand behind the magic."""
        data = msgspec.msgpack.encode(entry)
        self._digest = _linked(self._digest, data)
        return [_LENGTH.pack(len(data)), self._digest, data]


def parse_running(take: Callable[[int], bytes], size: int, most_bytes: int = MOST_BYTES) -> list[Entry]:
    """The entries of a file, up to the first that is not whole; of a step that is summed, its sum alone.

    No more is held at once than what is given back, and one entry.

    Args:
        take: gives the file's next so many bytes, or what is left of them.
        size: the file's bytes.
        most_bytes: of the entries that are given back.

    Raises:
        MalformedMessage: of another version; too large; or an entry that is whole, and none that this version writes.
    """
    beginning = take(len(MAGIC))
    check_version(beginning)
    if beginning != MAGIC:
        return []  # cut off in its first line
    entries: list[tuple[Entry, int]] = []
    at, digest = len(MAGIC), hashlib.sha256(MAGIC).digest()
    while at + _HEADER_BYTES <= size:
        header = take(_HEADER_BYTES)
        (length,) = _LENGTH.unpack_from(header)
        at += _HEADER_BYTES
        if length > size - at:
            break
        held = sum(bytes_of for _, bytes_of in entries)
        if held + length > most_bytes:
            raise MalformedMessage(f"byte {at}: {held + length} bytes of a running epoch", f"at most {most_bytes}")
        content = take(length)
        digest = _linked(digest, content)
        if digest != header[_LENGTH.size :]:
            break
        try:
            entry = _DECODER.decode(content)
        except (msgspec.DecodeError, ValueError, TypeError, RecursionError) as error:
            raise MalformedMessage(f"byte {at}: no entry of a running epoch", "the file as it was written") from error
        if isinstance(entry, Summed):
            entries = [one for one in entries if needed_after_a_sum(one[0])]
        entries.append((entry, length))
        at += length
    return [entry for entry, _ in entries]


def _linked(digest: bytes, data: bytes) -> bytes:
    link = hashlib.sha256(digest)
    link.update(data)
    return link.digest()


def needed_after_a_sum(entry: Entry) -> bool:
    """Whether an entry still is, once its step is summed: not what the sum was made of."""
    return not isinstance(entry, Closed | Agreed)
