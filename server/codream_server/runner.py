"""The aggregator on the network: a ZeroMQ ROUTER with CURVE, driving `ServerProtocol`.

Who may connect is decided by ZAP before a byte of ours is read: only transport keys of the roster. Who sent a message
is the transport key of its connection, never what the message says. What is too large, too frequent or refused is
counted, answered with a typed refusal, and changes nothing (`inbound`).

Patience follows the slowest live member, not a clock. A member that beats is waited for, however long it computes. One
that is silent for `lost_after` seconds, of which those do not count in which this server was held up itself, is lost:
the resilient mode goes on without its block, lockstep waits for its return, and says so. In the resilient mode beats
alone do not hold up everybody for good: as few as may collude, that have not answered long after all others have, count
as lost, until they say Hello. Whoever is there and waited
for long is asked to say Hello, upon which it is told everything again that it may have missed.

What must be on disk before it is said (`record_folder`) is tried again at growing intervals if the disk fails; the
epoch waits, and the server stays.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import zmq
import zmq.asyncio
from zmq.auth.asyncio import AsyncioAuthenticator
from zmq.utils import z85

from codream_protocols.course import Array, Publication
from codream_protocols.errors import (
    AddressRefused,
    AggregationFailed,
    AttemptsUsed,
    BoundByVote,
    CohortRefused,
    HelloNeeded,
    LocalProtocolError,
    MalformedMessage,
    RemoteProtocolError,
    WrongHead,
    WrongSum,
)
from codream_protocols.identity import Roster
from codream_protocols.messages import (
    Advertisement,
    Beat,
    EpochRecord,
    Farewell,
    GivenUp,
    Hello,
    MaskedInput,
    Published,
    Refusal,
    Seals,
    ToClient,
    ToServer,
    encode_message,
)
from codream_protocols.packing import unpack
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
from codream_server.events import (
    Event,
    Events,
    first_of,
    metrics_of,
    printable,
    rho_of_records,
    rounds_of,
    step_figures,
    worth_a_line,
)
from codream_server.inbound import MOST_PARTS, Bounds, Rates, next_message
from codream_server.patience import Clock, Growing, PatientClock, is_power_of_two
from codream_server.peers import Peer, Traffic
from codream_server.settings import Timing

SETUP_MESSAGES = (Hello, Advertisement, Seals)
FIRST_PAUSE, LONGEST_PAUSE = 0.2, 5.0  # seconds after an epoch that was given up
SETTLE = 0.1  # seconds after a Hello: who has voted gives its vote first, and no start is wasted
LONGEST_SILENCE_OF_SERVER = 600.0  # between two `waiting` events
REFUSALS_IN_A_ROW = 3
TIMES_THE_SLOWEST = 10  # as long as all others took: so much slower an honest member may be, in the resilient mode
FAREWELL_SECONDS, LAST_WRITE_SECONDS = 10.0, 60.0
_HELLO_PLEASE = HelloNeeded("a client that may have missed messages", "Hello first")


class ResultsUnwritten(LocalProtocolError):
    """The federation came to its end, and the disk does not take its results; the record has them."""

    code = "results-unwritten"


@dataclass(frozen=True)
class Exhibit:
    """For the report's "what the server saw": one member's masked vector of one step, and that step's sum."""

    member: int
    epoch: int
    round: int
    step: int
    task: str
    masked: Array
    total: Array
    survivors: tuple[int, ...]
    modulus_bits: int


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
        exhibit: (epoch, step) whose first masked input is kept for the report; None keeps nothing.
        clock: seconds, for tests.

    Attributes:
        traffic: each member's bytes.
        seconds: time spent waiting for members to compute, and for all else of the epochs.
        secure_steps: sums made.
        spent_rho: what all steps begun cost a client, in zCDP.
        refusals: of each member, how many of its messages were refused.
        refused_by: of each member, how many messages it refused.
        dropped: of each member, how many of its messages were over a rate.
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
        clock: Clock = time.monotonic,
    ) -> None:
        size = len(roster.members)
        self.protocol = protocol
        self.traffic = [Traffic() for _ in range(size)]
        self.seconds = {"compute": 0.0, "aggregation": 0.0}
        self.secure_steps = 0
        self.spent_rho = rho_of_records(protocol)
        self.refusals, self.refused_by, self.dropped = [0] * size, [0] * size, [0] * size
        self.exhibit: Exhibit | None = None
        self._roster, self._secret, self._endpoint, self._timing = roster, transport_secret, endpoint, timing
        self._events, self._certified, self._missed, self._exhibit_at = Events(emit), certified, missed, exhibit
        self._bounds, self._rates = Bounds(protocol), [Rates(timing.beat, clock) for _ in range(size)]
        self._tick = min(0.2, timing.beat / 2)
        self._clock, self._patient = clock, PatientClock(2 * self._tick, clock)
        self._peers: dict[int, Peer] = {}
        self._answers: list[tuple[int, list[bytes]]] = []  # refusals, also to members that have not said Hello
        self._encoded: tuple[ToClient | None, bytes] = None, b""
        self._overflowed: list[int] = []
        self._opened = False
        self._open_at, self._pause = 0.0, FIRST_PAUSE
        self._invited: tuple[int, ...] = ()  # to the newest epoch
        self._plans: deque[bytes] = deque(maxlen=64)  # of the newest epochs
        self._asked: set[int] = set()  # of these, who has not answered yet
        self._refusing: dict[int, tuple[str, int]] = {}  # code and number of invitations refused in a row
        self._refused_for = ""
        self._waiting = Growing(timing.lost_after, LONGEST_SILENCE_OF_SERVER)
        self._waiting_for: tuple[object, ...] = ()
        self._waiting_since = self._answered_at = 0.0
        self._awaited: set[int] = set()
        self._passed_over: set[int] = set()  # who did not answer in an epoch that is not certified
        self._unwritten: dict[tuple[str, int, str], Callable[[], None]] = {}  # what, of which epoch or member, why
        self._rewrite, self._write_failures = Growing(1.0, 30.0), 0
        self._phase, self._phase_since, self._step_since = Phase.IDLE, clock(), clock()
        self._masked: tuple[int, Array] | None = None
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
        context = zmq.asyncio.Context()
        authenticator = AsyncioAuthenticator(context)
        authenticator.start()
        keys = _RosterKeys(self._roster, self._events)
        authenticator.configure_curve_callback(domain="*", credentials_provider=keys)
        self._socket = context.socket(zmq.ROUTER)
        try:
            self._configure(self._socket)
            self._bind(self._socket)
            listening(self._socket.getsockopt_string(zmq.LAST_ENDPOINT))
            try:
                await self._serve()
            except AggregationFailed as error:
                await self._say_farewell(str(error)[:512], completed=False)
                raise
            await self._say_farewell("all epochs are certified", completed=True)
            self._check_all_is_written()
        finally:
            authenticator.stop()
            self._socket.close(linger=2000)
            context.destroy(linger=2000)

    def _configure(self, socket: zmq.asyncio.Socket) -> None:
        socket.curve_server = True
        socket.curve_secretkey = z85.encode(self._secret)
        socket.setsockopt(zmq.MAXMSGSIZE, self._bounds.socket)
        socket.setsockopt(zmq.SNDHWM, 8)  # what does not fit waits in `Peer.queue`, counted in bytes
        socket.setsockopt(zmq.RCVHWM, 32)
        socket.setsockopt(zmq.HANDSHAKE_IVL, 10_000)
        socket.setsockopt(zmq.HEARTBEAT_IVL, 5_000)
        socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 20_000)
        socket.setsockopt(zmq.ROUTER_MANDATORY, 1)

    def _bind(self, socket: zmq.asyncio.Socket) -> None:
        try:
            socket.bind(self._endpoint)
        except zmq.ZMQError as error:
            raise AddressRefused(
                f"{self._endpoint!r} ({zmq.strerror(error.errno or 0)})",
                "tcp://ADDRESS:PORT of this machine, with a free port",
            ) from error

    async def _serve(self) -> None:
        protocol = self.protocol
        self._events.say(
            "federation_started",
            clients=self._names(range(len(self._roster.members))),
            rounds=rounds_of(protocol),
            epochs=protocol.course.epochs,
            certified=protocol.certified,
            steps_per_round=len(protocol.course.schedule(first_of(protocol))),
            mode=protocol.charter.aggregation.mode,
            charter=protocol.charter.digest.hex(),
            head=protocol.head.hex(),
        )
        for number, publication in self._missed:
            self._hand_on(number, publication)
        self._patient.look()
        while not protocol.done:
            self._open_if_ready()
            await self._listen()
            self._watch_silence()
            self._watch_progress()
            self._write_again()
            await self._flush()
            if self._failure is not None:
                raise self._failure
        await self._wait_for_late()
        self._events.say(
            "federation_finished", rounds=rounds_of(protocol), epochs=protocol.certified, head=protocol.head.hex()
        )

    async def _wait_for_late(self) -> None:
        """Who took part and was lost before the end can still have the last certificates, for `timing.step` seconds."""
        since = self._patient.now
        self._waiting.start(since)
        asking = Growing(1.0, 10.0)
        asking.start(since)
        if self.protocol.behind() and not self._peers:  # started again when all was over
            self._say_late(since)
        while self.protocol.behind() and self._patient.now - since < self._timing.step:
            await self._listen()
            self._watch_silence()
            self._write_again()
            await self._flush()
            if asking.is_due(self._patient.now):
                for member in self.protocol.behind():
                    if self._is_present(member):
                        self._ask_hello(member)
            if self._waiting.is_due(self._patient.now):
                self._say_late(since)

    def _say_late(self, since: float) -> None:
        late, seconds = self._names(self.protocol.behind()), round(self._patient.now - since, 1)
        self._events.say("waiting", clients=late, lost=late, refusing={}, bound=[], phase="finished", seconds=seconds)

    async def _listen(self) -> None:
        """Take what has come; then time passes for those that are silent."""
        sending = any(peer.queue for peer in self._peers.values())
        if await self._socket.poll(20 if sending else int(self._tick * 1000)):
            socket: zmq.Socket[bytes] = zmq.Socket.shadow(self._socket.underlying)
            with contextlib.suppress(zmq.Again):
                for _ in range(256):
                    self._take(next_message(socket))
                    await self._flush()
        self._patient.look()

    async def _say_farewell(self, reason: str, *, completed: bool) -> None:
        """Tell everybody that it is over, and stay until they have left: a certificate must not be lost on the way.

        A disk that fails is given more time; what is certified is in the record in any case.
        """
        farewell = Farewell(reason, completed)
        self._write_again(at_once=True)
        began = self._patient.now
        greeted: set[int] = set()
        while self._patient.now < began + (LAST_WRITE_SECONDS if self._unwritten else self._farewell_seconds):
            for member, peer in self._peers.items():
                if peer.present and not peer.needs_hello and not peer.queue:
                    self._send(SendTo(member, farewell))
                    greeted.add(member)
            await self._flush()
            here = [one for one, peer in self._peers.items() if peer.present]
            if not self._unwritten and all(self._peers[one].needs_hello and one in greeted for one in here):
                return
            # Who has closed its connection cannot be sent anything: that is how its leaving is seen.
            await self._listen()
            self._write_again()

    @property
    def _farewell_seconds(self) -> float:
        return min(FAREWELL_SECONDS, self._timing.lost_after)

    # -- members ---------------------------------------------

    def _take(self, parts: list[zmq.Frame]) -> None:
        if len(parts) < 2:
            return
        route = parts[0].bytes
        member = self._roster.by_transport_key(z85.decode(str(parts[1].get("User-Id"))))
        try:
            if len(parts) > MOST_PARTS:
                raise MalformedMessage(f"a message of {MOST_PARTS} parts or more", f"1 to {MOST_PARTS - 1}")
            message = self._bounds.parse(parts[1].bytes)
            if isinstance(message, EpochRecord) and message.offer.head != self.protocol.head:
                return  # known, or not yet of use
            over = self._rates[member].over_limit(message)
            if over:
                self._over_limit(member, message, over)
                return
            self._bounds.check_frames(message, parts[2:])
            frames = tuple(part.bytes for part in parts[2:])
            self._count_up(member, message, len(parts[1].bytes), frames)
            if isinstance(message, Hello):
                self._on_hello(member, route, message)
                return
            peer = self._peer_of(member, route, message)
            if not isinstance(message, Beat):
                self._dispatch(member, message, frames)
            elif not peer.needs_hello:
                self._on_beat(member, peer, message)
        except HelloNeeded as error:  # of a restarted server, or after a break of the line: no misdeed
            if self._rates[member].answers.admits():
                self._answer(member, route, error)
        except RemoteProtocolError as error:
            self._refuse(member, route, error)

    def _on_hello(self, member: int, route: bytes, message: Hello) -> None:
        earlier = self._peers.get(member)
        try:
            effects = self.protocol.hello(member, message)
        except OSError as error:  # a record that cannot be read now
            self._storage_failed("record", error)
            if earlier is not None:
                earlier.needs_hello = True  # it is asked at its next beat, as one that is not known yet
            return
        self._peers[member] = Peer(route, self._patient.now)
        self._rates[member].caught_up(message, effects)
        if earlier is None or not earlier.present:
            self._events.say("client_joined", client=self._name(member))
        if earlier is None or earlier.route != route:
            self._refusing.pop(member, None)  # started again, perhaps with what was wrong put right
            self._passed_over.discard(member)
        self._open_at = max(self._open_at, self._patient.now + SETTLE)
        self._perform(effects)

    def _peer_of(self, member: int, route: bytes, message: ToServer) -> Peer:
        peer = self._peers.get(member)
        if peer is None:
            raise HelloNeeded(f"{type(message).__name__} before Hello", "Hello first")
        peer.heard = self._patient.now
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
            self._keep_trying("record", member, error, again, type(message).__name__)
            return
        if isinstance(message, Advertisement):
            self._asked.discard(member)
            self._refusing.pop(member, None)
        elif isinstance(message, EpochRecord) and self.protocol.certified > before:
            self._rates[member].was_of_use()
            self._want_hello(member)  # it may have more of what this server lost
        elif isinstance(message, MaskedInput):
            self._show(member, message, frames)
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
        """What a member refuses stops an epoch, and three invitations refused in a row stop more than one."""
        in_a_row = 0
        if member in self._asked:
            self._asked.discard(member)
            code, count = self._refusing.get(member, (message.code, 0))
            in_a_row = count + 1 if code == message.code else 1
            self._refusing[member] = message.code, in_a_row
            self._refused_for = printable(message.found)
        self.refused_by[member] += 1
        if worth_a_line(self.refused_by[member]):
            self._events.say(
                "refused",
                client=self._name(member),
                code=message.code,
                by="client",
                found=printable(message.found),
                allowed=printable(message.allowed),
                invitations=in_a_row,
                count=self.refused_by[member],
            )
        if in_a_row and message.code in (WrongHead.code, BoundByVote.code):
            self._want_hello(member)  # it stands elsewhere than was thought when it was invited
        codes = {self._refusing[one][0] if one in self._held() else "" for one in self._invited}
        if codes == {message.code}:
            self._failure = AggregationFailed(
                f"{REFUSALS_IN_A_ROW} invitations in a row refused by everybody ({message.code}: {self._refused_for})",
                "invitations that the clients' charter and policies permit",
                _REMEDIES.get(message.code, "the clients' logs say what each of them refuses"),
            )

    def _want_hello(self, member: int) -> None:
        """Ask a member to say Hello, and again at each beat until it does: nothing else is sent to it before."""
        self._peers[member].needs_hello = True
        self._ask_hello(member)

    def _ask_hello(self, member: int) -> None:
        if self._rates[member].answers.admits():
            self._answer(member, self._peers[member].route, _HELLO_PLEASE)

    def _refuse(self, member: int, route: bytes, error: RemoteProtocolError) -> None:
        self.refusals[member] += 1
        if worth_a_line(self.refusals[member]):
            self._events.say(
                "refused",
                client=self._name(member),
                code=error.code,
                by="server",
                found=printable(error.found),
                allowed=printable(error.allowed),
                count=self.refusals[member],
            )
        if self._rates[member].answers.admits():
            self._answer(member, route, error)

    def _answer(self, member: int, route: bytes, error: RemoteProtocolError) -> None:
        data = encode_message(Refusal(error.code, error.found[:512], error.allowed[:512]))
        self._answers.append((member, [route, data]))

    def _over_limit(self, member: int, message: ToServer, over: int) -> None:
        self.dropped[member] += 1
        if is_power_of_two(over):
            kind = type(message).__name__
            self._events.say("rate_limited", client=self._name(member), kind=kind, count=over)

    # -- patience ---------------------------------------------

    def _watch_silence(self) -> None:
        now = self._patient.now
        for member, peer in self._peers.items():
            if peer.present and now - peer.heard > self._timing.lost_after:
                self._lose(member, peer, "silence")
        while self._overflowed:
            member = self._overflowed.pop()
            peer = self._peers[member]
            peer.leave()
            if peer.present:
                self._lose(member, peer, "it does not take what it is sent")

    def _lose(self, member: int, peer: Peer, reason: str, *, since: float | None = None) -> None:
        peer.present = False
        peer.leave()
        seconds = round(self._patient.now - (peer.heard if since is None else since), 3)
        self._events.say("client_lost", client=self._name(member), reason=reason, seconds=seconds)
        self._lost(member)

    def _lost(self, member: int) -> None:
        try:
            self._perform(self.protocol.lost(member))
        except OSError as error:
            self._keep_trying("record", member, error, lambda: self._lost(member))

    def _watch_progress(self) -> None:
        """Say who is waited for, ask those that are there again, and give up what lockstep has waited for too long."""
        now, protocol, plan = self._patient.now, self.protocol, self.protocol.plan
        if plan is None and (protocol.done or now < self._open_at):
            return
        key = (plan.digest if plan else b"", protocol.phase, protocol.step, protocol.certified)
        if key != self._waiting_for:
            self._waiting_for, self._waiting_since = key, now
            self._waiting.start(now)
        awaited = set(self._missing() if plan is None else protocol.waiting_for())
        if awaited != self._awaited:
            self._awaited, self._answered_at = awaited, now
        lost = {member for member in awaited if not self._is_present(member)}
        if awaited and self._waiting.is_due(now):
            self._events.say(
                "waiting",
                clients=self._names(sorted(awaited)),
                lost=self._names(sorted(lost)),
                refusing={self._name(member): self._refusing[member][0] for member in self._held() & awaited},
                bound=self._names(protocol.bound_elsewhere()),
                phase=protocol.phase.value,
                seconds=round(now - self._waiting_since, 1),
            )
            for member in awaited - lost:
                self._ask_hello(member)
        if plan is not None and protocol.phase is not Phase.VOTING and self._absent_too_long(lost):
            self._expire()
        elif plan is not None and protocol.charter.aggregation.mode == "resilient":
            self._pass_over(awaited - lost)

    def _pass_over(self, awaited: set[int]) -> None:
        """Go on without members that are there and do not answer; so many alone as the charter takes for colluders."""
        slowest, now = self._answered_at - self._waiting_since, self._patient.now
        patience = max(self._timing.step, TIMES_THE_SLOWEST * slowest)
        if len(awaited) > self.protocol.charter.aggregation.colluders or now - self._waiting_since <= patience:
            return
        for member in sorted(awaited & set(self.protocol.waiting_for())):
            self._passed_over.add(member)
            self._lose(member, self._peers[member], "it is there and does not answer", since=self._waiting_since)

    def _is_present(self, member: int) -> bool:
        peer = self._peers.get(member)
        return peer is not None and peer.present

    def _missing(self) -> tuple[int, ...]:
        """While idle: who is not there, or refuses; or, if that is nobody, everybody, who stand at different heads."""
        everybody = range(len(self._roster.members))
        held = self._held()
        return tuple(one for one in everybody if not self._is_present(one) or one in held) or tuple(everybody)

    def _absent_too_long(self, lost: Iterable[int]) -> bool:
        now = self._patient.now
        return any(
            now - peer.heard > self._timing.step
            for peer in (self._peers.get(member) for member in lost)
            if peer is not None
        )

    def _expire(self) -> None:
        """Give up what waits for the lost. The live ones, though waited for as well, are there and are told."""
        protocol, plan = self.protocol, self.protocol.plan
        assert plan is not None  # noqa: S101 - within an epoch
        effects = protocol.expire()
        protocol.absent -= {member for member in self._peers if self._is_present(member)}
        told = {effect.member for effect in effects if isinstance(effect, SendTo)}
        self._perform(effects)
        for ended in [effect for effect in effects if isinstance(effect, EpochGivenUp)]:
            message = GivenUp(plan.digest, ended.reason[:512])
            self._perform([SendTo(member, message) for member in plan.cohort if member not in told])

    # -- epochs ---------------------------------------------

    def _held(self) -> set[int]:
        """Who refuses every invitation, until it is started again: others' attempts are not used up on it."""
        return {member for member, (_, count) in self._refusing.items() if count >= REFUSALS_IN_A_ROW}

    def _cohort(self) -> tuple[int, ...]:
        cohort, held, charter = self.protocol.cohort(), self._held(), self.protocol.charter
        for away in (held | self._passed_over, held):  # if nobody can go on without who did not answer, with it
            if not away & set(cohort):
                return cohort
            chosen = charter.whole_blocks(set(cohort) - away)
            with contextlib.suppress(CohortRefused):
                charter.check_summed(chosen)
                return chosen
        return ()

    def _open_if_ready(self) -> None:
        protocol, now = self.protocol, self._patient.now
        if protocol.phase is not Phase.IDLE or protocol.done or now < self._open_at:
            return
        cohort = self._cohort()
        if cohort == protocol.charter.everybody or (cohort and (self._opened or now > self._patience_for_all())):
            self._opened = True
            self._invited, self._asked = cohort, set(cohort)
            self._perform(protocol.open_epoch(cohort))
        elif not self._opened and self._timing.join is not None and now > self._timing.join:
            present = sum(self._is_present(member) for member in protocol.charter.everybody)
            raise AggregationFailed(
                f"{present} of {protocol.charter.members} clients after {self._timing.join:g} s",
                "enough for an epoch",
                "start the missing clients, or allow more time with join in [timing]",
            )

    def _patience_for_all(self) -> float:
        """How long this process waits for the whole roster: a restarted one counts who stays away as lost."""
        join = self._timing.join
        if self.protocol.certified:
            return self._timing.lost_after if join is None else min(join, self._timing.lost_after)
        return float("inf") if join is None else join

    def _perform(self, effects: Iterable[Effect]) -> None:
        """Carry effects out."""
        for effect in effects:
            if isinstance(effect, SendTo):
                self._send(effect)
            elif isinstance(effect, EpochBegan):
                self._epoch_began(effect)
            elif isinstance(effect, StepBegan):
                self._step_began(effect)
            elif isinstance(effect, StepFinished):
                self._step_finished(effect)
            elif isinstance(effect, EpochCertified):
                self._epoch_certified(effect)
            else:
                self._epoch_given_up(effect)
        self._book_time()

    def _epoch_began(self, began: EpochBegan) -> None:
        plan = began.plan
        self._plans.append(plan.digest)
        self._masked = None
        self._events.say(
            "epoch_started",
            epoch=plan.offer.epoch,
            round=plan.certified,
            cohort=self._names(plan.cohort),
            modulus_bits=plan.modulus_bits,
            mode=plan.aggregation.mode,
            threshold=plan.threshold,
        )

    def _step_began(self, began: StepBegan) -> None:
        plan = self.protocol.plan
        self._step_since = self._clock()
        # Effects may tell of a step whose epoch is over by now; its cost counts all the same.
        if plan is not None and plan.spec(began.step).noise is not None:
            self.spent_rho += plan.rho(plan.spec(began.step))
        self._events.say("step_started", **self._place(), step=began.step, task=began.task)

    def _step_finished(self, finished: StepFinished) -> None:
        self.secure_steps += 1
        self._show_sum(finished)
        figures = step_figures(self.protocol.course, finished.task, finished.sums, len(finished.survivors))
        self._events.say(
            "step_finished",
            **self._place(),
            step=finished.step,
            task=finished.task,
            survivors=self._names(finished.survivors),
            dropped=self._names(one for one in finished.members if one not in finished.survivors),
            path="dropout" if finished.agreed else "fast",
            seconds=round(self._clock() - self._step_since, 4),
            figures=figures,
            entropy=figures.get("entropy"),
            clipped=figures.get("clipped"),
            bytes_up=sum(traffic.up for traffic in self.traffic),
            bytes_down=sum(traffic.down for traffic in self.traffic),
        )

    def _place(self) -> dict[str, int]:
        plan = self.protocol.plan
        return {
            "epoch": -1 if plan is None else plan.offer.epoch,
            "round": self.protocol.certified if plan is None else plan.certified,
        }

    def _epoch_certified(self, done: EpochCertified) -> None:
        record, round_number = done.kept[0], done.number - 1
        self._refusing.clear()  # what was refused may have rested on the history before
        self._passed_over.clear()
        metrics = metrics_of(self.protocol, done.kept, round_number)
        self._pause = FIRST_PAUSE
        self._events.say(
            "round_finished",
            epoch=record.offer.epoch,
            round=round_number,
            number=done.number,
            head=self.protocol.head.hex(),
            members=self._names(item.member for item in record.advertisements),
            votes=self._names(vote.member for vote in record.votes),
            learnt=round_number < rounds_of(self.protocol),
            metrics=metrics,
            metrics_round=round_number - first_of(self.protocol)
            if metrics
            else None,  # a successor's models begin anew
        )
        self._hand_on(done.number, done.publication)

    def _hand_on(self, number: int, publication: Publication) -> None:
        if self._certified is None:
            return
        try:
            self._certified(number, publication)
        except OSError as error:
            self._keep_trying("publication", number, error, lambda: self._hand_on(number, publication))

    def _epoch_given_up(self, given_up: EpochGivenUp) -> None:
        self._events.say(
            "epoch_given_up",
            epoch=given_up.epoch,
            round=self.protocol.certified,
            reason=given_up.reason,
            wrong_sum=given_up.wrong_sum,
            again_in=self._pause,
        )
        self._open_at = self._patient.now + self._pause
        self._pause = min(2 * self._pause, LONGEST_PAUSE)

    def _book_time(self) -> None:
        """Book the time of a phase that ended, and start the next one's."""
        if self.protocol.phase is self._phase:
            return
        now = self._clock()
        if self._phase is not Phase.IDLE:
            kind = "compute" if self._phase is Phase.COLLECTING else "aggregation"
            self.seconds[kind] += now - self._phase_since
        self._phase, self._phase_since = self.protocol.phase, now

    # -- the exhibit ---------------------------------------------

    def _show(self, member: int, message: MaskedInput, frames: tuple[bytes, ...]) -> None:
        plan = self.protocol.plan
        if self._exhibit_at is None or self._masked is not None or plan is None or self.exhibit is not None:
            return
        if (plan.offer.epoch, message.step) == self._exhibit_at:
            self._masked = member, unpack(frames[0], plan.spec(message.step).words, plan.modulus_bits)

    def _show_sum(self, finished: StepFinished) -> None:
        plan = self.protocol.plan
        if self._masked is None or self.exhibit is not None or plan is None:
            return
        if (plan.offer.epoch, finished.step) == self._exhibit_at:
            member, masked = self._masked
            self.exhibit = Exhibit(
                member,
                plan.offer.epoch,
                plan.certified,
                finished.step,
                finished.task,
                masked,
                finished.total.copy(),
                finished.survivors,
                plan.modulus_bits,
            )

    # -- the disk ---------------------------------------------

    def _keep_trying(self, what: str, number: int, error: OSError, again: Callable[[], None], kind: str = "") -> None:
        """Once for each kind and member, however often it comes: a flood must not wait here."""
        if not self._unwritten:
            self._rewrite.start(self._patient.now)
        self._unwritten[what, number, kind] = again
        self._storage_failed(what, error)

    def _storage_failed(self, what: str, error: OSError) -> None:
        self._write_failures += 1
        if worth_a_line(self._write_failures):
            self._events.say("storage_failed", what=what, reason=str(error), count=self._write_failures)

    def _check_all_is_written(self) -> None:
        numbers = [str(number) for what, number, _ in sorted(self._unwritten) if what == "publication"]
        if numbers:
            raise ResultsUnwritten(
                f"a disk that does not take what was published of epoch {', '.join(numbers)}",
                "one with room for it",
                "all epochs are certified; start the server again, and it writes from its record what is missing",
            )

    def _write_again(self, *, at_once: bool = False) -> None:
        if not self._unwritten or not (at_once or self._rewrite.is_due(self._patient.now)):
            return
        waiting, self._unwritten = self._unwritten, {}
        for again in waiting.values():
            with contextlib.suppress(RemoteProtocolError):  # a vote that has been counted meanwhile
                again()

    # -- sending and counting ---------------------------------------------

    def _send(self, effect: SendTo) -> None:
        peer = self._peers.get(effect.member)
        if peer is None or peer.needs_hello:
            return  # it will be told all that it lacks when it says Hello
        if self._encoded[0] is not effect.message:
            self._encoded = effect.message, encode_message(effect.message)
        if isinstance(effect.message, Published):
            peer.told_sum(self._patient.now)
        parts = [peer.route, self._encoded[1], *effect.frames]
        if not peer.put(parts, shared=self._is_certified(effect.message)):
            self._overflowed.append(effect.member)

    def _is_certified(self, message: ToClient) -> bool:
        """Whether its frames are there once for all members. Those of candidates, of which each member may bring one,
        are not."""
        return isinstance(message, EpochRecord) and len(message.votes) >= self.protocol.charter.quorum

    async def _flush(self) -> None:
        """Send what has been decided. Never waits: a client that does not read must not hold up the others."""
        answers, self._answers = self._answers, []
        for member, parts in answers:
            # A connection that is gone or full: the refusal is of no use there.
            with contextlib.suppress(zmq.ZMQError):
                await self._socket.send_multipart(parts, zmq.NOBLOCK)
                self.traffic[member].down += len(parts[1])
        for member, peer in self._peers.items():
            try:
                while peer.queue:
                    _, parts = peer.queue[0]
                    await self._socket.send_multipart(parts, zmq.NOBLOCK)
                    peer.sent()
                    self.traffic[member].down += sum(map(len, parts[1:]))
            except zmq.Again:
                continue  # full for now
            except zmq.ZMQError:
                peer.leave()  # the connection is gone; its silence will tell, or its Hello

    def _count_up(self, member: int, message: ToServer, size: int, frames: tuple[bytes, ...]) -> None:
        traffic = self.traffic[member]
        payload = sum(map(len, frames))
        traffic.up += size + payload
        if isinstance(message, MaskedInput):
            traffic.payload += payload
        if isinstance(message, SETUP_MESSAGES):
            traffic.setup += size

    def _name(self, member: int) -> str:
        return self._roster.members[member].name

    def _names(self, members: Iterable[int]) -> list[str]:
        return [self._name(member) for member in members]


_REMEDIES = {
    AttemptsUsed.code: "the administrator must look, and sign a charter that follows this one",
    WrongSum.code: "find out who changed the sums; then raise most_wrong_sums in [policy] of the clients",
}


class _RosterKeys:
    """ZAP's question, which transport keys may connect, answered from the roster."""

    def __init__(self, roster: Roster, events: Events) -> None:
        self._keys = {member.transport_key for member in roster.members}
        self._strangers, self._events = 0, events

    def callback(self, domain: str, key: bytes) -> bool:
        """Whether this z85-encoded key is a member's."""
        raw = z85.decode(key)
        if raw in self._keys:
            return True
        self._strangers += 1
        if worth_a_line(self._strangers):
            self._events.say(
                "refused",
                client=f"key {raw.hex()[:16]}…",
                code="unknown-identity",
                by="server",
                count=self._strangers,
            )
        return False
