"""The aggregator on the network: a ZeroMQ ROUTER with CURVE, driving `ServerProtocol`.

Who may connect is decided by ZAP before a byte of ours is read: only transport keys of the roster. Who sent a message
is the transport key of its connection, never what the message says. What is too large, too frequent or refused is
counted, answered with a typed refusal, and changes nothing (`inbound`).

Patience follows the slowest live member, not a clock. A member that beats is waited for, however long it computes. One
that is silent for `lost_after` seconds, of which those do not count in which this server was held up itself, is lost:
the resilient mode goes on without its block, lockstep waits for its return, and says so. In the resilient mode beats
alone do not hold up everybody for good: as few as may collude, that have not answered long after all others have, count
as lost, until they say Hello. Whoever is there and waited for long is asked to say Hello, upon which it is told
everything again that it may have missed.

What must be on disk before it is said (`record_folder`) is tried again at growing intervals if the disk fails; the
epoch waits, and the server stays.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import time
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path

import zmq
import zmq.asyncio

from codream_protocols.course import Publication
from codream_protocols.durable import FileSpool
from codream_protocols.errors import (
    AggregationFailed,
    BoundByVote,
    HelloNeeded,
    MalformedMessage,
    RemoteProtocolError,
    WrongHead,
)
from codream_protocols.identity import Roster
from codream_protocols.messages import (
    Advertisement,
    Ask,
    Beat,
    EpochRecord,
    Farewell,
    GivenUp,
    Hello,
    MaskedInput,
    Parcel,
    Piece,
    Refusal,
    ToServer,
)
from codream_protocols.parcels import PIECE_BYTES
from codream_protocols.server import (
    Effect,
    EpochBegan,
    EpochCertified,
    EpochGivenUp,
    Phase,
    SendTo,
    ServerProtocol,
    StepBegan,
    StepFinished,
)
from codream_server import listening as sockets
from codream_server.admission import RosterKeys
from codream_server.arrivals import Arrivals
from codream_server.events import Event, Events
from codream_server.exhibition import Exhibition
from codream_server.inbound import MOST_PARTS, Bounds, Rates, next_message, rated_kind
from codream_server.invitations import Invitations
from codream_server.outbox import Outbox
from codream_server.patience import Clock, Growing, PatientClock
from codream_server.peers import Peer, Traffic
from codream_server.settings import Timing
from codream_server.standing import Standing, Waits, standing, waiting_message
from codream_server.story import Story
from codream_server.unwritten import Unwritten

FIRST_PAUSE, LONGEST_PAUSE = 0.2, 5.0  # seconds after an epoch that was given up
SETTLE_VOTES = 5.0  # seconds after a Hello: as much time has a client to give back what it has voted for
SETTLE = 0.1  # seconds after a Hello: who has voted gives its vote first, and no start is wasted
SHOWN_EVERY = 1.0  # seconds between two looks at how it stands
TIMES_THE_SLOWEST = 10  # as long as all others took: so much slower an honest member may be, in the resilient mode
FAREWELL_SECONDS, LAST_WRITE_SECONDS = 10.0, 60.0
_HELLO_PLEASE = HelloNeeded("a client that may have missed messages", "Hello first")


class ServerRunner:
    """Runs a charter's epochs for whoever of the roster connects.

    Args:
        protocol: the server's machine; what it was given as certified is gone on from.
        roster: the verified roster.
        transport_secret: the server's CurveZMQ secret key, 32 bytes.
        endpoint: where to listen, such as "tcp://127.0.0.1:*".
        timing: patience.
        emit: called with each event (a dict with `event` and its fields); see docs/events.md.
        certified: called with (number, publication) of each epoch certified in this process; an OSError that it
            raises is said, and it is called again later.
        missed: (number, publication) of epochs that earlier processes did not live to hand on, handed on first.
        exhibit: (epoch, step) of which one masked input is kept for the report; None keeps nothing.
        stands: called once a second, about, with how it stands; for whoever looks while it runs.
        spool: a folder on whose disk large vectors wait until they are whole; None takes the machine's for what passes.
        piece_bytes: what is larger goes in pieces of so many bytes; the same for all parties.
        clock: seconds, for tests.

    Attributes:
        traffic: bytes of all members together; nobody's are counted apart.
        story: what happened, and what it has cost so far.
        exhibition: what is kept for the report.
    """

    def __init__(
        self,
        protocol: ServerProtocol,
        *,
        roster: Roster,
        transport_secret: bytes,
        endpoint: str,
        timing: Timing,
        emit: Callable[[Event], None],
        certified: Callable[[int, Publication], None] | None = None,
        missed: Iterable[tuple[int, Publication]] = (),
        exhibit: tuple[int, int] | None = None,
        stands: Callable[[Standing], object] | None = None,
        spool: Path | None = None,
        piece_bytes: int = PIECE_BYTES,
        clock: Clock = time.monotonic,
    ) -> None:
        self.protocol, self.traffic = protocol, Traffic()
        self._events = Events(emit)
        self._keys = RosterKeys(roster, self._events)
        self.story = Story(protocol, roster, self.traffic, self._events, clock)
        self.exhibition = Exhibition(protocol, exhibit)
        self._roster, self._secret, self._endpoint, self._timing = roster, transport_secret, endpoint, timing
        self._certified, self._missed = certified, missed
        self._bounds, self._rates = Bounds(protocol, piece_bytes), [Rates(timing.beat, clock) for _ in roster.members]
        self._tick = min(0.2, timing.beat / 2)
        self._patient = PatientClock(2 * self._tick, clock)
        self._peers: dict[int, Peer] = {}
        self._unwritten = Unwritten(self._patient, self._events)
        quorum, failed = protocol.charter.quorum, self._unwritten.failed
        self._outbox = Outbox(self._peers, self.traffic, quorum, self._patient, failed, piece_bytes)
        self._arrivals = Arrivals(self._bounds, self._peers, lambda: FileSpool(spool), piece_bytes)
        self._open_at, self._pause, self._settled = 0.0, FIRST_PAUSE, 0.0
        self._opened, self._invitations = False, Invitations()
        self._plans: deque[bytes] = deque(maxlen=64)  # of the newest epochs
        self._waits, self._counted = Waits(timing.lost_after), Traffic()
        self._stands, self._showing = stands, Growing(SHOWN_EVERY, SHOWN_EVERY)
        self._waiting_for: tuple[object, ...] = ()
        self._waiting_since = self._answered_at = self._greeted = 0.0
        self._awaited: set[int] = set()
        self._expected = set(protocol.plan.cohort) if protocol.plan else set()  # of an epoch that is gone on with
        self._failure: AggregationFailed | None = None

    # -- the loop ---------------------------------------------

    async def run(self, listening: Callable[[str], None] = lambda endpoint: None) -> None:
        """Serve until all epochs are certified.

        Args:
            listening: called once with the actual endpoint.

        Raises:
            AddressRefused: the endpoint is taken, or none of this machine's.
            AggregationFailed: nobody takes part any more, or too few came.
            ResultsUnwritten: all is certified, and the disk does not take what is to be handed on.
        """
        most = self._bounds.socket
        with sockets.opened(self._endpoint, secret=self._secret, most_bytes=most, admits=self._keys) as self._socket:
            listening(self._socket.getsockopt_string(zmq.LAST_ENDPOINT))
            try:
                await self._serve()
            except AggregationFailed as error:
                await self._say_farewell(str(error)[:512], completed=False)
                raise
            await self._say_farewell("all epochs are certified", completed=True)
            self._unwritten.check_results()

    async def _serve(self) -> None:
        self.story.federation_started()
        for number, publication in self._missed:
            self._hand_on(number, publication)
        self._patient.look()
        if self.protocol.plan is not None:  # that of an earlier process
            self._plans.append(self.protocol.plan.digest)
            self.story.epoch_resumed()
        while not self.protocol.done:
            self._open_if_ready()
            await self._listen()
            self._watch_silence()
            self._watch_progress()
            self._unwritten.write_again()
            await self._flush()
            if self._failure is not None:
                raise self._failure
        await self._wait_for_late()
        self.story.federation_finished()

    async def _wait_for_late(self) -> None:
        """Who took part and was lost before the end can still have the last certificates, for `timing.step` seconds."""
        since = self._patient.now
        self._waits.start(since)
        asking = Growing(1.0, 10.0)
        asking.start(since)
        if self.protocol.behind() and not self._peers:  # started again when all was over
            self.story.waiting_for_late(self._patient.now - since)
        while self.protocol.behind() and self._patient.now - since < self._timing.step:
            await self._listen()
            self._watch_silence()
            self._unwritten.write_again()
            await self._flush()
            if asking.is_due(self._patient.now):
                for member in self.protocol.behind():
                    if self._is_present(member):
                        self._ask_hello(member)
            if self._waits.telling.is_due(self._patient.now):
                self.story.waiting_for_late(self._patient.now - since)

    async def _listen(self) -> None:
        """Take what has come; then time passes for those that are silent."""
        if await self._socket.poll(20 if self._outbox.is_waiting else int(self._tick * 1000)):
            socket: zmq.Socket[bytes] = zmq.Socket.shadow(self._socket.underlying)
            with contextlib.suppress(zmq.Again):
                for _ in range(256):
                    if self._take(next_message(socket)):
                        await self._flush()
        self._patient.look()
        if self._stands is not None and self._showing.is_due(self._patient.now):
            self._stands(self.standing())

    async def _flush(self) -> None:
        self._outbox.ask(self._arrivals.asks(self._patient.now))
        await self._outbox.flush(self._socket)

    def standing(self) -> Standing:
        """How it stands now."""
        now, traffic = self._patient.now, self.traffic if self.protocol.done else self._counted
        waits, waited = self._waits.named, now - self._waiting_since
        return standing(self.protocol, self._roster, self._peers, traffic, waits, waited, now)

    async def _say_farewell(self, reason: str, *, completed: bool) -> None:
        """Tell everybody that it is over, and stay until they have left: a certificate must not be lost on the way.

        A disk that fails is given more time; what is certified is in the record in any case.
        """
        farewell = Farewell(reason, completed)
        self._unwritten.write_again(at_once=True)
        began, soon = self._patient.now, min(FAREWELL_SECONDS, self._timing.lost_after)
        greeted: set[int] = set()
        while self._patient.now < began + (LAST_WRITE_SECONDS if self._unwritten else soon):
            for member, peer in self._peers.items():
                if peer.present and not peer.needs_hello and not peer.queue:
                    self._send(SendTo(member, farewell))
                    greeted.add(member)
            await self._outbox.flush(self._socket)
            here = [one for one, peer in self._peers.items() if peer.present]
            if not self._unwritten and all(self._peers[one].needs_hello and one in greeted for one in here):
                return
            # Who has closed its connection cannot be sent anything: that is how its leaving is seen.
            await self._listen()
            self._unwritten.write_again()

    # -- members ---------------------------------------------

    def _take(self, parts: list[zmq.Frame]) -> bool:
        """Look at a message; False if it was dropped, upon which nothing has to go out."""
        if len(parts) < 2:
            return False
        member = self._keys.member_of(parts[1])
        if self._is_over_limit(member, rated_kind(parts[1].bytes)):
            return False
        self._look_at(member, parts)
        return True

    def _is_over_limit(self, member: int, kind: type[ToServer] | None) -> bool:
        over = self._rates[member].over_limit(kind)
        if kind is not None and over:
            self.story.over_limit(member, kind, over)
        return bool(over)

    def _look_at(self, member: int, parts: list[zmq.Frame]) -> None:
        route = parts[0].bytes
        try:
            if len(parts) > MOST_PARTS:
                raise MalformedMessage(f"a message of {MOST_PARTS} parts or more", f"1 to {MOST_PARTS - 1}")
            message = self._bounds.parse(parts[1].bytes)
            if isinstance(message, EpochRecord) and (
                message.offer.head != self.protocol.head  # known, or not yet of use
                or self._is_over_limit(member, EpochRecord)
            ):
                return
            self._bounds.check_frames(message, parts[2:])
            frames = tuple(part.bytes for part in parts[2:])
            self.traffic.came(message, len(parts[1].bytes), frames)
            if isinstance(message, Hello):
                self._on_hello(member, route, message)
                return
            peer = self._peer_of(member, route, message)
            if isinstance(message, Ask):
                peer.asks(message)
            elif isinstance(message, Parcel | Piece):
                self._carry(member, message, frames)
            elif not isinstance(message, Beat):
                self._dispatch(member, message, frames)
            elif not peer.needs_hello:
                self._on_beat(member, peer, message)
        except HelloNeeded:  # of a restarted server, or after a break of the line: no misdeed
            self._ask_hello(member, route)
        except RemoteProtocolError as error:
            self.story.server_refused(member, error)
            self._answer(member, route, error)

    def _carry(self, member: int, message: Parcel | Piece, frames: tuple[bytes, ...]) -> None:
        """A message whose frames come in pieces counts as come once they are there, or where they are of no use."""
        try:
            whole = self._arrivals.receive(member, message, frames, self._patient.now)
        except OSError as error:
            self._unwritten.failed("spool", error)
            self._ask_hello(member)  # upon which it tells of it again
            return
        if whole is not None and not self._is_over_limit(member, self._rates[member].counts_as(*whole)):
            self.traffic.carried(*whole)
            self._dispatch(member, *whole)

    def _on_hello(self, member: int, route: bytes, message: Hello) -> None:
        earlier = self._peers.get(member)
        try:
            effects = self.protocol.hello(member, message)
        except OSError as error:  # a record that cannot be read now
            self._unwritten.failed("record", error)
            if earlier is not None:
                earlier.needs_hello = True  # it is asked at its next beat, as one that is not known yet
            return
        self._peers[member] = Peer(route, self._patient.now)
        self._arrivals.ask_again(member)
        self._greeted = self._patient.now
        self._rates[member].caught_up(message, effects)
        if earlier is None or not earlier.present:
            self.story.joined(member)
        if earlier is None or earlier.route != route:
            self._invitations.begin_anew(member)
            self._invitations.passed_over.discard(member)
        self._settle()
        self._perform(effects)

    def _settle(self) -> None:
        """Put the next epoch off a little; greetings without end put none off for longer than a pause."""
        now = self._patient.now
        later = now + SETTLE - max(self._open_at, now)
        if later > 0 and self._settled < LONGEST_PAUSE:
            self._open_at, self._settled = now + SETTLE, self._settled + later

    def _peer_of(self, member: int, route: bytes, message: ToServer) -> Peer:
        peer = self._peers.get(member)
        if peer is None:
            raise HelloNeeded(f"{type(message).__name__} before Hello", "Hello first")
        peer.hears(message, self._patient.now)
        if peer.route != route:
            peer.route = route
            peer.leave()
        if peer.needs_hello:
            self._ask_hello(member)
        return peer

    def _on_beat(self, member: int, peer: Peer, message: Beat) -> None:
        effects = self.protocol.beat(member, message.plan, message.sums)
        if effects and peer.may_resend((message.plan, message.sums), self._patient.now):
            self._perform(effects)

    def _dispatch(self, member: int, message: ToServer, frames: tuple[bytes, ...]) -> None:
        if isinstance(message, Refusal):
            self._on_refusal(member, message)
        elif self._is_late(message):
            return
        before = self.protocol.certified
        try:
            effects = self.protocol.receive(member, message, frames)
        except OSError as error:  # the journal: nothing has been said yet, and nothing is lost
            again = functools.partial(self._dispatch_again, member, message, frames)
            self._unwritten.keep_trying("record", member, error, again, type(message).__name__)
            return
        if isinstance(message, Advertisement):
            self._invitations.accepted(member)
        elif isinstance(message, EpochRecord) and self.protocol.certified > before:
            self._rates[member].was_of_use()
            self._want_hello(member)  # it may have more of what this server lost
        elif isinstance(message, MaskedInput):
            self.exhibition.saw(member, message, frames)
        self._perform(effects)

    def _is_late(self, message: ToServer) -> bool:
        """Whether it belongs to an epoch that is over: on its way when that one was given up, and nobody's fault."""
        plan = getattr(message, "plan", b"")
        return plan in self._plans and (self.protocol.plan is None or plan != self.protocol.plan.digest)

    def _dispatch_again(self, member: int, message: ToServer, frames: tuple[bytes, ...]) -> None:
        """After a failure of the disk. The vote that could not be acted upon was counted; so count once more."""
        self._dispatch(member, message, frames)
        if self.protocol.phase is Phase.VOTING and not self._unwritten:
            self._lost(member)
            if self._is_present(member):
                self.protocol.absent.discard(member)

    def _on_refusal(self, member: int, message: Refusal) -> None:
        in_a_row = self._invitations.refused(member, message)
        self.story.client_refused(member, message)
        if in_a_row and message.code in (WrongHead.code, BoundByVote.code):
            self._want_hello(member)  # it stands elsewhere than was thought when it was invited
        self._failure = self._invitations.failure(message.code) or self._failure

    def _want_hello(self, member: int) -> None:
        """Ask a member to say Hello, and again at each beat until it does: nothing else is sent to it before."""
        self._peers[member].needs_hello = True
        self._ask_hello(member)

    def _ask_hello(self, member: int, route: bytes | None = None) -> None:
        if self._rates[member].asks.admits():
            self._answer(member, self._peers[member].route if route is None else route, _HELLO_PLEASE)

    def _answer(self, member: int, route: bytes, error: RemoteProtocolError) -> None:
        """Say what was refused, up to a rate."""
        if self._rates[member].answers.admits():
            self._outbox.answer(route, error)

    # -- patience ---------------------------------------------

    def _watch_silence(self) -> None:
        now = self._patient.now
        for member, peer in self._peers.items():
            if peer.present and now - peer.heard > self._timing.lost_after:
                self._lose(member, peer, "silence")
        if self._expected and now > self._timing.lost_after:
            expected, self._expected = self._expected - set(self._peers), set()
            for member in sorted(expected):
                self._lost(member)
        while self._outbox.overflowed:
            member = self._outbox.overflowed.pop()
            peer = self._peers[member]
            peer.leave()
            if peer.present:
                self._lose(member, peer, "it does not take what it is sent")

    def _lose(self, member: int, peer: Peer, reason: str) -> None:
        peer.present = False
        peer.leave()
        self.story.lost(member, reason, self._patient.now - peer.beat)
        self._lost(member)

    def _lost(self, member: int) -> None:
        try:
            self._perform(self.protocol.lost(member))
        except OSError as error:
            self._unwritten.keep_trying("record", member, error, lambda: self._lost(member))

    def _watch_progress(self) -> None:
        """Say who is waited for, ask those that are there again, and give up what lockstep has waited for too long."""
        now, protocol, plan = self._patient.now, self.protocol, self.protocol.plan
        if plan is None and (protocol.done or now < self._open_at):
            return
        key = (plan.digest if plan else b"", protocol.phase, protocol.step, protocol.certified)
        if key != self._waiting_for:
            self._waiting_for, self._waiting_since, self._answered_at = key, now, now
            self._counted = dataclasses.replace(self.traffic)
            if self._waits.start(now):
                self._tell_waiting()  # for nobody any more
        awaited = set(self._missing() if plan is None else protocol.waiting_for())
        if any(self._is_present(member) for member in self._awaited - awaited):  # answered; others fell silent
            self._answered_at = now
        self._awaited = awaited
        lost = {member for member in awaited if not self._is_present(member)}
        held = self._invitations.held_for(awaited)
        named = awaited if plan is None else lost.union(held)
        if self._waits.look(now, named if awaited else None, idle=plan is None):
            self._tell_waiting()
        if awaited and self._waits.telling.is_due(now):
            heard = {member: now - self._peers[member].beat for member in lost & set(self._peers)}
            self.story.waiting(named, lost, heard, held, now - self._waiting_since)
        if self._waits.asking.is_due(now):
            for member in awaited - lost:
                self._ask_hello(member)
        if protocol.phase is Phase.VOTING and now - self._greeted > min(SETTLE_VOTES, self._timing.lost_after):
            self._perform(protocol.settle_vote())
        if plan is None or protocol.plan is not plan:
            return
        if protocol.phase is not Phase.VOTING and self._absent_too_long(lost):
            self._expire()
        elif protocol.charter.aggregation.mode == "resilient":
            if protocol.phase is not Phase.VOTING:
                self._pass_over(awaited - lost)
            elif now - self._waiting_since > self._timing.step:  # too few have voted, or a certificate needs the absent
                self._waiting_since = now
                self._expire()

    def _tell_waiting(self) -> None:
        """Tell everybody who is there for whom the server waits; for their screens alone."""
        message = waiting_message(self._waits.named, self._peers, self._patient.now)
        self._perform(SendTo(member, message) for member, peer in self._peers.items() if peer.present)

    def _pass_over(self, awaited: set[int]) -> None:
        """Go on without members that are there and do not answer; so many alone as the charter takes for colluders."""
        slowest, now = self._answered_at - self._waiting_since, self._patient.now
        patience = max(self._timing.step, TIMES_THE_SLOWEST * slowest)
        if len(awaited) > self.protocol.charter.aggregation.colluders or now - self._waiting_since <= patience:
            return
        for member in sorted(awaited & set(self.protocol.waiting_for())):
            self._invitations.passed_over.add(member)
            self._lose(member, self._peers[member], "it is there and does not answer")

    def _is_present(self, member: int) -> bool:
        return member in self._peers and self._peers[member].present

    def _missing(self) -> tuple[int, ...]:
        """While idle: who is not there, stands at another head, or refuses; or, if that is nobody, everybody."""
        everybody = range(len(self._roster.members))
        away = {one for one in everybody if not self._is_present(one)}
        return tuple(sorted(away | self._invitations.held.union(self.protocol.behind()))) or tuple(everybody)

    def _absent_too_long(self, lost: Iterable[int]) -> bool:
        heard = (self._peers[member].heard if member in self._peers else 0.0 for member in lost)
        return any(self._patient.now - at > self._timing.step for at in heard)

    def _expire(self) -> None:
        """Give up what waits for the lost. The live ones, though waited for as well, are there and are told."""
        protocol, plan = self.protocol, self.protocol.plan
        assert plan is not None  # noqa: S101 - within an epoch
        try:
            effects = protocol.expire()
        except OSError as error:  # the last sum; it is tried again
            self._unwritten.failed("record", error)
            return
        protocol.absent -= {member for member in self._peers if self._is_present(member)}
        told = {effect.member for effect in effects if isinstance(effect, SendTo)}
        self._perform(effects)
        for ended in [effect for effect in effects if isinstance(effect, EpochGivenUp)]:
            message = GivenUp(plan.digest, ended.reason[:512])
            self._perform([SendTo(member, message) for member in plan.cohort if member not in told])

    # -- epochs ---------------------------------------------

    def _open_if_ready(self) -> None:
        protocol, now = self.protocol, self._patient.now
        if protocol.phase is not Phase.IDLE or protocol.done or now < self._open_at:
            return
        cohort = self._invitations.cohort(protocol)
        patience = self._timing.for_all(under_way=protocol.under_way)
        if cohort == protocol.charter.everybody or (cohort and (self._opened or now > patience)):
            self._opened = True
            self._settled = 0.0
            self._invitations.sent(cohort)
            self._perform(protocol.open_epoch(cohort))
        elif not self._opened and not protocol.under_way and self._timing.join is not None and now > self._timing.join:
            there = {one for one in protocol.charter.everybody if self._is_present(one)}
            raise self.story.too_few(there, self._invitations.held, self._timing.join)

    def _perform(self, effects: Iterable[Effect]) -> None:
        """Carry effects out."""
        for effect in effects:
            if isinstance(effect, SendTo):
                self._send(effect)
            elif isinstance(effect, EpochBegan):
                self._plans.append(effect.plan.digest)
                self.exhibition.epoch_began()
                self.story.epoch_began(effect)
            elif isinstance(effect, StepBegan):
                self.story.step_began(effect)
            elif isinstance(effect, StepFinished):
                self.exhibition.summed(effect)
                self.story.step_finished(effect)
            elif isinstance(effect, EpochCertified):
                self._epoch_certified(effect)
            else:
                self._epoch_given_up(effect)
        self.story.book_time()

    def _send(self, effect: SendTo) -> None:
        self._outbox.put(effect)

    def _epoch_certified(self, done: EpochCertified) -> None:
        self._invitations.all_begin_anew()
        self._pause = FIRST_PAUSE
        self.story.epoch_certified(done)
        self._hand_on(done.number, done.publication)

    def _hand_on(self, number: int, publication: Publication) -> None:
        if self._certified is None:
            return
        try:
            self._certified(number, publication)
        except OSError as error:
            self._unwritten.keep_trying("publication", number, error, lambda: self._hand_on(number, publication))

    def _epoch_given_up(self, given_up: EpochGivenUp) -> None:
        self.story.epoch_given_up(given_up, self._pause)
        self._open_at = self._patient.now + self._pause
        self._pause = min(2 * self._pause, LONGEST_PAUSE)
