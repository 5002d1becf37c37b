"""CoDream (Singh et al., arXiv 2402.15968) and its ablations, through secure aggregation.

The very course, `Participant`s and protocol machines of a deployment, in one process. The student, a model that has
seen nothing but the FedDream dataset, measures what the dreams carry.

Ablations, each a `kind`: `dreams` are made together, step by step; `independent` dreams are made by each client
alone, from the same start and with as many local steps in all, and averaged once, with a clip for all these steps
together, so that a pixel may move as far as it may step by step; `noise`, the start images, are labelled as they are.
The ablations have no half-way dreams, and `noise` no adaptive term.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from codream_clients.dream_learner import distillation_of
from codream_clients.learning.participant import Participant
from codream_clients.learning.training import evaluate
from codream_protocols.courses import codream as courses
from codream_protocols.settings import MOST
from secure_codream.configuration.courses import make_course
from secure_codream.experiments.algorithms.clipping import telling_of_clipping
from secure_codream.experiments.effects import DREAMING, DREAMS, LEARNING, MOVING, GoesBy
from secure_codream.experiments.problem import Problem, Row
from secure_codream.simulation.in_process import DreamFederation

Kind = Literal["dreams", "independent", "noise"]


@dataclass(frozen=True, kw_only=True)
class CoDream:
    """CoDream with the problem's dream and learning settings.

    Attributes:
        name: its name in tables.
        kind: how the images that are labelled come about; see the module.
        client_privacy: as `[client_privacy]` of a federation: noise in every sum; None adds none.
        student: architecture of the student on dreams alone; the first client's unless given.
    """

    name: str = "codream"
    kind: Kind = "dreams"
    client_privacy: Mapping[str, Any] | None = None
    student: str | None = None

    def goes_by(self, dreams: courses.Dreams, models: Sequence[str]) -> GoesBy:
        """See `effects`."""
        idle = {"noise": {"steps"}, "independent": {"half_way"}}.get(self.kind, set())
        if self.kind == "noise" or dreams.steps == 0:
            return GoesBy(DREAMS - MOVING - idle, LEARNING - DREAMING)
        return GoesBy(DREAMS - idle, LEARNING)

    def run(self, problem: Problem) -> Iterator[Row]:
        """See `Algorithm`; warns of clipping, see `telling_of_clipping`."""
        started = time.perf_counter()
        problem = self._ablated(problem)
        course = make_course(problem.federation("codream", client_privacy=self.client_privacy))
        assert isinstance(course, courses.CoDream)  # noqa: S101 - by that name
        federation = DreamFederation(
            self._participants(problem),
            course,
            aggregation=problem.sums,
            seed=problem.seed,
            device=problem.device,
        )
        student = problem.fresh_model(0, self.student or problem.models[0])
        tell_of_clipping = telling_of_clipping(course, "updates of dreams", "[dreams] update_clip")
        yield self._row(0, federation.warm_up(), None, federation, started)
        for number in range(1, problem.rounds + 1):
            accuracies = federation.round(tell_of_clipping)
            distillation_of(problem.dreams.label_by)(
                student,
                list(federation.batches),
                problem.learning,
                seed=problem.seed * 1000 + number,
                device=problem.device,
            )
            known = evaluate(student, problem.test, problem.device)
            yield self._row(number, accuracies, known, federation, started)

    def _participants(self, problem: Problem) -> list[Participant]:
        return problem.participants(problem.learning)

    def _ablated(self, problem: Problem) -> Problem:
        """The problem, or what the ablation makes of it: the same number of local steps in all."""
        learning, dreams = problem.learning, problem.dreams
        if self.kind == "independent":
            learning = replace(learning, local_steps=learning.local_steps * dreams.steps)
            clip = min(dreams.update_clip * dreams.steps, MOST)
            dreams = replace(dreams, steps=1, half_way=False, update_clip=clip)
        elif self.kind == "noise":
            dreams = replace(dreams, steps=0, half_way=False, adaptive_weight=0.0)
        return replace(problem, learning=learning, dreams=dreams)

    @staticmethod
    def _row(
        number: int,
        accuracies: tuple[float, ...],
        server: float | None,
        federation: DreamFederation,
        started: float,
    ) -> Row:
        clients, traffic = len(accuracies), federation.simulation.traffic
        return Row(
            round=number,
            accuracies=accuracies,
            server=server,
            bytes_up=traffic.up / clients,
            bytes_down=traffic.down / clients,
            secure_steps=federation.simulation.secure_steps,
            seconds=time.perf_counter() - started,
        )
