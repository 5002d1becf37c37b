"""A client on the network: a ZeroMQ DEALER with CURVE, driving `ClientProtocol` and a `Learner`.

Three things go on at once. The loop hears the server and says `Beat`, always. One thread asks the protocol's machine,
one thing at a time: it encodes and masks there. Another works, in order: first `prepare`, the training before the first
round, then what is certified is learnt and what is asked is computed; so a client is there, and takes part in the
set-up of an epoch, while it still trains.

It pins the server's transport key from the roster; the address may be given apart, since whoever answers there must
hold that key. A refused message is answered with a refusal that is constant for its code, and changes nothing: what was
found and what is allowed stands in this client's own log alone, where a flood is cut short. After silence it asks
whether the server is there (`Hello`), then connects anew. What is answered again are the same bytes.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import structlog
import zmq
import zmq.asyncio

from codream_clients.allowance import Allowance
from codream_clients.awaited import ServersWord
from codream_clients.connection import REFUSED_KEY, SHAKEN, Connection
from codream_clients.failures import Failures
from codream_clients.freight import Freight, Whole, is_wanted
from codream_clients.journal import JournalError
from codream_clients.raised import Raised, caught
from codream_clients.refusals import plan_of, refusal
from codream_clients.words import visible
from codream_protocols import errors
from codream_protocols.charter import MAX_STEPS
from codream_protocols.client import Certified, ClientProtocol, Compute, Effect, Ended, Notice, Send
from codream_protocols.course import Array, Learner, Publication
from codream_protocols.durable import FileSpool, rest
from codream_protocols.errors import (
    AggregationFailed,
    AttemptsUsed,
    CharterRefused,
    HelloNeeded,
    LocalProtocolError,
    MalformedMessage,
    PolicyViolation,
    ProtocolError,
    RemoteProtocolError,
    UnknownIdentity,
    UnsupportedVersion,
    VectorRefused,
    WrongSum,
)
from codream_protocols.identity import Roster
from codream_protocols.keyschedule import PROTOCOL
from codream_protocols.messages import (
    Ask,
    Beat,
    Farewell,
    Hello,
    Parcel,
    Piece,
    Refusal,
    ToClient,
    Waiting,
    Welcome,
    decode_to_client,
    encode_message,
    largest_message,
)
from codream_protocols.parcels import PIECE_BYTES, ROOM

MOST_BEAT_SECONDS = 60.0  # a server may ask for fewer beats; so few that it takes its clients for lost, it may not
GREETING_SECONDS = 2.0  # that a Hello and its Welcome may take
ASK_SECONDS = 20.0  # of silence, before a client asks whether the server is there
LONGEST_GAP = 600.0  # seconds, about, between two lines of one silence; they grow apart up to it
HELLOS = 16.0, 4.0  # as many at once, and as many a second in the long run
REFUSALS = 16.0, 2.0
FOR_A_PERSON = (WrongSum, AttemptsUsed, PolicyViolation)

CODES = frozenset(kind.code for kind in vars(errors).values() if isinstance(kind, type) and hasattr(kind, "code"))

LEARNER = "learner"  # the name of the thread in which it works

Job = Compute | Certified
Result = TypeVar("Result")


def still_learning() -> bool:
    """Whether a learner is at work in this process, perhaps of a client that has ended: nothing can stop it."""
    return any(thread.name.startswith(LEARNER) for thread in threading.enumerate())


class ClientRunner:
    """Takes part in a federation until the server says farewell.

    Its log says what a person should see: `error` what needs one, `warning` what was refused, `info` the rest.

    Attributes:
        compute_seconds: spent in computing for steps and in learning.
        failures: what came of the learner's failures.
        word: for whom the server says that it waits.

    Args:
        protocol: this client's protocol machine.
        learner: computes the vectors, and learns.
        roster: the verified roster.
        transport_secret: the client's CurveZMQ secret key, 32 bytes.
        transport_public: its public key, 32 bytes.
        epochs: of the course; with fewer certified here, no server can say that all is over.
        address: where the server listens; None takes the roster's.
        proxy: HOST:PORT of a SOCKS5 proxy by which the server is reached; None connects directly.
        prepare: called in the working thread before anything is computed, while the client is there already.
        patience: seconds of listening without a word from the server before the client gives up; None never does.
        most_steps: steps of the longest epoch; it bounds messages.
        spool: a folder on whose disk a large sum waits until it is whole; None takes the machine's for what passes.
        piece_bytes: what is larger goes in pieces of so many bytes; the same for all parties.
        failures: those of earlier processes, which are gone on counting; none unless given.
        log: where it says what happens; never a secret.
    """

    def __init__(
        self,
        *,
        protocol: ClientProtocol,
        learner: Learner,
        roster: Roster,
        transport_secret: bytes,
        transport_public: bytes,
        epochs: int,
        address: str | None = None,
        proxy: str | None = None,
        prepare: Callable[[], object] = lambda: None,
        patience: float | None = None,
        most_steps: int = MAX_STEPS,
        spool: Path | None = None,
        piece_bytes: int = PIECE_BYTES,
        failures: Failures | None = None,
        log: Any = None,
    ) -> None:
        self.compute_seconds = 0.0
        self.failures = Failures() if failures is None else failures
        self._protocol, self._learner, self._roster, self._prepare = protocol, learner, roster, prepare
        self._patience = patience
        self._log = log or structlog.get_logger()
        self._most_frames = most_steps
        resilient = protocol.charter.aggregation.mode == "resilient"
        self._most_bytes = largest_message(len(roster.members), most_steps, resilient=resilient)
        self._line = Connection(
            address or roster.server.address,
            secret=transport_secret,
            public=transport_public,
            server_key=roster.server.transport_key,
            most_bytes=ROOM + max(self._most_bytes, piece_bytes),
            proxy=proxy,
        )
        self._freight = Freight(lambda: FileSpool(spool), piece_bytes, self._show_progress)
        self._beat_seconds = 1.0
        self._epochs, self._progress = epochs, protocol.progress
        self._jobs: deque[Job] = deque()
        self._job: Job | None = None  # at work
        self._farewell: Farewell | None = None
        self._hellos, self._refusals, self._welcomes_due = Allowance(*HELLOS), Allowance(*REFUSALS), 0
        self._heard = self._asked = self._greeted = 0.0
        self._admitted = self._shaken = self._told_stranger = False
        self._silence = 0
        self._silence_said = 0.0  # of the present silence, after how many seconds
        self.word = ServersWord(roster)
        self._seen: Counter[str] = Counter()

    async def run(self) -> None:
        """Take part until the server says farewell, and all that was certified is learnt.

        Raises:
            AddressRefused: the address is none that can be connected to.
            AggregationFailed: the server gave up, says that it is over before all is certified here, or there was no
                word from it for longer than `patience`.
            UnsupportedVersion: the server speaks another version.
            CharterRefused: the server holds another charter, so another roster or other settings.
            UnknownIdentity: the server refuses this client's transport key from the beginning.
            Exception: whatever `prepare` raises, or the journal.
        """
        self._turn, self._news = asyncio.Lock(), asyncio.Event()
        self._asking, self._working = ThreadPoolExecutor(1, "protocol"), ThreadPoolExecutor(1, LEARNER)
        context = zmq.asyncio.Context()
        self._heard = self._asked = time.monotonic()
        parts: list[asyncio.Task[None]] = []
        try:
            self._line.open(context)
            await self._hello()
            parts = [asyncio.ensure_future(part) for part in (self._listen(context), self._keep_beating())]
            work = asyncio.ensure_future(self._work())
            parts.append(work)
            try:
                await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
                for part in parts:
                    if part.done():
                        part.result()
            except AggregationFailed:
                await self._learn_what_is_left(work)
                raise
        finally:
            for part in parts:
                part.cancel()
            try:
                await asyncio.gather(*parts, return_exceptions=True)
            finally:  # also when it is cancelled a second time
                self._working.shutdown(wait=False, cancel_futures=True)
                self._asking.shutdown(wait=True, cancel_futures=True)
                self._protocol.abandon()
                context.destroy(linger=1000)  # with all of its sockets

    @property
    def standing(self) -> tuple[bool, int, float | None]:
        """Whether an epoch is under way, how many of its sums are here, and seconds since the server's last word."""
        return bool(self._progress[0]), self._progress[1], time.monotonic() - self._heard if self._admitted else None

    # -- the connection ---------------------------------------------

    async def _listen(self, context: zmq.asyncio.Context) -> None:
        """Take what comes, one message after the other, until a farewell."""
        while self._farewell is None:
            if await self._line.socket.poll(1000):
                await self._take(await self._next_message())
                self._heard = self._asked = time.monotonic()
                self._admitted, self._silence, self._silence_said = True, 0, 0.0
            else:
                self._silence += 1  # in seconds that it listened, and not those in which its machine stood still
                await self._see_who_answers()
                await self._after_silence(context)
        await self._learnt_all()

    async def _see_who_answers(self) -> None:
        """Say who answers, where it is not the server; end where that refuses this client's key from the beginning.

        Nothing proves that it was the server: whoever sits on the line can say so, and could be silent as well. So it
        stops nobody who was once let in.
        """
        for event in await self._line.events():
            if event == SHAKEN:
                self._shaken = True
            elif event == REFUSED_KEY:
                self._key_refused()
            elif not (self._shaken or self._admitted or self._told_stranger):
                self._told_stranger = True
                self._say("warning", "stranger", address=self._line.address)

    def _key_refused(self) -> None:
        found, allowed = "a server that refuses this client's transport key", "a client of the server's roster"
        remedy = "it is revoked, or has another roster than the server; ask the administrator for the newest"
        if not self._admitted:
            raise UnknownIdentity(found, allowed, remedy)
        self._say("warning", "not-admitted", UnknownIdentity.code, found=found, allowed=allowed, remedy=remedy)

    async def _next_message(self) -> list[bytes]:
        """The parts of a message; no more are kept than show that it has too many.

        Each takes far more memory here than on its way.
        """
        socket: zmq.Socket[bytes] = zmq.Socket.shadow(self._line.socket.underlying)
        parts = [socket.recv(zmq.NOBLOCK)]
        dropped = 0
        while socket.rcvmore:
            part = socket.recv(zmq.NOBLOCK)
            if len(parts) < 2 + self._most_frames:
                parts.append(part)
            elif (dropped := dropped + 1) % 1024 == 0:
                await asyncio.sleep(0)  # beats go on
        return parts

    async def _after_silence(self, context: zmq.asyncio.Context) -> None:
        """Ask whether the server is there; if it does not say so, connect anew, or give up."""
        now = time.monotonic()
        if self._patience is not None and self._silence >= self._patience:
            raise AggregationFailed(
                f"no word from the server for {self._patience:g} s", "a word now and then", "is it running?"
            )
        if now - self._asked < ASK_SECONDS:
            return
        self._asked = now
        if now - self._heard < 2 * ASK_SECONDS:
            await self._hello()
            return
        self._say_silence(now - self._heard)
        # Whatever answered at the address first may have ended ZeroMQ's own attempts for good.
        self._line.close(linger=0)
        self._line.open(context)
        await self._hello()

    def _say_silence(self, seconds: float) -> None:
        """At growing intervals, in each silence from the beginning: whoever looks after hours must see it."""
        if seconds - self._silence_said >= min(self._silence_said, LONGEST_GAP):
            self._silence_said = seconds
            self._write("warning", "silence", seconds=round(seconds), address=self._line.address)

    async def _keep_beating(self) -> None:
        while True:
            await asyncio.sleep(self._beat_seconds / 2)
            await self._send(Send(Beat(*self._progress)))
            await self._ask_for(self._freight.stalled())

    async def _hello(self) -> None:
        async with self._turn:
            await self._send(Send(self._protocol.hello()))

    @property
    def _is_greeting(self) -> bool:
        """Whether a Hello is on its way, and a Welcome to come: what waited for the line is all answered by it."""
        return self._welcomes_due > 0 and time.monotonic() - self._greeted < GREETING_SECONDS

    async def _send(self, effect: Send) -> None:
        """Send without waiting: what is lost, beats and repeats bring back. Of Hellos, which are answered, not many."""
        if isinstance(effect.message, Hello):
            if not self._hellos.take():
                return
            self._welcomes_due, self._greeted = self._welcomes_due + 1, time.monotonic()
        await self._send_parts(self._freight.parts(encode_message(effect.message), effect.frames))

    async def _send_parts(self, parts: list[bytes]) -> None:
        if parts:
            with contextlib.suppress(zmq.Again):
                await self._line.socket.send_multipart(parts, zmq.NOBLOCK)

    # -- messages ---------------------------------------------

    def _parse(self, data: bytes) -> ToClient:
        return decode_to_client(data, self._most_bytes, len(self._roster.members), self._most_frames)

    async def _take(self, parts: list[bytes]) -> None:
        name, plan = "a message", b""
        try:
            if len(parts) > 1 + self._most_frames:
                raise MalformedMessage(f"a message of {len(parts)} parts or more", f"1 to {1 + self._most_frames}")
            message: ToClient = await self._ask(lambda: self._parse(parts[0]))
            name, plan = type(message).__name__, plan_of(message)
            frames = tuple(parts[1:])
            if isinstance(message, Ask | Parcel | Piece):
                whole = await self._carry(message, frames)
                if whole is None:
                    return
                message, frames = whole
                name, plan = type(message).__name__, plan_of(message)
            if isinstance(message, Waiting):
                self._hear_waiting(message, frames)
            elif await self._is_for_the_machine(message):
                await self._drive(lambda: self._protocol.receive(message, frames))
                rest(frames)
            if isinstance(message, Farewell):
                self._farewell = message
                self._log.info("farewell", reason=visible(message.reason), completed=message.completed)
        except (UnsupportedVersion, CharterRefused, JournalError):
            raise
        except (RemoteProtocolError, LocalProtocolError) as error:
            await self._refuse(error, name, plan)

    async def _carry(self, message: Ask | Parcel | Piece, frames: tuple[bytes, ...]) -> Whole | None:
        """A message whose frames come in pieces counts as come once they are there, or where they are of no use."""
        if len(frames) != (0 if isinstance(message, Ask) else 1):
            raise VectorRefused(f"{len(frames)} frames behind {type(message).__name__}", "one, and none behind an Ask")
        if isinstance(message, Ask):
            await self._send_parts(self._freight.asked(message))
            return None
        try:
            if isinstance(message, Piece):
                asks, whole = self._freight.take(message, frames)
            else:
                told = await self._ask(lambda: self._parse(frames[0]))
                wanted = await self._ask(lambda: is_wanted(self._protocol, told, message.sizes))
                asks = self._freight.told_of(told, frames[0], message.sizes, wanted=bool(wanted))
                whole = (told, ()) if wanted is False else None
        except OSError as error:
            self._say("error", "spool-failed", found=str(error), remedy="make room on this disk")
            asks, whole = self._freight.failed(), None  # the server tells of it again, ever later
        await self._ask_for(asks)
        return whole

    async def _ask_for(self, asks: list[Ask]) -> None:
        for ask in asks:
            await self._send_parts([encode_message(ask)])

    async def _is_for_the_machine(self, message: ToClient) -> bool:
        """What concerns the connection is dealt with here."""
        if isinstance(message, Welcome):
            if message.version != PROTOCOL:
                raise UnsupportedVersion(f"version {visible(message.version)}", PROTOCOL)
            if not self._welcomes_due:
                return False  # one for each Hello: it makes this client send what the server lost
            self._welcomes_due -= 1
            self._beat_seconds = min(message.beat_seconds, MOST_BEAT_SECONDS)
            self._say("info", "welcome", version=message.version, certified=self._protocol.certified)
            return True
        if isinstance(message, Refusal):
            self._say("warning", "refused-by-server", message.code, found=message.found, allowed=message.allowed)
            for kind in (UnsupportedVersion, CharterRefused):
                if message.code == kind.code:  # the Hello's; saying it again would change nothing
                    raise kind(visible(message.found), visible(message.allowed), "compare roster.json and config.toml")
            if message.code == HelloNeeded.code and not self._is_greeting:
                await self._hello()  # the server has been restarted
            return False
        return True

    def _show_progress(self, what: str, percent: int) -> None:
        self._write("info", "progress", what=what, percent=percent)

    def _hear_waiting(self, message: Waiting, frames: tuple[bytes, ...]) -> None:
        if frames:
            raise VectorRefused(f"{len(frames)} frames behind Waiting", "none")
        if self.word.take(message):
            others, _ = self.word.now()
            self._write("info", "waiting", names=", ".join(other.name for other in others))

    async def _refuse(self, error: ProtocolError, name: str, plan: bytes) -> None:
        level = "error" if isinstance(error, FOR_A_PERSON) else "warning"
        self._say(level, "refused", error.code, found=error.found, allowed=error.allowed, remedy=error.remedy)
        if self._refusals.take():
            await self._send(Send(refusal(error.code, name, plan)))

    async def _drive(self, call: Callable[[], list[Effect]]) -> None:
        """Ask the machine, and do what it says, in order, before it is asked again."""
        async with self._turn:
            try:
                effects = await self._ask(call)
            finally:
                self._progress = self._protocol.progress
            for effect in effects:
                if isinstance(effect, Send):
                    await self._send(effect)
                elif isinstance(effect, Compute):
                    self._queue(effect)
                elif isinstance(effect, Certified):
                    self._hellos.add()  # one for each epoch that a late client catches up with
                    self._log.info("certified", number=effect.number, head=effect.head.hex()[:16])
                    self.failures.certified(effect.plan, effect.counted)
                    self._queue(effect)
                elif isinstance(effect, Ended):
                    self._ended(effect)
                elif isinstance(effect, Notice):
                    self._say("warning", "notice", found=effect.text)

    def _ended(self, effect: Ended) -> None:
        if effect.wrong_sum:
            self._log.error(
                "wrong-sum",
                found=visible(effect.reason),
                remedy="nothing of this epoch is learnt; ask the administrator who runs the server",
            )
        else:
            self._say("warning", "epoch-given-up", found=effect.reason)

    def _say(self, level: str, event: str, code: str = "", **words: str | int) -> None:
        """Write a line, whose text may come from the network; of a flood, ever fewer, also of codes that nobody has."""
        alike = f"{event} {code if code in CODES else ''}"
        self._seen[alike] += 1
        count = self._seen[alike]
        if count <= 100 or not count & (count - 1):
            self._write(level, event, code=code, count=count if count > 100 else 0, **words)

    def _write(self, level: str, event: str, **words: str | int) -> None:
        shown = {name: visible(value) if isinstance(value, str) else value for name, value in words.items() if value}
        getattr(self._log, level)(event, **shown)

    async def _ask(self, call: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._asking, call)

    # -- work ---------------------------------------------

    def _queue(self, job: Job) -> None:
        if isinstance(job, Compute):  # one vector is waited for; from an epoch's first step a learner knows it began
            self._jobs = deque(one for one in self._jobs if not isinstance(one, Compute) or self._begins(one))
        self._jobs.append(job)
        self._news.set()

    def _begins(self, job: Compute) -> bool:
        return job.step == 0 and job.plan == self._progress[0]

    async def _work(self) -> None:
        raised = await self._at_work(self._prepare)
        if isinstance(raised, Raised):
            raise raised.error if raised.ordinary else RuntimeError(f"the training beforehand ended with {raised}")
        self._log.info("prepared")
        while True:
            while not self._jobs:
                self._news.clear()
                await self._news.wait()
            self._job = self._jobs.popleft()
            await self._do(self._job)
            self._job = None

    async def _do(self, job: Job) -> None:
        started = time.perf_counter()
        if isinstance(job, Certified):
            await self._learn(job)
        elif self._farewell is None and (self._begins(job) or self._wanted(job)):
            values = await self._computed(job)
            self.compute_seconds += time.perf_counter() - started
            await self._provide(job, values)
            return
        self.compute_seconds += time.perf_counter() - started

    def _wanted(self, job: Compute) -> bool:
        """Whether the epoch is still at the step that a computation is for."""
        return self._progress == (job.plan, job.step)

    async def _learn(self, job: Certified) -> None:
        raised = await self._at_work(lambda: self.learn(job.number, job.publication))
        if isinstance(raised, Raised):  # not the learner's: that it failed could not be kept
            raise raised.error

    def learn(self, number: int, publication: Publication) -> None:
        """Have the learner learn a certified epoch, in the calling thread; a failure is said, and counted.

        What is certified stays so, and the others wait for this client's vectors: nothing is raised.
        """
        raised = caught(lambda: self._learner.learn(number, publication))
        if isinstance(raised, Raised):
            self._not_learnt(number, raised)
        else:
            self.failures.learnt(number)
            self._log.info("learnt", number=number)

    def recall(self, number: int, recall: Callable[[], object]) -> None:
        """Take up again an epoch that an earlier process has learnt; a failure is said, and counted, as in `learn`.

        What fails each time, such as an adaptive student that has no room, would end the client at every start.
        """
        raised = caught(recall)
        if isinstance(raised, Raised):
            self._not_learnt(number, raised)

    def _not_learnt(self, number: int, raised: Raised) -> None:
        self.failures.not_learnt(number)
        self._failed("learning-failed", raised, number=number)

    async def _computed(self, job: Compute) -> Mapping[str, Array] | None:
        values = await self._at_work(lambda: self._learner.compute(job.task, job.spec))
        if values is None:
            values = Raised(TypeError("nothing was returned; a mapping of block names to numbers is needed"))
        if isinstance(values, Raised):  # zeros are sent in its place: nobody is told
            self._zeroed(job, values)
            return None
        return values

    async def _at_work(self, call: Callable[[], Result]) -> Result | Raised:
        return await asyncio.get_running_loop().run_in_executor(self._working, caught, call)

    async def _provide(self, job: Compute, values: Mapping[str, Array] | None) -> None:
        def provide() -> list[Effect]:
            try:
                return self._protocol.provide(job.plan, job.step, values)
            except JournalError:
                raise
            except (LocalProtocolError, TypeError, ValueError) as error:
                if values is None:
                    raise
                self._zeroed(job, Raised(error))
                return self._protocol.provide(job.plan, job.step, None)

        await self._drive(provide)

    def _zeroed(self, job: Compute, raised: Raised) -> None:
        self.failures.zeroed(job.plan, job.step, job.task.name)
        self._failed("computation-failed", raised, task=job.task.name, step=job.step)

    def _failed(self, event: str, raised: Raised, **where: Any) -> None:
        self._say("error", event, found=str(raised), **where)

    @property
    def _has_to_learn(self) -> bool:
        return any(isinstance(job, Certified) for job in (self._job, *self._jobs))

    async def _learnt_all(self) -> None:
        """The federation is over: learn what is left, and say how it ended."""
        while self._has_to_learn:
            await asyncio.sleep(0.02)
        assert self._farewell is not None  # noqa: S101 - what this waited for
        if not self._farewell.completed:
            raise AggregationFailed(
                f"a federation given up ({visible(self._farewell.reason)})", "one that comes to its end"
            )
        if not self._protocol.history.over:
            raise AggregationFailed(
                f"a farewell after {self._protocol.certified} of {self._epochs} certified epochs "
                f"({visible(self._farewell.reason)})",
                "one after the last certificate",
                "start this client again; if the server says so again, ask who runs it",
            )

    async def _learn_what_is_left(self, work: asyncio.Task[None]) -> None:
        while self._has_to_learn and not work.done():
            await asyncio.sleep(0.02)
