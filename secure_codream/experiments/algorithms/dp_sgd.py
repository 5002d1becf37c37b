"""DP-SGD through the ring: the deployed course and learners, over a problem's shards.

One model, whose every step has the noise of all clients once: what all data in one place have under the same budget,
without the place. A round is an epoch of `steps` sums, all of which are masked, noised and voted on. A client of
another architecture has that model handed down in the end (`codream_clients.learning.handed_down`), and its accuracy
is its own from then on; `server` is the common model.

Noise, samples and rounding repeat from the cell's seed, as everything in an experiment does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from codream_clients.dp_sgd_learner import DPSGDLearner
from codream_clients.learning.handed_down import HandedDown
from codream_clients.learning.training import evaluate
from codream_clients.privacy.noise import NoiseSource
from codream_protocols.courses.codream import Dreams
from codream_protocols.courses.dp_sgd import DPSGD as DPSGDCourse
from secure_codream.configuration.courses import make_course, public_images
from secure_codream.configuration.federation import FederationConfig
from secure_codream.experiments.algorithms.own_images import Stopwatch, stage_seed
from secure_codream.experiments.algorithms.private import NOISE
from secure_codream.experiments.effects import DISTILLING, GoesBy
from secure_codream.experiments.problem import Problem, Row
from secure_codream.simulation.in_process import Simulation


@dataclass(frozen=True, kw_only=True)
class DPSGD:
    """See the module; `table` is a `[dp_sgd]` table, whose model is the first client's unless it names one."""

    name: str = "dp-sgd"
    table: Mapping[str, Any]

    def goes_by(self, dreams: Dreams, models: Sequence[str]) -> GoesBy:
        """See `effects`: its own table, and what hands the model down to clients of another architecture."""
        if set(models) == {self.table.get("model", models[0])}:
            return GoesBy()
        return GoesBy(frozenset({"start", "photographs", "batch"}), DISTILLING)

    def run(self, problem: Problem) -> Iterator[Row]:
        """See `Algorithm`."""
        table = {"model": problem.models[0], **self.table}
        config = problem.federation("dp-sgd", dp_sgd=table)
        course = make_course(config)
        assert isinstance(course, DPSGDCourse)  # noqa: S101 - by that name
        learners = [
            DPSGDLearner(
                course,
                problem.fresh_model(0, table["model"]),
                shard,
                charge=lambda charge: None,
                noise=NoiseSource(stage_seed(problem, client, 0, NOISE)),
                device=problem.device,
                test=problem.test if client == 0 or problem.models[client] != table["model"] else None,
                own=_handed_down(problem, config, client, table["model"]),
                name=table["model"],
            )
            for client, shard in enumerate(problem.shards)
        ]
        clients = len(learners)
        watch = Stopwatch(clients)
        simulation = Simulation(course, learners, aggregation=problem.sums, seed=problem.seed)
        reached = evaluate(learners[0].model, problem.test, problem.device)
        yield watch.row(0, [reached] * clients, server=reached)
        for round in range(1, problem.rounds + 1):
            simulation.run_epoch()
            assert learners[0].metrics is not None  # noqa: S101 - of this epoch
            reached = float(learners[0].metrics.accuracy or 0.0)
            own = [learner.own_metrics for learner in learners]
            yield watch.row(
                round,
                [reached if found is None else float(found.accuracy or 0.0) for found in own],
                server=reached,
                up=simulation.traffic.up,
                down=simulation.traffic.down,
                secure_steps=simulation.secure_steps,
            )


def _handed_down(problem: Problem, config: FederationConfig, client: int, common: str) -> HandedDown | None:
    if problem.models[client] == common:
        return None
    return HandedDown(problem.fresh_model(client), public_images(config), problem.learning, problem.client_seed(client))
