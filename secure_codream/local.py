"""A whole federation in one process, over the very machines that run in deployment, without sockets.

For experiments, tests and a user's own script. Every message is encoded as on the wire, every vector is masked,
every sum is rebuilt; only the transport is a queue. Identities are made on the spot and thrown away.
"""

from __future__ import annotations

import secrets
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from codream_clients.participant import Participant
from codream_clients.tasks import DreamLearner, Learner
from codream_protocols.client import ClientProtocol, Compute, Send
from codream_protocols.errors import AggregationFailed, VectorRefused
from codream_protocols.identity import Member, Roster, ServerEntry, Signer
from codream_protocols.messages import Advertisement, Shares, decode_to_client, decode_to_server, encode_message
from codream_protocols.plan import Plan, Policy
from codream_protocols.server import Effect, Failed, Phase, Ready, Reveal, SendTo, ServerEpoch
from codream_protocols.tasks import LEARN, LOGITS, METRICS, UPDATE
from codream_protocols.vectors import encode_vector
from codream_server.coordinator import Coordinator
from codream_server.feddream import FedDreamDataset
from codream_server.settings import AggregationSettings, ClientPrivacySettings, DreamSettings

Broadcaster = Callable[[int], tuple[Sequence[float], Sequence[np.ndarray[Any, Any]]]]
"""step -> (clips, public arrays)."""


@dataclass
class Bytes:
    """Application bytes of all clients together: sent, received, and of those sent, key set-up and packed vectors."""

    up: int = 0
    down: int = 0
    setup: int = 0
    payload: int = 0


class LocalParties:
    """Throw-away identities and protocol machines for `learners`, and the epochs that they run together.

    Args:
        learners: what computes each client's vectors, in the roster's order.
        policy: what every client permits.
        seed: seed of the stochastic rounding; keys always come from the operating system.
        name: the federation's name.
    """

    def __init__(self, learners: Sequence[Learner], policy: Policy, *, seed: int = 0, name: str = "local") -> None:
        signers = [Signer(secrets.token_bytes(32)) for _ in learners]
        members = tuple(
            Member(f"client-{number}", signer.public, secrets.token_bytes(32))
            for number, signer in enumerate(signers, start=1)
        )
        self.roster = Roster(name, 1, ServerEntry("tcp://127.0.0.1:1", secrets.token_bytes(32)), members)
        self.traffic = Bytes()
        self.seconds = {"compute": 0.0, "aggregation": 0.0}
        self._learners = list(learners)
        self._clients = [
            ClientProtocol(member=number, signer=signer, roster=self.roster, policy=policy)
            for number, signer in enumerate(signers)
        ]
        self._rounding = [np.random.default_rng([seed, number]) for number in range(len(signers))]

    def run_epoch(
        self,
        plan: Plan,
        broadcast: Broadcaster,
        reveal: Callable[[Reveal], object],
        *,
        dropped: Callable[[int], set[int]] = lambda step: set(),
    ) -> None:
        """Run all steps of one plan.

        Args:
            plan: the epoch.
            broadcast: asked before each step.
            reveal: told each step's sum.
            dropped: which members fall silent in a step after they have heard its broadcast.

        Raises:
            AggregationFailed: too few survivors.
        """
        started, computing = time.perf_counter(), self.seconds["compute"]
        epoch = ServerEpoch(plan, self.roster)
        queue: deque[Effect] = deque(epoch.start())
        step = -1
        while True:
            while queue:
                effect = queue.popleft()
                if isinstance(effect, SendTo):
                    silent = dropped(step) if epoch.phase is Phase.COLLECTING else set()
                    queue.extend(self._deliver(epoch, plan, effect, silent))
                elif isinstance(effect, Reveal):
                    reveal(effect)
                elif isinstance(effect, Failed):
                    raise AggregationFailed(effect.reason, "enough survivors for the plan")
                else:
                    assert isinstance(effect, Ready)  # noqa: S101 - nothing to do: begin_step follows
            if epoch.phase is Phase.COLLECTING:
                queue.extend(epoch.expire())
            elif epoch.phase is Phase.READY:
                step += 1
                queue.extend(epoch.begin_step(*broadcast(step)))
            else:
                break
        passed = time.perf_counter() - started
        self.seconds["aggregation"] += passed - (self.seconds["compute"] - computing)

    def _deliver(self, epoch: ServerEpoch, plan: Plan, effect: SendTo, silent: set[int]) -> list[Effect]:
        data, member = encode_message(effect.message), effect.member
        self.traffic.down += len(data) + sum(len(frame) for frame in effect.frames)
        following: list[Effect] = []
        for answer in self._clients[member].receive(decode_to_client(data), effect.frames):
            if isinstance(answer, Compute):
                if member not in silent:
                    following += self._answer(epoch, member, self._compute(plan, member, answer))
            else:
                following += self._answer(epoch, member, [answer])
        return following

    def _compute(self, plan: Plan, member: int, task: Compute) -> list[Any]:
        started = time.perf_counter()
        try:
            values = self._learners[member].compute(task.task, task.arrays, task.clips)
        except VectorRefused:  # on the network it would say so, and the others go on without it
            return []
        self.seconds["compute"] += time.perf_counter() - started
        vector = encode_vector(plan, task.step, task.clips, values, self._rounding[member])
        return list(self._clients[member].provide(task.step, vector))

    def _answer(self, epoch: ServerEpoch, member: int, sends: list[Any]) -> list[Effect]:
        following: list[Effect] = []
        for send in sends:
            assert isinstance(send, Send)  # noqa: S101 - provide and receive give nothing else here
            data = encode_message(send.message)
            payload = sum(len(frame) for frame in send.frames)
            self.traffic.up += len(data) + payload
            self.traffic.payload += payload
            if isinstance(send.message, Advertisement | Shares):
                self.traffic.setup += len(data)
            following += epoch.receive(member, decode_to_server(data), send.frames)
        return following


class LocalFederation:
    """CoDream in one process: participants, coordinator and masked sums as in deployment, round by round.

    Args:
        participants: every client's learning, warmed up by `warm_up`.
        dreams: the dreams' settings.
        aggregation: secure aggregation's settings.
        seed: seed of the dreams' noise and of the stochastic rounding.
        privacy: client-level noise; None asks for none.
    """

    def __init__(
        self,
        participants: Sequence[Participant],
        *,
        dreams: DreamSettings,
        aggregation: AggregationSettings,
        seed: int,
        privacy: ClientPrivacySettings | None = None,
    ) -> None:
        self.participants = list(participants)
        noised = privacy is not None
        learners = [DreamLearner(participant, shape=dreams.shape, noised=noised) for participant in participants]
        largest = max(dreams.update_clip, float(np.log(dreams.classes)), 1.0)
        tasks = {UPDATE: largest, LOGITS: max(dreams.logit_clip, 1.0), LEARN if noised else METRICS: 1.0}
        policy = Policy(least_cohort=2, least_survivors=2, colluders=0, tasks=tasks)
        self.parties = LocalParties(learners, policy, seed=seed)
        self.coordinator = Coordinator(
            dreams=dreams,
            aggregation=aggregation,
            roster=self.parties.roster,
            recipe=bytes(32),
            session=secrets.token_bytes(16),
            seed=seed,
            dataset=FedDreamDataset(dreams.window),
            privacy=privacy,
        )

    def warm_up(self) -> tuple[float, ...]:
        """Train every client on its own data; returns test accuracies (0 where a client has no test images)."""
        return tuple(float(participant.warm_up().accuracy or 0.0) for participant in self.participants)

    def round(self) -> tuple[float, ...]:
        """Dream, label and learn once; returns each client's test accuracy.

        Raises:
            AggregationFailed: too few clients for the plan.
        """
        plan = self.coordinator.next_plan(range(len(self.participants)))
        self.parties.run_epoch(plan, self.coordinator.broadcast, self.coordinator.absorb)
        found = [participant.metrics for participant in self.participants]
        return tuple(float(metrics.accuracy or 0.0) if metrics is not None else 0.0 for metrics in found)
