"""Averaging of parameters: the deployed course and learners, over a problem's shards.

A round is an epoch of `codream_protocols.courses.parameters`: each client trains the global model on its own images,
and the weighted changes are summed under masks (`codream_clients.parameter_learner`). The start is nobody's choice,
so there is no global model before the first round, and the warm-up belongs to that round's work: row 0 shows the
clients' own models half-way through it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from codream_clients.learning.participant import Metrics
from codream_clients.parameter_learner import AveragingLearner
from codream_protocols.courses.parameters import FedAvg as AveragingCourse
from secure_codream.configuration.courses import make_course
from secure_codream.experiments.algorithms.clipping import telling_of_clipping
from secure_codream.experiments.algorithms.own_images import Stopwatch, of_own_images
from secure_codream.experiments.problem import Problem, Row
from secure_codream.simulation.in_process import Simulation


class MixedArchitectures(ValueError):
    """Parameters of different architectures cannot be averaged."""

    def __init__(self, algorithm: str, models: Sequence[str]) -> None:
        self.algorithm, self.models = algorithm, tuple(models)
        super().__init__(
            f"{algorithm}: found models {', '.join(models)}; allowed: one architecture for all clients, since "
            "parameters are averaged; choose codream, avgkd or isolated for a mix"
        )


def require_one_architecture(algorithm: str, problem: Problem) -> None:
    """Raise `MixedArchitectures` unless all clients have one architecture."""
    if not problem.homogeneous:
        raise MixedArchitectures(algorithm, problem.models)


@dataclass(frozen=True, kw_only=True)
class Averaging:
    """An algorithm that averages parameters: what clients learn with, and what the course is told of it.

    Attributes:
        name: see `Algorithm`; the course has the same one in `[federation]`.
        learner: what each client learns with.
        clip: how far a step may move a parameter.
    """

    name: ClassVar[str]
    learner: ClassVar[type[AveragingLearner]]
    clip: float = 1.0

    goes_by = of_own_images

    def run(self, problem: Problem) -> Iterator[Row]:
        """See `Algorithm`.

        Raises:
            MixedArchitectures: clients with different models.
        """
        require_one_architecture(self.name, problem)
        course = averaging_course(problem, self.name, clip=self.clip, **self.in_course())
        learners = averaging_learners(problem, course, self.learner, **self.of_learner())
        yield from averaging_rows(problem, course, learners)

    def in_course(self) -> dict[str, float]:
        """What `[averaging]` says beside `clip`."""
        return {}

    def of_learner(self) -> dict[str, float]:
        """The learner's own options."""
        return {}


def averaging_course(problem: Problem, name: str, **averaging: Any) -> AveragingCourse:
    """The course of that name for the problem's model; `averaging` as in `[averaging]`.

    Raises:
        ConfigError: values that do not fit.
    """
    table = {"model": problem.models[0], **averaging}
    course = make_course(problem.federation(name, averaging=table))
    assert isinstance(course, AveragingCourse)  # noqa: S101 - by these names
    return course


def averaging_learners(
    problem: Problem, course: AveragingCourse, kind: Callable[..., AveragingLearner], **options: Any
) -> list[AveragingLearner]:
    """A learner of `kind` for each client, weighted by its images; `options` are the kind's own."""
    largest = max(len(shard) for shard in problem.shards)
    return [
        kind(
            course,
            problem.fresh_model(0),
            shard,
            problem.learning,
            seed=problem.client_seed(client),
            device=problem.device,
            weight=len(shard) / largest,
            test=problem.test,
            **options,
        )
        for client, shard in enumerate(problem.shards)
    ]


def averaging_rows(problem: Problem, course: AveragingCourse, learners: Sequence[AveragingLearner]) -> Iterator[Row]:
    """Run all rounds and the closing metrics; see `Algorithm`. All clients use the global model.

    Warns of clipping, see `telling_of_clipping`.
    """
    tell_of_clipping = telling_of_clipping(course, "changes", "clip")
    watch = Stopwatch(len(learners))
    simulation = Simulation(course, learners, aggregation=problem.sums, seed=problem.seed)
    for round in range(1, problem.rounds + 1):
        simulation.run_epoch(tell_of_clipping)
        if round == 1:
            yield watch.row(0, [_accuracy(learner.warm_up_metrics) for learner in learners])
        reached = _accuracy(learners[0].metrics)
        if round == problem.rounds:
            simulation.run_epoch()
        yield watch.row(
            round,
            [reached] * len(learners),
            server=reached,
            up=simulation.traffic.up,
            down=simulation.traffic.down,
            secure_steps=simulation.secure_steps,
        )


def _accuracy(metrics: Metrics | None) -> float:
    return float(metrics.accuracy or 0.0) if metrics is not None else 0.0
