"""What the server keeps of each connected member: where it is, when it was heard, and what still has to go out to it.

Messages for a member wait in its own queue, so that one that does not read holds up nobody else; what exceeds the
bound is thrown away, and the member is lost until it says Hello. The answer to a Hello tells a member all that it
lacks, so it takes the place of whatever was waiting. In the same way a connection that moved, broke or was given up on
is only good again after a Hello.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from codream_protocols.messages import Advertisement, Ask, Beat, Hello, MaskedInput, Seals, ToServer
from codream_protocols.parcels import WINDOW, Outgoing

MOST_QUEUED_BYTES = 256 << 20
LITTLE = 16  # of which part of that is not worth counting beside a message that is larger
FIRST_RESEND, LAST_RESEND = 3.0, 60.0  # seconds before a sum that does not seem to have arrived is sent again
_SETUP = (Hello, Advertisement, Seals)


@dataclass
class Traffic:
    """Application bytes of a member, or of several together, frames and messages, without ZeroMQ's and CURVE's own.

    Attributes:
        up: sent by the member.
        down: sent to it.
        setup: of `up`, Hello and the set-up of epochs.
        payload: of `up`, packed vectors.
    """

    up: int = 0
    down: int = 0
    setup: int = 0
    payload: int = 0

    def came(self, message: ToServer, size: int, frames: tuple[bytes, ...]) -> None:
        """Count a message of this size, and its frames, as sent by the member."""
        self.up += size + sum(map(len, frames))
        self.carried(message, frames)
        if isinstance(message, _SETUP):
            self.setup += size

    def carried(self, message: ToServer, frames: tuple[bytes, ...]) -> None:
        """Count what a message carries; if it came in pieces, these were counted as they came."""
        if isinstance(message, MaskedInput):
            self.payload += sum(map(len, frames))


@dataclass
class Peer:
    """A member that has said Hello in this process.

    Attributes:
        route: ZeroMQ's name of its connection.
        heard: when it was last heard, on the patient clock.
        beat: when it last beat, or said Hello; this much is shown, since an answer comes when it has computed.
        present: whether it counts as there.
        needs_hello: whether it has missed messages, and must say Hello before it is sent any others.
        queue: what each message costs, and its parts or the parcel that it goes in; the first one goes first.
        announced: whether the parcel that is first has been told of.
        asked: pieces of it that the member wants now.
    """

    route: bytes
    heard: float
    present: bool = True
    needs_hello: bool = False
    beat: float = field(init=False)
    queue: deque[tuple[int, list[bytes] | Outgoing]] = field(default_factory=deque)
    announced: bool = False
    asked: deque[int] = field(default_factory=deque)
    _queued: int = 0
    _progress: tuple[bytes, int] = (b"", 0)
    _resend_gap: float = FIRST_RESEND
    _resend_at: float = 0.0

    def __post_init__(self) -> None:
        self.beat = self.heard

    def hears(self, message: ToServer, now: float) -> None:
        """It has said something."""
        self.heard = now
        if isinstance(message, Beat):
            self.beat = now

    @property
    def parcel(self) -> Outgoing | None:
        """The parcel that is first in the queue, once it has been told of."""
        first = self.queue[0][1] if self.queue and self.announced else None
        return first if isinstance(first, Outgoing) else None

    def put(self, item: list[bytes] | Outgoing, *, shared: bool) -> bool:
        """Queue a message; False if too much waits. Behind little one is never too much, else it could never be told.

        A record of large sums, that a member has yet to vote for, stands behind its Welcome.

        Args:
            item: route, message and frames, or the parcel that it goes in.
            shared: whether the frames are kept anyway, as published sums are, and so take no further memory.
        """
        if isinstance(item, Outgoing):
            cost = 0 if shared else item.size
        else:
            cost = sum(map(len, item[:2] if shared else item))
        before, self._queued = self._queued, self._queued + cost
        self.queue.append((cost, item))
        return self._queued <= MOST_QUEUED_BYTES or before <= MOST_QUEUED_BYTES // LITTLE

    def asks(self, ask: Ask) -> None:
        """It asks for a piece of the first parcel, or for no more of it; what it asks of another one is late."""
        parcel = self.parcel
        if parcel is None or ask.parcel != parcel.name:
            return
        if ask.piece >= parcel.pieces:
            self.sent()
        elif ask.piece not in self.asked and len(self.asked) < WINDOW:
            self.asked.append(ask.piece)

    def sent(self) -> None:
        """Take the first message off the queue: it went out."""
        cost, _ = self.queue.popleft()
        self._queued -= cost
        self.announced = False
        self.asked.clear()

    def clear(self) -> None:
        """Throw away what waits."""
        self.queue.clear()
        self.asked.clear()
        self.announced, self._queued = False, 0

    def leave(self) -> None:
        """It has missed something, or will: nothing more is sent before it says Hello."""
        self.needs_hello = True
        self.clear()

    # A sum that was only just sent is not sent again because a beat says that it has not arrived yet.

    def told_sum(self, now: float) -> None:
        """A sum goes out to it."""
        self._resend_at = now + self._resend_gap

    def may_resend(self, progress: tuple[bytes, int], now: float) -> bool:
        """Whether sums it says that it lacks may be sent again: after 3 s, then each time after twice as long."""
        if progress != self._progress:
            self._progress, self._resend_gap = progress, FIRST_RESEND
        if self.queue or now < self._resend_at:
            return False
        self._resend_gap = min(2 * self._resend_gap, LAST_RESEND)
        return True
