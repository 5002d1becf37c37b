"""A record as the bytes of a file: the journals of server and clients, and what a third party verifies, hold these.

    magic | length of the message, 4 bytes | message | number of frames, 4 bytes | for each: length, 4 bytes | frame

Lengths are big-endian. There is one encoding of a record: bytes that would be written otherwise are refused, so that no
byte of a file is without meaning.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable
from typing import Any

import msgspec

from codream_protocols.charter import MAX_STEPS
from codream_protocols.errors import MalformedMessage
from codream_protocols.identity import MAX_MEMBERS
from codream_protocols.messages import EpochRecord, check_lists, encode_message
from codream_protocols.record import Kept

VERSION = 3
MAGIC = b"secure-codream record, version %d\n" % VERSION
MAX_RECORD_BYTES = 1 << 32
_LENGTH = struct.Struct(">I")
_NAME = re.compile(r"epoch-(\d{5,})\.record\Z")
_DECODER: msgspec.msgpack.Decoder[EpochRecord] = msgspec.msgpack.Decoder(EpochRecord)


def record_name(number: int) -> str:
    """The file of an epoch, which was certified after `number` others, those of predecessors among them."""
    return f"epoch-{number:05d}.record"


def record_numbers(names: Iterable[str]) -> list[int]:
    """How many epochs came before each of the records among these names of files, in order."""
    return sorted(int(found[1]) for found in map(_NAME.match, names) if found)


def record_parts(kept: Kept) -> list[bytes]:
    """The bytes of a record and its packed sums, which are not copied, one part behind the other."""
    record, frames = kept
    parts = [MAGIC, *_counted(encode_message(record)), _LENGTH.pack(len(frames))]
    for frame in frames:
        parts += _counted(frame)
    return parts


def record_bytes(kept: Kept) -> bytes:
    """The same, joined."""
    return b"".join(record_parts(kept))


def check_version(beginning: bytes, kind: str = "record", version: int = VERSION) -> None:
    """Refuse a file of another version than this one reads and writes.

    Args:
        beginning: the file's first line, or more; that of no such file at all is let through.
        kind: what the first line says that it is.
        version: which one is read.

    Raises:
        MalformedMessage: which version it is, and what to do.
    """
    found = re.match(rb"secure-codream %s, version (\d{1,9})\n" % kind.encode(), beginning)
    if found is not None and int(found[1]) != version:
        raise MalformedMessage(
            f"a {kind} of version {int(found[1])}",
            f"version {version}",
            "nothing was changed; start the version of secure-codream that wrote it, or a newer one",
        )


def parse_record(data: bytes | memoryview, most_bytes: int = MAX_RECORD_BYTES, *, members: int = MAX_MEMBERS) -> Kept:
    """A record and its packed sums; whether they are an epoch of some charter, `record.replay` says.

    Args:
        data: a file's bytes; of a view, the sums are views.
        most_bytes: how many there may be.
        members: of the charter, where the file is not one's own: no list in it has more entries.

    Raises:
        MalformedMessage: the place in the file where it is no record, and why.
    """
    if len(data) > most_bytes:
        raise MalformedMessage(f"a record of {len(data)} bytes", f"at most {most_bytes}")
    view = memoryview(data)
    check_version(bytes(view[: len(MAGIC)]))
    if bytes(view[: len(MAGIC)]) != MAGIC:
        raise MalformedMessage("byte 0: another beginning", f"{MAGIC!r}")
    at = len(MAGIC)
    message, at = _take(view, at, "the message")
    start = at - len(message)
    try:
        check_lists(message, members, MAX_STEPS)
        record = _DECODER.decode(message)
    except (msgspec.DecodeError, ValueError, TypeError, RecursionError) as error:
        reason = str(error).splitlines()[0][:160] if str(error) else type(error).__name__
        raise MalformedMessage(f"byte {start}: a message that does not fit its schema ({reason})", "a record") from None
    count = _length(view, at, "the number of frames")
    if count > MAX_STEPS:
        raise MalformedMessage(f"byte {at}: {count} frames", f"at most {MAX_STEPS}")
    at += _LENGTH.size
    frames: list[Any] = []
    for number in range(count):
        frame, at = _take(view, at, f"frame {number}")
        frames.append(frame if isinstance(data, memoryview) else bytes(frame))
    if at != len(data):
        raise MalformedMessage(f"byte {at}: {len(data) - at} bytes behind the last frame", "the file's end")
    kept = record, tuple(frames)
    again = encode_message(record)  # all else has one encoding only
    if again != message:
        found = enumerate(zip(message, again, strict=False))
        place = start + next((at for at, (one, other) in found if one != other), min(len(message), len(again)))
        raise MalformedMessage(f"byte {place}: another encoding of the same record", "the one encoding there is")
    return kept


def _counted(data: bytes) -> list[bytes]:
    return [_LENGTH.pack(len(data)), data]


def _length(view: memoryview, at: int, what: str) -> int:
    if at + _LENGTH.size > len(view):
        raise MalformedMessage(f"byte {len(view)}: the file's end within the length of {what}", "a whole record")
    length: int = _LENGTH.unpack(view[at : at + _LENGTH.size])[0]
    return length


def _take(view: memoryview, at: int, what: str) -> tuple[memoryview, int]:
    size = _length(view, at, what)
    start = at + _LENGTH.size
    if start + size > len(view):
        raise MalformedMessage(f"byte {at}: {what} of {size} bytes, {len(view) - start} are there", "a whole record")
    return view[start : start + size], start + size
