"""One epoch by the machines that run in deployment, each call of theirs timed."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeVar

import numpy as np

from codream_protocols.charter import Aggregation
from codream_protocols.client import Compute, Send
from codream_protocols.course import Array
from codream_protocols.messages import (
    Advertisements,
    Invitation,
    MaskedInput,
    Published,
    SealDelivery,
    UnmaskShares,
    decode_to_client,
    decode_to_server,
    encode_message,
)
from codream_protocols.server import Effect, EpochCertified, EpochGivenUp, Phase, SendTo
from codream_protocols.specs import Block, VectorSpec
from codream_server.peers import Traffic
from secure_codream.deployment.cores import shared_by
from secure_codream.simulation.in_process import Simulation
from secure_codream.simulation.toy_course import LaboratoryCourse

T = TypeVar("T")
_SETUP = (Invitation, Advertisements, SealDelivery)
CLIP = 3.0


@dataclass(frozen=True)
class Case:
    """One epoch: `n` clients, vectors of `d` numbers in a ring of `m` bits, `steps` steps, `dropped` silent in each."""

    mode: Literal["lockstep", "resilient"]
    n: int
    d: int
    m: int
    dropped: int
    losses: Literal["allow", "blocks"]
    steps: int

    @property
    def value_bits(self) -> int:
        """v: what m leaves for one value."""
        return self.m - (self.n - 1).bit_length()


@dataclass(frozen=True)
class Costs:
    """Medians, in milliseconds of processor time, and bytes of a client and step, the set-up included.

    Attributes:
        sending: encoding, own tag, masking, packing.
        checking: checking and digesting the published sum.
        adding: one masked vector, at the server.
        unmasking: at the server, a step; None in lockstep.
        setup: of a client, an epoch.
        up: bytes sent.
        down: bytes received.
        summed: members in each sum.
    """

    sending: float
    checking: float
    adding: float
    unmasking: float | None
    setup: float
    up: float
    down: float
    summed: int


class _Numbers:
    """The same numbers from every client, in every step."""

    def __init__(self, count: int) -> None:
        self.values = np.random.default_rng(0).normal(size=count).astype(np.float32)

    def compute(self, task: object, spec: object) -> dict[str, Array]:
        return {"dream": self.values}

    def learn(self, number: int, publication: object) -> None:
        """Nothing is learnt."""


@dataclass(frozen=True)
class Walls:
    """The least milliseconds by the clock on the wall: of a client that sends, and of the server that adds."""

    sending: float
    adding: float


class _Run:
    """Carries messages, and times who takes them."""

    def __init__(self, case: Case, clock: Callable[[], float] = time.process_time) -> None:
        self._case, self._clock = case, clock
        spec = VectorSpec("update", (Block("dream", case.d, CLIP),))
        aggregation = Aggregation(mode=case.mode, value_bits=case.value_bits, losses=case.losses)
        numbers = _Numbers(case.d)
        course = LaboratoryCourse((spec,), case.steps, 1)
        self._simulation = Simulation(course, [numbers] * case.n, aggregation=aggregation)
        self._values = {"dream": numbers.values}
        self.sending: list[float] = []
        self.checking: list[float] = []
        self.adding: list[float] = []
        self.unmasking: defaultdict[int, float] = defaultdict(float)
        self.setup: defaultdict[int, float] = defaultdict(float)
        self.traffic, self.summed = Traffic(), 0
        self._queue: deque[Effect] = deque()

    def epoch(self) -> None:
        """Run it to its certificate."""
        server = self._simulation.server
        for member, client in enumerate(self._simulation.clients):
            self._queue.extend(server.hello(member, client.hello()))
        self._queue.extend(server.open_epoch(server.cohort()))
        while self._queue or server.phase is not Phase.IDLE:
            effect = self._queue.popleft() if self._queue else None
            if effect is None:
                self._queue.extend(server.expire())
            elif isinstance(effect, SendTo):
                self._to_client(effect)
            elif isinstance(effect, EpochGivenUp):
                raise RuntimeError(f"found an epoch that was given up: {effect.reason}")
            elif isinstance(effect, EpochCertified):
                return

    def _to_client(self, effect: SendTo) -> None:
        data, member = encode_message(effect.message), effect.member
        self.traffic.down += len(data) + sum(map(len, effect.frames))
        message, client = decode_to_client(data), self._simulation.clients[member]
        answers, took = _timed(lambda: client.receive(message, effect.frames), self._clock)
        if isinstance(message, _SETUP):
            self.setup[member] += took
        elif isinstance(message, Published):
            self.checking.append(took)
            self.summed = len(message.members)
        for answer in answers:
            if isinstance(answer, Send):
                self._to_server(member, answer)
            elif isinstance(answer, Compute) and member < self._case.n - self._case.dropped:
                sent, took = _timed(partial(client.provide, answer.plan, answer.step, self._values), self._clock)
                self.sending.append(took)
                for each in sent:
                    if isinstance(each, Send):
                        self._to_server(member, each)

    def _to_server(self, member: int, send: Send) -> None:
        data = encode_message(send.message)
        message = decode_to_server(data)
        self.traffic.came(message, len(data), send.frames)
        effects, took = _timed(lambda: self._simulation.server.receive(member, message, send.frames), self._clock)
        self._queue.extend(effects)
        if isinstance(message, MaskedInput):
            self.adding.append(took)
        elif isinstance(message, UnmaskShares):
            self.unmasking[message.step] += took


def run_case(case: Case) -> Costs:
    """Run an epoch, and say what it cost."""
    run = _Run(case)
    run.epoch()
    each = case.n * case.steps
    return Costs(
        sending=statistics.median(run.sending),
        checking=statistics.median(run.checking),
        adding=statistics.median(run.adding),
        unmasking=statistics.median(run.unmasking.values()) if run.unmasking else None,
        setup=statistics.median(run.setup.values()),
        up=run.traffic.up / each,
        down=run.traffic.down / each,
        summed=run.summed,
    )


def run_walls(case: Case, threads: int) -> Walls:
    """The same by the clock on the wall, with so many threads."""
    run = _Run(case, time.perf_counter)
    with shared_by(threads):
        run.epoch()
    return Walls(min(run.sending), min(run.adding))


def _timed(work: Callable[[], T], clock: Callable[[], float]) -> tuple[T, float]:
    """What it returns, and how many milliseconds went by."""
    began = clock()
    found = work()
    return found, 1e3 * (clock() - began)
