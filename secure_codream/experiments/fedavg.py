"""FedAvg: every client trains the global model on its own images, and the server averages the results.

McMahan, Moore, Ramage, Hampson, Aguera y Arcas, "Communication-efficient learning of deep networks from decentralized
data", AISTATS 2017: x <- sum_i n_i y_i / sum_i n_i. All clients take part in every round and start from the same
initial weights; the sum is a secure sum (`parameters`). Running statistics of batch norm are averaged with the
parameters.

The warm-up belongs to the first round's local work: row 0 shows the clients' own models half-way through it, and
there is no global model yet. FedProx and MOON differ in `AveragingClient.train` alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from codream_clients.training import evaluate
from secure_codream.experiments.local_work import Stopwatch, train_round, warm_up
from secure_codream.experiments.parameters import Change, FloatArray, Layout, SecureMean, require_one_architecture
from secure_codream.experiments.problem import Problem, Row

MODEL = "model"


class AveragingClient:
    """A client's copy of the global model and its work on it.

    Args:
        problem: shards and settings.
        client: its number.
    """

    def __init__(self, problem: Problem, client: int) -> None:
        self.problem, self.client, self.round = problem, client, 0
        self.model, self.shard = problem.fresh_model(0), problem.shards[client]
        self.layout = Layout.of_state(self.model)

    def warm_up(self) -> float:
        """Train before the first round; returns the test accuracy."""
        warm_up(self.model, self.shard, self.problem, self.client)
        return evaluate(self.model, self.problem.test, self.problem.device)

    def work(self, public: Sequence[FloatArray]) -> Change:
        """One round: train the global model (in the first, what the warm-up has made of it); return the change."""
        received = public[0]
        self.round += 1
        if self.round > 1:
            self.layout.write(self.model, received)
        self.train(received)
        return {MODEL: self.layout.read(self.model) - received}

    def train(self, received: FloatArray) -> None:
        """Train `model` in place; `received` is the global model."""
        train_round(self.model, self.shard, self.problem, self.client, self.round)


@dataclass(frozen=True)
class FedAvg:
    """See the module."""

    name: str = "fedavg"

    def client(self, problem: Problem, client: int) -> AveragingClient:
        """A client of this algorithm."""
        return AveragingClient(problem, client)

    def run(self, problem: Problem) -> Iterator[Row]:
        """See `Algorithm`.

        Raises:
            MixedArchitectures: clients with different models.
        """
        require_one_architecture(self.name, problem)
        watch = Stopwatch(len(problem.shards))
        clients = [self.client(problem, number) for number in range(len(problem.shards))]
        model = problem.fresh_model(0)
        layout = Layout.of_state(model)
        mean = SecureMean(problem, {MODEL: layout}, [client.work for client in clients])
        yield watch.row(0, [client.warm_up() for client in clients])
        for round in range(1, problem.rounds + 1):
            state = layout.read(model)
            layout.write(model, state + mean.exchange([state])[MODEL])
            reached = evaluate(model, problem.test, problem.device)
            yield watch.row(
                round,
                [reached] * len(clients),
                server=reached,
                up=mean.traffic.up,
                down=mean.traffic.down,
                secure_steps=mean.secure_steps,
            )
