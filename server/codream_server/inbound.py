"""What the network may send: bounds by plan and phase, and rates by kind. All of it is checked before work is done.

What has a rate is told by its first bytes, and what is over it is dropped before anything else of it is read: a
member's answer lies behind all that it has sent before, and in lockstep everybody waits for it. A message is parsed
only up to the size that an honest member's can have in the present phase, and frames are looked at only if they have
exactly the size that the plan gives them. Records of whole epochs, which a server that lost some is given back, may
come in any phase.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set
from typing import Protocol

import zmq

from codream_protocols.charter import MAX_STEPS, Plan, derive_plan
from codream_protocols.errors import MalformedMessage, VectorRefused
from codream_protocols.messages import (
    Beat,
    EpochRecord,
    Hello,
    MaskedInput,
    Parcel,
    Piece,
    Refusal,
    ToServer,
    decode_to_server,
    largest_message,
)
from codream_protocols.packing import packed_size
from codream_protocols.parcels import PIECE_BYTES, ROOM
from codream_protocols.server import Effect, Phase, SendTo, ServerProtocol
from codream_server.patience import Clock, RateLimit


def _tag(kind: type[ToServer]) -> bytes:
    """The first element of such a message, as MessagePack's short strings are written."""
    name = str(kind.__struct_config__.tag).encode()
    return bytes([0xA0 | len(name)]) + name


_RECORD = _tag(EpochRecord)
_RATED: dict[bytes, type[ToServer]] = {_tag(kind): kind for kind in (Hello, Refusal, Beat, Parcel)}
MOST_PARTS = 2 + MAX_STEPS
"""Of a message: the connection, the message, and a frame a step."""


def next_message(socket: zmq.Socket[bytes]) -> list[zmq.Frame]:
    """The parts of a message; no more are kept than show that it has too many.

    Each takes far more memory here than on its way.

    Raises:
        zmq.Again: there is none.
    """
    parts = [socket.recv(zmq.NOBLOCK, copy=False)]
    while socket.rcvmore:
        part = socket.recv(zmq.NOBLOCK, copy=False)
        if len(parts) <= MOST_PARTS:
            parts.append(part)
    return parts


def rated_kind(data: bytes) -> type[ToServer] | None:
    """Which of the kinds with a rate a message says it is, by its first bytes; None for every other."""
    return _RATED.get(data[1 : 2 + (data[1] & 0x1F)]) if len(data) > 1 else None


class Sized(Protocol):
    """Bytes that need not have been copied yet."""

    def __len__(self) -> int: ...


class Bounds:
    """What a member may send to this server.

    Args:
        protocol: the server's machine.
        piece_bytes: of a piece of what is too large for one message.
    """

    def __init__(self, protocol: ServerProtocol, piece_bytes: int = PIECE_BYTES) -> None:
        self._protocol, self._piece_bytes = protocol, piece_bytes
        self._resilient = protocol.charter.aggregation.mode == "resilient"

    @property
    def socket(self) -> int:
        """Bytes of the largest message or piece of any phase: what the socket itself bounds."""
        message = largest_message(self._protocol.charter.members, MAX_STEPS, resilient=self._resilient)
        return ROOM + max(message, self._piece_bytes)

    def parse(self, data: bytes) -> ToServer:
        """Decode a message within the present phase's bound; raises `MalformedMessage`."""
        members, most = self._protocol.charter.members, self._protocol.largest_message
        course, certified = self._protocol.course, self._protocol.certified
        steps = len(course.schedule(min(certified, max(0, course.epochs - 1))))
        if data[1 : 1 + len(_RECORD)] == _RECORD:
            most = largest_message(members, steps, resilient=self._resilient)
        message = decode_to_server(data, most, members, steps)
        if type(message) in _RATED.values() and rated_kind(data) is None:
            raise MalformedMessage(f"{type(message).__name__} with a longer beginning than it needs", "the shortest")
        return message

    def told_of(self, data: bytes, sizes: Sequence[int]) -> MaskedInput | EpochRecord:
        """The message that a parcel tells of, whose frames have the sizes that they must have.

        Raises:
            RemoteProtocolError: as `parse` and `check_frames` do.
        """
        message = self.parse(data)
        self.check_frames(message, [range(size) for size in sizes])
        if not isinstance(message, MaskedInput | EpochRecord):
            raise VectorRefused(f"a parcel of {type(message).__name__}", "of a vector, or of a record")
        return message

    def awaited(self) -> frozenset[int]:
        """Whose vectors of the running step are waited for."""
        protocol = self._protocol
        return frozenset(protocol.waiting_for() if protocol.phase is Phase.COLLECTING else ())

    def wants(self, member: int, message: MaskedInput | EpochRecord, awaited: Set[int]) -> bool:
        """Whether the frames of a message are of use; without them it may be handed on all the same.

        Args:
            member: who tells of it.
            message: what it tells of.
            awaited: what `awaited` gives, asked once for all that arrive.
        """
        protocol = self._protocol
        if isinstance(message, EpochRecord):
            return message.offer.head == protocol.head
        if protocol.plan is None or (message.plan, message.step) != (protocol.plan.digest, protocol.step):
            return False
        return member in awaited

    def check_frames(self, message: ToServer, frames: Sequence[Sized]) -> None:
        """Refuse frames of another number or size than the plan says.

        Raises:
            VectorRefused: what was found, what is allowed.
            RemoteProtocolError: a record's offer from which no plan follows.
        """
        sizes = [len(frame) for frame in frames]
        plan = self._protocol.plan
        if isinstance(message, EpochRecord):
            if len(message.steps) != len(sizes):
                raise VectorRefused(f"{len(sizes)} sums for {len(message.steps)} steps", "one a step")
            if message.offer.head != self._protocol.head:
                return  # known, or not yet of use: nothing of it will be looked at
            follows = derive_plan(
                self._protocol.charter, self._protocol.course, message.offer, self._protocol.certified
            )
            allowed = [_size(follows, step) for step in range(follows.steps)]
            if sizes != allowed:
                raise VectorRefused(f"sums of {sum(sizes)} bytes", f"{follows.steps} of {sum(allowed)} bytes")
        elif isinstance(message, MaskedInput):
            if len(sizes) != 1:
                raise VectorRefused(f"{len(sizes)} frames behind a masked input", "one")
            if plan is None or message.plan != plan.digest or message.step >= plan.steps:
                return  # of an epoch that is over, perhaps: nothing of it will be looked at
            if sizes[0] != _size(plan, message.step):
                raise VectorRefused(f"a frame of {sizes[0]} bytes", f"{_size(plan, message.step)} bytes")
        elif isinstance(message, Parcel | Piece):
            if len(sizes) != 1:
                raise VectorRefused(f"{len(sizes)} frames behind {type(message).__name__}", "one")
        elif sizes:
            raise VectorRefused(f"{len(sizes)} frames behind {type(message).__name__}", "none")


def _size(plan: Plan, step: int) -> int:
    return packed_size(plan.spec(step).words, plan.modulus_bits(step))


class Rates:
    """One member's rates. What costs others time, and needs no key, is bounded.

    Args:
        beat: seconds between two beats; a client that beats twice as often as it must is not over any limit.
        clock: seconds.
    """

    def __init__(self, beat: float, clock: Clock) -> None:
        beats = max(10.0, 4 / beat)
        self.kinds = {
            Hello: RateLimit(5, 1.0, clock),
            Refusal: RateLimit(20, 10.0, clock),
            Beat: RateLimit(max(20, int(2 * beats)), beats, clock),
            EpochRecord: RateLimit(10, 1.0, clock),
            Parcel: RateLimit(20, 5.0, clock),
        }
        self._heads: set[bytes] = set()
        self.answers = RateLimit(20, 10.0, clock)
        """Refusals that it is sent: a flood of nonsense must not become one of answers."""
        self.asks = RateLimit(2, 1.0, clock)
        """Requests to say Hello: of all that waited for a line to come back, one answer is enough."""

    def over_limit(self, kind: type[ToServer] | None) -> int:
        """0 if a message of this kind may be looked at; else how many of them were dropped so far."""
        limit = None if kind is None else self.kinds.get(kind)
        return 0 if limit is None or limit.admits() else limit.over

    def was_of_use(self) -> None:
        """A record that brought this server further does not count, nor the Hello for the next: many may come."""
        self.kinds[EpochRecord].give_back()
        self.kinds[Hello].give_back()
        self.asks.give_back()

    def counts_as(self, message: MaskedInput | EpochRecord, frames: tuple[bytes, ...]) -> type[ToServer] | None:
        """As which kind what came in a parcel counts; it has no frames if they were not asked for.

        A vector whose pieces came does not count, nor its parcel: a member sends as many as there are steps. A record
        is replayed, so it has the same rate as one that came at once.
        """
        if frames and isinstance(message, MaskedInput):
            self.kinds[Parcel].give_back()
        return EpochRecord if frames and isinstance(message, EpochRecord) else None

    def caught_up(self, message: Hello, effects: Iterable[Effect]) -> None:
        """A Hello upon which the member is sent the next epoch that it lacks does not count, once for each epoch."""
        sent = [effect.message for effect in effects if isinstance(effect, SendTo)]
        if message.head not in self._heads and any(
            isinstance(one, EpochRecord) and one.offer.head == message.head for one in sent
        ):
            self._heads.add(message.head)
            self.kinds[Hello].give_back()
