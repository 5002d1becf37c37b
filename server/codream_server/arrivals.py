"""Parcels on their way to the server: whose pieces are asked for, and where they wait until a vector is whole.

A vector of which a part has come is in no sum: its pieces lie in a file without a name, one for each member at most, so
that the disk bears n vectors and the memory a few pieces. What is no longer waited for is let go at once. Who has to
wait for its turn can tell that others are sending, as on any line that it shares with them; nobody is told who.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from codream_protocols.messages import Ask, EpochRecord, MaskedInput, Parcel, Piece
from codream_protocols.parcels import Incoming, Spool, parcel_name, pieces_of
from codream_server.inbound import Bounds
from codream_server.peers import Peer
from codream_server.turns import Turns

Large = MaskedInput | EpochRecord
Whole = tuple[Large, tuple[bytes, ...]]
"""A message and all its frames; none where they are of no use."""


@dataclass(frozen=True)
class _Arriving:
    message: Large
    parcel: Incoming


class Arrivals:
    """What comes in pieces; of each member one vector and one record at once, and a later one replaces it.

    Args:
        bounds: says what is waited for.
        peers: who has said Hello, by number; the runner's own.
        new_spool: makes a spool.
        piece_bytes: of a piece.
    """

    def __init__(
        self, bounds: Bounds, peers: Mapping[int, Peer], new_spool: Callable[[], Spool], piece_bytes: int
    ) -> None:
        self._bounds, self._peers, self._new_spool, self._piece_bytes = bounds, peers, new_spool, piece_bytes
        self._arriving: dict[tuple[int, type], _Arriving] = {}
        self._turns: Turns[tuple[int, type]] = Turns()
        self._over: list[tuple[int, Ask]] = []  # of which nothing more is to come

    def receive(self, member: int, message: Parcel | Piece, frames: tuple[bytes, ...], now: float) -> Whole | None:
        """Take what a member tells of a parcel, or a piece of one; what is to be handed on.

        Args:
            member: its number.
            message: either.
            frames: the one behind it.
            now: the time on the patient clock.

        Raises:
            RemoteProtocolError: a message or a size that this server does not take.
            OSError: the disk does not take it; the parcel is forgotten.
        """
        if isinstance(message, Piece):
            return self._take(member, message, frames[0], now)
        told = self._bounds.told_of(frames[0], message.sizes)
        key = member, type(told)
        if not self._bounds.wants(member, told, self._bounds.awaited()):
            name = parcel_name(frames[0], message.sizes)
            self._over.append((member, Ask(name, pieces_of(message.sizes, self._piece_bytes))))
            return told, ()
        before = self._arriving.get(key)
        if before is None or before.message != told:
            self._forget(key)
            parcel = Incoming(frames[0], message.sizes, self._new_spool(), self._piece_bytes)
            self._arriving[key] = _Arriving(told, parcel)
        return None

    def _take(self, member: int, piece: Piece, data: bytes, now: float) -> Whole | None:
        for key in ((member, MaskedInput), (member, EpochRecord)):
            found = self._arriving.get(key)
            if found is None or found.parcel.name != piece.parcel:
                continue
            try:
                if found.parcel.take(piece.piece, data):
                    self._turns.moved(key, now)
                if not found.parcel.is_whole:
                    return None
                whole = found.message, found.parcel.frames()
            except OSError:
                self._forget(key)
                raise
            self._forget(key)
            return whole
        return None  # of a parcel that is no longer waited for

    def _forget(self, key: tuple[int, type]) -> None:
        found = self._arriving.pop(key, None)
        if found is not None:
            found.parcel.close()
            self._over.append((key[0], Ask(found.parcel.name, found.parcel.pieces)))

    def ask_again(self, member: int) -> None:
        """What was asked of a member may not have reached it."""
        for (sender, _), found in self._arriving.items():
            if sender == member:
                found.parcel.ask_again()

    def asks(self, now: float) -> list[tuple[int, Ask]]:
        """What to ask of whom now, and what more; `now` is the time on the patient clock."""
        awaited = self._bounds.awaited() if self._arriving else frozenset[int]()
        wants = {key: self._bounds.wants(key[0], one.message, awaited) for key, one in self._arriving.items()}
        for key in [key for key, wanted in wants.items() if not wanted]:
            self._forget(key)
        found, self._over = self._over, []
        held = self._turns.holders([key for key in self._arriving if self._can_be_told(key[0])], now)
        for key, one in self._arriving.items():
            if key not in held or self._turns.is_still(key, now):
                one.parcel.ask_again()
            if key in held:
                found += [(key[0], ask) for ask in one.parcel.asks()]
        return found

    def _can_be_told(self, member: int) -> bool:
        peer = self._peers.get(member)
        return peer is not None and peer.present and not peer.needs_hello
