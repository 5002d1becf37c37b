"""A whole federation in one process, over the very machines that run in deployment, without sockets.

For experiments, tests and a user's own script. Every message is encoded as on the wire, every vector is masked, every
sum is rebuilt and checked, every epoch is voted on; only the transport is a queue. Identities are made on the spot and
thrown away. A seed makes a run repeatable, keys and all: for experiments alone, since such masks hide nothing from who
knows the seed.

`Simulation` runs any course; `DreamFederation` runs CoDream with `Participant`s, round by round, as scripts want it.
"""

from __future__ import annotations

import secrets
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from codream_protocols.charter import Aggregation, Charter, Policy, even_blocks
from codream_protocols.client import Certified, ClientProtocol, Compute, Ended, Notice, Send
from codream_protocols.course import Course, Learner, Publication
from codream_protocols.courses.codream import CoDream
from codream_protocols.discrete_gaussian import RandomBytes
from codream_protocols.errors import AggregationFailed
from codream_protocols.identity import Member, Roster, ServerEntry, Signer
from codream_protocols.messages import Hello, decode_to_client, decode_to_server, encode_message
from codream_protocols.seeded import SeededBytes
from codream_protocols.server import Effect, EpochCertified, EpochGivenUp, Phase, SendTo, ServerProtocol, StepFinished
from codream_server.peers import Traffic

if TYPE_CHECKING:
    import torch

    from codream_clients.learning.participant import Participant

T = TypeVar("T")
Floats = np.ndarray[Any, np.dtype[np.float32]]


PERMISSIVE = Policy(losses=True, cuts=True, shared_noise=True)
"""The policy of simulated clients, who all belong to one person."""


class Simulation:
    """Throw-away identities and protocol machines for `learners`, and the epochs that they run together.

    Args:
        course: what they do.
        learners: what computes each client's vectors, in the roster's order.
        aggregation: how sums are made; lockstep unless given.
        policy: what every client permits.
        seed: makes everything repeatable, keys included; None takes the operating system's randomness.
        name: the federation's name.
        failed: told what a learner raised, and whose it was; then zeros are sent in its place, and what could not be
            learnt is passed over, as a deployed client does. Without it, what a learner raises ends the simulation.

    Raises:
        UnsafePlan: a promise of the protocol would fail.
    """

    def __init__(
        self,
        course: Course,
        learners: Sequence[Learner],
        *,
        aggregation: Aggregation | None = None,
        policy: Policy = PERMISSIVE,
        seed: int | None = None,
        name: str = "local",
        failed: Callable[[int, Exception], object] | None = None,
    ) -> None:
        aggregation = aggregation or Aggregation()
        random: list[RandomBytes] = [
            secrets.token_bytes if seed is None else SeededBytes(seed, f"client {number}")
            for number in range(len(learners))
        ]
        signers = [Signer(draw(32)) for draw in random]
        members = tuple(
            Member(f"client-{number}", signer.public, draw(32))
            for number, (signer, draw) in enumerate(zip(signers, random, strict=True), start=1)
        )
        self.roster = Roster(name, 1, ServerEntry("tcp://127.0.0.1:1", bytes(32)), members)
        self.charter = Charter(
            roster=self.roster.hash,
            members=len(members),
            settings=bytes(32),
            aggregation=aggregation,
            blocks=even_blocks(len(members), aggregation.colluders),
        )
        self.traffic = Traffic()
        self.seconds = {"compute": 0.0, "aggregation": 0.0}
        self.secure_steps = 0
        self.server = ServerProtocol(self.charter, self.roster, course)
        self.clients = [
            ClientProtocol(
                charter=self.charter,
                roster=self.roster,
                course=course,
                member=number,
                signer=signer,
                policy=policy,
                random_bytes=draw,
            )
            for number, (signer, draw) in enumerate(zip(signers, random, strict=True))
        ]
        self._learners, self._failed = list(learners), failed
        self._queue: deque[Effect] = deque()
        self._silent: Callable[[int], set[int]] = lambda step: set()

    def run_epoch(
        self,
        finished: Callable[[StepFinished], object] = lambda step: None,
        *,
        dropped: Callable[[int], set[int]] = lambda step: set(),
    ) -> Publication:
        """Run one epoch to its certificate; each client learns from it.

        Args:
            finished: told each step's sum.
            dropped: which members fall silent in a step, after the last one's sum has come.

        Returns:
            What was published.

        Raises:
            AggregationFailed: the epoch was given up.
        """
        started, computing = time.perf_counter(), self.seconds["compute"]
        self._silent = dropped
        for member, client in enumerate(self.clients):
            self._queue.extend(self.server.hello(member, client.hello()))
        cohort = self.server.cohort()
        if not cohort:
            raise AggregationFailed(f"{len(self.clients)} clients", "enough for the aggregation's settings")
        self._queue.extend(self.server.open_epoch(cohort))
        publication: Publication | None = None
        while self._queue or self.server.phase is not Phase.IDLE:
            if not self._queue:
                self._queue.extend(self.server.expire())
                continue
            effect = self._queue.popleft()
            if isinstance(effect, SendTo):
                self._deliver(effect)
            elif isinstance(effect, StepFinished):
                self.secure_steps += 1
                finished(effect)
            elif isinstance(effect, EpochCertified):
                publication = effect.publication
            elif isinstance(effect, EpochGivenUp):
                raise AggregationFailed(effect.reason, "enough members for a sum")
        passed = time.perf_counter() - started
        self.seconds["aggregation"] += passed - (self.seconds["compute"] - computing)
        assert publication is not None  # noqa: S101 - idle again without having been given up
        return publication

    def _deliver(self, effect: SendTo) -> None:
        data, member = encode_message(effect.message), effect.member
        self.traffic.down += len(data) + sum(len(frame) for frame in effect.frames)
        client, learner = self.clients[member], self._learners[member]
        pending = deque(client.receive(decode_to_client(data), effect.frames))
        while pending:
            answer = pending.popleft()
            if isinstance(answer, Compute):
                if member not in self._silent(answer.step):
                    values = self._by_learner(member, partial(learner.compute, answer.task, answer.spec))
                    pending.extend(client.provide(answer.plan, answer.step, values))
            elif isinstance(answer, Certified):
                self._by_learner(member, partial(learner.learn, answer.number, answer.publication))
            elif isinstance(answer, Send):
                self._answer(member, answer)
            else:
                assert isinstance(answer, Ended | Notice)  # noqa: S101 - nothing to do: the server's effect says it

    def _by_learner(self, member: int, work: Callable[[], T]) -> T | None:
        started = time.perf_counter()
        try:
            return work()
        except Exception as error:
            if self._failed is None:
                raise
            self._failed(member, error)
            return None
        finally:
            self.seconds["compute"] += time.perf_counter() - started

    def _answer(self, member: int, send: Send) -> None:
        data = encode_message(send.message)
        message = decode_to_server(data)
        self.traffic.came(message, len(data), send.frames)
        if isinstance(message, Hello):  # it has caught up by one epoch
            self._queue.extend(self.server.hello(member, message))
        else:
            self._queue.extend(self.server.receive(member, message, send.frames))


class DreamFederation:
    """CoDream in one process: participants, course and masked sums as in deployment, round by round.

    Attributes:
        participants: as given.
        simulation: their protocol machines.

    Args:
        participants: every client's learning, whose settings are the course's.
        course: what they do.
        aggregation: how sums are made; lockstep unless given.
        seed: makes keys, starts, rounding and the adaptive student repeatable; None takes the operating system's
            randomness, and student 0.
        device: where the adaptive student is trained; the CPU unless given.
        failed: see `Simulation`.
    """

    def __init__(
        self,
        participants: Sequence[Participant],
        course: CoDream,
        *,
        aggregation: Aggregation | None = None,
        seed: int | None = None,
        device: torch.device | None = None,
        failed: Callable[[int, Exception], object] | None = None,
    ) -> None:
        import torch

        from codream_clients.dream_learner import DreamLearner, distillation_of
        from codream_clients.learning.student import AdaptiveTerm, adaptive_student

        settings, adaptive = course.settings, None
        if settings.adaptive_weight > 0:
            student = adaptive_student(
                settings.shape,
                settings.classes,
                seed=seed or 0,
                window=settings.window,
                views_by=settings.views_by,
                device=device or torch.device("cpu"),
            )
            # One for all clients: each would train the same one.
            adaptive = AdaptiveTerm(student, settings.adaptive_weight, settings.adaptive_from)
        self.participants = list(participants)
        learners = [
            DreamLearner(participant, adaptive=adaptive, distillation=distillation_of(settings.label_by))
            for participant in participants
        ]
        self.simulation = Simulation(course, learners, aggregation=aggregation, seed=seed, failed=failed)
        self._course = course
        self._batches: deque[tuple[Floats, Floats]] = deque(maxlen=settings.window)

    @property
    def batches(self) -> tuple[tuple[Floats, Floats], ...]:
        """The newest certified dreams (B, C, H, W) and soft labels (B, K), as many as clients learn from."""
        return tuple(self._batches)

    def warm_up(self) -> tuple[float, ...]:
        """Train every client on its own data; returns test accuracies (0 where a client has no test images)."""
        return tuple(float(participant.warm_up().accuracy or 0.0) for participant in self.participants)

    def round(self, finished: Callable[[StepFinished], object] = lambda step: None) -> tuple[float, ...]:
        """Dream, label and learn once, and after the last round close with the metrics; returns test accuracies.

        Args:
            finished: told the sum of each of the round's steps.

        Raises:
            AggregationFailed: too few clients for the aggregation's settings.
        """
        found = self.simulation.run_epoch(finished)
        self._batches.append((np.array(found["dreams"]), np.array(found["soft_labels"])))  # torch wants writable copies
        if self.simulation.server.certified == self._course.settings.rounds < self._course.epochs:
            self.simulation.run_epoch()
        return self.accuracies

    @property
    def accuracies(self) -> tuple[float, ...]:
        """Each client's newest test accuracy, as it knows it itself: no sum."""
        found = [participant.metrics for participant in self.participants]
        return tuple(float(metrics.accuracy or 0.0) if metrics is not None else 0.0 for metrics in found)
