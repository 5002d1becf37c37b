"""A client's parcels: what it sends in pieces as it is asked for them, and the one that it receives.

A received sum waits in a file until it is whole; then the machine is given it, and checks its tag before anything of it
is used. What is sent lies with the machine, which made it once: whoever asks twice gets the same bytes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from codream_protocols.client import ClientProtocol
from codream_protocols.errors import VectorRefused
from codream_protocols.messages import Ask, EpochRecord, Piece, Published, ToClient
from codream_protocols.packing import packed_size
from codream_protocols.parcels import Incoming, Outgoing, Spool, parcel_name, pieces_of

MOST_SENT = 2  # parcels that may be asked for: the newest vector, and a record that is given back
STILL_SECONDS = 20.0  # without a piece, after which those that are missing are asked for again
SHOWN_EVERY = 10.0

Whole = tuple[ToClient, tuple[bytes, ...]]


@dataclass(frozen=True)
class _Arriving:
    message: Published | EpochRecord
    parcel: Incoming


class Freight:
    """What goes in pieces.

    Args:
        new_spool: makes a spool.
        piece_bytes: what is larger goes in pieces of so many bytes.
        show: told now and then what is under way (`vector sent` or `sum received`), and how many of its hundredths.
        clock: seconds.
    """

    def __init__(
        self,
        new_spool: Callable[[], Spool],
        piece_bytes: int,
        show: Callable[[str, int], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._new_spool, self._piece_bytes, self._show, self._clock = new_spool, piece_bytes, show, clock
        self._sent: dict[bytes, Outgoing] = {}
        self._arriving: _Arriving | None = None
        self._failed: list[Ask] = []
        self._moved, self._shown = clock(), clock()

    # -- to the server ---------------------------------------------

    def parts(self, data: bytes, frames: tuple[bytes, ...]) -> list[bytes]:
        """What to send for an encoded message and its frames: both, or what tells of a parcel."""
        if sum(map(len, frames)) <= self._piece_bytes:
            return [data, *frames]
        parcel = Outgoing(data, frames, self._piece_bytes)
        self._sent.pop(parcel.name, None)
        while len(self._sent) >= MOST_SENT:
            del self._sent[next(iter(self._sent))]
        self._sent[parcel.name] = parcel
        return parcel.announcement()

    def asked(self, ask: Ask) -> list[bytes]:
        """The piece that is asked for, as the parts of a message; none of what is not sent any more."""
        parcel = self._sent.get(ask.parcel)
        if parcel is None:
            return []
        if ask.piece >= parcel.pieces:
            del self._sent[ask.parcel]
            return []
        self._tell("vector sent", ask.piece, parcel.pieces)
        return parcel.piece(ask.piece)

    # -- from the server ---------------------------------------------

    def told_of(self, message: ToClient, data: bytes, sizes: tuple[int, ...], *, wanted: bool) -> list[Ask]:
        """The server tells of a parcel; what to ask for.

        Args:
            message: which the parcel is.
            data: its bytes.
            sizes: of its frames; those that it must have, if it is wanted.
            wanted: whether its frames are of use.

        Raises:
            OSError: there is no place for it.
        """
        if not wanted:
            return [Ask(parcel_name(data, sizes), pieces_of(sizes, self._piece_bytes))]
        assert isinstance(message, Published | EpochRecord)  # noqa: S101 - what is wanted is one of these
        if self._arriving is not None and self._arriving.parcel.name == parcel_name(data, sizes):
            self._arriving.parcel.ask_again()
        else:
            self.forget()
            self._failed = [Ask(parcel_name(data, sizes), pieces_of(sizes, self._piece_bytes))]
            self._arriving = _Arriving(message, Incoming(data, sizes, self._new_spool(), self._piece_bytes))
        self._moved = self._clock()
        return self._arriving.parcel.asks()

    def take(self, piece: Piece, frames: Sequence[bytes]) -> tuple[list[Ask], Whole | None]:
        """Take a piece; what to ask for next, and what is whole now.

        Raises:
            VectorRefused: it is of a size that no piece has.
            OSError: the disk does not take it; the parcel is forgotten.
        """
        arriving = self._arriving
        if arriving is None or arriving.parcel.name != piece.parcel:
            return [], None
        parcel = arriving.parcel
        try:
            if not parcel.take(piece.piece, frames[0]):
                return [], None
            self._moved = self._clock()
            self._tell("sum received", parcel.received, parcel.pieces)
            if not parcel.is_whole:
                return parcel.asks(), None
            whole = arriving.message, parcel.frames()
        except OSError:
            self._failed = self.forget()
            raise
        self._arriving = None
        return parcel.asks(), whole

    def stalled(self) -> list[Ask]:
        """What to ask for again, where nothing has come for long."""
        if self._arriving is None or self._clock() - self._moved < STILL_SECONDS:
            return []
        self._moved = self._clock()
        self._arriving.parcel.ask_again()
        return self._arriving.parcel.asks()

    def failed(self) -> list[Ask]:
        """What to say after an `OSError`: that nothing more is needed, until the server tells of it anew."""
        failed, self._failed = self._failed, []
        return failed

    def forget(self) -> list[Ask]:
        """Let go of what is half received; that no more of it is needed."""
        if self._arriving is None:
            return []
        parcel, self._arriving = self._arriving.parcel, None
        parcel.close()
        return [Ask(parcel.name, parcel.pieces)]

    def _tell(self, what: str, done: int, pieces: int) -> None:
        if self._clock() - self._shown >= SHOWN_EVERY:
            self._shown = self._clock()
            self._show(what, 100 * done // pieces)


def is_wanted(protocol: ClientProtocol, message: ToClient, sizes: tuple[int, ...]) -> bool | None:
    """Whether the frames of a message are of use to a client; None if not even the message is.

    Raises:
        VectorRefused: they are of other sizes than they must be, or it is a message that has none.
        RemoteProtocolError: a record's offer from which no plan follows.
    """
    if isinstance(message, EpochRecord):
        if message.offer.head != protocol.head:
            return False
        plan = protocol.history.plan(message.offer)
        _check(sizes, tuple(packed_size(plan.spec(step).words, plan.modulus_bits(step)) for step in range(plan.steps)))
        return True
    if not isinstance(message, Published):
        raise VectorRefused(f"a parcel of {type(message).__name__}", "of a sum, or of a record")
    running, sums = protocol.plan, protocol.progress[1]
    if running is None or message.plan != running.digest or message.step > sums or not protocol.members:
        return False
    if message.step < sums:
        return None  # the same again
    _check(sizes, (packed_size(running.spec(message.step).words, running.modulus_bits(message.step)),))
    return True


def _check(sizes: tuple[int, ...], due: tuple[int, ...]) -> None:
    if sizes != due:
        raise VectorRefused(f"{len(sizes)} frames of {sum(sizes)} bytes", f"{len(due)} of {sum(due)} bytes")
