"""CoDream-fast: dreams from a generator that all clients bring on together, through secure aggregation.

Singh et al., arXiv 2402.15968; the generator after Fang et al., AAAI 2022 (`codream_clients.learning.generators`). The
course and the learners are the deployed ones (`codream_protocols.courses.generator`,
`codream_clients.generator_learner`): a round takes batches * (global_steps + 1) secure steps and the metrics, and what
a client sends depends on the sizes of z and of G, not on anybody's model.

The adversarial term needs a student that all clients know. It is a function of the certified batches, which all have,
so every client trains its own copy and nothing is sent; here they share one. Left out, as not needed for the method:
the authors' fresh first layer of G every 50 batches, and their augmentation of G(z).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from codream_clients.generator_learner import GeneratorLearner, generator_layout
from codream_clients.learning.dreaming import StatisticsMemory
from codream_clients.learning.generators import GeneratorLoss
from codream_clients.learning.participant import Participant
from codream_clients.learning.student import Student
from codream_clients.learning.training import evaluate
from codream_protocols.courses import generator as courses
from codream_protocols.courses.codream import Dreams
from secure_codream.configuration.courses import FAST_DREAMS, make_course
from secure_codream.experiments.algorithms.own_images import Stopwatch
from secure_codream.experiments.effects import DREAMING, LEARNING, GoesBy
from secure_codream.experiments.problem import Problem, Row
from secure_codream.simulation.in_process import Simulation


@dataclass(frozen=True, kw_only=True)
class CoDreamFast:
    """See the module; the size of a batch, learning and soft labels are the problem's.

    Attributes:
        name: its name in tables.
        batches: batches of dreams in a round.
        global_steps: secure steps on z and G for each.
        local_steps: a client's steps of Adam in each of these.
        noise: Z.
        width: channels of G's last block; the others have twice as many.
        lr: rate of the steps on G.
        noise_lr: rate of the steps on z.
        alpha_preds: weight of the entropy; this and the other weights as in `GeneratorLoss`.
        alpha_target: weight of the target classes; the paper's way is 0.
        alpha_bn: weight of R_bn; the paper's way is 10.
        alpha_adv: weight of the adversarial term.
        bn_momentum: share of earlier batches in R_bn's statistics.
        adversarial_from: the round, from 0, from which on the adversarial term counts.
        student: architecture of the student on dreams alone; the first client's unless given.
    """

    name: str = "codream-fast"
    batches: int = 5
    global_steps: int = 1
    local_steps: int = 5
    noise: int = 256
    width: int = 64
    lr: float = 5e-3
    noise_lr: float = 1.5e-3
    alpha_preds: float = GeneratorLoss.alpha_preds
    alpha_target: float = GeneratorLoss.alpha_target
    alpha_bn: float = GeneratorLoss.alpha_bn
    alpha_adv: float = GeneratorLoss.alpha_adv
    bn_momentum: float = 0.9
    adversarial_from: int = courses.ADVERSARIAL_FROM
    student: str | None = None

    def __post_init__(self) -> None:
        for key in ("batches", "global_steps", "local_steps", "noise", "width"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key} is {getattr(self, key)}; 1 or more is allowed")
        for key in ("lr", "noise_lr"):
            if not (math.isfinite(getattr(self, key)) and getattr(self, key) > 0):
                raise ValueError(f"{key} is {getattr(self, key)}; a finite number above 0 is allowed")
        _ = self.loss, StatisticsMemory(self.bn_momentum)  # they check their own numbers

    @property
    def loss(self) -> GeneratorLoss:
        """The weights of the clients' loss."""
        return GeneratorLoss(
            alpha_preds=self.alpha_preds,
            alpha_target=self.alpha_target,
            alpha_bn=self.alpha_bn,
            alpha_adv=self.alpha_adv,
        )

    def goes_by(self, dreams: Dreams, models: Sequence[str]) -> GoesBy:
        """See `effects`; a deployment of this course refuses the same of `[dreams]`."""
        return GoesBy(frozenset(FAST_DREAMS), LEARNING - DREAMING)

    def run(self, problem: Problem) -> Iterator[Row]:
        """See `Algorithm`."""
        model = problem.fresh_model(0, self.student or problem.models[0])
        student = Student(model, problem.learning, problem.seed, problem.device)
        course, participants = self.course(problem), self.participants(problem)
        learners = [self.learner(problem, course, participant, student) for participant in participants]
        simulation = Simulation(course, learners, aggregation=problem.sums, seed=problem.seed)
        watch = Stopwatch(len(participants))
        yield watch.row(0, [float(participant.warm_up().accuracy or 0.0) for participant in participants])
        for round in range(1, problem.rounds + 1):
            simulation.run_epoch()
            if round == problem.rounds:
                simulation.run_epoch()
            yield watch.row(
                round,
                [_accuracy(participant) for participant in participants],
                server=evaluate(student.model, problem.test, problem.device),
                up=simulation.traffic.up,
                down=simulation.traffic.down,
                secure_steps=simulation.secure_steps,
            )

    def course(self, problem: Problem) -> courses.CoDreamFast:
        """What the clients do.

        Raises:
            ConfigError: values that do not fit.
        """
        fast = {
            "layout": generator_layout(problem.test.shape, self.noise, self.width),
            "batches": self.batches,
            "global_steps": self.global_steps,
            "local_steps": self.local_steps,
            "noise": self.noise,
            "lr": self.lr,
            "noise_lr": self.noise_lr,
        }
        dreams = Dreams(**{name: getattr(problem.dreams, name) for name in (*FAST_DREAMS, "label_by")})
        course = make_course(problem.federation("codream-fast", fast=fast, dreams=dreams))
        assert isinstance(course, courses.CoDreamFast)  # noqa: S101 - by that name
        return course

    def participants(self, problem: Problem) -> list[Participant]:
        """Every client's learning; the generated images alone are labelled, without views."""
        return problem.participants(replace(problem.learning, views=0))

    def learner(
        self, problem: Problem, course: courses.CoDreamFast, participant: Participant, student: Student
    ) -> GeneratorLearner:
        """A client's answers; `student` is shared."""
        return GeneratorLearner(
            course,
            participant,
            shape=problem.test.shape,
            loss=self.loss,
            width=self.width,
            bn_momentum=self.bn_momentum,
            student=student,
            adversarial_from=self.adversarial_from,
        )


def _accuracy(participant: Participant) -> float:
    metrics = participant.metrics
    return float(metrics.accuracy or 0.0) if metrics is not None else 0.0
