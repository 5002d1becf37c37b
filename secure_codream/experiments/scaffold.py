"""SCAFFOLD: FedAvg whose clients correct the drift towards their own data by control variates.

Karimireddy, Kale, Mohri, Reddi, Stich, Suresh, "SCAFFOLD: Stochastic controlled averaging for federated learning",
ICML 2020. Client i keeps c_i, an estimate of its own gradient; the server keeps c, the mean of all c_i. Local steps
follow g_i(y) - c_i + c. After K steps (option II of the paper's algorithm 1)

    c_i <- c_i - c + (x - y_i) / (K lr),    x <- x + mean(y_i - x),    c <- c + mean(change of c_i).

Both means are weighted by the clients' images, as in FedAvg (the paper's clients are of equal size, where this is its
uniform mean), and both are coordinates of one secure sum: twice FedAvg's bytes either way. All baselines share one
optimiser, which has momentum; K lr in the paper is how far plain SGD goes under a constant gradient of one, and its
place is taken by how far SGD with Nesterov momentum goes (`displacement`). Without this c_i would be an order of
magnitude too large at momentum 0.9.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from codream_clients.training import evaluate
from secure_codream.experiments.local_work import Stopwatch, displacement, train_round, warm_up
from secure_codream.experiments.parameters import Change, FloatArray, Layout, SecureMean, require_one_architecture
from secure_codream.experiments.problem import Problem, Row

MODEL, CONTROLS = "model", "controls"


class ControlledClient:
    """A client's copy of the model and its control variate.

    Attributes:
        control: c_i, one number for each parameter.
    """

    def __init__(self, problem: Problem, client: int) -> None:
        self._problem, self._client, self._round = problem, client, 0
        self._model, self._shard = problem.fresh_model(0), problem.shards[client]
        self._state, self._parameters = Layout.of_state(self._model), Layout.of_parameters(self._model)
        self._reach = 0.0
        self.control: FloatArray = np.zeros(self._parameters.length, dtype=np.float32)

    def warm_up(self) -> float:
        """Train before the first round, when all control variates are 0; returns the test accuracy."""
        steps = warm_up(self._model, self._shard, self._problem, self._client)
        self._reach = self._displacement(steps)
        return evaluate(self._model, self._problem.test, self._problem.device)

    def work(self, public: Sequence[FloatArray]) -> Change:
        """One round: the change of the model and of c_i, from (x, c)."""
        problem, (received, common) = self._problem, public
        self._round += 1
        start = problem.fresh_model(0)
        self._state.write(start, received)
        if self._round > 1:
            self._state.write(self._model, received)
        correction = self._parameters.split(common - self.control, problem.device)
        steps = train_round(self._model, self._shard, problem, self._client, self._round, correction=correction)
        reach = self._reach + self._displacement(steps)
        self._reach = 0.0
        before, after = (self._parameters.join(list(model.parameters())) for model in (start, self._model))
        moved = (before - after) / np.float32(max(reach, 1.0) * problem.learning.lr)
        renewed = self.control - common + moved
        change = {MODEL: self._state.read(self._model) - received, CONTROLS: renewed - self.control}
        self.control = renewed
        return change

    def _displacement(self, steps: int) -> float:
        learning = self._problem.learning
        return displacement(steps, learning.momentum, learning.schedule)


@dataclass(frozen=True)
class Scaffold:
    """See the module."""

    name: str = "scaffold"

    def run(self, problem: Problem) -> Iterator[Row]:
        """See `Algorithm`.

        Raises:
            MixedArchitectures: clients with different models.
        """
        require_one_architecture(self.name, problem)
        watch = Stopwatch(len(problem.shards))
        clients = [ControlledClient(problem, number) for number in range(len(problem.shards))]
        model = problem.fresh_model(0)
        state, parameters = Layout.of_state(model), Layout.of_parameters(model)
        mean = SecureMean(problem, {MODEL: state, CONTROLS: parameters}, [client.work for client in clients])
        control: FloatArray = np.zeros(parameters.length, dtype=np.float32)
        yield watch.row(0, [client.warm_up() for client in clients])
        for round in range(1, problem.rounds + 1):
            current = state.read(model)
            change = mean.exchange([current, control])
            state.write(model, current + change[MODEL])
            control = (control + change[CONTROLS]).astype(np.float32)
            reached = evaluate(model, problem.test, problem.device)
            yield watch.row(
                round,
                [reached] * len(clients),
                server=reached,
                up=mean.traffic.up,
                down=mean.traffic.down,
                secure_steps=mean.secure_steps,
            )
