"""The server of a simulated federation, its engine, and the clocks between them; and what came of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import msgspec

from codream_protocols.errors import AggregationFailed
from codream_protocols.keyschedule import digest
from codream_protocols.messages import Hello, MaskedInput, ToServer, decode_to_server, encode_message
from codream_protocols.server import (
    Effect,
    EpochCertified,
    EpochGivenUp,
    Phase,
    SendTo,
    ServerProtocol,
    StepBegan,
    StepFinished,
)
from secure_codream.simulation.virtual.engines import Engine, Lost, Spared
from secure_codream.simulation.virtual.host import Answer, Letter
from secure_codream.simulation.virtual.network import Clocks, Network
from secure_codream.simulation.virtual.scene import Scene
from secure_codream.simulation.virtual.work import Work


class StepOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """One step's sum.

    Attributes:
        digest: of its ring elements, hexadecimal: the same for the same scene wherever it runs.
        survivors: how many inputs are in it.
        seconds: how long it took here, by the wall's clock.
        predicted: how long it would take on the virtual network.
    """

    digest: str
    survivors: int
    seconds: float
    predicted: float


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What a simulated epoch came to.

    Attributes:
        head: of the certified epoch, hexadecimal; it covers every sum.
        steps: each sum.
        seconds: of the whole epoch here, by the wall's clock, without the start of the workers.
        set_up_seconds: of that, until the first step was begun.
        predicted: seconds that the epoch would take on the virtual network.
        set_up_predicted: of that, until the first step was begun.
        client_seconds: processor seconds that all clients' own machines would take.
        spared_seconds: those of them that were not spent here, since a worker remembered what it had computed.
        server_seconds: processor seconds of the server.
        bytes_up: what all clients sent.
        bytes_down: what they were sent.
        lost: how many clients were lost with their worker.
        alike_spared: computations, the same for every member, that a worker did not make once more.
        agreements_spared: key agreements that it did not make once more.
    """

    head: str
    steps: tuple[StepOutcome, ...]
    seconds: float
    set_up_seconds: float
    predicted: float
    set_up_predicted: float
    client_seconds: float
    spared_seconds: float
    server_seconds: float
    bytes_up: int
    bytes_down: int
    lost: int
    alike_spared: int
    agreements_spared: int


_FEWER, _LOSSES = "; let fewer fall silent (--drop)", ", or allow losses (--losses allow)"

Watch = Callable[[str, float], object]
"""Told how far a run is: what is under way, and which part of all work is done, 0 to 1."""


class Run:
    """One epoch of a scene.

    Args:
        scene: what is simulated.
        engine: plays its clients.
        network: the links that round times are predicted for.
        watch: told how far it is.
    """

    def __init__(self, scene: Scene, engine: Engine, network: Network, watch: Watch = lambda phase, part: None) -> None:
        roster = scene.roster()
        self._scene, self._engine, self._watch = scene, engine, watch
        self._server = ServerProtocol(scene.charter(roster), roster, scene.course())
        self._clocks = Clocks(network, scene.members)
        self._lost: set[int] = set()
        self._letters: list[Letter] = []
        self._size = 0  # of the last letter's message, with its frames
        self._phase, self._done, self._spent = "set-up", 0.0, [0.0, 0.0]
        self._work: Work | None = None  # known once a plan is
        self._bytes = [0, 0]
        self._began = self._marked = self._mark = 0.0
        self._set_up = (0.0, 0.0)
        self._steps: list[StepOutcome] = []
        self._head: bytes | None = None

    def epoch(self) -> Outcome:
        """Run it to its certificate.

        Raises:
            AggregationFailed: the epoch was given up.
            RuntimeError: a virtual client failed.
        """
        everybody = list(range(self._scene.members))
        for answer in self._engine.exchange([Letter(everybody, None)]):
            self._take(answer)
        self._began = self._marked = time.perf_counter()  # all workers are there
        if not self._server.cohort():
            raise AggregationFailed(f"{self._scene.members - len(self._lost)} clients", "enough for these settings")
        self._act(partial(self._server.open_epoch, self._server.cohort()))
        plan = self._server.plan
        assert plan is not None  # noqa: S101 - within an epoch
        self._work = Work(self._scene, plan.degree and plan.degree.neighbours)
        while self._letters or self._server.phase is not Phase.IDLE:
            if not self._letters:
                self._act(self._server.expire)
                if not self._letters and self._server.phase is not Phase.IDLE:
                    raise AggregationFailed(f"nothing more while {self._server.phase.value}", "answers of the members")
            letters, self._letters = self._letters, []
            for answer in self._engine.exchange(letters):
                self._take(answer)
        assert self._head is not None  # noqa: S101 - idle again without having been given up
        spared = self._engine.spared()
        return self._outcome(spared)

    def _outcome(self, spared: Spared) -> Outcome:
        assert self._head is not None  # noqa: S101 - certified
        return Outcome(
            head=self._head.hex(),
            steps=tuple(self._steps),
            seconds=time.perf_counter() - self._began,
            set_up_seconds=self._set_up[0],
            predicted=self._clocks.now,
            set_up_predicted=self._set_up[1],
            client_seconds=self._spent[0],
            spared_seconds=spared.seconds,
            server_seconds=self._spent[1],
            bytes_up=self._bytes[0],
            bytes_down=self._bytes[1],
            lost=len(self._lost),
            alike_spared=spared.alike,
            agreements_spared=spared.agreements,
        )

    def _take(self, answer: Answer | Lost) -> None:
        if isinstance(answer, Lost):
            self._lost.update(answer.members)
            for member in answer.members:
                self._act(partial(self._server.lost, member))
            return
        member = answer.member
        self._spent[0] += answer.seconds
        self._clocks.computed(member, answer.seconds)
        for data, frames in answer.sent:
            size = len(data) + sum(map(len, frames))
            self._bytes[0] += size
            self._clocks.answered(member, size)
            message = decode_to_server(data)
            self._act(partial(self._receive, member, message, frames))
            if self._work is not None:
                first = isinstance(message, MaskedInput) and not message.step
                self._done += self._work.of(type(message), first=first)
        self._watch(self._phase, min(1.0, self._done / self._work.total) if self._work else 0.0)

    def _receive(self, member: int, message: ToServer, frames: tuple[bytes, ...]) -> Iterable[Effect]:
        if isinstance(message, Hello):
            return self._server.hello(member, message)
        return self._server.receive(member, message, frames)

    def _act(self, act: Callable[[], Iterable[Effect]]) -> None:
        """Let the server do something, and send what it has to say."""
        started = time.thread_time()
        effects = list(act())
        seconds = time.thread_time() - started
        self._spent[1] += seconds
        self._clocks.worked(seconds)
        if any(isinstance(effect, SendTo) for effect in effects):
            self._clocks.goes_on()
        self._do(effects)

    def _do(self, effects: Sequence[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, SendTo):
                self._send(effect)
            elif isinstance(effect, StepBegan):
                if not self._steps:
                    self._set_up = time.perf_counter() - self._began, self._clocks.now
                    self._lap()
                self._phase = f"step {effect.step + 1} of {self._scene.steps}"
                for member in self._scene.silent(effect.step) - self._lost:
                    self._act(partial(self._server.lost, member))
            elif isinstance(effect, StepFinished):
                self._finish(effect)
            elif isinstance(effect, EpochCertified):
                self._head = self._server.head
            elif isinstance(effect, EpochGivenUp):
                advice = _FEWER if self._scene.aggregation.losses == "allow" else f"{_FEWER}{_LOSSES}"
                raise AggregationFailed(effect.reason, f"enough members for a sum{advice}")

    def _finish(self, step: StepFinished) -> None:
        seconds, predicted = self._lap()
        outcome = StepOutcome(
            digest=digest("simulated sum", step.total.tobytes()).hex(),
            survivors=len(step.survivors),
            seconds=seconds,
            predicted=predicted,
        )
        self._steps.append(outcome)
        self._phase = "votes"
        plan = self._server.plan
        assert plan is not None  # noqa: S101 - within an epoch
        for member in self._scene.silent(step.step) - self._lost:
            self._do(self._server.beat(member, plan.digest, step.step + 1))

    def _lap(self) -> tuple[float, float]:
        """Seconds since the last call: the wall's, and the server's virtual ones."""
        now = time.perf_counter()
        passed = now - self._marked, self._clocks.now - self._mark
        self._marked, self._mark = now, self._clocks.now
        return passed

    def _send(self, effect: SendTo) -> None:
        if effect.member in self._lost:
            return
        message = effect.message
        if not self._letters or self._letters[-1].message is not message:
            self._letters.append(Letter([], message, effect.frames))
            # It is encoded again when its turn comes: the seals of all members at once would fill the memory.
            self._size = len(encode_message(message)) + sum(map(len, effect.frames))
        self._letters[-1].members.append(effect.member)
        self._bytes[1] += self._size
        self._clocks.told(effect.member, self._size)
