"""Messages with large frames, carried in pieces: neither end ever holds more of one than a few pieces.

What fits into one piece goes as one message, as ever. Of what is larger, the sender tells the message itself and the
sizes of its frames (`Parcel`). The receiver judges the message as if its frames had come, and if it wants them asks for
one piece after the other (`Ask`), `WINDOW` of them ahead; the sender answers each (`Piece`). So a receiver decides how
much is under way to it, and nothing that it has not asked for is kept. Pieces count in order alone, and go to a spool;
the machine is given the message and all its frames at once, or never hears of it.

A parcel is named by the digest of the message and the sizes, and with it its pieces are bound to its sender's
connection, to plan and step, to their number and to how many there are. So one that is announced again goes on where
it was cut off. No piece is signed: what a sum's pieces come to, its tag and the chain tell; a vector's sender may send
what it likes in any case.

Both ends cut alike: frames are joined, and pieces are `piece_bytes` long but for the last.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Protocol

from codream_protocols.errors import VectorRefused
from codream_protocols.keyschedule import digest
from codream_protocols.messages import Ask, Parcel, Piece, encode_message

PIECE_BYTES = 1 << 20
WINDOW = 4
"""Pieces asked for and not yet there: enough for 40 MB a second at a tenth of a second's distance."""

ROOM = 1 << 10
"""Bytes that a transport may add to each part of a message; CURVE adds some thirty to it."""

Bytes = bytes | memoryview


class Spool(Protocol):
    """Where pieces wait until all are there."""

    def write(self, piece: Bytes) -> None:
        """Put it behind the others; raises `OSError`."""

    def read(self, sizes: Sequence[int]) -> tuple[bytes, ...]:
        """What was written, as frames of these sizes; they need not be in memory. Raises `OSError`."""

    def close(self) -> None:
        """Let go of it; frames that were read stay."""


def parcel_name(message: bytes, sizes: Sequence[int]) -> bytes:
    """The digest of an encoded message and of the sizes of its frames."""
    return digest("parcel", message, b"".join(size.to_bytes(8, "big") for size in sizes))


def pieces_of(sizes: Sequence[int], piece_bytes: int) -> int:
    """How many pieces frames of these sizes make."""
    return -(-sum(sizes) // piece_bytes)


class Outgoing:
    """A parcel to send.

    Args:
        message: encoded.
        frames: behind it; not copied.
        piece_bytes: of a piece.

    Attributes:
        name: the parcel's.
        pieces: how many.
        size: bytes of all frames.
    """

    def __init__(self, message: bytes, frames: Sequence[bytes], piece_bytes: int = PIECE_BYTES) -> None:
        self._message, self._frames, self._piece_bytes = message, [memoryview(frame) for frame in frames], piece_bytes
        self._sizes = tuple(len(frame) for frame in frames)
        self.name, self.pieces = parcel_name(message, self._sizes), pieces_of(self._sizes, piece_bytes)
        self.size = sum(self._sizes)

    def announcement(self) -> list[bytes]:
        """What tells of it, as the parts of a message."""
        return [encode_message(Parcel(self._sizes)), self._message]

    def piece(self, number: int) -> list[bytes]:
        """One piece, below `pieces`, as the parts of a message."""
        start, end = number * self._piece_bytes, (number + 1) * self._piece_bytes
        parts = []
        for begin, frame in zip(accumulate(self._sizes, initial=0), self._frames, strict=False):
            part = frame[max(0, start - begin) : max(0, end - begin)]
            if part:
                parts.append(part)
        return [encode_message(Piece(self.name, number)), b"".join(parts)]


class Incoming:
    """A parcel that is received, into a spool.

    Args:
        message: encoded.
        sizes: of its frames; their receiver has found them to be right.
        spool: empty.
        piece_bytes: of a piece.

    Attributes:
        name: the parcel's.
        pieces: how many there are.
        received: how many are there.
    """

    def __init__(self, message: bytes, sizes: Sequence[int], spool: Spool, piece_bytes: int = PIECE_BYTES) -> None:
        self._sizes, self._spool, self._piece_bytes = tuple(sizes), spool, piece_bytes
        self.name, self.pieces = parcel_name(message, sizes), pieces_of(sizes, piece_bytes)
        self.received = self._asked = self._ever_asked = 0

    @property
    def is_whole(self) -> bool:
        """Whether all pieces are there."""
        return self.received == self.pieces

    def asks(self) -> list[Ask]:
        """What to ask for now; of a whole one, that nothing more is needed."""
        if self.is_whole:
            return [Ask(self.name, self.pieces)]
        first, self._asked = max(self._asked, self.received), min(self.pieces, self.received + WINDOW)
        self._ever_asked = max(self._ever_asked, self._asked)
        return [Ask(self.name, number) for number in range(first, self._asked)]

    def ask_again(self) -> None:
        """What was asked for is lost: all that is not there is to be asked for anew."""
        self._asked = self.received

    def take(self, number: int, data: Bytes) -> bool:
        """Take a piece; whether it was the next one. Any other one changes nothing.

        Raises:
            VectorRefused: it is of another size.
            OSError: the spool does not take it; nothing of the parcel is of use any more.
        """
        if number != self.received or number >= self._ever_asked:
            return False
        size = min(self._piece_bytes, sum(self._sizes) - number * self._piece_bytes)
        if len(data) != size:
            raise VectorRefused(f"a piece of {len(data)} bytes", f"{size} bytes")
        self._spool.write(data)
        self.received += 1
        return True

    def frames(self) -> tuple[bytes, ...]:
        """All frames, of a whole one; the spool is let go. Raises `OSError`."""
        try:
            return self._spool.read(self._sizes)
        finally:
            self._spool.close()

    def close(self) -> None:
        """Let go of what came."""
        self._spool.close()
